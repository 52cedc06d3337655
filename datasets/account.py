"""Every line of a raw file accounted for: kept, or skipped for a reason that is counted and shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from ctrbench.datasets.errors import BadInput, nearest

Policy = Literal["strict", "skip"]
PLACES = 5
"""Places kept per reason."""


class Account:
    """Counts lines and applies the policy for bad rows.

    Args:
        path: named in messages, with the member `file` where it holds several.
        policy: strict raises at the first bad row, skip drops and counts it.
        max_bad_fraction: skip fails above this share of bad rows.

    Attributes:
        read: lines read, headers included.
        header: header lines.
        kept: rows that went on.
        skipped: reason -> rows dropped, bad and left out together.
        left_out: the part of `skipped` that the data set's definition or a stated choice leaves out; none of it is bad.
        places: reason -> the first `PLACES` messages.
        notes: harmless oddities -> how often.
        files: name -> its lines by fate, where the rows come from several files.
        mark: bytes of the text behind the rows that were handed out last; a reader that goes on starts there.
    """

    def __init__(self, path: Path, policy: str = "strict", max_bad_fraction: float = 0.001) -> None:
        if policy not in ("strict", "skip"):
            raise BadInput(f"unknown policy {nearest(policy, ('strict', 'skip'))}")
        if not 0 <= max_bad_fraction <= 1:
            raise BadInput(f"max_bad_fraction={max_bad_fraction}: must be within 0..1")
        self.path, self.policy, self.max_bad_fraction = path, cast(Policy, policy), max_bad_fraction
        self.read = self.header = self.kept = 0
        self.skipped: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}
        self.notes: Counter[str] = Counter()
        self.files: dict[str, dict[str, int]] = {}
        self.mark = 0

    def part(self, path: Path) -> Account:
        """An account of one of several files under the same policy: its lines are numbered from 1."""
        return Account(path, self.policy, self.max_bad_fraction)

    def absorb(self, part: Account) -> None:
        """Adds the closed account of one file."""
        part.close()
        self.read += part.read
        self.header += part.header
        self.kept += part.kept
        self.skipped += part.skipped
        self.notes += part.notes
        for reason, places in part.places.items():
            self.places[reason] = [*self.places.get(reason, []), *places][:PLACES]
        dropped = part.skipped.total()
        self.files[part.path.name] = {
            "read": part.read, "header": part.header, "kept": part.kept, "skipped": dropped,
        }  # fmt: skip

    def note(self, part: Account) -> None:
        """Notes of the closed account of a side table, whose lines are no rows: oddities, and what was dropped."""
        bad = {f"{r}, row dropped": n for r, n in part.skipped.items() if r not in part.left_out}
        for note, count in (part.notes + Counter(bad)).items():
            self.notes[f"{part.path.name}: {note}"] += count

    def fail(self, line: int, reason: str, what: str = "", remedy: str = "", *, file: str = "") -> NoReturn:
        """Raises: the whole file cannot be used."""
        raise BadInput(self._message(line, reason, what, remedy, file))

    def bad(self, line: int, reason: str, field: str, value: str, *, file: str = "") -> None:
        """One bad row: raises under strict, counts under skip."""
        what = f"{field} {value[:40]!r}"
        if self.policy == "strict":
            remedy = "correct the line, or drop and count bad rows with policy=skip"
            raise BadInput(self._message(line, reason, what, remedy, file))
        self._skip(line, reason, what, file)

    def leave_out(self, line: int, reason: str, field: str, value: str, *, file: str = "") -> None:
        """One row that is not part of the data set: counted under every policy, never an error by itself."""
        self.left_out[reason] += 1
        self._skip(line, reason, f"{field} {value[:40]!r}", file)

    def close(self) -> None:
        """Checks that nothing got lost and that not too much was dropped.

        Raises:
            BadInput: under skip, if more than `max_bad_fraction` of the rows were bad, or none was kept.
        """
        dropped = self.skipped.total()
        if self.read != self.header + self.kept + dropped:
            raise AssertionError(f"{self.path}: read {self.read} != {self.header} + {self.kept} + {dropped}")
        shown = "; ".join(places[0] for reason, places in self.places.items() if reason not in self.left_out)
        bad = dropped - self.left_out.total()
        if bad > self.max_bad_fraction * (self.read - self.header):
            raise BadInput(
                f"{self.path}: {bad} of {self.read - self.header} rows are bad, more than max_bad_fraction="
                f"{self.max_bad_fraction}; first: {shown}; correct the file or raise max_bad_fraction"
            )
        if self.kept == 0:
            raise BadInput(f"{self.path}: no rows; give a file with rows")

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        counts = {k: v for k, v in self.state().items() if k != "mark"}
        return {"policy": self.policy, "max_bad_fraction": self.max_bad_fraction, **counts}

    def state(self) -> dict[str, Any]:
        """All that was counted, for `restore`."""
        return {
            "read": self.read, "header": self.header, "kept": self.kept, "skipped": dict(self.skipped),
            "left_out": dict(self.left_out), "places": {k: list(v) for k, v in self.places.items()},
            "notes": dict(self.notes), "files": dict(self.files), "mark": self.mark,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state` was taken."""
        for name in ("read", "header", "kept", "mark"):
            setattr(self, name, state[name])
        self.skipped, self.left_out, self.notes = (Counter(state[k]) for k in ("skipped", "left_out", "notes"))
        self.places = {k: list(v) for k, v in state["places"].items()}
        self.files = dict(state["files"])

    def _skip(self, line: int, reason: str, what: str, file: str) -> None:
        self.skipped[reason] += 1
        if len(self.places.setdefault(reason, [])) < PLACES:
            self.places[reason].append(self._message(line, reason, what, "", file))

    def _message(self, line: int, reason: str, what: str, remedy: str, file: str = "") -> str:
        place = f"{self.path}{'/' + file if file else ''}:{line}"
        return f"{place}: {reason}" + (f": {what}" if what else "") + (f"; {remedy}" if remedy else "")

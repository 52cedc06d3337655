"""What a target of speed came to: wanted, measured, verdict, and how it is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from ctrbench.bench.hardware import this_machine
from ctrbench.datasets.errors import BadInput

Verdict = Literal["met", "missed", "not testable here", "context"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One line of the table that `make bench-targets` prints."""

    group: str
    """Module of `bench.targets` that measured it."""
    target: str
    """What is asked of what, e.g. `DIN unit, forward + backward, B4096 T50 C32: twin / fused`."""
    wanted: str
    """As text, e.g. `>= 3x`; empty for a row that stands beside a target for context."""
    measured: str
    """Value with its interval, e.g. `3.41x [3.30, 3.52]`."""
    verdict: Verdict
    how: str
    """Rounds, shapes, baseline; the floor that explains what falls short; why it is not testable here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """What one group came to, and where."""

    outcomes: tuple[Outcome, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)
    """`this_machine()` of the process that measured: commit, CPU, versions."""
    date: str = ""
    """UTC, to the second."""


def at_least(group: str, target: str, wanted: float, value: float, how: str, unit: str = "x",
             interval: tuple[float, float] | None = None) -> Outcome:  # fmt: skip
    """An outcome judged by its median: met if `value` reaches `wanted`."""
    scale = 100.0 if unit == " %" else 1.0
    shown = f"{value * scale:.3g}{unit}"
    if interval is not None:
        shown += f" [{interval[0] * scale:.3g}, {interval[1] * scale:.3g}]"
    return Outcome(
        group=group, target=target, wanted=f">= {wanted * scale:g}{unit}", measured=shown,
        verdict="met" if value >= wanted else "missed", how=how,
    )  # fmt: skip


def save(outcomes: Sequence[Outcome], file: Path) -> None:
    """Writes outcomes with commit, machine and date, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    body = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "environment": this_machine(),
        "outcomes": [asdict(o) for o in outcomes],
    }  # fmt: skip
    partial.write_text(json.dumps(body, indent=1), encoding="utf-8")
    partial.rename(file)


def load(file: Path) -> Results:
    """What `save` wrote.

    Raises:
        BadInput: not such a file; names it and says what to do.
    """
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
        outcomes = tuple(Outcome(**o) for o in body["outcomes"])
        found = Results(outcomes=outcomes, environment=dict(body["environment"]), date=str(body["date"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{file}: no results of bench-targets ({error}); delete it and measure its group again"
        ) from None
    if wrong := next((o.verdict for o in outcomes if o.verdict not in get_args(Verdict)), None):
        raise BadInput(f"{file}: unknown verdict {wrong!r}; delete it and measure its group again")
    return found

"""`make peers-traces`: HolisticTraceAnalysis and our reader on the same Kineto files; the raw file decides.

Prints a Markdown table. Exit 1 if a figure of ours differs from the raw file, or a difference of the peer's stays
unexplained; 2 if a file or the peer's environment cannot be used.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.hta_rules import causes, figures, read_raw
from ctrbench.bench.trace.kineto import read_kineto

SETTINGS = ("default", "everything")
"""What a user of the peer gets; last step kept and rounding off."""
PEER = Path(".venv-peers-hta/bin/python")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The peer's figure under one setting."""

    value: int | None
    reason: str | None = None
    """Why there is no value."""
    causes: Mapping[str, int]
    """Rule of the peer -> what it adds to the raw figure."""

    def unexplained(self, raw: int) -> int:
        """What the peer's rules leave of its difference from the raw figure."""
        return 0 if self.value is None else self.value - raw - sum(self.causes.values())


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of one file; times in ns."""

    file: str
    figure: str
    raw: int
    ours: int | None
    """None where it is withheld."""
    peer: Mapping[str, Answer]
    """By setting."""

    @property
    def right(self) -> str:
        """Whose figure is that of the raw file; the peer's under its defaults."""
        sides = {"ours": self.ours, "HTA": self.peer["default"].value}
        agreeing = [side for side, value in sides.items() if value == self.raw]
        return "both" if len(agreeing) == 2 else agreeing[0] if agreeing else "neither"

    @property
    def settled(self) -> bool:
        """Ours is that of the raw file or withheld, and every difference of the peer's has its causes."""
        return self.ours in (None, self.raw) and not any(a.unexplained(self.raw) for a in self.peer.values())


def our_figures(path: Path) -> dict[str, int | None]:
    """Figures of our reader under the names of `hta_rules.figures`.

    Raises:
        BadRecording: the file is no Kineto recording.
    """
    summary = read_kineto(path).summary()
    found: dict[str, int | None] = {
        "kernels": summary["kernels"]["launches"],
        "kernel_ns": summary["kernels"]["total_ns"],
        "memcpy": summary["memcpy"]["count"],
        "memset": summary["memset"]["count"],
        "linked_kernels": summary["link"]["kernels_linked"],
    }
    for device, time in (summary["gpu_time_by_device"] or {}).items():
        found[f"busy_ns of device {device}"] = time["busy_ns"]
        found[f"idle_ns of device {device}"] = time["span_ns"] - time["busy_ns"]
    return found


def compare(path: Path, peer: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """The rows of one file.

    Args:
        path: the file.
        peer: what `peers_hta.py` printed for it, by setting.

    Raises:
        BadRecording: the file is no Kineto recording.
    """
    ours, raw = our_figures(path), read_raw(path)
    by_setting = {setting: causes(raw, everything=setting == "everything") for setting in SETTINGS}
    alone = len(raw.devices) == 1
    return [
        Row(
            file=path.name, figure=figure, raw=value, ours=ours.get(figure),
            peer={s: _answer(figure, peer[s], by_setting[s].get(figure, {}), alone) for s in SETTINGS},
        )
        for figure, value in figures(raw.operations, raw.devices).items()
    ]  # fmt: skip


def _answer(figure: str, found: Mapping[str, Any], why: Mapping[str, int], alone: bool) -> Answer:
    if "error" in found:
        return Answer(value=None, reason=str(found["error"]), causes={})
    key, _, device = figure.partition(" of device ")
    if device and not alone:
        return Answer(value=None, reason="one figure for all devices", causes={})
    return Answer(value=found[key], causes=why)


def run_peer(python: Path, files: Sequence[Path]) -> dict[str, Any]:
    """What HolisticTraceAnalysis says of the files.

    Raises:
        BadRecording: there is no such environment, or the peer failed as a whole.
    """
    if not python.is_file():
        raise BadRecording(f"{python}: no such Python; `make peers-traces` installs HolisticTraceAnalysis there")
    script = Path(__file__).with_name("peers_hta.py")
    # -P: the script's folder must not hide the standard library (bench/statistics.py)
    command = [str(python), "-P", str(script), *(str(file.resolve()) for file in files)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BadRecording(f"{python}: HolisticTraceAnalysis failed; install it again:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def markdown(rows: Sequence[Row], version: str) -> list[str]:
    """The table, a line a row."""
    lines = [
        f"| file | figure | raw file | ours | HTA {version} | right | HTA - raw: why | last step kept, no rounding |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        default, everything = (_difference(row.peer[setting], row.raw) for setting in SETTINGS)
        cells = (row.file.partition(".")[0], row.figure, _number(row.raw), _number(row.ours),
                 _number(row.peer["default"].value), row.right, default, everything)  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _number(value: int | None) -> str:
    return "withheld" if value is None else f"{value:,}"


def _difference(answer: Answer, raw: int) -> str:
    if answer.value is None:
        return str(answer.reason)
    parts = [f"{cause} {value:+,}" for cause, value in answer.causes.items()]
    rest = answer.unexplained(raw)
    return "; ".join([*parts, f"**unexplained {rest:+,}**"] if rest else parts) or "equal"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table of the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="Kineto .json or .json.gz")
    parser.add_argument("--peer-python", type=Path, default=PEER)
    options = parser.parse_args(argv)
    try:
        for file in options.files:
            our_figures(file)  # a file that is none is named before the peer starts
        peer = run_peer(options.peer_python, options.files)
        rows = [r for file in options.files for r in compare(file, peer["files"][str(file.resolve())])]
    except BadRecording as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(markdown(rows, peer["version"])))
    wrong = [row for row in rows if not row.settled]
    for row in wrong:
        print(f"not settled: {row.file}, {row.figure}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

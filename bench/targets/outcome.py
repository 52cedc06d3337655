"""What a target of speed came to: wanted, measured, verdict, and how it is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

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
    """Writes whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps([asdict(o) for o in outcomes], indent=1), encoding="utf-8")
    partial.rename(file)


def load(file: Path) -> list[Outcome]:
    """What `save` wrote."""
    return [Outcome(**body) for body in json.loads(file.read_text(encoding="utf-8"))]

"""`ctrbench compare` from its arguments to its exit code: load, judge, print, write."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ctrbench.bench.gate import compare
from ctrbench.bench.gate_sides import load_side
from ctrbench.datasets.errors import BadInput
from ctrbench.reports.comparison import Comparison, as_json, junit, markdown, repeats_text, why
from ctrbench.reports.comparison_page import build_comparison


def run_compare(
    base: str, new: str, baselines: Path, outputs: Mapping[str, Path], *, json: bool, alpha: float, threshold: float,
    models: Sequence[str],
) -> int:  # fmt: skip
    """Judges NEW against BASE.

    Args:
        base, new: run directories or names of baselines.
        baselines: where baselines are kept.
        outputs: files to write: `out` (HTML), `junit`, `summary` (Markdown, appended).
        json: print JSON instead of text.
        alpha, threshold, models: as `gate.compare`.

    Returns:
        0 all equal or better, 1 something is worse or failed in NEW alone, 2 nothing is comparable.

    Raises:
        BadInput, UnknownName: as `gate_sides.load_side`; an output cannot be written.
    """
    sides = load_side(base, baselines), load_side(new, baselines)
    found = compare(*sides, alpha=alpha, threshold=threshold, models=models)
    print(jsonlib.dumps(as_json(found), indent=1, ensure_ascii=False) if json else text(found))
    try:
        if "out" in outputs:
            build_comparison(found, outputs["out"])
        if "junit" in outputs:
            junit(found, outputs["junit"])
        if "summary" in outputs:
            outputs["summary"].parent.mkdir(parents=True, exist_ok=True)
            with outputs["summary"].open("a", encoding="utf-8") as file:  # a job's steps share the file
                file.write(markdown(found))
    except OSError as error:
        raise BadInput(f"cannot write: {error}") from None
    return found.exit_code


def text(c: Comparison) -> str:
    """For a terminal or a log: the loud ones first."""
    order = ("worse", "not comparable", "undecided", "better", "same")
    lines = []
    for v in sorted(c.verdicts, key=lambda v: order.index(v.call)):
        call = v.call.upper() if v.call in order[:3] else v.call
        numbers = "" if v.base is None else f" {v.values}, {v.moved}, n {repeats_text(v)}"
        lines.append(f"{call}: {v.title} of {v.subject.text}:{numbers}" + (f" - {why(v)}" if why(v) else ""))
    lines += [f"note: {note}" for note in c.notes]
    return "\n".join([*lines, c.method, c.headline])

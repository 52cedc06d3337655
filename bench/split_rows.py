"""Rows of the split of a step: by ranges, and by leaving components out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctrbench.bench.trace.ablation import Ablation, compare
from ctrbench.bench.trace.time_split import COVERAGE, Split
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement, Origin


def split_rows(base: Mapping[str, Any], split: Split, origin: Origin) -> list[Measurement]:
    """Shares of stages and blocks; withheld where the named stages explain too little of the step."""
    if not split.complete:
        return [withheld(base, "split_host", _incomplete(split), phase="train")]
    return [
        make(base, "split_host", share, origin, phase="train", scope=scope, n=split.steps)
        for scope, share in split.shares().items()
    ]


def component_rows(
    base: Mapping[str, Any], split: Split, ablation: Ablation, origin: Origin = "measured"
) -> list[Measurement]:
    """Each component seen both ways, both marked where they do not agree; `origin` is that of the ranges."""
    if not split.complete:
        return [withheld(base, "split_component", _incomplete(split), phase="train")]
    rows = []
    for d in compare(split, ablation):
        doubt: dict[str, Any] = {"status": "unstable", "reason": d.doubt} if d.doubt else {}
        at = {"phase": "train", **doubt}
        left_out = d.ablation
        rows += [
            make(base, "split_component", d.projection, origin, scope=f"ranges:{d.component}", n=split.steps, **at),
            make(base, "split_component", left_out.share, "measured", scope=f"left_out:{d.component}",
                 ci_low=left_out.ci_low, ci_high=left_out.ci_high, n=ablation.rounds, **at),
        ]  # fmt: skip
    return rows


def _incomplete(split: Split) -> str:
    return f"coverage_low: the named stages explain {split.coverage:.3f} of the step, under {COVERAGE}"

"""Which part of a model moves the bytes of a training step: the blocks of the counting process by their stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ctrbench.reports.cells import Cell, absent, data_labels, where
from ctrbench.reports.exhibits import Context
from ctrbench.reports.tables import models_of

STAGES = ("embedding", "interaction", "dense")
REST = "outside blocks"
"""Operators that no block of the model ran, forward or backward: loss, glue, the step of a dense optimizer."""
TOTAL = "Operand bytes / step"


def by_block(c: Context, data: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(model, variant) -> what its counting process wrote, on one data set as tables name it."""
    specs = [b.get("spec", {}) for b in c.bodies.values()]
    labels = data_labels((str(s["data"]), str(s.get("split", ""))) for s in specs if s.get("data"))
    found = {}
    for body in c.bodies.values():
        spec, extra = body.get("spec", {}), body.get("extra", {})
        here = labels.get((str(spec.get("data", "")), str(spec.get("split", ""))))
        if spec.get("kind") == "count" and here == data and extra.get("by_block"):
            found[str(spec["model"]), str(spec.get("variant", ""))] = extra
    return found


def stage_of(split: pd.DataFrame) -> dict[str, str]:
    """Block -> stage of its forward work, by the ranges of the traced process."""
    places = (str(s).split("/block:") for s in split["scope"] if "/block:" in str(s))
    return {block: stage for where_, block in places if (stage := where_.removeprefix("stage:")) in STAGES}


def table_of(c: Context, data: str) -> pd.DataFrame:
    """Share of each stage in the operand bytes of a step; a block carries its backward and its optimizer."""
    split = where(c.frame, metric="split_host", data=data, trained=True)
    counted = by_block(c, data)
    rows, index = [], []
    for model, variant in models_of(where(c.frame, data=data, trained=True, metric="bytes_operands"), c.names):
        blocks = counted.get((model, variant), {}).get("by_block", [])
        if not blocks:
            continue
        stages = stage_of(where(split, model=model, variant=variant))
        total = sum(float(b["bytes_own"]) for b in blocks)
        row: dict[str, Any] = {"Model": c.names.title(model, variant), "Camp": c.names.camp(model)}
        row |= shares(blocks, stages, total) | {TOTAL: Cell(total, "bytes_operands", "counted")}
        row["Largest blocks"] = ", ".join(
            f"{b['module'] or REST} {100 * float(b['bytes_own']) / total:.0f} %"
            for b in sorted(blocks, key=lambda b: -float(b["bytes_own"]))[:3]
        )
        rows.append(row)
        index.append(model)
    return pd.DataFrame(rows, index=index)


def shares(blocks: list[Mapping[str, Any]], stages: Mapping[str, str], total: float) -> dict[str, Cell]:
    """Stage -> share of the bytes; withheld where a block has no stage, since its bytes would be in the wrong one."""
    lost = [str(b["module"]) for b in blocks if b["module"] and b["module"] not in stages]
    if lost or not total:
        reason = f"the trace shows no stage of {', '.join(lost)}" if lost else "no bytes"
        return dict.fromkeys((*STAGES, REST), absent("split_bytes", reason))
    sums = dict.fromkeys((*STAGES, REST), 0.0)
    for b in blocks:
        sums[stages.get(str(b["module"]), REST)] += float(b["bytes_own"]) / total
    return {stage: Cell(value, "split_bytes", "counted") for stage, value in sums.items()}

"""Where a training step goes, by ranges and by leaving out: tables and section. Pure functions of tidy rows."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ctrbench.reports import byte_split, figures
from ctrbench.reports.cells import KNOWN, absent, pick, where
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit, extremes
from ctrbench.reports.names import Names
from ctrbench.reports.tables import models_of

STAGES = ("data", "h2d", "embedding", "interaction", "dense", "loss", "backward", "optimizer", "comm", "other")
ASIDE = ("Model", "Camp", "Largest blocks", byte_split.TOTAL)
WAYS = {"ranges": "ranges", "left_out": "leaving out"}
"""Scope of a `split_component` row -> how the table calls it."""


def by_stage(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """Share of a training step by stage, and the three largest blocks with their backward."""
    rows_all = where(frame, metric="split_host", data=data, trained=True)
    stages = _ordered({s.removeprefix("stage:") for s in rows_all["scope"] if s.startswith("stage:") and "/" not in s})
    rows, index = [], []
    for model, variant in models_of(rows_all, names):
        mine = where(rows_all, model=model, variant=variant)
        row: dict[str, Any] = {"Model": names.title(model, variant), "Camp": names.camp(model)}
        if not mine["status"].isin(KNOWN).any():
            reason = str(mine.iloc[0]["reason"])
            row |= {s: absent("split_host", reason) for s in stages}
        else:
            row |= {s: pick(mine, "split_host", scope=f"stage:{s}") for s in stages}
        row["Largest blocks"] = _blocks_text(_blocks(mine))
        rows.append(row)
        index.append(model)
    return pd.DataFrame(rows, index=index)


def by_component(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """Components with their backward, seen two ways: two rows a model."""
    rows_all = where(frame, metric="split_component", data=data, trained=True)
    found = _ordered({s.split(":", 1)[1] for s in rows_all["scope"] if ":" in s})
    rows, index = [], []
    for model, variant in models_of(rows_all, names):
        mine = where(rows_all, model=model, variant=variant)
        for way, title in WAYS.items():
            row: dict[str, Any] = {"Model": names.title(model, variant), "Camp": names.camp(model), "Seen by": title}
            if mine["status"].isin(KNOWN).any():
                row |= {c: pick(mine, "split_component", scope=f"{way}:{c}") for c in found}
            else:
                row |= {c: absent("split_component", str(mine.iloc[0]["reason"])) for c in found}
            rows.append(row)
            index.append(model)
    return pd.DataFrame(rows, index=index)


def section(c: Context) -> Section | None:
    """Where a training step goes."""
    exhibits: list[Exhibit] = []
    parts = []
    for track, data in c.data:
        table = by_stage(c.frame, data, c.names)
        if table.empty:
            continue
        exhibits += exhibit(
            table,
            (
                f"Share of a training step by stage on {data}",
                figures.split(table, "% of the traced step", ASIDE),
            ),
            title=f"{data} ({track} track)",
            data=data,
            hardware="cpu",
        )
        parts.append(_slowest(c, data))
        for stage in ("embedding", "optimizer"):
            span = extremes(table, stage)
            parts.append(f"On {data} {stage} takes {span} of a step." if span else "")
        both = by_component(c.frame, data, c.names)
        exhibits += exhibit(both, title=f"{data}: the same by leaving each component out", data=data, hardware="cpu")
        parts.append(_agreement(c, data, len(both) // len(WAYS)))
        moved = byte_split.table_of(c, data)
        drawn = figures.split(moved, "% of the operand bytes", ASIDE) if len(moved) else None
        exhibits += exhibit(moved, (f"Share of the operand bytes of a training step on {data}", drawn),
                            title=f"{data}: bytes by stage", data=data)  # fmt: skip
        span = extremes(moved, "embedding")
        parts.append(f"On {data} embedding moves {span} of the operand bytes of a step." if span else "")
    if not exhibits:
        return None
    return Section(
        id="split",
        title="Where a step goes",
        sentence=" ".join(p for p in parts if p),
        exhibits=tuple(exhibits),
        see=("kernels", "The operators behind each block"),
        caveat="Exclusive host time of NVTX ranges, from a separate traced process: the tracer slows it, so read "
        "shares, not times. What no stage covers is “other”. Leaving out uses no tracer: whole steps and steps without "
        "one component by turns; there a stage holds the backward of its blocks. Marked where the two ways are further "
        "apart than the interval and ten points of the step, or the interval is too wide to tell; what a loader "
        "thread takes from the cores of a step can show only there. Bytes are counted: what every operator reads and "
        "writes as if nothing stayed in cache; a block carries those of its backward.",
    )


def _agreement(c: Context, data: str, models: int) -> str:
    rows = where(c.frame, metric="split_component", data=data, trained=True)
    rows = rows[rows["value"].notna() & rows["scope"].str.startswith("ranges:")]
    if rows.empty:
        return ""
    apart, noisy = (rows[rows["reason"].str.startswith(word)] for word in ("disagree", "noise"))
    unsure = f"; for {len(noisy)} of {len(rows)} components the machine was too busy to tell" if len(noisy) else ""
    if apart.empty:
        return f"On {data} leaving components out contradicts the ranges of none of {models} models{unsure}."
    named = [
        f"{c.names.title(m, v)} ({scope.split(':', 1)[1]})"
        for m, v, scope in zip(apart["model"], apart["variant"], apart["scope"], strict=True)
    ]
    return f"On {data} leaving a component out contradicts the ranges for {', '.join(dict.fromkeys(named))}{unsure}."


def _ordered(found: set[str]) -> list[str]:
    return [s for s in STAGES if s in found] + sorted(found - set(STAGES))


def _blocks(mine: pd.DataFrame) -> list[tuple[str, float, float]]:
    """(block, its share of a step with its backward, share of the backward), the three largest first."""
    part = mine[mine["scope"].str.contains("/block:") & mine["value"].notna()]
    found: dict[str, list[float]] = {}
    for scope, value in zip(part["scope"], part["value"], strict=True):
        stage, _, block = scope.partition("/block:")
        both = found.setdefault(block, [0.0, 0.0])
        both[0] += value
        both[1] += value if stage == "stage:backward" else 0.0
    return sorted(((b, both, back) for b, (both, back) in found.items()), key=lambda x: -x[1])[:3]


def _blocks_text(blocks: list[tuple[str, float, float]]) -> str:
    return ", ".join(f"{b} {100 * x:.0f} % (backward {100 * back:.0f} %)" for b, x, back in blocks) or "—"


def _slowest(c: Context, data: str) -> str:
    """The largest block of every model, for who asks where to begin."""
    rows = where(c.frame, metric="split_host", data=data, trained=True)
    first = {w: _blocks(where(rows, model=w[0], variant=w[1]))[:1] for w in models_of(rows, c.names)}
    said = [
        f"{blocks[0][0]} in {c.names.title(*w)} ({100 * blocks[0][1]:.0f} %)" for w, blocks in first.items() if blocks
    ]
    return f"The slowest block with its backward on {data}: {', '.join(said)}." if said else ""

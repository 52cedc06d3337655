"""Blocks of a recording under the roofs of its device.

Work and bytes are hardware counters where the recording has them, else counted of the same configuration; time is that
of the recorded kernels, on a CPU the block's share of an untraced step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from ctrbench.reports import kernel_figures as drawn
from ctrbench.reports.cells import Cell, absent, pick, where
from ctrbench.reports.exhibits import Context, Exhibit, exhibit
from ctrbench.reports.kernel_rows import COUNTERS
from ctrbench.reports.recorded import Recording, largest, with_place

NO_COUNTERS = "`ctrbench profile --tool ncu` records counters"


def roofline(r: Recording, c: Context) -> tuple[Exhibit, ...]:
    """The roofline of a recording, or why there is none."""
    if r.work[list(COUNTERS)].notna().any(axis=None):
        return _counter_roofline(r, c)
    return _cpu_roofline(r, c) if r.facts.get("device") == "cpu" else _device_roofline(r, c)


def _made(r: Recording, table: pd.DataFrame, why: str, caption: str, figure: Any, note: str) -> tuple[Exhibit, ...]:
    title = "Roofline by block"
    if table.empty:
        return (Exhibit(table=pd.DataFrame([{"Reason": why}]), title=f"{title}: withheld", group=r.group),)
    return exhibit(table, (caption, figure), title=title, note=note, group=r.group)


def _cpu_roofline(r: Recording, c: Context) -> tuple[Exhibit, ...]:
    first = r.rows.iloc[0]
    mine = where(c.frame, model=r.model, variant=str(first["variant"]), data=r.data, phase="train", trained=True)
    table, why = cpu_blocks(r, mine, _counted(r, c))
    ceilings = (pick(mine, m, scope=None) for m in ("ceiling_gemm", "ceiling_copy", "ceiling_cache"))
    return _made(
        r,
        table,
        why,
        "Blocks of this model under the measured ceilings of this CPU; hover for the largest operators",
        drawn.roofline(table, drawn.device_roofs(*ceilings), {"Intensity": "by operand bytes"}, r.model, c.names),
        "FLOPs and operand bytes of forward, backward and optimizer of a block together, counted; no cache: a point "
        "above the roof of memory reuses data in cache.",
    )


def _counted(r: Recording, c: Context) -> Mapping[str, Any]:
    """FLOPs and bytes by block: of the record itself, or of the counting process of the same configuration."""
    own = c.bodies.get(r.key, {}).get("extra", {}).get("counted")
    if own:
        return dict(own)
    want = {n: str(r.rows.iloc[0][n]) for n in ("model", "variant", "data", "split")}
    for body in c.bodies.values():
        spec = body.get("spec", {})
        if spec.get("kind") == "count" and all(str(spec.get(n, "")) == v for n, v in want.items()):
            return dict(body.get("extra", {}))
    return {}


def _uncounted(counted: Mapping[str, Any]) -> str:
    """Why there is no work by block; empty if there is."""
    if counted.get("withheld"):
        return str(counted["withheld"])
    return "" if counted.get("by_block") else "no counting process of this configuration is among the records"


def cpu_blocks(r: Recording, mine: pd.DataFrame, counted: Mapping[str, Any]) -> tuple[pd.DataFrame, str]:
    """(FLOPs, bytes, time and rate of each block that has FLOPs; why there is none).

    Args:
        r: the traced process.
        mine: training rows of the same configuration.
        counted: `extra` of its counting process.
    """
    split, step = pick(mine, "split_host", scope=None), pick(mine, "step_time")
    whole = float(r.ranges["duration_ns"].sum())
    why = _uncounted(counted)
    if not why and (split.value is None or not whole):
        why = split.reason or "the recording marks no step"
    if not why and step.value is None:
        why = f"no step time of the untraced process ({step.reason})"
    if why:
        return pd.DataFrame(), why
    spent, whole_step = r.ranges.groupby("block")["duration_ns"].sum(), step.value or 0.0

    def seconds(ns: float) -> Cell:
        return Cell(whole_step * ns / whole, "step_time", "derived", status=step.status, reason=step.reason)

    return _blocks(r, counted, spent, seconds)


def _device_roofline(r: Recording, c: Context) -> tuple[Exhibit, ...]:
    table, why = device_blocks(r, _counted(r, c))
    roofs = drawn.roofs_of(r.facts)
    lacking = r.why("roofs", "") and f"Roofs withheld: {r.why('roofs', '')}."
    return _made(
        r, table, f"{why}; {NO_COUNTERS}", "Blocks of this model, counted work over recorded time of their kernels",
        drawn.roofline(table, roofs, {"Intensity": "by operand bytes"}, r.model, c.names),
        " ".join(text for text in (
            lacking, "FLOPs and operand bytes are counted for the operators of a block, forward and backward, not read "
            "from the device; time is the sum over its kernels. A point above the roof of memory reuses data in cache.",
        ) if text),
    )  # fmt: skip


def device_blocks(r: Recording, counted: Mapping[str, Any]) -> tuple[pd.DataFrame, str]:
    """(FLOPs, bytes, kernel time and rate of each block that has FLOPs; why there is none).

    Args:
        r: a recording of kernels without counters.
        counted: FLOPs and bytes by block of the same configuration.
    """
    why = _uncounted(counted) or r.why("blocks", "") or r.why("launches", "")
    if not why and not r.facts.get("steps"):
        why = "the recording marks no step"
    if why:
        return pd.DataFrame(), why
    spent = r.launches.groupby("block")["duration_ns"].sum() / r.steps
    return _blocks(r, counted, spent, lambda ns: Cell(ns / 1e9, "launch_time", r.origin))


def _blocks(
    r: Recording, counted: Mapping[str, Any], spent: pd.Series, seconds: Callable[[float], Cell]
) -> tuple[pd.DataFrame, str]:
    """A row for each block with FLOPs and time; why there is none.

    Args:
        r: the recording.
        counted: with `by_block`.
        spent: ns by block.
        seconds: the cell of a time in ns.
    """
    rows = []
    for block in counted["by_block"]:
        name, ns = str(block["module"]), float(spent.get(str(block["module"]), 0))
        if not name or not block["flops"] or not ns:
            continue
        flops = Cell(float(block["flops"]), "flops_elementwise", "counted")
        moved = Cell(float(block["bytes_own"]), "bytes_operands", "counted")
        time = seconds(ns)
        rows.append({
            "Block": name, "FLOPs / step": flops, "Operand bytes / step": moved,
            "Intensity": _counted_ratio(flops, moved), "Time / step": time,
            "Achieved FLOP/s": flops.over(time, "block_flop_rate"),
            "Largest": largest(r.work[(r.work["block"] == name) & (r.work["launches"] > 0)], "name", 4),
        })  # fmt: skip
    return pd.DataFrame(rows), "" if rows else "no block of this model has FLOPs and time"


def _counted_ratio(above: Cell, below: Cell) -> Cell:
    ratio = above.over(below, "ai_operands")
    return ratio if ratio.value is None else Cell(ratio.value, "ai_operands", "counted")


def _counter_roofline(r: Recording, c: Context) -> tuple[Exhibit, ...]:
    table, roofs = counter_blocks(r), drawn.roofs_of(r.facts)
    columns = {"Intensity (DRAM)": "by DRAM bytes", "Intensity (L2)": "by L2 bytes"}
    lacking = r.why("l2_roof", "") and f"L2 roof withheld: {r.why('l2_roof', '')}."
    device = r.why("roofs", "") and f"Roofs of the catalogue withheld: {r.why('roofs', '')}."
    places = r.why("blocks", "") and f"By stage alone: {r.why('blocks', '')}."
    replayed = "Kernels were replayed one by one: a rate is that of the kernels alone."
    return _made(
        r, table, "", "Blocks by hardware counters under the roofs of DRAM and L2; hover for the largest kernels",
        drawn.roofline(table, roofs, columns, r.model, c.names),
        " ".join(text for text in (places, lacking, device, replayed) if text),
    )  # fmt: skip


def counter_blocks(r: Recording) -> pd.DataFrame:
    """FLOPs, DRAM and L2 bytes, time and rate by stage and block, from counters."""
    rows = []
    for place, part in with_place(r.work).groupby("place", sort=False):
        sums = {n: _counter(part, n, m, r.origin) for n, m in _MEASURES.items()}
        seconds = Cell(float(part["duration_ns"].sum()) / 1e9, "launch_time", r.origin)
        rows.append({
            "Block": str(place), "Kernels": f"{int(part['launches'].sum()):,}", "FLOPs": sums["flops"],
            "DRAM bytes": sums["dram_bytes"], "L2 bytes": sums["l2_bytes"],
            "Intensity (DRAM)": sums["flops"].over(sums["dram_bytes"], "ai_operands"),
            "Intensity (L2)": sums["flops"].over(sums["l2_bytes"], "ai_operands"), "Time": seconds,
            "Achieved FLOP/s": sums["flops"].over(seconds, "block_flop_rate"), "Largest": largest(part, "name", 4),
        })  # fmt: skip
    return pd.DataFrame(rows)


_MEASURES = {"flops": "flops_elementwise", "dram_bytes": "bytes_operands", "l2_bytes": "bytes_operands"}


def _counter(part: pd.DataFrame, name: str, metric: str, origin: str) -> Cell:
    if part[name].isna().any():
        return absent(metric, "field_missing: some launch lacks the counters")
    return Cell(float(part[name].sum()), metric, origin)

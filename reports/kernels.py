"""The section of recorded launches: how many, how long, where in the model, and how far below the roofs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ctrbench.reports import kernel_figures as drawn
from ctrbench.reports.cells import Cell, absent, data_labels, pick, text_of, where
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit, extremes
from ctrbench.reports.kernel_rows import COUNTERS, KERNEL, OPERATOR, RANGE, STEP, TEXTS, TOTAL, WHOLE, short_share

SMALLEST = 0.01
"""Names of a smaller share of a recording's time are summed in its treemap."""
NO_RANGE, OUTSIDE = "no range", "outside blocks"
NO_COUNTERS = "the recording holds no counters; `ctrbench profile --tool ncu` records them"


@dataclass(frozen=True)
class Recording:
    """The rows and facts of one record."""

    title: str
    model: str
    data: str
    key: str
    rows: pd.DataFrame
    """Of `kernel_rows`; missing text is empty, numbers are plain floats."""
    facts: Mapping[str, Any]
    spec: Mapping[str, Any]

    @property
    def group(self) -> str:
        """How the page names it."""
        return f"{self.title} on {self.data}, {self.device}"

    @property
    def device(self) -> str:
        """`this CPU (torch.profiler)`."""
        device = str(self.facts.get("device", "n/k"))
        tool = str(self.spec.get("tracer") or "none")
        return f"{'this CPU' if device == 'cpu' else device} ({tool if tool != 'none' else 'torch.profiler'})"

    @property
    def origin(self) -> str:
        return str(self.rows["origin"].iloc[0])

    @property
    def steps(self) -> int:
        """Steps that totals sum over; 1 where the recording marks none."""
        return int(self.facts.get("steps") or 1)

    def why(self, what: str, default: str) -> str:
        """Reason for which a part is withheld."""
        return str(self.facts.get("withheld", {}).get(what) or default)

    @cached_property
    def work(self) -> pd.DataFrame:
        """Totals of kernels, copies and operators."""
        return self.rows[(self.rows["view"] == TOTAL) & (self.rows["kind"] != RANGE)]

    @cached_property
    def launches(self) -> pd.DataFrame:
        """Totals of kernels, or of operators that are launches."""
        return self.work[self.work["kind"].isin([KERNEL, OPERATOR]) & (self.work["launches"] > 0)]

    @cached_property
    def ranges(self) -> pd.DataFrame:
        """Exclusive host time by stage and block."""
        return self.rows[(self.rows["view"] == TOTAL) & (self.rows["kind"] == RANGE)]


def recordings(c: Context) -> list[Recording]:
    """Every record with launches, in the order of every table."""
    if c.kernels.empty:
        return []
    labels = data_labels(zip(c.frame["data"], c.frame["split"], strict=True)) if "split" in c.frame else {}
    out = []
    for key, typed in c.kernels.groupby("run", sort=False):
        rows, body = _plain(typed), c.bodies.get(str(key), {})
        first = {name: str(rows[name].iloc[0]) for name in ("model", "variant", "data", "split")}
        data = labels.get((first["data"], first["split"]), first["data"])
        out.append(
            Recording(
                c.names.title(first["model"], first["variant"]), first["model"], data, str(key), rows,
                body.get("extra", {}).get("kernels", {}), body.get("spec", {}),
            )
        )  # fmt: skip
    return sorted(out, key=lambda r: (r.data, *c.names.order(r.model, r.title), r.key))


def _plain(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns whose filters are fast and need no logic for missing values."""
    text = rows[list(TEXTS)].astype(object)
    names = [*WHOLE, *COUNTERS]
    numbers = rows[names].astype("Float64").to_numpy("float64", na_value=np.nan)
    return text.where(text.notna(), "").join(pd.DataFrame(numbers, index=rows.index, columns=names))


def section(c: Context) -> Section | None:
    """Shown where a run recorded launches."""
    found = recordings(c)
    if not found:
        return None
    table = overview(found, c)
    count, small = extremes(table, "Launches / step"), extremes(table, "Launches of at most 10 µs")
    parts = [f"a step launches {count}"] if count else []
    parts += [f"{small} of the launches take at most 10 µs"] if small else ["no launch is recorded, ranges alone"]
    exhibits = list(exhibit(table, title="Recordings", open=True))
    for r in found:
        exhibits += _of_recording(r, c)
    return Section(
        id="kernels",
        title="Kernels and operators: one step, block by block",
        sentence=f"In {len(found)} recorded configurations {', and '.join(parts)}.",
        exhibits=tuple(exhibits),
        caveat="On a CPU a launch is a dispatched operator that works and holds no other that works; its time leaves "
        "out what runs inside it. Launches are counted in the recording here; the measured launches of a step, "
        "elsewhere on the page, are operators dispatched by the model, which are fewer. The profiler slows every "
        "launch, so short ones read long. “Between operators” is host time of a block that no operator of it covers. "
        "Kernels overlap: their times may add up to more than a step takes.",
    )


def overview(found: list[Recording], c: Context) -> pd.DataFrame:
    """One row a recording; what it does not hold is withheld with the reason."""
    rows = []
    for r in found:
        per_step = absent("launches_recorded", r.why("launches", "the recording marks no step"))
        if r.facts.get("steps") and len(r.launches):
            per_step = Cell(float(r.launches["launches"].sum()) / r.steps, "launches_recorded", r.origin, n=r.steps)
        rows.append({
            "Model": r.title, "Camp": c.names.camp(r.model), "Data": r.data, "Recorded on": r.device,
            "Steps": str(r.facts.get("steps") or "—"), "Launches / step": per_step,
            "Launches of at most 10 µs": _share(r, "launches"), "Their share of time": _share(r, "duration_ns"),
            "Largest family": _largest(r.work, "family"), "Largest block": _largest(_with_place(r.work), "place"),
            "Note": _note(r.facts),
        })  # fmt: skip
    table = pd.DataFrame(rows, index=[r.model for r in found])
    return table if (table["Note"] != "—").any() else table.drop(columns="Note")


def _note(facts: Mapping[str, Any]) -> str:
    """What a recording does not hold, and what was left out."""
    parts = [f"no {what.replace('_', ' ')}: {why}" for what, why in facts.get("withheld", {}).items()]
    for name, text in (("outside_steps", "launches lie in no step"), ("idle_steps", "steps launch nothing"),
                       ("untimed", "launches have no time")):  # fmt: skip
        if count := facts.get(name):
            parts.append(f"{count} {text} and are left out")
    return "; ".join(parts) or "—"


def _share(r: Recording, weight: str) -> Cell:
    value = short_share(r.launches, weight)
    if value is None:
        return absent("kernel_size_hist", r.why("launches", "no launch is recorded"))
    return Cell(value, "kernel_size_hist", r.origin)


def _with_place(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `place`, the block within its stage."""
    place = rows["stage"].where(rows["block"] == "", rows["stage"] + " › " + rows["block"])
    return rows.assign(place=place.where(place != "", "n/k"))


def _largest(rows: pd.DataFrame, column: str, count: int = 1) -> str:
    sums = rows.groupby(column)["duration_ns"].sum().sort_values(ascending=False, kind="stable")
    whole = float(sums.sum())
    best = [f"{drawn.short(str(n))} {100 * float(v) / whole:.0f} %" for n, v in sums.head(count).items() if whole]
    return ", ".join(best) or "—"


def _of_recording(r: Recording, c: Context) -> Iterator[Exhibit]:
    for made in (_timeline(r), _treemap(r), _sizes(r), _roofline(r, c)):
        yield from made


def _timeline(r: Recording) -> tuple[Exhibit, ...]:
    step = r.rows[r.rows["view"] == STEP]
    rows = [
        {"Lane": lane.name, "Stage": stage, "Block": block or "—", "Events": f"{len(part):,}",
         "First start": Cell(float(part["start_ns"].min()) / 1e9, "launch_time", r.origin),
         "Time": Cell(float(part["duration_ns"].sum()) / 1e9, "launch_time", r.origin)}
        for lane in drawn.lanes(step)
        for (stage, block), part in lane.rows.groupby(["stage", "block"], sort=False)
    ]  # fmt: skip
    many = int((step["kind"] != RANGE).sum()) and int(step.loc[step["kind"] != RANGE, "launches"].sum())
    cut = f"; the longest {drawn.DRAWN_LAUNCHES:,} of {many:,} launches" if many > drawn.DRAWN_LAUNCHES else ""
    caption = f"The step of median duration on the clock, coloured by stage{cut}"
    table = pd.DataFrame(rows)
    return exhibit(table, (caption, drawn.timeline(step)), title="Timeline", group=r.group)


# -------------------------------------------------------------------- treemap


def leaves(r: Recording) -> list[tuple[tuple[str, ...], int, int, str]]:
    """(stage, block if the stage has any, family and name; ns a step; launches of all steps; stage), largest first.

    Names of less than `SMALLEST` of all time are summed within their family. Where operators are recorded, host time of
    a block that none covers is a part of its own.
    """
    keys = ["stage", "block", "family", "name"]
    sums = r.work.groupby(keys, sort=False)[["duration_ns", "launches"]].sum().reset_index()
    on_host = bool((r.work["kind"] == OPERATOR).any())
    whole = float((r.ranges if on_host else sums)["duration_ns"].sum())
    blocks = pd.concat([sums, r.ranges])[["stage", "block"]].query("block != ''")["stage"].unique()

    def place(stage: str, block: str) -> tuple[str, ...]:
        return (stage or NO_RANGE, block or OUTSIDE) if stage in blocks else (stage or NO_RANGE,)

    found: dict[tuple[str, ...], tuple[float, float]] = {}
    small: dict[tuple[str, ...], list[tuple[str, float, float]]] = {}
    for stage, block, family, name, ns, n in sums[[*keys, "duration_ns", "launches"]].values.tolist():
        above = (*place(stage, block), family)
        if ns < SMALLEST * whole:
            small.setdefault(above, []).append((name, ns, n))
        else:
            found[(*above, name)] = ns, n
    for above, rest in small.items():
        name = rest[0][0] if len(rest) == 1 else f"{len(rest)} smaller names"
        found[(*above, name)] = sum(ns for _, ns, _ in rest), sum(n for *_, n in rest)
    if on_host:
        covered = sums.groupby(["stage", "block"])["duration_ns"].sum().to_dict()
        for stage, block, ns in r.ranges[["stage", "block", "duration_ns"]].values.tolist():
            left = ns - covered.get((stage, block), 0)
            if left > 0:
                found[(*place(stage, block), drawn.BETWEEN)] = left, 0
    out = [(p, round(ns / r.steps), int(n), p[0]) for p, (ns, n) in found.items()]
    return sorted((x for x in out if x[1] > 0), key=lambda x: -x[1])


def _treemap(r: Recording) -> tuple[Exhibit, ...]:
    parts = leaves(r) if len(r.work) else []
    whole = sum(ns for _, ns, _, _ in parts)
    rows = [
        {"Part": " › ".join(drawn.short(p) for p in path),
         "Launches / step": f"{n / r.steps:,.3g}" if n else "—",
         "Time / step": Cell(ns / 1e9, "launch_time", r.origin),
         "Share": f"{100 * ns / whole:.1f} %"}
        for path, ns, n, _ in parts
    ]  # fmt: skip
    per = "a step" if r.facts.get("steps") else "all launches"
    figure = drawn.treemap([(p, ns, s) for p, ns, _, s in parts], r.title)
    return exhibit(
        pd.DataFrame(rows),
        (f"Time of {per} by stage, block, family and name; a click or the list goes into a part", figure),
        title="Treemap", group=r.group,
    )  # fmt: skip


# ---------------------------------------------------------------------- sizes


def _sizes(r: Recording) -> tuple[Exhibit, ...]:
    table = sizes(r)
    share, time = _share(r, "launches"), _share(r, "duration_ns")
    note = f"{share.text} of the launches take at most 10 µs; they hold {time.text} of the time in launches."
    return exhibit(table, ("Launches by duration", drawn.histogram(table)), title="Sizes", note=note, group=r.group)


def sizes(r: Recording) -> pd.DataFrame:
    """Launches and their time by duration class, from the first class to the last that has any."""
    sums = r.launches.groupby("bin_ns")[["launches", "duration_ns"]].sum()
    n, ns = float(sums["launches"].sum()), float(sums["duration_ns"].sum())
    return pd.DataFrame([
        {"At most": text_of(edge / 1e9, "launch_time").replace(".00", "").replace(".0 ", " "),
         "Launches / step": f"{count / r.steps:,.3g}",
         "Share of launches": Cell(count / n, "kernel_size_hist", r.origin),
         "Share of time": Cell(spent / ns if ns else 0.0, "kernel_size_hist", r.origin)}
        for edge, count, spent in sums.sort_index().reset_index().to_numpy(float).tolist()
    ])  # fmt: skip


# ------------------------------------------------------------------- roofline


def _roofline(r: Recording, c: Context) -> tuple[Exhibit, ...]:
    if r.work[list(COUNTERS)].notna().any(axis=None):
        return _counter_roofline(r, c)
    if r.facts.get("device") == "cpu":
        return _cpu_roofline(r, c)
    return (Exhibit(table=pd.DataFrame([{"Reason": NO_COUNTERS}]), title="Roofline by block: withheld", group=r.group),)


def _cpu_roofline(r: Recording, c: Context) -> tuple[Exhibit, ...]:
    first = r.rows.iloc[0]
    mine = where(c.frame, model=r.model, variant=str(first["variant"]), data=r.data, phase="train", trained=True)
    counted = _counted(c, first)
    table, why = cpu_blocks(r, mine, counted)
    title = "Roofline by block"
    if table.empty:
        return (Exhibit(table=pd.DataFrame([{"Reason": why}]), title=f"{title}: withheld", group=r.group),)
    roofs = drawn.device_roofs(*(pick(mine, m, scope=None) for m in ("ceiling_gemm", "ceiling_copy")))
    figure = drawn.roofline(table, roofs, {"Intensity": "by operand bytes"}, r.model, c.names)
    note = (
        "FLOPs and operand bytes of forward, backward and optimizer of a block together, counted; no cache: a point "
        "above the slanted roof reuses data in cache."
    )
    caption = "Blocks of this model under the measured ceilings of this CPU; hover for the largest operators"
    return exhibit(table, (caption, figure), title=title, note=note, group=r.group)


def _counted(c: Context, row: pd.Series) -> Mapping[str, Any]:
    """`extra` of the counting process of the same configuration; empty if there is none."""
    want = {n: str(row[n]) for n in ("model", "variant", "data", "split")}
    for body in c.bodies.values():
        spec = body.get("spec", {})
        if spec.get("kind") == "count" and all(str(spec.get(n, "")) == v for n, v in want.items()):
            return dict(body.get("extra", {}))
    return {}


def cpu_blocks(r: Recording, mine: pd.DataFrame, counted: Mapping[str, Any]) -> tuple[pd.DataFrame, str]:
    """(FLOPs, bytes, time and rate of each block that has FLOPs; why there is none).

    Args:
        r: the traced process.
        mine: training rows of the same configuration.
        counted: `extra` of its counting process.
    """
    split, step = pick(mine, "split_host", scope=None), pick(mine, "step_time")
    whole = float(r.ranges["duration_ns"].sum())
    reasons = (
        (not counted.get("by_block"), "no counting process of this configuration is among the records"),
        (bool(counted.get("withheld")), str(counted.get("withheld"))),
        (split.value is None or not whole, split.reason or "the recording marks no step"),
        (step.value is None, f"no step time of the untraced process ({step.reason})"),
    )
    if why := next((text for wrong, text in reasons if wrong), ""):
        return pd.DataFrame(), why
    assert step.value is not None
    spent = r.ranges.groupby("block")["duration_ns"].sum()
    rows = []
    for block in counted["by_block"]:
        name, ns = str(block["module"]), float(spent.get(str(block["module"]), 0))
        if not name or not block["flops"] or not ns:
            continue
        flops = Cell(float(block["flops"]), "flops_elementwise", "counted")
        moved = Cell(float(block["bytes_own"]), "bytes_operands", "counted")
        seconds = Cell(step.value * ns / whole, "step_time", "derived", status=step.status, reason=step.reason)
        rows.append({
            "Block": name, "FLOPs / step": flops, "Operand bytes / step": moved,
            "Intensity": _counted_ratio(flops, moved), "Time / step": seconds,
            "Achieved FLOP/s": flops.over(seconds, "block_flop_rate"),
            "Largest": _largest(r.work[(r.work["block"] == name) & (r.work["launches"] > 0)], "name", 4),
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
    figure = drawn.roofline(table, roofs, columns, r.model, c.names)
    caption = "Blocks by hardware counters under the DRAM roof; hover for the largest kernels"
    replayed = "Kernels were replayed one by one: a rate is that of the kernels alone."
    note = " ".join(text for text in (lacking, device, replayed) if text)
    return exhibit(table, (caption, figure), title="Roofline by block", note=note, group=r.group)


def counter_blocks(r: Recording) -> pd.DataFrame:
    """FLOPs, DRAM and L2 bytes, time and rate by stage and block, from counters."""
    rows = []
    for place, part in _with_place(r.work).groupby("place", sort=False):
        sums = {n: _counter(part, n, m, r.origin) for n, m in _MEASURES.items()}
        seconds = Cell(float(part["duration_ns"].sum()) / 1e9, "launch_time", r.origin)
        rows.append({
            "Block": str(place), "Kernels": f"{int(part['launches'].sum()):,}", "FLOPs": sums["flops"],
            "DRAM bytes": sums["dram_bytes"], "L2 bytes": sums["l2_bytes"],
            "Intensity (DRAM)": sums["flops"].over(sums["dram_bytes"], "ai_operands"),
            "Intensity (L2)": sums["flops"].over(sums["l2_bytes"], "ai_operands"), "Time": seconds,
            "Achieved FLOP/s": sums["flops"].over(seconds, "block_flop_rate"), "Largest": _largest(part, "name", 4),
        })  # fmt: skip
    return pd.DataFrame(rows)


_MEASURES = {"flops": "flops_elementwise", "dram_bytes": "bytes_operands", "l2_bytes": "bytes_operands"}


def _counter(part: pd.DataFrame, name: str, metric: str, origin: str) -> Cell:
    if part[name].isna().any():
        return absent(metric, "field_missing: some launch lacks the counters")
    return Cell(float(part[name].sum()), metric, origin)

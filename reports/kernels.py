"""The section of recorded launches: how many, how long, where in the model, and how far below the roofs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from ctrbench.reports import kernel_figures as drawn
from ctrbench.reports.block_rooflines import roofline
from ctrbench.reports.cells import Cell, absent, text_of
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit, extremes
from ctrbench.reports.kernel_rows import OPERATOR, RANGE, STEP, short_share
from ctrbench.reports.recorded import Recording, largest, recordings, with_place

SMALLEST = 0.01
"""Names of a smaller share of a recording's time are summed in its treemap."""
NO_RANGE, OUTSIDE = "no range", "outside blocks"


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
        "out what runs inside it. Launches are counted in the recording here; “Operators / step”, elsewhere on "
        "the page, is a count of dispatched operators and another number. The profiler slows every launch, so short "
        "ones read long. “Between operators” is host time of a block that no operator of it covers. "
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
            "Largest family (of launch time)": largest(r.work, "family"),
            "Largest block and stage (of launch time)": largest(with_place(r.work), "place"),
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


def _of_recording(r: Recording, c: Context) -> Iterator[Exhibit]:
    for made in (_timeline(r), _treemap(r), _sizes(r), roofline(r, c)):
        for one in made:
            yield replace(one, model=r.title, data=r.data, hardware=str(r.facts.get("device", "")))


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

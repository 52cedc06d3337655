"""AUC against what it costs, and which models no other beats on both: one front a data set and a cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ctrbench.reports.cells import Cell, absent, pick, where
from ctrbench.reports.claim_evidence import listed
from ctrbench.reports.claim_rules_scaling import GROUPS
from ctrbench.reports.drawing import (
    LINE,
    blank,
    by_model,
    errors_of,
    facets,
    hover,
    known,
    log_axis,
    marker_of,
    origins,
    safe,
)
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit
from ctrbench.reports.limits import levels
from ctrbench.reports.names import Names
from ctrbench.reports.serving_rows import REUSE, served, usual_batch
from ctrbench.reports.tables import models_of
from ctrbench.reports.ties import Who, pair_of

FRONT, BEATEN = "On the front of", "Beaten on"


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A cost that AUC is drawn against."""

    metric: str
    scopes: tuple[str, ...] = ("",)
    """Summed; withheld where one is."""
    head: str
    """Column of the table."""
    text: str
    """Title of the axis, with unit."""
    short: str
    """In a sentence."""
    hardware: str = ""
    """Device that it was timed on, `this CPU`; empty for a count."""
    per_batch: bool = False
    """Recorded for a batch, shown for a sample."""
    scale: float = 1.0
    """From the record's unit to that of the axis."""
    served: bool = False
    """Of a request: read from the rows of serving, at the candidates at which models are set side by side."""

    def of(self, mine: pd.DataFrame, candidates: float | None = None) -> Cell:
        """The cost of one configuration; `candidates` of a request, where it is of one."""
        rows = where(served(mine), batch=candidates) if self.served else where(mine, trained=True)
        if self.served and candidates is None:
            return absent(self.metric, "no row")
        cells = [pick(rows, self.metric, scope=s) for s in self.scopes]
        if lost := next((c for c in cells if c.value is None), None):
            return absent(self.metric, lost.reason)
        if len(cells) > 1:
            shaky = next((c for c in cells if c.status == "unstable"), cells[0])
            total = sum(c.value for c in cells if c.value is not None)
            return Cell(total, self.metric, "derived", status=shaky.status, reason=shaky.reason)
        return _per_sample(cells[0], where(rows, metric=self.metric)["batch"]) if self.per_batch else cells[0]

    def candidates(self, frame: pd.DataFrame, data: str) -> float | None:
        """Candidates of the requests that are compared."""
        if not self.served:
            return None
        rows = where(served(frame, data), metric=self.metric)
        return usual_batch(rows[rows["scope"].isin(self.scopes)])


def _per_sample(cell: Cell, batches: pd.Series) -> Cell:
    """A number of a batch for one of its samples; `pick` reports the largest batch."""
    batch = float(batches.max())
    if batch != batch or cell.value is None:
        return absent(cell.metric, cell.reason or "no batch")
    low, high = (None if end is None else end / batch for end in (cell.low, cell.high))
    return replace(cell, value=cell.value / batch, low=low, high=high, origin="derived", note=f"batch {batch:,.0f}")


CPU = "this CPU"
AXES = (
    Axis(metric="flops_fwd_per_sample", head="Forward FLOPs / sample", text="forward FLOP per sample",
         short="forward FLOPs"),
    Axis(metric="budget_flops", head="Training FLOPs, whole run", text="training FLOP of the whole run",
         short="training FLOPs"),
    Axis(metric="infer_latency", head="Forward latency / sample", text="forward latency per sample, µs",
         short="forward latency", hardware=CPU, per_batch=True, scale=1e6),
    Axis(metric="cpu_core_s_per_million", scopes=("data", "compute"), head="Training core-s / million",
         text="CPU core-s per million samples", short="CPU work of training", hardware=CPU),
    Axis(metric="serve_latency", scopes=(REUSE,), head="Latency of a request", text="median latency of a request, ms",
         short="request latency", hardware=CPU, scale=1e3, served=True),
    Axis(metric="usd_per_million_requests", scopes=(f"{REUSE}/cpu:total",), head="USD / million requests, CPU only",
         text="USD per million requests, served on CPUs", short="USD of requests", hardware=CPU, served=True),
)  # fmt: skip
"""Every cost that records hold. Energy has no measure yet: one entry here once the catalogue has. USD count as timed on
this CPU, since what they price was."""


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of (cost, AUC) no other beats: none costs no more and ranks no worse, and is better in one of the two."""
    return [
        not any(c <= cost and a >= auc and (c < cost or a > auc) for c, a in points) for cost, auc in points
    ]  # fmt: skip


def rivals(frame: pd.DataFrame, data: str, names: Names) -> list[Who]:
    """Who can be on a front: models trained here; what tuning cost is in no record, and floors have no FLOPs."""
    ran = models_of(frame, names, data=data, trained=True, metric="auc")
    return [w for w in ran if names.camp(w[0]) != "floor" and w[1].split(",")[0] != "tuned"]


def paired(deltas: pd.DataFrame, a: Who, b: Who, every: Sequence[Who]) -> Cell:
    """AUC of a less that of b on the same rows and seeds, where the records pair the two in either order.

    Args:
        deltas: rows of `auc_pair` and `auc_delta` of one data set.
        a: one side.
        b: the other.
        every: all that ran.
    """
    own = pair_of(deltas, a, b)
    if own.value is not None:
        return own
    for mine, other, turned in ((a, b, False), (b, a, True)):
        if _is_reference(mine, other, every):
            cell = pick(deltas, "auc_delta", scope=f"vs:{other[0]}", model=mine[0], variant=mine[1], signed=True)
            if cell.value is not None:
                return cell.negated() if turned else cell
    return own


def _is_reference(mine: Who, other: Who, every: Sequence[Who]) -> bool:
    """Whether `auc_delta` of mine `vs:` the other's model means this variant: of its own kind, else the plain one."""
    kind = mine[1].split(",")[0]
    if kind in GROUPS and (other[0], kind) in every:
        return other[1] == kind
    plain = [w for w in every if w[0] == other[0] and w[1].split(",")[0] not in GROUPS]
    return other[1] == "" or plain == [other]


def beaten(costs: Sequence[Cell], who: Sequence[Who], deltas: pd.DataFrame, every: Sequence[Who]) -> list[bool]:
    """Whom a model of no higher cost beats by the paired interval of AUC; costs are counts, so exact."""
    out = []
    for i, mine in enumerate(costs):
        cheaper = [
            j for j, other in enumerate(costs)
            if j != i and other.value is not None and mine.value is not None and other.value <= mine.value
        ]  # fmt: skip
        found = (paired(deltas, who[j], who[i], every) for j in cheaper)
        out.append(any(d.low is not None and d.low > 0 for d in found))
    return out


def table_of(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """One row a model with an AUC and a cost."""
    deltas = where(frame, data=data)
    deltas, every = deltas[deltas["metric"].isin(["auc_pair", "auc_delta"])], rivals(frame, data, names)
    rows: list[dict[str, Any]] = []
    who: list[Who] = []
    candidates = {axis.head: axis.candidates(frame, data) for axis in AXES}
    for model, variant in every:
        mine = where(frame, data=data, model=model, variant=variant)
        found = {axis.head: axis.of(mine, candidates[axis.head]) for axis in AXES}
        auc = pick(where(mine, trained=True), "auc")
        if auc.value is not None and any(c.value is not None for c in found.values()):
            rows.append({"Model": names.title(model, variant), "Camp": names.camp(model), "AUC": auc, **found})
            who.append((model, variant))
    table = pd.DataFrame(rows, index=[m for m, _ in who])
    if len(table) < 2:
        return table.iloc[:0]
    gone = [a.head for a in AXES if all(c.reason == "no row" for c in table[a.head])]
    said: dict[str, list[list[str]]] = {FRONT: [[] for _ in who], BEATEN: [[] for _ in who]}
    for axis in AXES:
        costs = list(table[axis.head])
        have = [i for i, c in enumerate(costs) if c.value is not None]
        on = front([(costs[i].value, table["AUC"].iloc[i].value) for i in have])
        under = [False] * len(who) if axis.hardware else beaten(costs, who, deltas, every)
        for place, is_on in zip(have, on, strict=True):
            said[FRONT][place] += [axis.short] if is_on else []
            said[BEATEN][place] += [axis.short] if under[place] else []
    columns = {head: [", ".join(x) or "—" for x in lists] for head, lists in said.items()}
    return table.drop(columns=gone).assign(**columns)


def is_in(entry: str, axis: Axis) -> bool:
    """Whether a column of the front names the cost."""
    return axis.short in entry.split(", ")


def figure(table: pd.DataFrame, axis: Axis, names: Names) -> go.Figure | None:
    """AUC against one cost; the line goes through the front, the beaten are faint."""
    rows = known(table, axis.head)
    if len(rows) < 2:
        return None
    costs = list(rows[axis.head])
    ends = [axis.scale * e for c in costs for e in (c.value, c.low, c.high) if e]
    x = log_axis(ends)
    fig = blank(
        360 + 19 * len(set(rows.index)), f"{axis.text}, {origins(costs)}", f"test AUC, {origins(rows['AUC'])}", xaxis=x
    )
    on = sorted((axis.scale * c.value, a.value) for c, a, said in zip(costs, rows["AUC"], rows[FRONT], strict=True)
                if is_in(said, axis))  # fmt: skip
    fig.add_trace(go.Scatter(
        x=[*(c for c, _ in on), 10 ** x["range"][1]], y=[*(a for _, a in on), on[-1][1]], mode="lines",
        line={"shape": "hv", "color": LINE, "width": 2, "dash": "dash" if axis.hardware else "solid"},
        name="front by medians of time" if axis.hardware else "front by mean AUC", hoverinfo="skip",
    ))  # fmt: skip
    for model, places in by_model(rows):
        part = rows.iloc[places]
        fig.add_trace(go.Scatter(
            x=[axis.scale * c.value for c in part[axis.head]], y=[c.value for c in part["AUC"]], mode="markers",
            name=safe((str(part["Model"].iloc[0]) if len(part) == 1 else names.title(model)).split(" (")[0]),
            marker={**marker_of(names, model, 12), "opacity": [0.5 if is_in(b, axis) else 1 for b in part[BEATEN]]},
            error_y=errors_of(list(part["AUC"])), error_x=errors_of(list(part[axis.head]), axis.scale),
            hovertemplate=[hover(r, [axis.head, "AUC", FRONT, BEATEN]) for _, r in part.iterrows()],
            meta=facets(str(part["Model"].iloc[0]), *part[axis.head], *part["AUC"]),
        ))  # fmt: skip
    return fig


def section(c: Context) -> Section | None:
    """Shown where two models or more have an AUC and a cost."""
    exhibits: list[Exhibit] = []
    said = []
    timed = "by medians" if levels(c.bodies) == ["publish"] else "by medians, orders of magnitude at this level"
    for track, data in c.data:
        table = table_of(c.frame, data, c.names)
        if table.empty:
            continue
        drawn = [(_caption(axis, data), figure(table, axis, c.names)) for axis in AXES if axis.head in table]
        exhibits += exhibit(table, *drawn, title=f"{data} ({track} track)", data=data)
        said.append(_sentence(table, data, timed))
    if not exhibits:
        return None
    return Section(
        id="pareto",
        title="Pareto fronts: AUC against cost (models trained here)",
        sentence=" ".join(said),
        exhibits=tuple(exhibits),
        caveat="On a front: no other model costs no more and has at least the mean AUC. Means put models there by "
        "chance too, and neighbours may be tied. Beaten (faint): a model of no more FLOPs has a paired interval of AUC "
        "above it, which is known of models that records pair, without correction for the number of pairs. Fronts of "
        "time are dashed, rank nobody and beat nobody. Tuned models are left out, since no record totals their trials; "
        f"floors have no FLOPs. {_withheld(c)}, and energy is never made from a modelled time.",
    )


def _withheld(c: Context) -> str:
    """Which fronts there are not."""
    if (c.frame["metric"] == "usd_per_million_requests").any():
        return "A front of energy is withheld: these records hold no energy counter"
    return (
        "Fronts of USD per million requests and of energy are withheld: these records hold no price, no rate of "
        "serving and no energy counter"
    )


def _caption(axis: Axis, data: str) -> str:
    """The device first, for the page's filter."""
    said = f"AUC against {axis.short} on {data}"
    return f"{axis.hardware} ({said})" if axis.hardware else said


def _on(table: pd.DataFrame, axis: Axis) -> Iterable[str]:
    """Models on the front of a cost, cheapest first."""
    rows = table[[is_in(s, axis) for s in table[FRONT]]]
    order = sorted(range(len(rows)), key=lambda i: rows[axis.head].iloc[i].value)
    return [str(rows["Model"].iloc[i]) for i in order]


def _sentence(table: pd.DataFrame, data: str, timed: str) -> str:
    """Who is on the front of FLOPs and of latency, and how many are beaten there."""
    fronts = [
        f"against {axis.short} is {listed(on, 6)}{f' ({timed})' if axis.hardware else ''}"
        for axis in AXES if axis.metric in ("flops_fwd_per_sample", "infer_latency")
        and axis.head in table and (on := list(_on(table, axis)))
    ]  # fmt: skip
    under = sum(is_in(b, AXES[0]) for b in table[BEATEN])
    counted = len(known(table, AXES[0].head)) if AXES[0].head in table else 0
    if not fronts:
        return f"On {data} no front of forward FLOPs or latency is known."
    last = f" A paired interval puts {under} of {counted} below a model of no more forward FLOPs." if counted else ""
    return f"On {data} the front of AUC {'; '.join(fronts)}.{last}"

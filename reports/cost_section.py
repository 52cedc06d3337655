"""The section on money: USD by term, AUC against USD, break-even lines, prices, a paragraph made from the numbers."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from ctrbench.reports import cost_extras as extras
from ctrbench.reports import cost_figures, figures
from ctrbench.reports import cost_tables as tables
from ctrbench.reports.cells import Cell, absent, where
from ctrbench.reports.cost_figures import EQUAL_AT, ON_CPU
from ctrbench.reports.cost_tables import CPU, SHARE, TOTAL
from ctrbench.reports.cost_words import manager
from ctrbench.reports.costs import RIDGE_GPU
from ctrbench.reports.drawing import known
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit
from ctrbench.reports.serving_rows import kept, served

COLOURS = (*figures.BAR_COLOURS, "#D55E00", "#5B6270", "#F0E442")
OTHERS, BEHIND, WHAT_IF = "Other accelerators", "Prices and assumptions", "What if"
ALONG = {"tables_gb": "Size of the tables", "replicas": "Replicas", "peak_to_mean": "Peak over mean traffic",
         "history": "Length of the history"}  # fmt: skip


def main_gpu(frame: pd.DataFrame, data: str) -> str:
    """The accelerator that is drawn: on which the most totals are known; empty where none is priced."""
    rows = where(served(frame, data), metric=tables.REQUESTS)
    known = rows[rows["value"].notna()]["scope"]

    def priced(gpu: str) -> tuple[int, bool]:
        return int(known.str.endswith(f"/{gpu}:total").sum()), gpu == RIDGE_GPU

    return max((d for d in tables.deployments(frame, data) if d != CPU), key=priced, default="")


def section(c: Context) -> Section | None:
    """Shown where a million requests were priced, or their price was withheld."""
    exhibits: list[Exhibit] = []
    said = []
    for track, data in c.data:
        gpu = main_gpu(c.frame, data)
        chosen = [d for d in tables.deployments(c.frame, data) if d in (CPU, gpu)]
        if not chosen:
            continue
        if tables.only_longer(c.frame, data):  # pairs of forms on random requests: no model is offered at such a price
            exhibits += _what_if(c, data, chosen)
            continue
        exhibits += [*_by_term(c, data, f"{data} ({track} track)", chosen), *_break_even(c, data, gpu, chosen),
                     *_what_if(c, data, chosen)]  # fmt: skip
        said.append(manager(c, data, chosen))
    exhibits += _behind(c) if exhibits else ()
    if not exhibits:
        return None
    return Section(
        id="cost",
        title="What a million requests cost",
        sentence=" ".join(said),
        exhibits=tuple(exhibits),
        caveat="The band of a total holds the low and the high ends of all prices and of modelled times at once; "
        "prices are common to all models, so that bands which overlap leave an order open. CPU-only serving is priced "
        "from times measured here, accelerators from modelled times. A total with a term that is not known is not "
        "known, and has no bar. Nothing here pays people, licences, reserves beyond the stated peak, or a network to a "
        "feature store.",
    )


def _by_term(c: Context, data: str, title: str, chosen: list[str]) -> tuple[Exhibit, ...]:
    """Bars by term of each deployment, AUC beside them, training, and the other accelerators folded."""
    out: tuple[Exhibit, ...] = ()
    batch = tables.batch_of(c.frame, data)
    at = f"{batch or 0:,.0f} candidates"
    for place in chosen:
        table = tables.by_term(c.frame, data, c.names, place)
        caption = f"{_called(place)}: USD of a million requests of {at} by term"
        out += exhibit(table, (caption, _bars(tables.compared(table, batch))), title=f"{title}, {_called(place)}",
                       data=data, hardware="cpu" if place == CPU else place)  # fmt: skip
    auc = tables.against_auc(c.frame, data, c.names, chosen)
    drawn = [(f"{_called(p)}: AUC against USD", cost_figures.against_auc(auc, f"USD, {p}", c.names)) for p in chosen]
    rest = [d for d in tables.deployments(c.frame, data) if d not in chosen]
    return (
        *out, *exhibit(auc, *drawn, title=f"{title}: AUC against cost, {at}", data=data),
        *exhibit(tables.training(c.frame, data, c.names), title=f"{title}: a million training samples", data=data),
        *exhibit(tables.shares(c.frame, data, c.names, batch), title=f"{title}: share of accelerators, {at}", data=data,
                 note=f"`{tables.EQUAL}`: by what the price of the accelerator would be multiplied to be half of it."),
        *exhibit(tables.side_by_side(c.frame, data, c.names, rest, batch), title=f"{title}: by term, {at}", data=data,
                 group=f"{OTHERS}: {data}"),
    )  # fmt: skip


def _called(place: str) -> str:
    """Of a deployment, for captions."""
    return "CPU only" if place == CPU else place


def _bars(table: pd.DataFrame) -> go.Figure | None:
    """Stacked terms of the models whose total is known: a bar of the other terms would be read as a total."""
    if table.empty:
        return None
    whole = known(table, TOTAL)
    terms = [str(h) for h in table.columns if h not in ("Model", "Camp", "Form", "Candidates", TOTAL)]
    colours = dict(zip(terms, COLOURS * (1 + len(terms) // len(COLOURS)), strict=False))
    return figures.stacked(whole, colours, "USD per million requests", unit="USD")


def _break_even(c: Context, data: str, gpu: str, chosen: list[str]) -> tuple[Exhibit, ...]:
    """Cost over the price of the accelerator and over traffic."""
    extra = extras.extra_of(c.bodies)
    out: tuple[Exhibit, ...] = ()
    if gpu and CPU in chosen:
        table = price_lines(c, data, gpu)
        drawn = cost_figures.by_price(table, c.names, gpu)
        out += exhibit(
            table, (f"Cost against the price of {gpu}: cross where CPUs cost the same", drawn),
            title=f"{data}: break-even in the price of {gpu}", data=data,
        )  # fmt: skip
    traffic = extras.what_if(extra, data, c.names, "qps", chosen)
    equal = extras.crossings(extra, data, c.names, gpu)
    out += exhibit(
        traffic, ("Cost against traffic: cross where both deployments of a model cost the same",
                  cost_figures.by_traffic(traffic, c.names, equal)),
        title=f"{data}: break-even in traffic", data=data,
    )  # fmt: skip
    return out


def price_lines(c: Context, data: str, gpu: str) -> pd.DataFrame:
    """USD on CPUs and on a GPU, what of that is accelerators, and the multiple of their price that makes both equal."""
    batch = tables.batch_of(c.frame, data)
    on_gpu = tables.shares(c.frame, data, c.names, batch)
    if on_gpu.empty:
        return on_gpu
    on_gpu = on_gpu[on_gpu["GPU"] == gpu]
    on_cpu = tables.by_term(c.frame, data, c.names, CPU, batch)
    totals = dict(zip(on_cpu["Model"], on_cpu[TOTAL], strict=True)) if len(on_cpu) else {}
    rows = kept(on_gpu, (m in totals for m in on_gpu["Model"]))
    cpu = [totals[m] for m in rows["Model"]]
    equal = [_equal(x, total, part) for x, total, part in zip(cpu, rows[TOTAL], rows["Accelerators"], strict=True)]
    return rows.drop(columns=[SHARE, tables.EQUAL]).assign(**{ON_CPU: cpu, EQUAL_AT: equal})


def _equal(cpu: Cell, total: Cell, part: Cell) -> Cell:
    """The multiple of the accelerator's price at which its deployment costs what the CPUs cost."""
    lost = next((x for x in (cpu, total, part) if x.value is None), None)
    if lost is not None or not part.value:
        return absent("usd_half_factor", lost.reason if lost else "no accelerator is paid")
    assert cpu.value is not None
    assert total.value is not None
    at = (cpu.value - (total.value - part.value)) / part.value
    if at <= 0:
        return absent("usd_half_factor", "its other terms alone cost more than the CPUs")
    return Cell(at, "", "modelled")


def _what_if(c: Context, data: str, chosen: list[str]) -> tuple[Exhibit, ...]:
    """What flips a ranking, where two ways cost the same, and totals elsewhere."""
    extra, group = extras.extra_of(c.bodies), f"{WHAT_IF}: {data}"
    out = exhibit(
        extras.pairs(extra, data, c.names, chosen), title="What flips the order of two models", data=data, group=group,
        note="Each price over the range seen, each assumption over a stated one, one at a time; the nearest first.",
    ) + exhibit(extras.break_even(extra, data, c.names, chosen), title="Where two ways cost the same", data=data,
                group=group)  # fmt: skip
    for knob, title in ALONG.items():
        out += exhibit(extras.what_if(extra, data, c.names, knob, chosen), title=title, data=data, group=group,
                       note=f"USD per million requests by {extras.KNOBS[knob]}.")  # fmt: skip
    return out


def _behind(c: Context) -> tuple[Exhibit, ...]:
    extra = extras.extra_of(c.bodies)
    note = f"From {extra['price_file']}. GB are 10⁹ bytes." if "price_file" in extra else ""
    return (
        exhibit(extras.prices(extra), title="Prices", group=BEHIND, note=note)
        + exhibit(extras.assumptions(extra), title="Assumptions", group=BEHIND)
        + exhibit(extras.price_of_compute(extra), title="USD of a TFLOP/s for an hour", group=BEHIND)
    )  # fmt: skip

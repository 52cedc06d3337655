"""The section on serving: how long a request takes, what sharing saves, what is kept, what the features cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from rich.table import Table as RichTable

from ctrbench.reports import figures
from ctrbench.reports import serving_states as states
from ctrbench.reports import serving_tables as tables
from ctrbench.reports.cells import pick, text_of, tidy, where
from ctrbench.reports.costs import RIDGE_GPU
from ctrbench.reports.drawing import dots, known
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit, extremes
from ctrbench.reports.names import names_of
from ctrbench.reports.serving_figures import curves, promised
from ctrbench.reports.serving_rows import ALONE, REUSE, WHOLE, amount, failures, percentile, said, served, usual_batch
from ctrbench.reports.tables import CAPTION, console_table, groups, models_of

CANDIDATES = "candidates of a request"
ACROSS, FEATURES, TFLOP = "Between requests", "Feature path", "One TFLOP a request"
FORMS = (
    "Forms: `reuse` computes the user's side once a request and every candidate against it, the best form of each "
    "model; `whole` puts the rows of a request in one batch and shares nothing; `alone` sends row after row. Others "
    "are a model's own; `cached` is `reuse` of a user whose side was computed before."
)
COLOURS = (*figures.BAR_COLOURS, "#D55E00", "#5B6270", "#F0E442", "#DDDDDD", "#999999")
"""Of bars with more parts than `BAR_COLOURS` has."""


def section(c: Context) -> Section | None:
    """Shown where a request was served or counted."""
    exhibits: list[Exhibit] = []
    sentences: list[str] = []
    for track, data in c.data:
        here = _requests(c, data, f"{data} ({track} track)")
        later = _states(c, data)
        if here or later:
            exhibits += [*here, *later]
            sentences += _sentences(c, data)
    exhibits += _one_tflop(c) + tuple(e for _, data in c.data for e in _features(c, data))
    if not exhibits:
        return None
    return Section(
        id="serving",
        title="Serving: one user, many candidates",
        sentence=" ".join(sentences) or "No latency of a request is known.",
        exhibits=tuple(exhibits),
        flags=tuple(f"{data}: {x}" for _, data in c.data for x in failures(_of_models(c.frame, data), c.names)),
        caveat="In process, on this CPU: no network, no feature store, no other tenant. Single stream sends a request "
        "when the last is answered; QPS is of Poisson arrivals whose latency counts from the scheduled arrival. FLOPs "
        "of serving are executed ones, padding included. Times of a GPU are modelled and carry their band.",
    )


def _of_models(frame: pd.DataFrame, data: str) -> pd.DataFrame:
    """Rows of serving without their prices, which have a section of their own."""
    rows = served(frame, data)
    return rows[~rows["metric"].str.startswith("usd_")]


def _numbers(text: str) -> float | None:
    return amount(text.replace(",", ""))


def _requests(c: Context, data: str, title: str) -> tuple[Exhibit, ...]:
    """What a request takes, on one data set."""
    late, rate, reuse, work, gpu = (
        make(c.frame, data, c.names) for make in (tables.latency, tables.rate, tables.reuse, tables.work, tables.gpu)
    )
    usual = usual_batch(where(served(c.frame, data), metric="serve_latency")) or usual_batch(served(c.frame, data))
    best = _best(rate, usual)
    drawn = _drawn(late)
    heads = [g for g in (RIDGE_GPU, *_gpus(gpu)) if g in gpu][:1]
    on: dict[str, Any] = {"data": data, "hardware": "cpu"}
    return (
        exhibit(
            late,
            ("Median latency of a request", _over_n(c, drawn, tables.P50, "p50, ms", 1e3)),
            ("p99 latency of a request", _over_n(c, drawn, tables.P99, "p99, ms", 1e3)),
            title=f"{title}: latency", note=FORMS, **on,
        )
        + exhibit(
            rate, (f"QPS within the budget, {usual or 0:,.0f} candidates",
                   dots(best, tables.QPS, "requests per second", c.names, log=True)),
            title=f"{title}: rate", note=_budget(c), **on,
        )
        + exhibit(reuse, ("Time against FLOPs, both over those of the other form", promised(reuse, c.names)),
                  title=f"{title}: sharing against what FLOPs predict", **on)
        + exhibit(
            work, ("Executed FLOPs of a request", _over_n(c, _drawn(work), tables.REQUEST, "FLOP")),
            title=f"{title}: FLOPs of a request", data=data,
        )
        + exhibit(
            gpu, *((f"{g} (modelled time of a request)", _over_n(c, _drawn(gpu), g, "ms", 1e3))
                   for g in heads),
            title=f"{title}: modelled time on GPUs", data=data,
        )
    )  # fmt: skip


def _over_n(c: Context, table: pd.DataFrame, column: str, y: str, scale: float = 1.0) -> go.Figure | None:
    """A number over the candidates of a request, a line a model and form."""
    return curves(table, "Candidates", column, c.names, x=CANDIDATES, y=y, place=_numbers, within=("Form",),
                  scale=scale)  # fmt: skip


def _gpus(table: pd.DataFrame) -> list[str]:
    """Columns that are GPUs."""
    return [str(h) for h in table.columns if h not in ("Model", "Camp", "Form", "Candidates")]


def _drawn(table: pd.DataFrame) -> pd.DataFrame:
    """The best form and the one that shares nothing; a line of every form would hide both."""
    return table[table["Form"].isin([REUSE, WHOLE])] if "Form" in table else table


def _best(table: pd.DataFrame, usual: float | None) -> pd.DataFrame:
    """Rows of the best form at the number of candidates at which models are set side by side."""
    if table.empty or usual is None:
        return table.iloc[:0]
    return table[(table["Form"] == REUSE) & (table["Candidates"] == f"{usual:,.0f}")]


def _budget(c: Context) -> str:
    """The budget of latency that the records state."""
    asked = [b.get("spec", {}).get("serving") for b in c.bodies.values()]
    found = [float(o["budget_ms"]) for o in asked if isinstance(o, Mapping) and "budget_ms" in o]
    stated = f"Budget: p99 of {said([f'{x:g} ms' for x in dict.fromkeys(found)])}. " if found else ""
    return f"{stated}Where no rate keeps the budget, the p99 of a request alone says how far off it is."


def _states(c: Context, data: str) -> tuple[Exhibit, ...]:
    """What is kept between requests and what that costs in score."""
    kept, hits, drift, stages = (
        make(c.frame, data, c.names) for make in (states.kept, states.hits, states.drift, states.stages)
    )
    on: dict[str, Any] = {"data": data, "group": f"{ACROSS}: {data}"}
    found = curves(hits, states.BUDGET, states.HITS, c.names, x="memory budget", y="hit rate, %", place=amount,
                   within=(states.USERS,), scale=100, log_y=False)  # fmt: skip

    def over_events(column: str, y: str, log_y: bool) -> go.Figure | None:
        return curves(drift, states.EVENTS, column, c.names, x="events appended since the states were computed", y=y,
                      place=amount, log_y=log_y)  # fmt: skip

    return (
        exhibit(kept, title="Bytes kept of a user", **on)
        + exhibit(
            hits, ("Hit rate by memory budget", found),
            title="Hit rate of the cache", **on,
        )
        + exhibit(
            drift,
            ("Drift of scores", over_events(states.DRIFT, "RMS difference of logits", True)),
            ("Drift of AUC", over_events(states.DRIFT_AUC, "ΔAUC", False)),
            title="Streaming: states kept as computed", **on,
        )
        + exhibit(stages, title="Two stages on one cache", **on)
    )  # fmt: skip


def _one_tflop(c: Context) -> tuple[Exhibit, ...]:
    table = states.one_tflop(c.frame, c.names)
    drawn = curves(table, "History", states.NEEDS, c.names, x="events of the history", y="candidates",
                   place=amount, within=("Preset", "Form"))  # fmt: skip
    return exhibit(
        table, ("Candidates for 1 TFLOP against history", drawn), title="Published sizes: candidates for 1 TFLOP",
        group=TFLOP,
    )  # fmt: skip


def _features(c: Context, data: str) -> tuple[Exhibit, ...]:
    table = states.feature_path(c.frame, data)
    if table.empty:
        return ()
    whole = known(table, states.TOTAL)
    steps = [str(h) for h in table.columns if h not in ("Path", states.TOTAL)]
    colours = dict(zip(steps, COLOURS * (1 + len(steps) // len(COLOURS)), strict=False))
    drawn = figures.stacked(whole, colours, "CPU core-s per million", unit="core-s", heading="Path")
    return exhibit(
        table, (f"CPU of the feature path on {data}", drawn), title=f"Steps of the feature path, {data}", data=data,
        hardware="cpu", group=FEATURES,
        note="CPU core-seconds per million. A path with a step that is not known has no bar.",
    )  # fmt: skip


def _sentences(c: Context, data: str) -> list[str]:
    """Latency of the best form and of none shared, sharing against its promise, rates."""
    rows = served(c.frame, data)
    usual = usual_batch(where(rows, metric="serve_latency"))
    late, rate, reuse = (make(c.frame, data, c.names) for make in (tables.latency, tables.rate, tables.reuse))
    out = []
    if usual is not None:
        forms = {f: extremes(_of(late, f, usual), tables.P50) for f in (REUSE, WHOLE, ALONE)}
        words = {REUSE: "with the user's side once", WHOLE: "with nothing shared", ALONE: "row after row"}
        spans = [f"{span} {words[f]}" for f, span in forms.items() if span]
        if spans:
            out.append(f"On {data} a request of {usual:,.0f} candidates takes at the median {'; '.join(spans)}.")
    if len(judged := known(reuse, tables.OVER)):
        count = {w: sum(str(x).startswith(w) for x in judged[tables.WORD]) for w in (tables.WITHIN, tables.ABOVE)}
        left = len(judged) - sum(count.values())
        out.append(
            f"Of {len(judged)} forms held against another {count[tables.WITHIN]} are {tables.WITHIN}, "
            f"{count[tables.ABOVE]} take {tables.ABOVE}" + (f", {left} are open." if left else ".")
        )
    best = _best(rate, usual)
    if span := extremes(best, tables.QPS):
        lost = len(best) - len(known(best, tables.QPS))
        out.append(f"Within the budget one process answers {span} requests per second"
                   + (f"; {lost} of {len(best)} models have no such rate." if lost else "."))  # fmt: skip
    return out


def _of(table: pd.DataFrame, form: str, batch: float) -> pd.DataFrame:
    if table.empty:
        return table
    return table.loc[np.array((table["Form"] == form) & (table["Candidates"] == f"{batch:,.0f}"), dtype=bool)]


def console(frame: pd.DataFrame, bodies: Mapping[str, Mapping[str, Any]]) -> list[RichTable]:
    """The best form of each model for a terminal: percentiles at each number of candidates, rate, FLOPs and price."""
    rows = tidy(frame)
    names = names_of(rows, bodies)
    out = []
    for track, data in groups(rows):
        mine = served(rows, data)
        mine = mine[mine["metric"] != "feature_cpu"]
        usual = usual_batch(where(mine, metric="serve_latency")) or usual_batch(mine)
        if usual is None:
            continue
        body = pd.DataFrame([
            {"Model": names.title(m, v), **_console_row(where(mine, model=m, variant=v), mine, usual)}
            for m, v in models_of(mine, names)
        ])  # fmt: skip
        title = f"{track}: {data}, serving (reuse; ms at p50/p99; the rest at {usual:,.0f} candidates)"
        out.append(console_table(title, body, tuple(map(str, body.columns)), CAPTION))
    return out


def _console_row(own: pd.DataFrame, every: pd.DataFrame, usual: float) -> dict[str, Any]:
    sizes = sorted(set(where(every, metric="serve_latency")["batch"].dropna()))
    at = where(own, batch=usual)
    return {
        **{f"N={n:,.0f}": _both(where(own, batch=n)) for n in sizes},
        "QPS": pick(at, "serve_qps", scope=REUSE),
        "FLOP/req": pick(at, "flops_request", scope=REUSE),
        "FLOP/cand": pick(at, "flops_candidate", scope=REUSE),
        "USD/M": pick(at, "usd_per_million_requests", scope=f"{REUSE}/cpu:total"),
    }


def _both(own: pd.DataFrame) -> str:
    """`1.23/4.56` in ms; a percentile that is withheld is a dash."""
    cells = [percentile(own, "serve_latency", p, REUSE) for p in (tables.P50, tables.P99)]
    return "/".join("—" if x.value is None else text_of(1e3 * x.value, "serve_cpu") for x in cells)

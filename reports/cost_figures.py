"""Figures of cost: AUC against USD, and where two ways of serving cost the same."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ctrbench.reports.cells import Cell
from ctrbench.reports.cost_tables import CPU, TOTAL
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
from ctrbench.reports.names import Names

ON_CPU, EQUAL_AT = "Total, CPU only", "Equal at a price of, times"
FACTORS = tuple(10.0 ** (e / 8) for e in range(-16, 17))
"""Multiples of the price of an accelerator, .01 to 100."""


def against_auc(table: pd.DataFrame, column: str, names: Names) -> go.Figure | None:
    """AUC against USD a million requests, both with their bands; no line, since bands that overlap have no order."""
    rows = known(table, column)
    if rows.empty:
        return None
    ends = [e for c in rows[column] for e in (c.value, c.low, c.high) if e is not None and e > 0]
    fig = blank(430, f"USD per million requests, {origins(rows[column])}", f"test AUC, {origins(rows['AUC'])}",
                xaxis=log_axis(ends))  # fmt: skip
    for model, mine in by_model(rows):
        part = rows.iloc[mine]
        fig.add_trace(go.Scatter(
            x=[c.value for c in part[column]], y=[c.value for c in part["AUC"]], mode="markers",
            name=safe(names.title(model).split(" (")[0]), marker=marker_of(names, model, 12),
            error_x=errors_of(list(part[column])), error_y=errors_of(list(part["AUC"])),
            hovertemplate=[hover(r, [column, "AUC"]) for _, r in part.iterrows()],
            meta=facets(str(part["Model"].iloc[0]), *part[column], *part["AUC"]),
        ))  # fmt: skip
    return fig


def by_price(table: pd.DataFrame, names: Names, gpu: str) -> go.Figure | None:
    """Cost on a GPU over a multiple of its price; dotted is the same model on CPUs, a cross where both cost the same.

    Args:
        table: of `price_lines`.
        names: colours.
        gpu: whose price moves.
    """
    rows = known(known(table, TOTAL), "Accelerators")
    if rows.empty:
        return None
    lines = {i: [_at(r, f) for f in FACTORS] for i, (_, r) in enumerate(rows.iterrows())}
    flat = [r[ON_CPU].value for _, r in rows.iterrows() if r[ON_CPU].value]
    heights = log_axis([*(v for line in lines.values() for v in line), *flat])
    fig = blank(450, f"price of an hour of {safe(gpu)}, times the one assumed",
                f"USD per million requests, {origins(rows[TOTAL])}", xaxis=log_axis(FACTORS, 0),
                yaxis=heights)  # fmt: skip
    fig.add_vline(x=1, line={"color": LINE, "width": 1})
    for i, (model, row) in enumerate(rows.iterrows()):
        colour, title = names.colour(str(model)), str(row["Model"])
        meta = facets(title, row[TOTAL])
        fig.add_trace(go.Scatter(x=FACTORS, y=lines[i], mode="lines", line={"color": colour}, meta=meta,
                                 name=safe(title.split(" (")[0]), legendgroup=title))  # fmt: skip
        if row[ON_CPU].value is None:
            continue
        fig.add_trace(go.Scatter(
            x=[FACTORS[0], FACTORS[-1]], y=[row[ON_CPU].value] * 2, mode="lines", line={"color": colour, "dash": "dot"},
            name=safe(f"{title.split(' (')[0]}, CPU"), legendgroup=title, showlegend=False, meta=meta,
        ))  # fmt: skip
        at = row[EQUAL_AT].value
        if at is not None and FACTORS[0] <= at <= FACTORS[-1]:
            fig.add_trace(_cross([at], [row[ON_CPU].value], title, meta))
    return fig


def _at(row: pd.Series, factor: float) -> float:
    return float(row[TOTAL].value + (factor - 1) * row["Accelerators"].value)


def _cross(x: list[float], y: list[float], title: str, meta: Mapping[str, object]) -> go.Scatter:
    """Where two lines meet."""
    return go.Scatter(
        x=x, y=y, mode="markers", showlegend=False, legendgroup=title, meta=dict(meta), name=safe(f"{title}: equal"),
        marker={"symbol": "x", "size": 12, "color": LINE, "line": {"width": 1, "color": "#5B6270"}},
        hovertemplate=safe(title) + ": equal at %{x:.3g}<extra></extra>",
    )  # fmt: skip


def by_traffic(table: pd.DataFrame, names: Names, equal: Mapping[str, float]) -> go.Figure | None:
    """Cost over traffic, a line a model and deployment (GPUs dashed), a cross where the two of a model meet.

    Args:
        table: of `cost_extras.what_if` for `qps`.
        names: colours.
        equal: title of a model -> traffic at which its two deployments cost the same.
    """
    heads = [str(h) for h in table.columns if h not in ("Model", "Form", "Deployment", "Candidates")]
    x = [float(h.replace(",", "")) for h in heads]
    drawn = [(str(m), r, [r[h] for h in heads]) for m, r in table.iterrows() if all(r[h].value for h in heads)]
    if not drawn or len(x) < 2:
        return None
    values = [c.value for _, _, line in drawn for c in line]
    how = origins(c for *_, line in drawn for c in line)
    fig = blank(450, "mean requests per second, assumed", f"USD per million requests, {how}",
                xaxis=log_axis(x), yaxis=log_axis(values))  # fmt: skip
    for model, row, line in drawn:
        title, place = str(row["Model"]), str(row["Deployment"])
        meta = facets(title, *line)
        fig.add_trace(go.Scatter(
            x=x, y=[c.value for c in line], mode="lines+markers", marker={"size": 6, "color": names.colour(model)},
            line={"color": names.colour(model), "dash": "solid" if place == CPU else "dash"},
            name=safe(f"{title.split(' (')[0]}, {'CPU' if place == CPU else place}"), meta=meta,
        ))  # fmt: skip
        at = equal.get(title)
        if place == CPU and at is not None and x[0] <= at <= x[-1]:
            fig.add_trace(_cross([at], [_between(x, line, at)], title, meta))
    return fig


def _between(x: list[float], line: list[Cell], at: float) -> float:
    """The line's height, straight on the two logarithmic axes as it is drawn."""
    logs = np.interp(math.log(at), [math.log(v) for v in x], [math.log(c.value or 1.0) for c in line])
    return float(math.exp(logs))

"""Figures of serving: curves of a number over candidates, history, budget or events, and reuse against its promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ctrbench.reports.drawing import (
    DASHES,
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
from ctrbench.reports.serving_tables import FLOPS, LIMIT, OVER, TIME, WORD


def curves(
    table: pd.DataFrame,
    along: str,
    column: str,
    names: Names,
    *,
    x: str,
    y: str,
    place: Callable[[str], float | None],
    within: Sequence[str] = (),
    scale: float = 1.0,
    log_y: bool = True,
) -> go.Figure | None:
    """A number over a place that a text column names, a line a model and what else keeps its rows apart.

    Args:
        table: with `Model`, the columns below, and models as index.
        along: text column of the places.
        column: of cells.
        names: colours and markers.
        x: title of the axis of places.
        y: title of the other; the origin is added.
        place: of a text, None where it has none.
        within: text columns that keep lines of a model apart, by their dash.
        scale: from the record's unit to the axis.
        log_y: logarithmic, for numbers above 0.
    """
    rows = known(table, column)
    if rows.empty:
        return None
    rows = rows.assign(_x=np.array([place(str(t)) or 0.0 for t in rows[along]], dtype=float))
    rows = rows.loc[np.asarray(rows["_x"] > 0, dtype=bool)]
    if log_y:
        rows = rows.loc[np.array([c.value > 0 for c in rows[column]], dtype=bool)]
    if rows.empty:
        return None
    ends = [scale * e for c in rows[column] for e in (c.value, c.low, c.high) if e is not None and (e > 0 or not log_y)]
    fig = blank(430, x, f"{y}, {origins(rows[column])}", xaxis=log_axis(rows["_x"]),
                **({"yaxis": log_axis(ends)} if log_y else {}))  # fmt: skip
    used: dict[str, int] = {}
    for key in dict.fromkeys(rows[["Model", *within]].itertuples(index=False, name=None)):
        same = np.logical_and.reduce([rows[h] == k for h, k in zip(("Model", *within), key, strict=True)])
        part = rows.loc[same].sort_values("_x", kind="stable")
        model = str(part.index[0])
        number = used[model] = used.get(model, -1) + 1
        line = {"color": names.colour(model), "dash": DASHES[number % len(DASHES)]}
        fig.add_trace(go.Scatter(
            x=list(part["_x"]), y=[scale * c.value for c in part[column]], mode="lines+markers",
            name=safe(" · ".join([str(key[0]).split(" (")[0], *(str(k).removeprefix("published:") for k in key[1:])])),
            marker=marker_of(names, model, 8), line=line,
            error_y=errors_of(list(part[column]), scale),
            hovertemplate=[hover(r, [*within, along, column]) for _, r in part.iterrows()],
            meta=facets(str(key[0]), *part[column]),
        ))  # fmt: skip
    return fig


def promised(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """Ratio of times against the ratio of FLOPs; the lines are what FLOPs predict and the limit above it."""
    rows = known(known(table, TIME), FLOPS)
    rows = rows.loc[np.array([c.value > 0 and t.value > 0 for c, t in zip(rows[FLOPS], rows[TIME], strict=True)],
                             dtype=bool)]  # fmt: skip
    if rows.empty:
        return None
    x, y = ([c.value for c in rows[h]] for h in (FLOPS, TIME))
    ends = [min([*x, *y]) / 1.3, max([*x, *y]) * 1.3]
    titles = [
        f"{what} of a form over the other's, {origins(rows[h])}" for what, h in (("FLOPs", FLOPS), ("time", TIME))
    ]
    fig = blank(430, *titles, xaxis=log_axis(ends, 0), yaxis=log_axis([ends[0], LIMIT * ends[1]], 0))
    said = ["Form", "Over form", "Candidates", FLOPS, TIME, OVER, WORD]
    for factor, name, dash in ((1.0, "as FLOPs predict", "solid"), (LIMIT, f"{LIMIT:g} times that", "dash")):
        fig.add_trace(go.Scatter(x=ends, y=[factor * e for e in ends], mode="lines", name=name, hoverinfo="skip",
                                 line={"color": LINE, "width": 2, "dash": dash}))  # fmt: skip
    for model, mine in by_model(rows):
        part = rows.iloc[mine]
        fig.add_trace(go.Scatter(
            x=[c.value for c in part[FLOPS]], y=[c.value for c in part[TIME]], mode="markers",
            name=safe(names.title(model).split(" (")[0]), marker=marker_of(names, model, 11),
            error_y=errors_of(list(part[TIME])),
            hovertemplate=[hover(r, said) for _, r in part.iterrows()],
            meta=facets(str(part["Model"].iloc[0]), *part[FLOPS], *part[TIME]),
        ))  # fmt: skip
    return fig

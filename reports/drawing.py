"""What all figures share: blank axes, ticks, markers, hover text and the plot of one number a model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ctrbench.reports import inert
from ctrbench.reports.cells import PREFIXES, Cell
from ctrbench.reports.names import GREY, SYMBOLS, Names

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
TITLE = {"size": 12.5}
GRID = "rgba(128,136,148,0.22)"
LINE = "rgba(128,136,148,0.75)"
TALL = 1500
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def safe(text: str) -> str:
    """Titles are not ours: Plotly reads a subset of HTML in every label, and templates."""
    return inert.plotly(text)


def label(text: str, width: int = 18) -> str:
    """Breaks a long axis label, so that a phone keeps room for the plot."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(safe(x) for x in lines)


def row_labels(titles: Iterable[str]) -> list[str]:
    """Axis labels of rows, without what stands in brackets as long as they stay apart."""
    every = [str(t) for t in titles]
    brief = [re.sub(r" \([^)]*\)", "", t) for t in every]
    return [label(t) for t in (brief if len(set(brief)) == len(set(every)) else every)]


def pitch(labels: Sequence[str]) -> int:
    """Height of a row that holds its label, in pixels."""
    return max(34, 4 + 17 * max((x.count("<br>") + 1 for x in labels), default=1))


def blank(height: int, x: str, y: str = "", **axes: Any) -> go.Figure:
    fig = go.Figure()
    axis = {
        "gridcolor": GRID,
        "linecolor": LINE,
        "zerolinecolor": LINE,
        "ticks": "outside",
        "tickcolor": LINE,
        "automargin": True,
    }
    fig.update_layout(
        template="none",
        height=height,
        margin={"l": 12, "r": 16, "t": 12, "b": 44 if height < TALL else 58},
        autosize=True,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13},
        legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom", "font": {"size": 12}},
        hoverlabel={"font": {"family": FONT}, "align": "left"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": "#0072B2"},
        # In a figure of many rows Plotly hunts for the lower margin, and warns: there it is given.
        xaxis={
            **axis,
            "automargin": height < TALL,
            "title": {"text": x, "standoff": 10, "font": TITLE},
            **axes.get("xaxis", {}),
        },
        yaxis={**axis, "title": {"text": y, "standoff": 8, "font": TITLE}, **axes.get("yaxis", {})},
    )
    return fig


def log_axis(values: Iterable[float], pad: float = 0.2) -> dict[str, Any]:
    """A log axis with round ticks, wide enough for its points."""
    logs = [math.log10(v) for v in values if v > 0]
    low, high = min(logs) - pad, max(logs) + pad
    steps = (1, 2, 5) if high - low < 2.2 else (1,)
    ticks = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in steps]
    ticks = [t for t in ticks if low <= math.log10(t) <= high]
    return {"type": "log", "range": [low, high], "tickvals": ticks, "ticktext": [si(t) for t in ticks]}


def si(value: float) -> str:
    """1e7 -> `10M`: shorter than a power, and read without arithmetic."""
    for factor, prefix in (*PREFIXES, (1.0, "")):
        if value >= factor:
            return f"{value / factor:g}{prefix}"
    return f"{value:g}"


def origins(cells: Iterable[Cell]) -> str:
    return "/".join(sorted({c.origin for c in cells if c.value is not None}))


def known(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Rows whose number is there; none, with the column, where nobody wrote one."""
    if column not in table:
        return table.iloc[:0].assign(**{column: []})
    return table.loc[np.array([isinstance(c, Cell) and c.value is not None for c in table[column]], dtype=bool)]


def hover(row: pd.Series, columns: Sequence[str]) -> str:
    lines = [f"<b>{safe(str(row['Model']))}</b>"]
    for c in columns:
        entry = row[c]
        known = isinstance(entry, Cell)
        lines.append(
            f"{safe(c)}: {safe(f'{entry.text} {entry.band}'.strip() if known else str(entry))}"
            + (f" ({entry.origin})" if known and entry.value is not None else "")
        )
    return "<br>".join(lines) + "<extra></extra>"


def camp_legend(fig: go.Figure, table: pd.DataFrame) -> None:
    """Grey entries that explain the shapes; the models are named on the axis."""
    for camp in dict.fromkeys(table["Camp"]):
        fig.add_trace(
            go.Scatter(
                x=[None],
                y=[None],
                mode="markers",
                name=camp,
                marker={
                    "symbol": SYMBOLS.get(camp, "star"),
                    "size": 10,
                    "color": GREY,
                    "line": {"width": 2, "color": GREY},
                },
            )
        )


def facets(title: str, *cells: Cell) -> dict[str, Any]:
    """`meta` of a trace, for the filters of the page: whose it is, and every origin that it is drawn from."""
    return {"model": title.split(" · ")[0], "origins": sorted({c.origin for c in cells if c.value is not None})}


def point_facets(titles: Iterable[str], cells: Iterable[Cell]) -> dict[str, Any]:
    """The same for a trace that holds a point of each model."""
    models = [str(t).split(" · ")[0] for t in titles]
    return {"models": models, "origins": facets("", *cells)["origins"]}


def marker_of(names: Names, model: str, size: int = 11) -> dict[str, Any]:
    colour, symbol = names.colour(model), names.symbol(model)
    return {
        "color": colour,
        "symbol": symbol,
        "size": size,
        "line": {"width": 2 if "open" in symbol else 1, "color": colour},
    }


def by_model(rows: pd.DataFrame) -> list[tuple[str, list[int]]]:
    """(model, places of its rows): one trace a model, however many variants it has, keeps large figures light."""
    keys = [str(key) for key in rows.index]
    return [(m, [i for i, key in enumerate(keys) if key == m]) for m in dict.fromkeys(keys)]


def errors_of(cells: Sequence[Cell], scale: float = 1.0) -> dict[str, Any] | None:
    """Error bars of points, none where a cell has no interval; None if no cell has one."""
    ends = [
        (scale * (c.high - c.value), scale * (c.value - c.low))
        if c.value is not None and c.low is not None and c.high is not None
        else (0.0, 0.0)
        for c in cells
    ]
    if not any(map(any, ends)):
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [up for up, _ in ends],
        "arrayminus": [down for _, down in ends],
        "thickness": 1.6,
        "width": 5,
    }


def dots(
    table: pd.DataFrame,
    column: str,
    axis: str,
    names: Names,
    *,
    scale: float = 1.0,
    log: bool = False,
    zero: bool = False,
    suffix: str = "",
) -> go.Figure | None:
    """A number a model with its interval, models down the side.

    Args:
        table: with `Model`, `Camp` and the column.
        column: of cells.
        axis: axis title; the origin is added.
        names: colours and shapes.
        scale: factor from the record's unit to the axis.
        log: logarithmic axis.
        zero: draw a line at 0, for differences.
        suffix: column whose text follows the model's name, e.g. the verdict.
    """
    rows = known(table, column)
    if rows.empty:
        return None
    order = row_labels(" · ".join(str(r[c]) for c in ("Model", suffix) if c) for _, r in rows.iterrows())
    fig = blank(90 + pitch(order) * len(rows), f"{axis}, {origins(rows[column])}")
    for model, mine in by_model(rows):
        cells = [rows[column].iloc[i] for i in mine]
        fig.add_trace(
            go.Scatter(
                x=[scale * c.value for c in cells],
                y=[order[i] for i in mine],
                mode="markers",
                marker=marker_of(names, model),
                showlegend=False,
                error_x=errors_of(cells, scale),
                hovertemplate=[hover(rows.iloc[i], [column]) for i in mine],
                meta=facets(str(rows["Model"].iloc[mine[0]]), *cells),
            )
        )
    camp_legend(fig, rows)
    fig.update_yaxes(categoryorder="array", categoryarray=order[::-1], showgrid=True)
    if log:
        fig.update_xaxes(**log_axis(scale * c.value for c in rows[column]))
    if zero:
        fig.add_vline(x=0, line={"color": LINE, "width": 2})
    return fig


def series(rows: pd.DataFrame) -> list[tuple[int, str, str, pd.DataFrame]]:
    """(number of the preset within its model, model, legend name, its rows) in table order."""
    out: list[tuple[int, str, str, pd.DataFrame]] = []
    seen: dict[str, int] = {}
    for title, preset in dict.fromkeys(zip(rows["Model"], rows["Preset"], strict=True)):
        part = rows[(rows["Model"] == title) & (rows["Preset"] == preset)]
        model = str(part.index[0])
        number = seen[model] = seen.get(model, -1) + 1
        name = f"{str(title).split(' (')[0]} {preset.removeprefix('published:')}"
        out.append((number % len(DASHES), model, safe(name), part))
    return out


def largest_batch(table: pd.DataFrame) -> pd.DataFrame:
    """The last batch of each model and preset; tables list batches in rising order."""
    return table.drop_duplicates(["Model", "Preset"], keep="last")

"""Figures of recorded launches: the timeline of one step, the treemap, the sizes, the roofline of blocks.

Names of kernels and operators are not ours: each is shortened and escaped before Plotly reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ctrbench.reports.cells import Cell, text_of
from ctrbench.reports.drawing import blank, hover, known, log_axis, marker_of, safe
from ctrbench.reports.figures import STAGE_COLOURS, roof
from ctrbench.reports.kernel_rows import CACHE, DRAM, RANGE
from ctrbench.reports.names import GREY, Names

DRAWN_LAUNCHES = 1500
"""Bars of a timeline; of more launches the longest are drawn."""
LONGEST_NAME = 90
INK = "#1c2127"
BETWEEN = "between operators"


def short(name: str) -> str:
    """A name that fits a line: a kernel's can be a page long."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 12]}…{name[-11:]}"


def colour(stage: str) -> str:
    return STAGE_COLOURS.get(stage, GREY)


# ------------------------------------------------------------------- timeline


@dataclass(frozen=True, slots=True)
class Lane:
    """One line of a timeline."""

    name: str
    rows: pd.DataFrame


def lanes(step: pd.DataFrame) -> list[Lane]:
    """Stages and blocks of each host thread, then the launches of each thread or stream; longest launches kept."""
    ranges, work = step[step["kind"] == RANGE], step[(step["kind"] != RANGE) & (step["launches"] > 0)]
    work = work.nlargest(DRAWN_LAUNCHES, "duration_ns")
    threads = list(dict.fromkeys(ranges["lane"]))
    out = []
    for thread in threads:
        mine, tail = ranges[ranges["lane"] == thread], f", {thread}" if len(threads) > 1 else ""
        for name, part in (("stages", mine[mine["block"] == ""]), ("blocks", mine[mine["block"] != ""])):
            out += [Lane(name + tail, part)] if len(part) else []
    for name in sorted(set(work["lane"]), key=str):
        part = work[work["lane"] == name]
        title = "operators" if part["kind"].iloc[0] == "operator" else str(name)
        out.append(Lane(title if title != "operators" or len(threads) < 2 else f"operators, {name}", part))
    return out


def timeline(step: pd.DataFrame) -> go.Figure | None:
    """One step on the clock: a bar a range or launch, coloured by stage."""
    found = lanes(step)
    if not found:
        return None
    fig = blank(176 + 38 * len(found), "ms since the step began", xaxis={"rangemode": "tozero"})
    shown: set[str] = set()
    for at, lane in enumerate(found):
        for stage in dict.fromkeys(lane.rows["stage"]):
            rows = lane.rows[lane.rows["stage"] == stage]
            fig.add_trace(_bars(rows, str(stage), at, legend=stage not in shown))
            shown.add(str(stage))
    fig.update_yaxes(
        tickvals=list(range(len(found))), ticktext=[safe(x.name) for x in found], range=[len(found) - 0.5, -0.5],
        showgrid=False, zeroline=False,
    )  # fmt: skip
    fig.update_layout(barmode="overlay", bargap=0.18, uniformtext={"minsize": 9, "mode": "hide"})
    return fig


def _bars(rows: pd.DataFrame, stage: str, at: int, *, legend: bool) -> go.Bar:
    ranges = bool((rows["kind"] == RANGE).all())
    names = [short(str(n)) for n in rows["name"]]
    inside = [str(b) or str(n) for b, n in zip(rows["block"], (n.removeprefix("stage:") for n in names), strict=True)]
    told = [f"{safe(n)}, {text_of(ns / 1e9, 'launch_time')}" for n, ns in zip(names, rows["duration_ns"], strict=True)]
    return go.Bar(
        x=_ms(rows["duration_ns"]), base=_ms(rows["start_ns"]), y=np.full(len(rows), at, "i2"), orientation="h",
        name=safe(stage or "no range"), legendgroup=stage, showlegend=legend, hovertext=told,
        hovertemplate="%{hovertext}<extra></extra>",
        text=[safe(t) for t in inside] if ranges else None, textposition="inside" if ranges else "none",
        insidetextanchor="middle", constraintext="inside", insidetextfont={"color": INK},
        marker={"color": tint(colour(stage), 0.35), "line": {"width": 0.4, "color": "rgba(128,136,148,0.6)"}},
    )  # fmt: skip


def _ms(ns: pd.Series) -> np.ndarray:
    return (ns.to_numpy(np.float64) / 1e6).astype("f4")


def tint(hexed: str, white: float) -> str:
    """A colour mixed with white, so that dark text on it can be read."""
    parts = (int(hexed[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(p + (255 - p) * white):02x}" for p in parts)


# -------------------------------------------------------------------- treemap


def treemap(leaves: Iterable[tuple[Sequence[str], int, str]], root: str) -> go.Figure | None:
    """Time from the model down to the kernel; a click or the list above it goes into a part.

    Args:
        leaves: (names from the stage down, ns, stage) of each part.
        root: name of the whole.
    """
    nodes: dict[tuple[str, ...], list[Any]] = {(): [0, ""]}
    for path, ns, stage in leaves:
        for depth in range(len(path) + 1):
            node = nodes.setdefault(tuple(path[:depth]), [0, stage if depth else ""])
            node[0] += ns
    if len(nodes) < 2:
        return None
    ids = {path: str(i) for i, path in enumerate(nodes)}
    fig = blank(430, "")
    fig.add_trace(
        go.Treemap(
            ids=list(ids.values()), labels=[safe(short(p[-1] if p else root)) for p in nodes],
            parents=[ids[p[:-1]] if p else "" for p in nodes], values=[ns for ns, _ in nodes.values()],
            customdata=[text_of(ns / 1e9, "launch_time") for ns, _ in nodes.values()],
            branchvalues="total", maxdepth=4, sort=True,
            marker={
                "colors": [tint(colour(stage), 0.45 + 0.08 * min(len(path), 4)) if path else "#dfe3e8"
                           for path, (_, stage) in nodes.items()],
                "line": {"width": 1, "color": "#ffffff"},
            },
            textfont={"color": INK, "size": 12}, pathbar={"textfont": {"color": INK, "size": 12}},
            texttemplate="%{label}<br>%{percentRoot:.1%}",
            hovertemplate="%{label}<br>%{customdata}, %{percentRoot:.1%} of all<extra></extra>",
        )
    )  # fmt: skip
    fig.update_layout(margin={"l": 2, "r": 2, "t": 26, "b": 4})
    return fig


# ---------------------------------------------------------------------- sizes


def histogram(table: pd.DataFrame) -> go.Figure | None:
    """Launches and their time by duration class."""
    if table.empty:
        return None
    fig = blank(300, "duration of a launch, at most", "share, %", xaxis={"type": "category"})
    for column, fill in (("Share of launches", "#0072B2"), ("Share of time", "#E69F00")):
        fig.add_trace(
            go.Bar(
                x=[safe(str(x)) for x in table["At most"]], y=[100 * c.value for c in table[column]], name=column,
                marker={"color": fill}, hovertemplate="at most %{x}: %{y:.1f} %<extra>" + column + "</extra>",
            )
        )  # fmt: skip
    fig.update_layout(barmode="group", bargap=0.25)
    return fig


# ------------------------------------------------------------------- roofline


@dataclass(frozen=True, slots=True)
class Roof:
    """A ceiling of a device: a rate of arithmetic (`FLOP/s`) or of bytes (`B/s`)."""

    name: str
    unit: str
    value: float
    origin: str
    level: str = ""
    """Of a rate of bytes: `dram`, `l2` or `cache`."""


def roofs_of(facts: Mapping[str, Any]) -> list[Roof]:
    """The roofs that a record carries."""
    texts = ("name", "unit", "origin", "level")
    return [Roof(value=float(r["value"]), **{n: str(r.get(n, "")) for n in texts}) for r in facts.get("roofs", [])]


def roofline(
    table: pd.DataFrame, roofs: Sequence[Roof], columns: Mapping[str, str], model: str, names: Names
) -> go.Figure | None:
    """Blocks under the roofs that are known.

    Args:
        table: with `Block`, `Achieved FLOP/s`, `Largest`, and the columns of intensity.
        roofs: of the device; nothing is drawn without one of each unit.
        columns: column of an intensity -> how the legend calls it; the first is drawn filled, others open.
        model: whose colour and shape the points have.
        names: colours and shapes.
    """
    rate = "Achieved FLOP/s"
    points = {c: known(known(table, c), rate) for c in columns}
    x = [v.value for c, rows in points.items() for v in rows[c] if v.value > 0]
    y = [v.value for rows in points.values() for v in rows[rate] if v.value > 0]
    flat, slanted = ([r for r in roofs if r.unit == u] for u in ("FLOP/s", "B/s"))
    if not x or not flat or not slanted:
        return None
    ridges = [p.value / b.value for p in flat for b in slanted]
    span = min([*x, *ridges]) / 3, max([*x, *ridges]) * 3
    fig = blank(
        440, "FLOP per byte", f"FLOP/s, {'/'.join(sorted({c.origin for c in table[rate] if c.value is not None}))}",
        xaxis=log_axis(span, 0), yaxis=log_axis([*y, *(r.value for r in flat), min(y) / 2]),
    )  # fmt: skip
    # every slanted roof up to the highest flat one, every other flat one from the steepest on
    highest, steepest = max(flat, key=lambda r: r.value), max(slanted, key=lambda r: r.value)
    pairs = [(highest, band) for band in slanted] + [(top, steepest) for top in flat if top is not highest]
    for top, band in pairs:
        title = f"{top.name} ({top.origin})" + (f", {band.name} ({band.origin})" if top is highest else "")
        dash = "dot" if top is not highest else "solid" if band.level == DRAM else "dash"
        roof(fig, title, top.value, band.value, span, dash)
    for i, (column, title) in enumerate(columns.items()):
        rows = points[column]
        rows = rows[[c.value > 0 for c in rows[column]]] if len(rows) else rows
        if len(rows):
            fig.add_trace(_points(rows, column, title, model, names, filled=i == 0))
    return fig


def _points(rows: pd.DataFrame, column: str, title: str, model: str, names: Names, *, filled: bool) -> go.Scatter:
    marker = marker_of(names, model, 12)
    base = str(marker["symbol"]).removesuffix("-open")
    told = rows.assign(Model=rows["Block"])
    return go.Scatter(
        x=[c.value for c in rows[column]], y=[c.value for c in rows["Achieved FLOP/s"]], mode="markers+text",
        name=safe(title), marker=marker if filled else {**marker, "symbol": f"{base}-open", "line": {"width": 2}},
        text=[safe(short(str(b))) for b in rows["Block"]] if filled else None, textposition="top center",
        textfont={"size": 11}, cliponaxis=False,
        hovertext=[hover(r, [column, "Achieved FLOP/s", "Largest"]).removesuffix("<extra></extra>")
                   for _, r in told.iterrows()],
        hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip


def device_roofs(gemm: Cell, copy: Cell, cache: Cell) -> list[Roof]:
    """Measured ceilings of this CPU, of cells in GFLOP/s and GB/s; none of what is withheld."""
    known_ = ((gemm, "GEMM ceiling", "FLOP/s", ""), (copy, "copy ceiling", "B/s", DRAM),
              (cache, "copy ceiling in cache", "B/s", CACHE))  # fmt: skip
    return [Roof(name, unit, 1e9 * c.value, c.origin, level) for c, name, unit, level in known_ if c.value is not None]

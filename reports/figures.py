"""One function a figure: a table of `tables.py` or `costs.py` in, a Plotly figure out, or None with nothing to draw.

Colour says the model, the marker's shape says the camp, the axis title says the origin. Colours of text and paper
are left to the page, which knows whether it is dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ctrbench.reports.cells import Cell
from ctrbench.reports.costs import RIDGE_GPU
from ctrbench.reports.names import GREY, SYMBOLS, Names

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
GRID = "rgba(128,136,148,0.22)"
LINE = "rgba(128,136,148,0.75)"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
STAGE_COLOURS = {
    "data": "#F0E442", "h2d": "#DDDDDD", "embedding": "#E69F00", "interaction": "#009E73", "dense": "#56B4E9",
    "loss": "#999999", "backward": "#0072B2", "optimizer": "#CC79A7", "comm": "#D55E00", "other": "#5B6270",
}  # fmt: skip
BAR_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")


def _safe(text: str) -> str:
    """Titles are not ours: Plotly reads a subset of HTML in every label."""
    return html.escape(text, quote=False)


def _label(text: str, width: int = 18) -> str:
    """Breaks a long axis label, so that a phone keeps room for the plot."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(_safe(x) for x in lines)


def _figure(height: int, x: str, y: str = "", **axes: Any) -> go.Figure:
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
        template="none", height=height, margin={"l": 12, "r": 16, "t": 12, "b": 44}, autosize=True,
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"family": FONT, "size": 13},
        legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom", "font": {"size": 12}},
        hoverlabel={"font": {"family": FONT}, "align": "left"},
        xaxis={**axis, "title": {"text": x, "standoff": 10}, **axes.get("xaxis", {})},
        yaxis={**axis, "title": {"text": y, "standoff": 8}, **axes.get("yaxis", {})},
    )  # fmt: skip
    return fig


def _log(values: Iterable[float], pad: float = 0.25) -> dict[str, Any]:
    """A log axis with plain powers of ten, wide enough for its points."""
    logs = [math.log10(v) for v in values if v > 0]
    return {
        "type": "log",
        "range": [min(logs) - pad, max(logs) + pad],
        "dtick": 1,
        "exponentformat": "power",
        "minor": {"ticks": "outside", "ticklen": 3},
    }


def _origins(cells: Iterable[Cell]) -> str:
    return "/".join(sorted({c.origin for c in cells if c.value is not None}))


def _known(table: pd.DataFrame, column: str) -> pd.DataFrame:
    return table[[isinstance(c, Cell) and c.value is not None for c in table[column]]] if column in table else table[:0]


def _hover(row: pd.Series, columns: Sequence[str]) -> str:
    lines = [f"<b>{_safe(str(row['Model']))}</b>"]
    for c in columns:
        entry = row[c]
        known = isinstance(entry, Cell)
        lines.append(f"{_safe(c)}: {_safe(f'{entry.text} {entry.band}'.strip() if known else str(entry))}"
                     + (f" ({entry.origin})" if known and entry.value is not None else ""))  # fmt: skip
    return "<br>".join(lines) + "<extra></extra>"


def _camp_legend(fig: go.Figure, table: pd.DataFrame) -> None:
    """Grey entries that explain the shapes; the models are named on the axis."""
    for camp in dict.fromkeys(table["Camp"]):
        fig.add_trace(go.Scatter(
            x=[None], y=[None], mode="markers", name=camp,
            marker={"symbol": SYMBOLS.get(camp, "star"), "size": 10, "color": GREY, "line": {"width": 2, "color": GREY}},
        ))  # fmt: skip


def _marker(names: Names, model: str, size: int = 11) -> dict[str, Any]:
    colour, symbol = names.colour(model), names.symbol(model)
    return {
        "color": colour,
        "symbol": symbol,
        "size": size,
        "line": {"width": 2 if "open" in symbol else 1, "color": colour},
    }


def _error(cell: Cell, scale: float = 1.0) -> dict[str, Any] | None:
    if cell.low is None or cell.high is None or cell.value is None:
        return None
    return {
        "type": "data", "symmetric": False, "array": [scale * (cell.high - cell.value)],
        "arrayminus": [scale * (cell.value - cell.low)], "thickness": 1.6, "width": 5,
    }  # fmt: skip


def dots(
    table: pd.DataFrame, column: str, axis: str, names: Names, *, scale: float = 1.0, log: bool = False,
    zero: bool = False, suffix: str = "",
) -> go.Figure | None:  # fmt: skip
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
    rows = _known(table, column)
    if rows.empty:
        return None
    values = [scale * c.value for c in rows[column]]
    fig = _figure(90 + 34 * len(rows), f"{axis}, {_origins(rows[column])}")
    order = []
    for model, row in rows.iterrows():
        cell = row[column]
        tail = f" · {row[suffix]}" if suffix else ""
        order.append(_label(f"{row['Model']}{tail}"))
        fig.add_trace(go.Scatter(
            x=[scale * cell.value], y=[order[-1]], mode="markers", marker=_marker(names, str(model)), showlegend=False,
            error_x=_error(cell, scale), hovertemplate=_hover(row, [column]),
        ))  # fmt: skip
    _camp_legend(fig, rows)
    fig.update_yaxes(categoryorder="array", categoryarray=order[::-1], showgrid=True)
    if log:
        fig.update_xaxes(**_log(values))
    if zero:
        fig.add_vline(x=0, line={"color": LINE, "width": 2})
    return fig


def auc(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """AUC with its interval, floors included."""
    return dots(table, "AUC", "test AUC", names)


def deltas(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """Paired differences; an interval over the line is a tie."""
    column = next((c for c in table.columns if c.startswith("ΔAUC")), "")
    return dots(table, column, column, names, zero=True, suffix="Paired verdict")


def kernels(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """Kernels a step against FLOPs a kernel; one line a size, batch grows along it."""
    rows = _known(_known(table, "CUDA kernels / step"), "FLOPs / kernel")
    if rows.empty:
        return None
    x, y = ([c.value for c in rows[name]] for name in ("CUDA kernels / step", "FLOPs / kernel"))
    fig = _figure(
        430, f"CUDA kernels per training step, {_origins(rows['CUDA kernels / step'])}", "FLOPs per kernel",
        xaxis=_log(x), yaxis=_log(y),
    )  # fmt: skip
    for i, model, name, part in _series(rows, names):
        fig.add_trace(go.Scatter(
            x=[c.value for c in part["CUDA kernels / step"]], y=[c.value for c in part["FLOPs / kernel"]],
            mode="lines+markers", name=name, marker=_marker(names, model, 9), line={"color": names.colour(model), "dash": DASHES[i]},
            hovertemplate=[_hover(r, ["Preset", "Batch", "CUDA kernels / step", "FLOPs / kernel"]) for _, r in part.iterrows()],
        ))  # fmt: skip
    return fig


def _series(rows: pd.DataFrame, names: Names) -> list[tuple[int, str, str, pd.DataFrame]]:
    """(number of the preset within its model, model, legend name, its rows) in table order."""
    out: list[tuple[int, str, str, pd.DataFrame]] = []
    seen: dict[str, int] = {}
    for title, preset in dict.fromkeys(zip(rows["Model"], rows["Preset"], strict=True)):
        part = rows[(rows["Model"] == title) & (rows["Preset"] == preset)]
        model = str(part.index[0])
        number = seen[model] = seen.get(model, -1) + 1
        out.append((number % len(DASHES), model, _safe(f"{title} {preset.removeprefix('published:')}"), part))
    return out


def largest_batch(table: pd.DataFrame) -> pd.DataFrame:
    """The last batch of each model and preset; tables list batches in rising order."""
    return table.drop_duplicates(["Model", "Preset"], keep="last")


def intensity(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """Intensity by operand and by compulsory bytes at the largest batch, against the ridge of H100."""
    rows = largest_batch(_known(table, "Intensity (operands)"))
    if rows.empty:
        return None
    ridge = rows[f"{RIDGE_GPU} ridge"].iloc[0].value
    ends = [c.value for k in ("operands", "compulsory") for c in rows[f"Intensity ({k})"] if c.value is not None]
    fig = _figure(
        110 + 34 * len(rows),
        "FLOP per byte at the largest batch, counted; dashed: H100 ridge, cited",
        xaxis=_log([*ends, ridge]),
    )
    order = [_label(f"{r['Model']} {r['Preset'].removeprefix('published:')}", 22) for _, r in rows.iterrows()]
    for label, (model, row) in zip(order, rows.iterrows(), strict=True):
        low, high = row["Intensity (operands)"], row["Intensity (compulsory)"]
        marker = _marker(names, str(model))
        ends = [v for v in (low.value, high.value) if v is not None]
        fig.add_trace(go.Scatter(
            x=ends, y=[label] * len(ends), mode="lines+markers", showlegend=False,
            line={"color": names.colour(str(model)), "width": 2},
            marker={**marker, "symbol": [names.symbol(str(model)), "line-ns-open"][: len(ends)]},
            hovertemplate=_hover(row, ["Batch", "Intensity (operands)", "Intensity (compulsory)"]),
        ))  # fmt: skip
    _camp_legend(fig, rows)
    fig.add_trace(go.Scatter(
        x=[None], y=[None], mode="markers", name="upper end: compulsory bytes only",
        marker={"symbol": "line-ns-open", "size": 10, "color": GREY, "line": {"width": 2}},
    ))  # fmt: skip
    fig.update_yaxes(categoryorder="array", categoryarray=order[::-1])
    fig.add_vline(x=ridge, line={"color": LINE, "width": 2, "dash": "dash"})
    return fig


def bound_of(table: pd.DataFrame, gpu: str, names: Names) -> go.Figure | None:
    """Upper bound of MFU on one GPU against batch."""
    rows = _known(table, gpu)
    if rows.empty:
        return None
    batches = sorted({float(b.replace(",", "")) for b in rows["Batch"]})
    fig = _figure(
        430, "batch (samples per step)", f"upper bound of MFU, %, {_origins(rows[gpu])}",
        xaxis={"type": "log", "tickvals": batches, "ticktext": [f"{b:,.0f}" for b in batches]}, yaxis={"range": [0, 103]},
    )  # fmt: skip
    for i, model, name, part in _series(rows, names):
        fig.add_trace(go.Scatter(
            x=[float(b.replace(",", "")) for b in part["Batch"]], y=[100 * c.value for c in part[gpu]], mode="lines+markers",
            name=name, marker=_marker(names, model, 8), line={"color": names.colour(model), "dash": DASHES[i]},
            hovertemplate=[_hover(r, ["Preset", "Batch", gpu]) for _, r in part.iterrows()],
        ))  # fmt: skip
    return fig


def _roof(
    fig: go.Figure, name: str, peak: float, bandwidth: float, x: tuple[float, float], dash: str = "solid"
) -> None:
    """The line min(peak, intensity x bandwidth)."""
    ridge = peak / bandwidth
    points = sorted({x[0], ridge, x[1]}) if x[0] < ridge < x[1] else list(x)
    fig.add_trace(go.Scatter(
        x=points, y=[min(peak, p * bandwidth) for p in points], mode="lines", name=_safe(name),
        line={"color": LINE, "width": 2.5, "dash": dash}, hoverinfo="skip",
    ))  # fmt: skip


def cpu_roofline(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """Small presets under this CPU's measured ceilings."""
    rows = _known(_known(table, "Intensity (operands)"), "Achieved GFLOP/s")
    roofs = [_known(rows, c)[c] for c in ("GEMM ceiling, GFLOP/s", "Copy ceiling, GB/s")]
    if rows.empty or any(r.empty for r in roofs):
        return None
    peak, bandwidth = (sorted(c.value for c in r)[len(r) // 2] for r in roofs)
    x = [c.value for c in rows["Intensity (operands)"]]
    span = min([*x, peak / bandwidth]) / 3, max([*x, peak / bandwidth]) * 3
    y = [c.value for c in rows["Achieved GFLOP/s"]]
    fig = _figure(
        450, "FLOP per operand byte, counted", "GFLOP/s on this CPU, derived",
        xaxis=_log(span, 0), yaxis=_log([*y, peak, min(y) / 2]),
    )  # fmt: skip
    _roof(fig, f"measured ceilings: {peak:,.0f} GFLOP/s, {bandwidth:.3g} GB/s", peak, bandwidth, span)
    for number, data in enumerate(dict.fromkeys(rows["Data"])):
        for model, row in rows[rows["Data"] == data].iterrows():
            fig.add_trace(go.Scatter(
                x=[row["Intensity (operands)"].value], y=[row["Achieved GFLOP/s"].value], mode="markers",
                name=_safe(f"{row['Model']}, {data}" if rows["Data"].nunique() > 1 else str(row["Model"])),
                marker={**_marker(names, str(model), 12 - 3 * number), "opacity": 1 - 0.3 * number},
                hovertemplate=_hover(row, ["Data", "Intensity (operands)", "Achieved GFLOP/s", "MFU on this CPU"]),
            ))  # fmt: skip
    return fig


def gpu_roofline(table: pd.DataFrame, peak: float, bandwidth: float, names: Names) -> go.Figure | None:
    """Published presets on the roof of H100: what their intensity allows. No point is a measurement."""
    rows = largest_batch(
        _known(table, "Intensity (compulsory)" if "Intensity (compulsory)" in table else "Intensity (operands)")
    )
    kind = "compulsory"
    if rows.empty:
        kind, rows = "operands", largest_batch(_known(table, "Intensity (operands)"))
    if rows.empty:
        return None
    x = [c.value for c in rows[f"Intensity ({kind})"]]
    ridge = 1000 * peak / bandwidth
    span = min([*x, ridge]) / 3, max([*x, ridge]) * 3
    y = [c.value for c in rows[f"Roof by {kind} bytes, TFLOP/s"]]
    fig = _figure(
        450, f"FLOP per {kind} byte at the largest batch, counted", f"TFLOP/s that {RIDGE_GPU} could reach, bound",
        xaxis=_log(span, 0), yaxis=_log([*y, peak, min(span) * bandwidth / 1000]),
    )  # fmt: skip
    _roof(fig, f"{RIDGE_GPU} bf16 dense peak and DRAM, cited", peak, bandwidth / 1000, span)
    for _, model, name, part in _series(rows, names):
        row = part.iloc[0]
        fig.add_trace(go.Scatter(
            x=[row[f"Intensity ({kind})"].value], y=[row[f"Roof by {kind} bytes, TFLOP/s"].value], mode="markers", name=name,
            marker={**_marker(names, model, 13), "symbol": names.symbol(model).removesuffix("-open") + "-open",
                    "line": {"width": 2.5, "color": names.colour(model)}},
            hovertemplate=_hover(row, ["Preset", "Batch", f"Intensity ({kind})", f"Roof by {kind} bytes, TFLOP/s"]),
        ))  # fmt: skip
    return fig


def gain(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """Paired difference of AUC against forward FLOPs a sample."""
    column = next((c for c in table.columns if c.startswith("ΔAUC vs")), "")
    rows = _known(_known(table, column), "Forward FLOPs / sample")
    if rows.empty:
        return None
    x = [c.value / 1e9 for c in rows["Forward FLOPs / sample"]]
    fig = _figure(400, "forward GFLOP per sample, counted", f"{column}, {_origins(rows[column])}", xaxis=_log(x))
    fig.add_hline(y=0, line={"color": LINE, "width": 2})
    for model, row in rows.iterrows():
        fig.add_trace(go.Scatter(
            x=[row["Forward FLOPs / sample"].value / 1e9], y=[row[column].value], mode="markers", name=_safe(str(row["Model"])),
            marker=_marker(names, str(model), 12), error_y=_error(row[column]),
            hovertemplate=_hover(row, ["Forward FLOPs / sample", column, "ΔAUC / extra GFLOP"]),
        ))  # fmt: skip
    return fig


def split(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """Shares of a training step, stacked."""
    stages = [c for c in table.columns if c not in ("Model", "Camp", "Largest blocks")]
    rows = table[[any(row[s].value is not None for s in stages) for _, row in table.iterrows()]]
    if rows.empty:
        return None
    fig = _figure(120 + 36 * len(rows), "share of the traced step, %, measured", xaxis={"range": [0, 101]})
    labels = [_label(str(m)) for m in rows["Model"]]
    for stage in stages:
        fig.add_trace(go.Bar(
            y=labels, x=[None if c.value is None else 100 * c.value for c in rows[stage]], orientation="h", name=_safe(stage),
            marker={"color": STAGE_COLOURS.get(stage, GREY), "line": {"width": 0.5, "color": "rgba(255,255,255,0.8)"}},
            hovertemplate="%{y}: " + _safe(stage) + " %{x:.1f} %<extra></extra>",
        ))  # fmt: skip
    fig.update_layout(barmode="stack", bargap=0.35, legend={"traceorder": "normal"})
    fig.update_yaxes(categoryorder="array", categoryarray=labels[::-1], showgrid=False)
    return fig


BYTE_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")


def byte_dots(table: pd.DataFrame, columns: Sequence[str], label: str = "Model") -> go.Figure | None:
    """Several byte figures a row on one log axis: dots, since a bar has no honest start there."""
    kept = [c for c in columns if not _known(table, c).empty]
    if not kept:
        return None
    cells = [c for k in kept for c in _known(table, k)[k]]
    fig = _figure(
        110 + 36 * len(table), f"MB (10^6 bytes), {_origins(cells)}", xaxis=_log([c.value / 1e6 for c in cells])
    )
    labels = [_label(str(m)) for m in table[label]]
    for colour, symbol, column in zip(BAR_COLOURS, BYTE_SYMBOLS, kept, strict=False):
        fig.add_trace(go.Scatter(
            y=labels, x=[None if c.value is None else c.value / 1e6 for c in table[column]], mode="markers",
            name=_safe(column), marker={"color": colour, "symbol": symbol, "size": 10},
            hovertemplate="%{y}: " + _safe(column) + " %{x:.4g} MB<extra></extra>",
        ))  # fmt: skip
    fig.update_yaxes(categoryorder="array", categoryarray=labels[::-1])
    return fig

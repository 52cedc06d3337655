"""One function a figure: a table of `tables.py` or `costs.py` in, a Plotly figure out, or None with nothing to draw.

Colour says the model, the marker's shape says the camp, the axis title says the origin. Colours of text and paper
are left to the page, which knows whether it is dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ctrbench.reports.costs import RIDGE_GPU
from ctrbench.reports.drawing import (
    DASHES,
    LINE,
    blank,
    by_model,
    camp_legend,
    dots,
    errors_of,
    facets,
    hover,
    known,
    label,
    largest_batch,
    log_axis,
    marker_of,
    origins,
    point_facets,
    row_labels,
    safe,
    series,
)
from ctrbench.reports.names import GREY, Names

STAGE_COLOURS = {
    "data": "#F0E442",
    "h2d": "#DDDDDD",
    "embedding": "#E69F00",
    "interaction": "#009E73",
    "dense": "#56B4E9",
    "loss": "#999999",
    "backward": "#0072B2",
    "optimizer": "#CC79A7",
    "comm": "#D55E00",
    "other": "#5B6270",
}
BAR_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")


def auc(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """AUC with its interval, floors included."""
    return dots(table, "AUC", "test AUC", names)


def deltas(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """Paired differences; an interval over the line is a tie."""
    column = next((c for c in table.columns if c.startswith("ΔAUC")), "")
    return dots(table, column, "paired ΔAUC", names, zero=True, suffix="Paired verdict")


def kernels(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """Kernels a step against FLOPs a kernel; one line a size, batch grows along it."""
    rows = known(known(table, "CUDA kernels / step"), "FLOPs / kernel")
    if rows.empty:
        return None
    x, y = ([c.value for c in rows[name]] for name in ("CUDA kernels / step", "FLOPs / kernel"))
    fig = blank(
        470,
        f"CUDA kernels per training step, {origins(rows['CUDA kernels / step'])}",
        "FLOPs per kernel",
        xaxis=log_axis(x),
        yaxis=log_axis(y),
    )
    for i, model, name, part in series(rows):
        fig.add_trace(
            go.Scatter(
                x=[c.value for c in part["CUDA kernels / step"]],
                y=[c.value for c in part["FLOPs / kernel"]],
                mode="lines+markers",
                name=name,
                marker=marker_of(names, model, 9),
                line={"color": names.colour(model), "dash": DASHES[i]},
                hovertemplate=[
                    hover(r, ["Preset", "Batch", "CUDA kernels / step", "FLOPs / kernel"]) for _, r in part.iterrows()
                ],
                meta=facets(str(part["Model"].iloc[0]), *part["CUDA kernels / step"], *part["FLOPs / kernel"]),
            )
        )
    return fig


def intensity(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """Intensity by operand and by compulsory bytes at the largest batch, against the ridge of H100."""
    rows = largest_batch(known(table, "Intensity (operands)"))
    if rows.empty:
        return None
    ridge = rows[f"{RIDGE_GPU} ridge"].iloc[0].value
    both = "Intensity (compulsory)" in rows
    columns = [c for c in ("Intensity (operands)", "Intensity (compulsory)") if c in rows]
    ends = [x.value for c in columns for x in rows[c] if x.value is not None]
    fig = blank(
        110 + 34 * len(rows),
        "FLOP per byte, counted",
        xaxis=log_axis([*ends, ridge]),
    )
    order = [label(f"{r['Model']} {r['Preset'].removeprefix('published:')}", 22) for _, r in rows.iterrows()]
    for place, (model, row) in zip(order, rows.iterrows(), strict=True):
        marker = marker_of(names, str(model))
        ends = [row[c].value for c in columns if row[c].value is not None]
        fig.add_trace(
            go.Scatter(
                x=ends,
                y=[place] * len(ends),
                mode="lines+markers",
                showlegend=False,
                line={"color": names.colour(str(model)), "width": 2},
                marker={**marker, "symbol": [names.symbol(str(model)), "line-ns-open"][: len(ends)]},
                hovertemplate=hover(row, ["Batch", *columns]),
                meta=facets(str(row["Model"]), *row[columns]),
            )
        )
    camp_legend(fig, rows)
    if both:
        fig.add_trace(
            go.Scatter(
                x=[None],
                y=[None],
                mode="markers",
                name="by compulsory bytes",
                marker={"symbol": "line-ns-open", "size": 10, "color": GREY, "line": {"width": 2}},
            )
        )
    fig.update_yaxes(categoryorder="array", categoryarray=order[::-1])
    fig.add_vline(x=ridge, line={"color": LINE, "width": 2, "dash": "dash"})
    return fig


def bound_of(table: pd.DataFrame, gpu: str, names: Names) -> go.Figure | None:
    """Upper bound of MFU on one GPU against batch."""
    rows = known(table, gpu)
    if rows.empty:
        return None
    batches = sorted({float(b.replace(",", "")) for b in rows["Batch"]})
    fig = blank(
        430,
        "batch (samples per step)",
        f"upper bound of MFU, %, {origins(rows[gpu])}",
        xaxis={"type": "log", "tickvals": batches, "ticktext": [f"{b:,.0f}" for b in batches]},
        yaxis={"range": [0, 103]},
    )
    for i, model, name, part in series(rows):
        fig.add_trace(
            go.Scatter(
                x=[float(b.replace(",", "")) for b in part["Batch"]],
                y=[100 * c.value for c in part[gpu]],
                mode="lines+markers",
                name=name,
                marker=marker_of(names, model, 8),
                line={"color": names.colour(model), "dash": DASHES[i]},
                hovertemplate=[hover(r, ["Preset", "Batch", gpu]) for _, r in part.iterrows()],
                meta=facets(str(part["Model"].iloc[0]), *part[gpu]),
            )
        )
    return fig


def roof(fig: go.Figure, name: str, peak: float, bandwidth: float, x: tuple[float, float], dash: str = "solid") -> None:
    """The line min(peak, intensity x bandwidth)."""
    ridge = peak / bandwidth
    points = sorted({x[0], ridge, x[1]}) if x[0] < ridge < x[1] else list(x)
    fig.add_trace(
        go.Scatter(
            x=points,
            y=[min(peak, p * bandwidth) for p in points],
            mode="lines",
            name=safe(name),
            line={"color": LINE, "width": 2.5, "dash": dash},
            hoverinfo="skip",
        )
    )


def cpu_roofline(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """Small presets under this CPU's measured ceilings."""
    rows = known(known(table, "Intensity (operands)"), "Achieved GFLOP/s")
    roofs = [known(rows, c)[c] for c in ("GEMM ceiling, GFLOP/s", "Copy ceiling, GB/s")]
    if rows.empty or any(r.empty for r in roofs):
        return None
    peak, bandwidth = (sorted(c.value for c in r)[len(r) // 2] for r in roofs)
    x = [c.value for c in rows["Intensity (operands)"]]
    span = min([*x, peak / bandwidth]) / 3, max([*x, peak / bandwidth]) * 3
    y = [c.value for c in rows["Achieved GFLOP/s"]]
    fig = blank(
        450,
        "FLOP per operand byte, counted",
        "GFLOP/s on this CPU, derived",
        xaxis=log_axis(span, 0),
        yaxis=log_axis([*y, peak, min(y) / 2]),
    )
    roof(fig, f"measured ceilings: {peak:,.0f} GFLOP/s, {bandwidth:.3g} GB/s", peak, bandwidth, span)
    for number, data in enumerate(dict.fromkeys(rows["Data"])):
        here = rows[rows["Data"] == data]
        for model, mine in by_model(here):
            part = here.iloc[mine]
            fig.add_trace(
                go.Scatter(
                    x=[c.value for c in part["Intensity (operands)"]],
                    y=[c.value for c in part["Achieved GFLOP/s"]],
                    mode="markers",
                    name=safe(names.short(model) + (f", {data}" if rows["Data"].nunique() > 1 else "")),
                    marker={**marker_of(names, model, 12 - 3 * number), "opacity": 1 - 0.3 * number},
                    hovertemplate=[
                        hover(r, ["Data", "Intensity (operands)", "Achieved GFLOP/s"]) for _, r in part.iterrows()
                    ],
                    meta=facets(str(part["Model"].iloc[0]), *part["Intensity (operands)"], *part["Achieved GFLOP/s"]),
                )
            )
    return fig


def gpu_roofline(table: pd.DataFrame, peak: float, bandwidth: float, names: Names) -> go.Figure | None:
    """Published presets where their intensity meets the roof of H100. No point is a measurement."""
    kinds = [k for k in ("compulsory", "operands") if f"Intensity ({k})" in table]
    found = [(k, rows) for k in kinds if not (rows := largest_batch(known(table, f"Intensity ({k})"))).empty]
    if not found:
        return None
    kind, rows = found[0]
    x = [c.value for c in rows[f"Intensity ({kind})"]]
    ridge = 1000 * peak / bandwidth
    span = min([*x, ridge]) / 3, max([*x, ridge]) * 3
    y = [c.value for c in rows[f"Roof by {kind} bytes, TFLOP/s"]]
    fig = blank(
        450,
        f"FLOP per {kind} byte at the largest batch, counted",
        f"TFLOP/s on the roof of {RIDGE_GPU}",
        xaxis=log_axis(span, 0),
        yaxis=log_axis([*y, peak, min(span) * bandwidth / 1000]),
    )
    roof(fig, f"{RIDGE_GPU} bf16 dense peak and DRAM, cited", peak, bandwidth / 1000, span)
    for _, model, name, part in series(rows):
        row = part.iloc[0]
        fig.add_trace(
            go.Scatter(
                x=[row[f"Intensity ({kind})"].value],
                y=[row[f"Roof by {kind} bytes, TFLOP/s"].value],
                mode="markers",
                name=name,
                marker={
                    **marker_of(names, model, 13),
                    "symbol": names.symbol(model).removesuffix("-open") + "-open",
                    "line": {"width": 2.5, "color": names.colour(model)},
                },
                hovertemplate=hover(row, ["Preset", "Batch", f"Intensity ({kind})", f"Roof by {kind} bytes, TFLOP/s"]),
                meta=facets(str(row["Model"]), row[f"Intensity ({kind})"], row[f"Roof by {kind} bytes, TFLOP/s"]),
            )
        )
    return fig


def gain(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """Paired difference of AUC against forward FLOPs a sample."""
    column = next((c for c in table.columns if c.startswith("ΔAUC vs")), "")
    rows = known(known(table, column), "Forward FLOPs / sample")
    if rows.empty:
        return None
    x = [c.value for c in rows["Forward FLOPs / sample"]]
    fig = blank(400, "forward FLOP per sample, counted", f"paired ΔAUC, {origins(rows[column])}", xaxis=log_axis(x))
    fig.add_hline(y=0, line={"color": LINE, "width": 2})
    for model, mine in by_model(rows):
        part = rows.iloc[mine]
        fig.add_trace(
            go.Scatter(
                x=[c.value for c in part["Forward FLOPs / sample"]],
                y=[c.value for c in part[column]],
                mode="markers",
                name=safe(str(part["Model"].iloc[0]) if len(part) == 1 else names.title(model)),
                marker=marker_of(names, model, 12),
                error_y=errors_of(list(part[column])),
                hovertemplate=[
                    hover(r, ["Forward FLOPs / sample", column, "ΔAUC / extra GFLOP"]) for _, r in part.iterrows()
                ],
                meta=facets(str(part["Model"].iloc[0]), *part["Forward FLOPs / sample"], *part[column]),
            )
        )
    return fig


def stacked(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    axis: str,
    *,
    scale: float = 1.0,
    unit: str = "",
    heading: str = "Model",
) -> go.Figure | None:
    """Horizontal bars of a row's numbers end to end.

    Args:
        table: with the heading and the columns.
        columns: of cells -> colour, in the order of the stack.
        axis: axis title; the origin is added.
        scale: factor from the record's unit to the axis.
        unit: of the axis, for what a pointer shows.
        heading: column that names a row.
    """
    drawn = [any(row[c].value is not None for c in columns) for _, row in table.iterrows()]
    rows = table.loc[np.array(drawn, dtype=bool)]
    if rows.empty:
        return None
    fig = blank(120 + 36 * len(rows), f"{axis}, {origins(x for c in columns for x in rows[c])}")
    labels = row_labels(rows[heading])
    for column, colour in columns.items():
        fig.add_trace(
            go.Bar(
                y=labels,
                x=[None if c.value is None else scale * c.value for c in rows[column]],
                orientation="h",
                name=safe(column),
                marker={"color": colour, "line": {"width": 0.5, "color": "rgba(255,255,255,0.8)"}},
                hovertemplate="%{y}: " + safe(column) + " %{x:.3~g} " + unit + "<extra></extra>",
                meta=point_facets(rows[heading], rows[column]) if heading == "Model" else None,
            )
        )
    fig.update_layout(barmode="stack", bargap=0.35, legend={"traceorder": "normal"})
    fig.update_yaxes(categoryorder="array", categoryarray=labels[::-1], showgrid=False)
    return fig


def split(table: pd.DataFrame, axis: str, aside: Sequence[str]) -> go.Figure | None:
    """Shares of a training step by stage; `aside` names the columns that are no stage."""
    stages = {c: STAGE_COLOURS.get(c, GREY) for c in map(str, table.columns) if c not in aside}
    fig = stacked(table, stages, axis, scale=100, unit="%")
    return fig.update_xaxes(range=[0, 101]) if fig is not None else None


MARK_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")


def marks(
    table: pd.DataFrame, columns: Sequence[str], axis: str, *, scale: float, unit: str, heading: str = "Model"
) -> go.Figure | None:
    """Several numbers of one unit a row on one log axis: dots, since a bar has no honest start there.

    Args:
        table: with the heading and the columns.
        columns: of cells; one that nobody wrote is left out.
        axis: axis title; the origins are added.
        scale: factor from the record's unit to the axis.
        unit: of the axis, for what a pointer shows.
        heading: column that names a row.
    """
    kept = [c for c in columns if not known(table, c).empty]
    if not kept:
        return None
    cells = [c for k in kept for c in known(table, k)[k]]
    fig = blank(110 + 36 * len(table), f"{axis}, {origins(cells)}", xaxis=log_axis([scale * c.value for c in cells]))
    labels = row_labels(table[heading])
    for colour, symbol, column in zip(BAR_COLOURS, MARK_SYMBOLS, kept, strict=False):
        fig.add_trace(
            go.Scatter(
                y=labels,
                x=[None if c.value is None else scale * c.value for c in table[column]],
                mode="markers",
                name=safe(column),
                marker={
                    "color": colour,
                    "symbol": [symbol + ("-open" if c.status == "unstable" else "") for c in table[column]],
                    "size": 10,
                    "line": {"width": 2, "color": colour},
                },
                hovertemplate="%{y}: " + safe(column) + " %{x:.4g} " + unit + "<extra></extra>",
                meta=point_facets(table[heading], table[column]) if heading == "Model" else None,
            )
        )
    fig.update_yaxes(categoryorder="array", categoryarray=labels[::-1])
    return fig


def byte_dots(table: pd.DataFrame, columns: Sequence[str], heading: str = "Model") -> go.Figure | None:
    """Several byte figures a row."""
    return marks(table, columns, "MB (10<sup>6</sup> bytes)", scale=1e-6, unit="MB", heading=heading)

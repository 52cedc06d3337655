"""`suite=modes`: what torch.compile, CUDA graphs and bfloat16 are worth, and attention through every back end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from rich.table import Table as RichTable

from ctrbench.reports.cells import SWEEP, pick, tidy, where
from ctrbench.reports.drawing import blank, facets, hover, known, log_axis, marker_of, safe
from ctrbench.reports.exhibits import Context, Section, exhibit
from ctrbench.reports.names import Names, names_of
from ctrbench.reports.tables import CAPTION, console_table, models_of

MODE = re.compile(r"(eager|compile|cuda_graph),(float32|autocast|bfloat16)")
ATTENTION = "attention"
PLAIN = "eager float32"
OVER, MFU = "Step over eager float32", "MFU on this CPU"


def modes(frame: pd.DataFrame, names: Names) -> pd.DataFrame:
    """One row a model and mode, in the order of the models; eager float32 first, its ratio left blank."""
    swept = where(frame, preset=SWEEP)
    rows, index = [], []
    for model, variant in models_of(swept, names):
        found = MODE.fullmatch(variant)
        if not found:
            continue
        mine = where(swept, model=model, variant=variant, phase="train")
        rows.append({
            "Model": names.title(model), "Camp": names.camp(model), "Mode": f"{found[1]} {found[2]}",
            OVER: pick(mine, "mode_time"), "Step time": pick(mine, "step_time"), MFU: pick(mine, "mfu_cpu"),
            "Compilation, cold": pick(mine, "compile_time", scope="cold"),
            "Compilation, warm": pick(mine, "compile_time", scope="warm"),
            "Recompilations": pick(mine, "recompiles"), "Graph breaks": pick(mine, "graph_breaks"),
            "Peak RSS": pick(mine, "rss_peak"), "Note": _note(mine),
        })  # fmt: skip
        index.append(model)
    table = pd.DataFrame(rows, index=index)
    if table.empty:
        return table
    order = sorted(range(len(table)), key=lambda i: (index.index(index[i]), table["Mode"].iloc[i] != PLAIN))
    return table.iloc[order]


def _note(mine: pd.DataFrame) -> str:
    """What a row says of itself beside its number, or why it was not run."""
    said = [str(r) for r in where(mine, metric="mode_time")["reason"] if str(r)]
    return said[0] if said else "—"


def backends(frame: pd.DataFrame, names: Names) -> pd.DataFrame:
    """One row a back end of attention: its time over math's, or why there is none."""
    mine = where(frame, preset=SWEEP, variant=ATTENTION, metric="attention_time")
    rows, index = [], []
    for model in dict.fromkeys(mine["model"]):
        for scope in dict.fromkeys(where(mine, model=model)["scope"]):
            cell = pick(where(mine, model=model), "attention_time", scope=scope)
            rows.append({"Model": names.title(str(model)), "Camp": names.camp(str(model)), "Back end": str(scope),
                         "Attention over math": cell, "Reason": cell.reason or "—"})  # fmt: skip
            index.append(str(model))
    return pd.DataFrame(rows, index=index)


def figure(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """Step time over eager float32 of every model, one column a mode; below 1 is faster."""
    rows = known(table, OVER) if not table.empty else table
    if rows.empty:
        return None
    fig = blank(430, "", f"{OVER}, measured", yaxis=log_axis([c.value for c in rows[OVER]] + [1.0]))
    for model in dict.fromkeys(rows.index):
        part = rows[rows.index == model]
        cells = list(part[OVER])
        fig.add_trace(go.Scatter(
            x=list(part["Mode"]), y=[c.value for c in cells], mode="markers", name=safe(names.short(str(model))),
            marker=marker_of(names, str(model), 10),
            error_y={"type": "data", "symmetric": False, "thickness": 1,
                     "array": [(c.high if c.high is not None else c.value) - c.value for c in cells],
                     "arrayminus": [c.value - (c.low if c.low is not None else c.value) for c in cells]},
            hovertemplate=[hover(r, ["Mode", OVER, MFU, "Compilation, cold"]) for _, r in part.iterrows()],
            meta=facets(str(part["Model"].iloc[0]), *cells),
        ))  # fmt: skip
    fig.add_hline(y=1.0, line={"dash": "dot", "width": 1})
    return fig


def section(c: Context) -> Section | None:
    """What is each mode worth?"""
    table, attention = modes(c.frame, c.names), backends(c.frame, c.names)
    if table.empty and attention.empty:
        return None
    return Section(
        id="modes",
        title="Modes: compiled, captured, in bfloat16",
        sentence=" ".join(_sentences(table)) or "No mode but eager float32 has a timing.",
        exhibits=exhibit(table, ("Against eager float32", figure(table, c.names)), title="Every mode on this CPU",
                         hardware="cpu")
        + exhibit(attention, title="One causal attention, forward and backward", open=True, hardware="cpu"),
        flags=_flags(table),
        caveat="Each ratio is of steps by turns in one process, on random batches at small sizes; step times of two "
        "modes are of two processes and compare less well. MFU is against the product ceiling of the mode's own dtype. "
        "Embedding lookups stay eager in every mode. Compilation is paid once a process and shape.",
    )  # fmt: skip


def _sentences(table: pd.DataFrame) -> Iterator[str]:
    """Of every mode, how many models it makes faster, by intervals that leave 1 out."""
    rows = known(table, OVER) if not table.empty else table
    for mode in dict.fromkeys(rows["Mode"]) if len(rows) else ():
        cells = list(rows[rows["Mode"] == mode][OVER])
        faster = sum((c.high if c.high is not None else c.value) < 1 for c in cells)
        slower = sum((c.low if c.low is not None else c.value) > 1 for c in cells)
        span = f"{min(c.value for c in cells):.2f} to {max(c.value for c in cells):.2f}"
        yield f"{mode}: {faster} of {len(cells)} models faster than eager float32, {slower} slower (ratios {span})."


def _flags(table: pd.DataFrame) -> tuple[str, ...]:
    if table.empty:
        return ()
    emulated = table[[str(n).startswith("bf16 emulated") for n in table["Note"]]]
    if emulated.empty:
        return ()
    return (
        f"{emulated['Note'].iloc[0]}: the {len(emulated)} timings in bfloat16 say nothing of a CPU or GPU with them",
    )


CONSOLE = ("Model", "Mode", OVER, "Step time", MFU, "Compilation, cold", "Recompilations", "Graph breaks")


def console(frame: pd.DataFrame, bodies: Mapping[str, Mapping[str, Any]]) -> list[RichTable]:
    """The modes for a terminal; nothing without them."""
    rows = tidy(frame)
    table = modes(rows, names_of(rows, bodies))
    if table.empty:
        return []
    return [console_table("modes, random batches", table, CONSOLE, CAPTION)]

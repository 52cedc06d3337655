"""Utilisation against width and length: random batches timed on this CPU, LUM's step 1 traced at published sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from rich.table import Table as RichTable

from ctrbench.reports.cells import PROCESSES, SWEEP, Cell, absent, pick, tidy, where
from ctrbench.reports.costs import RIDGE_GPU, STEP1, sizes
from ctrbench.reports.drawing import DASHES, blank, facets, hover, known, log_axis, marker_of, origins, safe
from ctrbench.reports.exhibits import Context, Section, exhibit, extremes
from ctrbench.reports.names import Names, names_of
from ctrbench.reports.tables import CAPTION, console_table, models_of

MFU = "MFU on this CPU"
USEFUL = "Useful share of FLOPs"
CLAIM = 0.40
"""Claim S3: the pre-training of LUM exceeds this MFU."""
POINT = re.compile(r"(?:(.+),)?d=(\d+),T=(\d+)")
SIZE = re.compile(r"published:d=(\d+),L=(\d+),(\w+)")


def useful_share(mine: pd.DataFrame) -> Cell:
    """Model FLOPs over executed FLOPs of a training step, from its counts."""
    model, intensity, moved = (pick(mine, m) for m in ("flops_train_per_sample", "ai_operands", "bytes_operands"))
    lost = next((c for c in (model, intensity, moved) if c.value is None), None)
    if lost is not None or mine["batch"].isna().all():
        return absent("useful_flop_share", lost.reason if lost else "no batch")
    assert model.value is not None
    assert intensity.value is not None
    assert moved.value is not None
    executed = intensity.value * moved.value
    return Cell(model.value * float(mine["batch"].max()) / executed, "useful_flop_share", "derived")


def points(frame: pd.DataFrame, names: Names) -> pd.DataFrame:
    """One row a point of the sweep: size, work, time and utilisation, or why it was not run."""
    swept = where(frame, preset=SWEEP)
    found = []
    for model, variant in models_of(swept, names):
        size = POINT.fullmatch(variant)
        if size:
            found.append((model, size[1] or "", int(size[2]), int(size[3]), variant))
    found.sort(key=lambda p: (names.order(p[0], p[1]), p[2], p[3]))
    rows, index = [], []
    for model, kind, d, t, variant in found:
        mine = where(swept, model=model, variant=variant, phase="train")
        rows.append({
            "Model": names.title(model, kind), "Camp": names.camp(model), "d": str(d), "T": str(t),
            "Batch": _batch(mine), "FLOPs / sample": pick(mine, "flops_train_per_sample"), USEFUL: useful_share(mine),
            "Padding": pick(mine, "padding_waste"), "Intensity (operands)": pick(mine, "ai_operands"),
            "CUDA kernels / step": pick(mine, "kernels_per_step"), "Step time": pick(mine, "step_time"),
            "Samples / s": pick(mine, "throughput"), MFU: pick(mine, "mfu_cpu"),
            "Bandwidth use": pick(mine, "mbu", scope="bytes_operands"), "Peak RSS": pick(mine, "rss_peak"),
        })  # fmt: skip
        index.append(model)
    return pd.DataFrame(rows, index=index)


def _batch(mine: pd.DataFrame) -> str:
    known_batches = mine["batch"].dropna()
    return f"{known_batches.max():,.0f}" if len(known_batches) else "—"


def step1(frame: pd.DataFrame, names: Names) -> pd.DataFrame:
    """LUM's pre-training at published widths: what packing leaves idle, and the bounds of MFU, none measured."""
    train = where(frame, model=STEP1, phase="train")
    gpus = sorted({str(s) for s in where(train, metric="mfu_bound")["scope"] if s}, key=lambda g: (g != RIDGE_GPU, g))
    rows, index = [], []
    for model, variant, preset, batch in sizes(train, names):
        size = SIZE.fullmatch(preset)
        if not size:
            continue
        mine = where(train, variant=variant, preset=preset, batch=batch)
        row: dict[str, Any] = {
            "Model": names.title(model), "Camp": names.camp(model), "d": size[1], "L": size[2], "Rows": size[3],
            "Batch": f"{batch:,.0f}", "Padding": pick(mine, "padding_waste"), USEFUL: useful_share(mine),
            "FLOPs / row": pick(mine, "flops_train_per_sample"), "Intensity (operands)": pick(mine, "ai_operands"),
            "CUDA kernels / step": pick(mine, "kernels_per_step"),
        }  # fmt: skip
        row |= {g: pick(mine, "mfu_bound", scope=g) for g in gpus}
        rows.append(row)
        index.append(model)
    table = pd.DataFrame(rows, index=index)
    return table if table.empty else table.sort_values(["d", "L", "Rows"], key=_numeric, kind="stable")


def _numeric(column: pd.Series) -> pd.Series:
    """Sizes sort as numbers, words as words."""
    numbers = pd.to_numeric(column, errors="coerce")
    return column if numbers.isna().any() else numbers


def lines(table: pd.DataFrame, along: str, column: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(model, title, its points with a number along `d` or `T`), the other size fixed where most points are."""
    fixed = "T" if along == "d" else "d"
    rows = known(table, column)
    for title in dict.fromkeys(rows["Model"]):
        mine = rows[rows["Model"] == title]
        counts = mine[fixed].value_counts()
        part = mine[mine[fixed] == counts.idxmax()]
        if len(part) > 1:
            yield str(part.index[0]), str(title), part.sort_values(along, key=_numeric)


def figure(table: pd.DataFrame, along: str, names: Names) -> go.Figure | None:
    """MFU on this CPU against `d` or `T`; open markers are unstable timings."""
    drawn = list(lines(table, along, MFU)) if not table.empty else []
    if not drawn:
        return None
    every = pd.concat([part for _, _, part in drawn])
    values = [100 * c.value for c in every[MFU]]
    sizes_seen = sorted({int(v) for v in every[along]})
    word = "width d" if along == "d" else "events T"
    fig = blank(
        430, word, f"{MFU}, %, {origins(every[MFU])}",
        xaxis={"type": "log", "tickvals": sizes_seen, "ticktext": [str(v) for v in sizes_seen]}, yaxis=log_axis(values),
    )  # fmt: skip
    seen: dict[str, int] = {}
    for model, title, part in drawn:
        dash = DASHES[seen.setdefault(model, 0) % len(DASHES)]
        seen[model] += 1
        marker = marker_of(names, model, 9)
        shape = str(marker["symbol"]).removesuffix("-open")
        marker["symbol"] = [shape + ("-open" if c.status == "unstable" else "") for c in part[MFU]]
        fig.add_trace(go.Scatter(
            x=[int(v) for v in part[along]], y=[100 * c.value for c in part[MFU]], mode="lines+markers",
            name=safe(title.replace(" (DCN-v2 + DIN)", "")), marker=marker,
            line={"color": names.colour(model), "dash": dash},
            hovertemplate=[hover(r, ["d", "T", "Batch", "Step time", MFU]) for _, r in part.iterrows()],
            meta=facets(str(part["Model"].iloc[0]), *part[MFU]),
        ))  # fmt: skip
    return fig


def section(c: Context) -> Section | None:
    """Does a wider model, or a longer history, use the machine better?"""
    swept, first = points(c.frame, c.names), step1(c.frame, c.names)
    if swept.empty and first.empty:
        return None
    drawn = [(f"Against {w}", figure(swept, a, c.names)) for a, w in (("d", "width at one length"),
                                                                     ("T", "length at one width"))]  # fmt: skip
    said = [_rise(swept, "d", "width"), _rise(swept, "T", "length"), _claim(first)]
    return Section(
        id="mfu-sweep",
        title="MFU against width and length",
        sentence=" ".join(s for s in said if s) or "No point of the sweep has a utilisation.",
        exhibits=exhibit(swept, *drawn, title="Random batches on this CPU", note=_note(c.bodies), hardware="cpu")
        + exhibit(first, title="LUM step 1 (pre-training), traced at published widths", open=swept.empty),
        flags=_flags(swept),
        caveat="Utilisation of a CPU is no figure of a GPU: the ridge is two orders of magnitude lower here, so wide "
        "products pay off earlier. It is taken against the product ceiling measured in the same processes. Widths of "
        "two models are not the same size: compare along a line, or at equal FLOPs a sample. A LUM step 1 sample is a "
        "row of users, of any other model one impression. The GPU columns are upper bounds from counts.",
    )


def nothing_trained(c: Context) -> str:
    """What the summary says where no model has a quality."""
    if len(where(c.frame, preset=PROCESSES, metric="auc")):
        return "No model ran alone: see Training over processes."
    if where(c.frame, preset=SWEEP).empty:
        return "No model has a number."
    return "No model was trained: random batches were counted and timed, see MFU against width and length."


def _flags(swept: pd.DataFrame) -> tuple[str, ...]:
    cells = [] if swept.empty else list(known(swept, MFU)[MFU])
    shaky = sum(x.status == "unstable" for x in cells)
    if not shaky:
        return ()
    return (
        f"{shaky} of {len(cells)} utilisations are unstable (open markers): the ceilings moved while they were timed, "
        "so no order of these points is a result",
    )


def _rise(swept: pd.DataFrame, along: str, word: str) -> str:
    """First point against last, of the models whose clock was steady at both."""
    drawn = list(lines(swept, along, MFU)) if not swept.empty else []
    ends = [(part[MFU].iloc[0], part[MFU].iloc[-1]) for _, _, part in drawn]
    steady = [(a, b) for a, b in ends if a.status == b.status == "ok"]
    if not drawn:
        return ""
    if not steady:
        return f"Along {word} no model has steady timings at both ends, so nothing follows."
    rising = sum(b.value > a.value for a, b in steady)
    return (
        f"Along {word} {rising} of {len(steady)} models with steady timings use more of this CPU's measured GEMM "
        f"ceiling at the largest point than at the smallest; points span {extremes(swept, MFU)}."
    )


def _claim(first: pd.DataFrame) -> str:
    """What the counts say of claim S3."""
    if first.empty or known(first, RIDGE_GPU).empty:
        return ""
    rows = known(first, RIDGE_GPU)
    best = rows.assign(_bound=[x.value for x in rows[RIDGE_GPU]]).groupby(["d", "L", "Rows"])["_bound"].max()
    parts = [
        f"At the best traced batch the bound on {RIDGE_GPU} refutes {100 * CLAIM:.0f} % MFU of LUM's step 1 at "
        f"{(best < CLAIM).sum()} of {len(best)} sizes and confirms it at none."
    ]
    shares = known(rows, USEFUL)
    for kind in dict.fromkeys(shares["Rows"]):
        values = [x.value for x in shares.loc[shares["Rows"] == kind, USEFUL]]
        low = sum(v < CLAIM for v in values)
        parts.append(
            f"{str(kind).capitalize()} rows: {100 * min(values):.0f} to {100 * max(values):.0f} % of the FLOPs "
            f"executed under a dense mask are useful, below {100 * CLAIM:.0f} % at {low} of {len(values)}."
        )
    return " ".join(parts)


def _note(bodies: Mapping[str, Mapping[str, Any]]) -> str:
    """How the batches were made, as the records say."""
    found = [(b["spec"]["model"], b["extra"]["random_batches"]) for b in bodies.values()
             if b.get("extra", {}).get("random_batches")]  # fmt: skip
    if not found:
        return ""
    by_law: dict[str, set[str]] = {}
    for model, made in found:
        by_law.setdefault(str(made["histories"]), set()).add(str(model))
    usual = max(by_law, key=lambda law: len(by_law[law]))
    others = [f"{law} ({', '.join(sorted(models))})" for law, models in by_law.items() if law != usual]
    made = found[0][1]
    return (
        f"Batches: {made['ids']} random ids; histories: {'; '.join([usual, *others])}; tables cut to at most "
        f"{made['table_rows_at_most']:,} rows; {made['batches_held']} batches made before the first step and repeated. "
        "Nothing was trained to a quality."
    )


CONSOLE = ("Model", "d", "T", "FLOPs / sample", "Intensity (operands)", "Step time", "Samples / s", MFU)


def console(frame: pd.DataFrame, bodies: Mapping[str, Mapping[str, Any]]) -> list[RichTable]:
    """The sweep for a terminal; nothing without one."""
    rows = tidy(frame)
    table = points(rows, names_of(rows, bodies))
    if table.empty:
        return []
    return [console_table("sweep over width d and events T, random batches", table, CONSOLE, CAPTION)]

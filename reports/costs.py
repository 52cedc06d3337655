"""Tables of cost: counts, bounds, ceilings, memory. Pure functions of tidy rows (`cells.tidy`)."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from ctrbench.reports.cells import Cell, absent, pick, where
from ctrbench.reports.names import Names
from ctrbench.reports.tables import delta_of, models_of, reference_of

RIDGE_GPU = "H100 SXM"
DRAWN_GPUS = (RIDGE_GPU, "A100-80 SXM", "B200 SXM", "L4")
"""Figures of bounds; the table has every catalogued GPU."""
STEP1 = "lum_step1"


@cache
def cited() -> dict[str, Any]:
    """Published anchors of cited.toml."""
    return tomllib.loads((Path(__file__).parent / "cited.toml").read_text())


def published(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the published presets of rankers, traced on the meta device.

    Pre-training is left out: its sample is a row of users, no impression, and `sweep.step1` is its table.
    """
    return frame[frame["preset"].str.startswith("published") & (frame["model"] != STEP1)]


def gpu_limits(frame: pd.DataFrame, name: str = RIDGE_GPU) -> tuple[Cell, Cell, Cell]:
    """(peak FLOP/s in T, GB/s, ridge) of a GPU: rows of the run if it wrote them, else the cited datasheet."""
    mine = frame[frame["scope"].str.startswith(name)]
    peak, bandwidth = (pick(mine, m, scope=None) for m in ("peak_tflops", "peak_gbs"))
    if peak.value is None or bandwidth.value is None:
        sheet = next(g for g in cited()["gpu"] if g["name"] == name)
        peak = Cell(float(sheet["bf16_tflops"]), "peak_tflops", "cited", note=str(sheet["source"]))
        bandwidth = Cell(float(sheet["gbs"]), "peak_gbs", "cited", note=str(sheet["source"]))
    return peak, bandwidth, peak.over(bandwidth, "ridge", scale=1000.0)


def sizes(rows: pd.DataFrame, names: Names) -> list[tuple[str, str, str, float]]:
    """(model, variant, preset, batch) of every point among rows of published presets, in table order."""
    keys = rows[["model", "variant", "preset", "batch"]].drop_duplicates()
    points = [(str(m), str(v), str(p), float(b)) for m, v, p, b in keys.itertuples(index=False) if b == b]
    return sorted(points, key=lambda k: (*names.order(k[0], k[1]), k[2], k[3]))


def _point(names: Names, model: str, variant: str, preset: str, batch: float) -> dict[str, Any]:
    return {"Model": names.title(model, variant), "Camp": names.camp(model), "Preset": preset, "Batch": f"{batch:,.0f}"}


def launches(frame: pd.DataFrame, names: Names) -> pd.DataFrame:
    """Kernels, FLOPs a kernel and intensity of a training step of the published presets, against the H100 ridge."""
    ridge = gpu_limits(frame)[2]
    train = where(published(frame), phase="train")
    rows, index = [], []
    for model, variant, preset, batch in sizes(train, names):
        mine = where(train, model=model, variant=variant, preset=preset, batch=batch)
        kernels, flops = (pick(mine, m) for m in ("kernels_per_step", "flops_train_per_sample"))
        if kernels.reason == "no row" and flops.reason == "no row":
            continue
        row = _point(names, model, variant, preset, batch)
        row |= {
            "CUDA kernels / step": kernels,
            "CUDA kernels / sample": kernels.over(Cell(batch, "", "counted"), "kernels_per_sample"),
            "Training FLOPs / sample": flops,
            "FLOPs / kernel": flops.over(kernels, "flops_per_kernel", scale=batch),
            "Intensity (operands)": pick(mine, "ai_operands"),
            "Intensity (compulsory)": pick(mine, "ai_compulsory"),
            f"{RIDGE_GPU} ridge": ridge,
        }
        rows.append(row)
        index.append(model)
    return _without_empty(pd.DataFrame(rows, index=index), "Intensity (compulsory)")


def _without_empty(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Drops a column for which nobody wrote a row; a withheld number keeps its column."""
    gone = [c for c in columns if c in table and all(x.reason == "no row" for x in table[c])]
    return table.drop(columns=gone)


def bounds(frame: pd.DataFrame, phase: str, names: Names) -> pd.DataFrame:
    """`mfu_bound` of each published preset, batch by batch, one column a GPU."""
    rows_all = where(published(frame), metric="mfu_bound", phase=phase)
    gpus = sorted((g for g in rows_all["scope"].unique() if g), key=lambda g: (g not in DRAWN_GPUS, g != RIDGE_GPU, g))
    rows, index = [], []
    for model, variant, preset, batch in sizes(rows_all, names):
        mine = where(rows_all, model=model, variant=variant, preset=preset, batch=batch)
        row = _point(names, model, variant, preset, batch)
        row |= {gpu: _first(mine, "mfu_bound", (gpu, "")) for gpu in gpus}
        rows.append(row)
        index.append(model)
    return pd.DataFrame(rows, index=index)


def cpu_roof(frame: pd.DataFrame, names: Names) -> pd.DataFrame:
    """What the models trained here achieve on this CPU against its measured ceilings."""
    rows, index = [], []
    small = where(frame, trained=True, phase="train")
    for model, variant in models_of(small, names):
        for data in sorted(set(where(small, model=model, variant=variant)["data"])):
            mine = where(small, model=model, variant=variant, data=data)
            flops, speed = pick(mine, "flops_train_per_sample"), pick(mine, "throughput")
            if flops.value is None or speed.value is None:
                continue
            achieved = flops.over(Cell(1 / speed.value, "", "measured"), "ceiling_gemm", scale=1e-9)
            rows.append({
                "Model": names.title(model, variant), "Camp": names.camp(model), "Data": data,
                "Intensity (operands)": pick(mine, "ai_operands"), "Achieved GFLOP/s": achieved,
                "GEMM ceiling, GFLOP/s": pick(mine, "ceiling_gemm", scope=None),
                "Copy ceiling, GB/s": pick(mine, "ceiling_copy", scope=None),
            })  # fmt: skip
            index.append(model)
    return pd.DataFrame(rows, index=index)


def _first(mine: pd.DataFrame, metric: str, scopes: tuple[str, ...]) -> Cell:
    """The first scope that has a row."""
    cells = [pick(mine, metric, scope=s) for s in scopes]
    return next((c for c in cells if c.reason != "no row"), cells[0])


def gpu_roof(frame: pd.DataFrame, names: Names) -> pd.DataFrame:
    """Where the intensity of each published preset meets the roof of H100. No point is a measurement."""
    peak, bandwidth, ridge = gpu_limits(frame)
    top, slope = peak.value or 0.0, (bandwidth.value or 0.0) / 1000
    train = where(published(frame), phase="train")
    rows, index = [], []
    for model, variant, preset, batch in sizes(train, names):
        mine = where(train, model=model, variant=variant, preset=preset, batch=batch)
        row = _point(names, model, variant, preset, batch)
        for name, metric in (("operands", "ai_operands"), ("compulsory", "ai_compulsory")):
            ai = pick(mine, metric)
            roof = absent("peak_tflops", ai.reason)
            if ai.value is not None:
                roof = Cell(min(top, ai.value * slope), "peak_tflops", "derived")
            row |= {f"Intensity ({name})": ai, f"Roof by {name} bytes, TFLOP/s": roof}
        row[f"{RIDGE_GPU} ridge"] = ridge
        if row["Intensity (operands)"].reason == row["Intensity (compulsory)"].reason == "no row":
            continue
        rows.append(row)
        index.append(model)
    table = pd.DataFrame(rows, index=index)
    return _without_empty(table, "Intensity (compulsory)", "Roof by compulsory bytes, TFLOP/s")


def gain_per_flop(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """Paired difference of AUC against the extra forward FLOPs a sample that it cost."""
    other = reference_of(frame, data)
    base = pick(where(frame, data=data, model=other, variant="", trained=True), "flops_fwd_per_sample")
    rows, index = [], []
    for model, variant in models_of(frame, names, data=data, trained=True, metric="auc"):
        if names.camp(model) == "floor" or not other:
            continue
        mine = where(frame, data=data, model=model, variant=variant, trained=True)
        delta, flops = delta_of(frame, data, model, variant, other), pick(mine, "flops_fwd_per_sample")
        rows.append({
            "Model": names.title(model, variant), "Camp": names.camp(model), "Forward FLOPs / sample": flops,
            f"Times {names.title(other)}": flops.over(base, "ratio"), f"ΔAUC vs {names.title(other)}": delta,
            "ΔAUC / extra GFLOP": pick(mine, "auc_per_gflop", scope=f"vs:{other}", signed=True),
        })  # fmt: skip
        index.append(model)
    return pd.DataFrame(rows, index=index)


def memory(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """Bytes in memory and storage and CPU time of each model."""
    rows, index = [], []
    for model, variant in models_of(frame, names, data=data, trained=True):
        if names.camp(model) == "floor":
            continue
        mine = where(frame, data=data, model=model, variant=variant, trained=True, phase="train")
        row: dict[str, Any] = {"Model": names.title(model, variant), "Camp": names.camp(model)}
        row |= {
            "Peak RSS": pick(mine, "rss_peak"),
            "Embedding tables": pick(mine, "bytes_tables"),
            "Optimizer state": pick(mine, "bytes_optimizer"),
            "Checkpoint": pick(mine, "bytes_checkpoint"),
            "Operand bytes / step": pick(mine, "bytes_operands"),
            "Compulsory bytes / step": pick(mine, "bytes_compulsory"),
            "Padding waste": _first(mine, "padding_waste", ("", "all")),
            "Unique row ratio": _first(mine, "unique_row_ratio", ("", "all")),
        }
        rows.append(row)
        index.append(model)
    return pd.DataFrame(rows, index=index)


def storage(frame: pd.DataFrame, names: Names) -> pd.DataFrame:
    """Raw and prepared bytes of each data set."""
    rows = []
    for data in sorted(set(where(frame, phase="prepare")["data"])):
        mine = where(frame, phase="prepare", data=data)
        raw, shards = pick(mine, "bytes_raw"), pick(mine, "bytes_shards")
        rows.append(
            {"Data": data, "Raw data": raw, "Prepared shards": shards, "Shards / raw": shards.over(raw, "ratio")}
        )
    return pd.DataFrame(rows, index=[r["Data"] for r in rows])


def speed(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """Time of a training step and of one forward call."""
    rows, index = [], []
    for model, variant in models_of(frame, names, data=data, trained=True):
        mine = where(frame, data=data, model=model, variant=variant, trained=True)
        if names.camp(model) == "floor":
            continue
        row: dict[str, Any] = {"Model": names.title(model, variant), "Camp": names.camp(model)}
        train = where(mine, phase="train")
        row |= {
            "Step time": pick(train, "step_time"),
            "Samples / s": pick(train, "throughput"),
            "Forward latency": pick(mine, "infer_latency", phase="infer"),
            "Latency batch": _batch(mine),
            "Loader stall": pick(train, "loader_stall"),
            "Operators / step": pick(train, "ops_per_step"),
        }
        rows.append(row)
        index.append(model)
    return pd.DataFrame(rows, index=index)


def _batch(mine: pd.DataFrame) -> str:
    """The batch that `pick` reports the latency at."""
    batches = where(mine, metric="infer_latency")["batch"].dropna()
    return f"{batches.max():,.0f}" if len(batches) else "—"

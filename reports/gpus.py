"""The catalogued GPUs side by side for each published size: bounds, modelled times, and what the time goes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ctrbench.reports.cells import Cell, absent, pick, where
from ctrbench.reports.costs import RIDGE_GPU, published, sizes
from ctrbench.reports.drawing import known
from ctrbench.reports.exhibits import Context, Exhibit, Section, extremes

TIME, LEAST, HOST = "GPU time (modelled)", "GPU time, at least", "Break-even host time, µs"
TERMS = {"flops": "arithmetic", "bytes": "memory traffic", "launches": "launches"}
NO_TIME = "no kernel-time parameters for this GPU"


def section(c: Context) -> Section | None:
    """Shown where published sizes were projected."""
    rows = where(published(c.frame), phase="train")
    rows = rows[rows["metric"].isin(["gpu_time_bound", "gpu_time_modelled", "mfu_bound"])]
    largest = {(m, v, p): (m, v, p, b) for m, v, p, b in sizes(rows, c.names)}
    if not (rows["metric"] == "gpu_time_bound").any():
        return None
    made = [  # a size that could not be counted at all is withheld in other sections, with its reason
        (point, table) for point in largest.values() if len(table := side_by_side(c, rows, *point))
    ]
    exhibits = [
        Exhibit(table=table, title=f"Training step, batch {batch:,.0f}", open=True,
                model=c.names.title(model, variant),
                group=f"{c.names.title(model, variant)} {preset.removeprefix('published:')}")
        for (model, variant, preset, batch), table in made
    ]  # fmt: skip
    return Section(
        id="gpus",
        title="GPU against GPU (published presets)",
        sentence=_sentence(made, c),
        exhibits=tuple(exhibits),
        caveat="A modelled time is an interval [t/2, 2t]; two GPUs whose intervals overlap are not ranked by it. The "
        "least time is a bound for the eager operators on one stream, unfitted. On a host slower than the break-even "
        "time per launch the step is launch-bound. The costliest block is told where a time is.",
    )


def side_by_side(c: Context, rows: pd.DataFrame, model: str, variant: str, preset: str, batch: float) -> pd.DataFrame:
    """One row a GPU for one size at one batch, those with a modelled time first.

    Args:
        c: names and records.
        rows: training rows of published sizes.
        model: of the size, as `variant`, `preset` and `batch`.
    """
    mine = where(published(c.frame), model=model, variant=variant, preset=preset, batch=batch, phase="train")
    costly = _costliest(c, model, preset, batch)
    gpus = sorted(
        g for g in where(rows, model=model, variant=variant, preset=preset, batch=batch)["scope"].unique() if g
    )
    out = []
    for gpu in gpus:
        time, worst = _known(mine, "gpu_time_modelled", gpu), costly.get(gpu, {})
        out.append({
            "GPU": gpu, "Dtype": _dtypes(mine, gpu), "MFU bound": _known(mine, "mfu_bound", gpu),
            LEAST: _known(mine, "gpu_time_bound", gpu),
            TIME: time, HOST: _known(mine, "break_even_host_us", gpu),
            "Costliest block": f"{worst['block']} {100 * worst['share']:.0f} %" if worst else "—",
            "Mostly": TERMS.get(str(worst.get("term")), "—"),
        })  # fmt: skip
    out.sort(key=lambda r: (r[TIME].value is None, r["GPU"] != RIDGE_GPU, r["GPU"]))
    return pd.DataFrame(out)


def _known(mine: pd.DataFrame, metric: str, gpu: str) -> Cell:
    cell = pick(mine, metric, scope=gpu)
    return absent(metric, NO_TIME) if cell.reason == "no row" and metric != "mfu_bound" else cell


def _dtypes(mine: pd.DataFrame, gpu: str) -> str:
    """Of the bound, and of the times where their parameters are of another."""
    bound, time = (
        ", ".join(sorted(set(where(mine, metric=m, scope=gpu)["dtype"]))) for m in ("mfu_bound", "gpu_time_bound")
    )
    return f"{bound}, times {time}" if bound and time and bound != time else bound or time or "—"


def _costliest(c: Context, model: str, preset: str, batch: float) -> dict[str, Mapping[str, Any]]:
    """GPU -> its costliest block, as the counting of the published sizes recorded it."""
    found: dict[str, Mapping[str, Any]] = {}
    for body in c.bodies.values():
        if body.get("spec", {}).get("kind") == "published" and body["spec"].get("model") == model:
            for row in body.get("extra", {}).get("costliest", []):
                if row["preset"] == preset and row["phase"] == "train" and float(row["batch"]) == batch:
                    found[str(row["gpu"])] = row
    return found


def _sentence(made: list[tuple[tuple[str, str, str, float], pd.DataFrame]], c: Context) -> str:
    with_time = [(point, rows) for point, table in made if len(rows := known(table, TIME))]
    parts = [f"{len(made)} published sizes at their largest batch; {len(with_time)} have a modelled time on some GPU."]
    short = [
        f"{c.names.title(p[0], p[1])} {p[2].removeprefix('published:')}"
        for p, rows in with_time
        if any(t == TERMS["launches"] for t in rows["Mostly"])
    ]
    if short:
        parts.append(f"The costliest block goes mostly to launches, not to work, on some GPU for {', '.join(short)}.")
    bound = pd.DataFrame([
        {"Model": f"{c.names.title(p[0], p[1])} {p[2].removeprefix('published:')}", LEAST: rows[LEAST].iloc[0]}
        for p, table in made if len(rows := known(table[table["GPU"] == RIDGE_GPU], LEAST))
    ])  # fmt: skip
    if len(bound):
        parts.append(f"On {RIDGE_GPU} the bound of such a step is {extremes(bound, LEAST)}.")
    return " ".join(parts)

"""The published sizes on many accelerators, on paper: what they send, how long that takes, who waits for it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ctrbench.reports.cells import Cell, absent, pick, where
from ctrbench.reports.costs import published, sizes
from ctrbench.reports.drawing import known
from ctrbench.reports.exhibits import Context, Exhibit, Section, extremes
from ctrbench.reports.names import Names

SENT, TIME, STEP = "Sent / step", "Communication / step", "Step"
WAITS, MFU = "Waits for communication", "MFU, at most"
CAVEAT = (
    "Nothing here was measured on more than one accelerator. Bytes follow from counted lookups and dense parameters; "
    "link rates are datasheet values, the share of them that is reached (50 to 90 %) is an assumption. A band is what "
    "these assumptions span, no confidence interval: stragglers, popular rows, shared networks and loading of data are "
    "in neither end, nor are narrower rows, ids sent once a batch or cached rows. The plan is the fastest of tables by "
    "row, by table, and by row with small ones copied to every accelerator. The batch of all accelerators grows with "
    "their number; what that does to quality is not said. Step time is withheld where one accelerator's compute is."
)
PLANS = {"row_wise": "by row", "table_wise": "by table", "small_replicated": "by row, small copied"}
"""Plans of scopes, as they are printed."""


def section(c: Context) -> Section | None:
    """Shown where published sizes have rows of many accelerators."""
    rows = published(c.frame)
    tables = {gpu: table for gpu in _gpus(rows) if len(table := on_many(rows, gpu, c.names))}
    if not tables:
        return None
    return Section(
        id="at-scale",
        title="At scale, on paper (published presets)",
        sentence=" ".join(s for gpu, table in tables.items() if (s := _sentence(gpu, table))),
        exhibits=tuple(
            Exhibit(table=table, title=f"{gpu}, the largest batch counted on each accelerator", hardware=gpu)
            for gpu, table in tables.items()
        ),
        caveat=CAVEAT,
    )


def on_many(rows: pd.DataFrame, gpu: str, names: Names) -> pd.DataFrame:
    """One row a size and number of accelerators, under the plan that is faster at its worst.

    Args:
        rows: of published sizes.
        gpu: as scopes name it.
        names: how models are printed.
    """
    mine = rows[rows["scope"].str.startswith(f"{gpu}:")]
    times = mine[mine["metric"] == "communication_time"]
    out: list[dict[str, Any]] = []
    for model, variant, preset, batch in sizes(times, names):
        at = {"model": model, "variant": variant, "preset": preset, "batch": batch}
        point = where(mine, **at)
        for world in sorted({int(s.split(":")[1]) for s in where(times, **at)["scope"]}):
            plan = min(PLANS, key=lambda p: _worst(pick(point, "communication_time", scope=f"{gpu}:{world}:{p}")))
            found = {m: pick(point, m, scope=f"{gpu}:{world}:{plan}") for m in (
                "communication_bytes", "communication_time", "step_time_at_scale", "communication_wait_share",
            )}  # fmt: skip
            bound = pick(point, "mfu_bound_at_scale", scope=f"{gpu}:{world}")
            out.append({
                "Model": names.title(model, variant), "Preset": preset.removeprefix("published:"),
                "Batch": f"{batch:,.0f}", "Accelerators": world, "Tables": PLANS[plan],
                SENT: found["communication_bytes"], TIME: found["communication_time"],
                STEP: found["step_time_at_scale"], WAITS: found["communication_wait_share"],
                MFU: absent("mfu_bound_at_scale", "no dense peak") if bound.reason == "no row" else bound,
            })  # fmt: skip
    return pd.DataFrame(out)


def _gpus(rows: pd.DataFrame) -> list[str]:
    scopes = where(rows, metric="communication_time")["scope"]
    return list(dict.fromkeys(str(s).split(":")[0] for s in scopes))


def _worst(cell: Cell) -> float:
    return float("inf") if cell.high is None else cell.high


def _sentence(gpu: str, table: pd.DataFrame) -> str:
    largest = table[table["Accelerators"] == table["Accelerators"].max()]
    world = int(largest["Accelerators"].iloc[0])
    shares = [(str(r["Model"]), str(r["Preset"]), r[WAITS]) for _, r in largest.iterrows() if r[WAITS].low is not None]
    most = [f"{m} {p}" for m, p, cell in shares if cell.low >= 0.5]
    parts = [f"On {world} {gpu} a step sends {extremes(largest, SENT)}."]
    if most:
        parts.append(f"At least half of the step waits, even with all hidden that can be, for {', '.join(most)}.")
    steps = len(known(largest, STEP))
    parts.append(f"The step has a time for {steps} of {len(largest)} sizes.")
    return " ".join(parts)

"""What a million training samples cost in CPU core-seconds, data path and compute end to end."""

from __future__ import annotations

import pandas as pd

from ctrbench.reports import figures
from ctrbench.reports.cells import Cell, absent, pick, where
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit, extremes
from ctrbench.reports.names import Names
from ctrbench.reports.tables import models_of

METRIC = "cpu_core_s_per_million"
PARTS = {"data": "Data path", "compute": "Compute"}
"""Scope of a row -> column, in the order of the stack."""
SUM, SHARE = "Together", "Data path / together"


def together(mine: pd.DataFrame) -> Cell:
    """Core-seconds per million samples of one configuration, all scopes; withheld where one is."""
    cells = [pick(mine, METRIC, scope=s) for s in PARTS]
    values = [c.value for c in cells if c.value is not None]
    if len(values) < len(cells):
        return absent(METRIC, next(c.reason for c in cells if c.value is None))
    shaky = next((c for c in cells if c.status == "unstable"), cells[0])
    return Cell(sum(values), METRIC, "derived", status=shaky.status, reason=shaky.reason)


def stack(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """One row a model whose training step was timed here."""
    train = where(frame, data=data, trained=True, phase="train")
    rows, index = [], []
    for model, variant in models_of(where(train, metric=METRIC), names):
        mine = where(train, model=model, variant=variant)
        whole, parts = together(mine), {head: pick(mine, METRIC, scope=s) for s, head in PARTS.items()}
        share = parts[PARTS["data"]].over(whole, "ratio")
        rows.append(
            {"Model": names.title(model, variant), "Camp": names.camp(model), **parts, SUM: whole, SHARE: share}
        )
        index.append(model)
    return pd.DataFrame(rows, index=index)


def section(c: Context) -> Section | None:
    """Shown where the operating system counted core-seconds."""
    exhibits: list[Exhibit] = []
    said = []
    colours = dict(zip(PARTS.values(), figures.BAR_COLOURS, strict=False))
    for track, data in c.data:
        table = stack(c.frame, data, c.names)
        if table.empty:
            continue
        drawn = figures.stacked(table, colours, "CPU core-s per million", unit="core-s")
        exhibits += exhibit(table, (f"CPU work of a million training samples on {data}", drawn),
                            title=f"{data} ({track} track)", data=data, hardware="cpu")  # fmt: skip
        span = extremes(table, SUM)
        share = max((x.value for x in table[SHARE] if x.value is not None), default=None)
        if span and share is not None:
            said.append(f"On {data} a million training samples take {span} CPU core-seconds, of which the data path is "
                        f"at most {100 * share:.2g} %.")  # fmt: skip
    if not exhibits:
        return None
    return Section(
        id="cost-stack",
        title="Cost stack: CPU work of a million training samples",
        sentence=" ".join(said) or "No CPU work is known.",
        exhibits=tuple(exhibits),
        caveat="User and system time of the process and its children, as the operating system counts it; work of one "
        f"model on two data sets is not comparable where the rows differ. {_money(c)} Bytes that are kept stand in the "
        "section on memory.",
    )


def _money(c: Context) -> str:
    """Where USD stand, or that there are none."""
    if (c.frame["metric"] == "usd_per_million_requests").any():
        return "What that costs in USD stands in the section on a million requests."
    return "USD per million requests is withheld: these records hold no price and no rate of serving."

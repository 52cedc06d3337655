"""What a section is made of: figures with their data table, and the helpers that word its sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ctrbench.reports import kernel_rows
from ctrbench.reports.drawing import known
from ctrbench.reports.names import Names


@dataclass(frozen=True, kw_only=True, slots=True)
class Exhibit:
    """Figures and the table of their data."""

    table: pd.DataFrame
    figures: tuple[tuple[str, go.Figure], ...] = ()
    """(caption, figure); drawn side by side where there is room."""
    title: str = ""
    note: str = ""
    open: bool = False
    """The table is the content: shown without a click."""
    group: str = ""
    """Neighbours of one name stand together, folded under it; their figures are drawn once it is opened."""
    model: str = ""
    """The one model that it speaks of, as it is printed; for the filters of the page, like the next two."""
    data: str = ""
    """The one data set that it speaks of."""
    hardware: str = ""
    """The one device that it speaks of: a GPU's name, or `cpu`."""

    def __post_init__(self) -> None:
        if self.figures and self.table.empty:
            raise ValueError(
                f"exhibit {self.title!r} has a figure without a data table; give it the table it was drawn from"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One question of the page."""

    id: str
    title: str
    sentence: str
    exhibits: tuple[Exhibit, ...]
    caveat: str = ""
    flags: tuple[str, ...] = ()
    """Findings that must not be overlooked."""
    see: tuple[str, str] | None = None
    """(id of a section, words): its folded groups go on where this one ends, and are linked from here."""


@dataclass(frozen=True, slots=True)
class Context:
    """What every section is made from."""

    frame: pd.DataFrame
    bodies: Mapping[str, Mapping[str, Any]]
    names: Names
    data: tuple[tuple[str, str], ...]
    """(track, data) with at least one number."""
    kernels: pd.DataFrame = field(default_factory=kernel_rows.empty)
    """Rows of `kernel_rows`."""


def exhibit(table: pd.DataFrame, *drawn: tuple[str, go.Figure | None], **kw: Any) -> tuple[Exhibit, ...]:
    """Nothing for an empty table; figures that have nothing to show are left out."""
    if table.empty:
        return ()
    return (Exhibit(table=table, figures=tuple((c, f) for c, f in drawn if f is not None), **kw),)


def extremes(table: pd.DataFrame, column: str) -> str:
    """`1.2 ms (DeepFM) to 15 ms (OneTrans)`."""
    rows = known(table, column)
    if rows.empty:
        return ""
    order = rows.assign(_v=[c.value for c in rows[column]]).sort_values("_v")
    low, high = order.iloc[0], order.iloc[-1]
    if len(order) == 1:
        return f"{low[column].text} ({low['Model']})"
    return f"{low[column].text} ({low['Model']}) to {high[column].text} ({high['Model']})"


def delta_column(table: pd.DataFrame) -> str:
    return next((str(c) for c in table.columns if str(c).startswith("ΔAUC")), "")


def by_group(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(how it is said, rows) of defaults, tuned models and those at equal FLOPs, which pair among themselves."""
    names = {"tuned": ", both tuned", "equal_flops": ", both at equal FLOPs"}
    kind = [next((g for g in names if f"· {g}" in str(m)), "") for m in table["Model"]]
    return [(names.get(g, ""), table[[k == g for k in kind]]) for g in ("", *names) if g in kind]

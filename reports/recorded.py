"""The records that hold launches, each with its rows and facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ctrbench.reports.cells import data_labels
from ctrbench.reports.exhibits import Context
from ctrbench.reports.kernel_figures import short
from ctrbench.reports.kernel_rows import COUNTERS, KERNEL, OPERATOR, RANGE, TEXTS, TOTAL, WHOLE


@dataclass(frozen=True)
class Recording:
    """The rows and facts of one record."""

    title: str
    model: str
    data: str
    key: str
    rows: pd.DataFrame
    """Of `kernel_rows`; missing text is empty, numbers are plain floats."""
    facts: Mapping[str, Any]
    spec: Mapping[str, Any]

    @property
    def group(self) -> str:
        """How the page names it."""
        return f"{self.title} on {self.data}, {self.device}"

    @property
    def device(self) -> str:
        """`this CPU (torch.profiler)`."""
        device = str(self.facts.get("device", "n/k"))
        tool = str(self.spec.get("tracer") or "none")
        return f"{'this CPU' if device == 'cpu' else device} ({tool if tool != 'none' else 'torch.profiler'})"

    @property
    def origin(self) -> str:
        return str(self.rows["origin"].iloc[0])

    @property
    def steps(self) -> int:
        """Steps that totals sum over; 1 where the recording marks none."""
        return int(self.facts.get("steps") or 1)

    def why(self, what: str, default: str) -> str:
        """Reason for which a part is withheld."""
        return str(self.facts.get("withheld", {}).get(what) or default)

    @cached_property
    def work(self) -> pd.DataFrame:
        """Totals of kernels, copies and operators."""
        return self.rows[(self.rows["view"] == TOTAL) & (self.rows["kind"] != RANGE)]

    @cached_property
    def launches(self) -> pd.DataFrame:
        """Totals of kernels, or of operators that are launches."""
        return self.work[self.work["kind"].isin([KERNEL, OPERATOR]) & (self.work["launches"] > 0)]

    @cached_property
    def ranges(self) -> pd.DataFrame:
        """Exclusive host time by stage and block."""
        return self.rows[(self.rows["view"] == TOTAL) & (self.rows["kind"] == RANGE)]


def recordings(c: Context) -> list[Recording]:
    """Every record with launches, in the order of every table."""
    if c.kernels.empty:
        return []
    labels = data_labels(zip(c.frame["data"], c.frame["split"], strict=True)) if "split" in c.frame else {}
    out = []
    for key, typed in c.kernels.groupby("run", sort=False):
        rows, body = _plain(typed), c.bodies.get(str(key), {})
        first = {name: str(rows[name].iloc[0]) for name in ("model", "variant", "data", "split")}
        data = labels.get((first["data"], first["split"]), first["data"])
        out.append(
            Recording(
                c.names.title(first["model"], first["variant"]), first["model"], data, str(key), rows,
                body.get("extra", {}).get("kernels", {}), body.get("spec", {}),
            )
        )  # fmt: skip
    return sorted(out, key=lambda r: (r.data, *c.names.order(r.model, r.title), r.key))


def _plain(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns whose filters are fast and need no logic for missing values."""
    text = rows[list(TEXTS)].astype(object)
    names = [*WHOLE, *COUNTERS]
    numbers = rows[names].astype("Float64").to_numpy("float64", na_value=np.nan)
    return text.where(text.notna(), "").join(pd.DataFrame(numbers, index=rows.index, columns=names))


def with_place(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `place`, the block within its stage."""
    place = rows["stage"].where(rows["block"] == "", rows["stage"] + " › " + rows["block"])
    return rows.assign(place=place.where(place != "", "n/k"))


def largest(rows: pd.DataFrame, column: str, count: int = 1) -> str:
    """The values of a column with most time, and their share."""
    sums = rows.groupby(column)["duration_ns"].sum().sort_values(ascending=False, kind="stable")
    whole = float(sums.sum())
    best = [f"{short(str(n))} {100 * float(v) / whole:.0f} %" for n, v in sums.head(count).items() if whole]
    return ", ".join(best) or "—"

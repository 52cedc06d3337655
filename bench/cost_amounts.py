"""Numbers with their ends and how they are known, and where they are found among the rows of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, cast

import pandas as pd

from ctrbench.bench.cost_prices import Price, Prices
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import COLUMNS, Measurement, Origin

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Amount:
    """A number with its ends, or why there is none. Anything made with an absent amount is absent for that reason."""

    value: float | None
    low: float = 0.0
    high: float = 0.0
    origin: Origin = "derived"
    """`modelled` as soon as one input is, else `derived`."""
    reason: str = ""
    """Why there is no value."""
    shaky: str = ""
    """Why an input was called unstable."""
    inputs: frozenset[str] = frozenset()
    """Metrics that it was made of."""

    def __add__(self, other: Amount) -> Amount:
        if self.value is None or other.value is None:
            return self if self.value is None else other
        return Amount(
            self.value + other.value, self.low + other.low, self.high + other.high, _weaker(self, other),
            shaky=self.shaky or other.shaky, inputs=self.inputs | other.inputs,
        )  # fmt: skip

    def __mul__(self, other: Amount) -> Amount:
        if self.value is None or other.value is None:
            return self if self.value is None else other
        return Amount(
            self.value * other.value, self.low * other.low, self.high * other.high, _weaker(self, other),
            shaky=self.shaky or other.shaky, inputs=self.inputs | other.inputs,
        )  # fmt: skip

    def scaled(self, factor: float) -> Amount:
        """Times a number of at least 0 that is known exactly."""
        if self.value is None:
            return self
        return replace(self, value=self.value * factor, low=self.low * factor, high=self.high * factor)

    def inverse(self) -> Amount:
        """1 / amount; the ends change places."""
        if self.value is None:
            return self
        if min(self.value, self.low) <= 0:
            return absent(f"{', '.join(sorted(self.inputs))} is not above 0")
        return replace(self, value=1 / self.value, low=1 / self.high, high=1 / self.low)

    def at_least(self, least: float) -> Amount:
        """The amount, no end of it below `least`."""
        if self.value is None:
            return self
        return replace(self, value=max(self.value, least), low=max(self.low, least), high=max(self.high, least))

    def priced(self, prices: Prices, name: str) -> Amount:
        """Times a price with its range; absent where the file has no such price."""
        price = prices.get(name)
        return self * (absent(f"price_missing: no price of {name} in {prices.file}") if price is None else _of(price))

    def row(self, base: Row, metric: str, **columns: Any) -> Measurement:
        """The row of this number."""
        if self.value is None:
            return withheld(base, metric, self.reason, **columns)
        status = "unstable" if self.shaky else "ok"
        return make(base, metric, self.value, self.origin, ci_low=self.low, ci_high=self.high, status=status,
                    reason=self.shaky, **columns)  # fmt: skip


def exactly(value: float) -> Amount:
    """A number without a band."""
    return Amount(value, value, value)


NOTHING = exactly(0.0)


def absent(reason: str) -> Amount:
    """No number."""
    return Amount(None, reason=reason)


def _weaker(*amounts: Amount) -> Origin:
    return "modelled" if any(a.origin == "modelled" for a in amounts) else "derived"


def _of(price: Price) -> Amount:
    return Amount(price.value, price.low, price.high)


class Facts:
    """Rows of a run, found by metric and columns."""

    def __init__(self, rows: pd.DataFrame) -> None:
        """Rows with `ctrbench.reports.records.COLUMNS`."""
        self._by_metric: dict[str, list[Row]] = defaultdict(list)
        plain = rows.astype(object).where(rows.notna(), None)
        for row in plain[list(COLUMNS)].to_dict("records"):
            self._by_metric[row["metric"]].append(cast(Row, row))

    def rows(self, metric: str, **where: Any) -> list[Row]:
        """All rows of a metric with these values in these columns."""
        return [r for r in self._by_metric.get(metric, ()) if all(r[c] == v for c, v in where.items())]

    def find(self, metric: str, **where: Any) -> Amount:
        """The number of the rows that fit, with the band of the row; of several rows the middle and the outer ends.

        Absent with the row's own reason where it was withheld, and with `no row` where there is none.
        """
        found = self.rows(metric, **where)
        known = [r for r in found if r["value"] is not None]
        if not known:
            who = " ".join(str(where[c]) for c in ("model", "scope", "batch") if where.get(c))
            return absent(found[0]["reason"] if found else f"no row of {metric}{' for ' * bool(who)}{who}")
        lows = [r["value"] if r["ci_low"] is None else r["ci_low"] for r in known]
        highs = [r["value"] if r["ci_high"] is None else r["ci_high"] for r in known]
        shaky = next((r["reason"] or "unstable" for r in known if r["status"] == "unstable"), "")
        origin: Origin = "modelled" if any(r["origin"] == "modelled" for r in known) else "derived"
        return Amount(
            median(r["value"] for r in known), min(lows), max(highs), origin, shaky=shaky, inputs=frozenset([metric])
        )

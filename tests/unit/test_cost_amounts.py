"""Numbers with their ends, as prices multiply them."""

from __future__ import annotations

import pytest

from ctrbench.bench.cost_amounts import Facts
from ctrbench.reports.measures import make
from ctrbench.reports.records import frame


def test_a_rate_with_ends_and_rows_that_differ() -> None:
    """1 / rate has its ends the other way round; of three rows the middle counts and the outer ends are the band."""
    base = {"run": "r", "model": "din"}
    rates = [
        make(base, "throughput", v, "measured", phase="train", ci_low=v - 1, ci_high=v + 2) for v in (5.0, 4.0, 9.0)
    ]
    found = Facts(frame(rates)).find("throughput", model="din")
    assert (found.value, found.low, found.high) == (5.0, 3.0, 11.0)
    inverse = found.inverse()
    assert (inverse.value, inverse.low, inverse.high) == pytest.approx((1 / 5, 1 / 11, 1 / 3))

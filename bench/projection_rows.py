"""Rows of a projection: modelled GPU time with its band, break-even host time, lower bound of time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ctrbench.bench.counting.projection import Interval, Projection
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement


def projection_rows(base: Mapping[str, Any], projections: Iterable[Projection]) -> list[Measurement]:
    """Rows of one step on several GPUs, `scope` the GPU.

    A device without parameters has its lower bound and no row of a time; one with parameters whose time must not be
    used has a withheld row.
    """
    return [row for p in projections for row in _rows(base, p)]


def _rows(base: Mapping[str, Any], p: Projection) -> list[Measurement]:
    at = {"scope": p.gpu, "dtype": p.dtype}
    rows = [make(base, "gpu_time_bound", p.bound_s, "modelled", **at)]
    if p.parameters is None:
        return rows
    reason = p.reason or "coverage_low: too few operator calls are in the kernel table"
    named = (("gpu_time_modelled", p.time_s), ("break_even_host_us", p.break_even_host_us))
    return rows + [_row(base, metric, found, p, at, reason) for metric, found in named]


def _row(
    base: Mapping[str, Any], metric: str, found: Interval | None, p: Projection, at: dict[str, Any], reason: str
) -> Measurement:
    if found is None:
        return withheld(base, metric, reason, **at)
    return make(
        base, metric, found.value, "modelled", ci_low=found.low, ci_high=found.high, n=p.fewest_shapes, **at
    )  # fmt: skip

"""Bytes of tables under row caps and the quotient-remainder trick, the accelerators that hold them, what 10 TB cost.

The tables are Criteo 1TB's 26 columns at the width of MLPerf's DLRM, under row-wise Adagrad. Only bytes and prices are
here: what a cap does to quality is for `ctrbench run` on capped data to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ctrbench.bench.at_scale import (
    VALUE_BYTES,
    Band,
    Fabric,
    Table,
    Work,
    accelerators_for,
    step,
)
from ctrbench.bench.cost_prices import GPU, OBJECT, Prices
from ctrbench.bench.hardware import catalogue
from ctrbench.datasets.criteo_law_1tb import LARGEST, SIZES

WIDTH = 128
"""Of MLPerf's DLRM."""
UNCAPPED = (227_605_432, 130_229_467, 292_775_614, 40_790_948, 187_188_510)
"""Distinct values of C1, C10, C20, C21 and C22 over all 24 days, as public DLRM configurations of the whole data give
them (OneFlow's dlrm, HugeCTR's embedding tests: 882,774,559 rows in all)."""
CAPS = (LARGEST, 10_000_000, 1_000_000)
COLLISIONS = 4
"""Ids that share a remainder row: the default of `--qr-collisions` in facebookresearch/dlrm."""
SPLIT_ABOVE = 1_000_000
"""Rows of a column that quotient-remainder leaves whole."""
STATE_BYTES = 4
"""Of a row under row-wise Adagrad."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """All tables of one way to bound their rows; a sample reads one row of each."""

    name: str
    each: tuple[int, ...]
    """Rows of every table."""
    width: int = WIDTH

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(self.each)

    @property
    def weights(self) -> int:
        """Bytes of rows."""
        return self.rows * self.width * VALUE_BYTES

    @property
    def bytes(self) -> int:
        """Of rows and row-wise Adagrad; a checkpoint holds as many."""
        return self.rows * (self.width * VALUE_BYTES + STATE_BYTES)


def uncapped() -> tuple[int, ...]:
    """Distinct values of the 26 columns."""
    large = iter(UNCAPPED)
    return tuple(next(large) if size == LARGEST else size for size in SIZES)


def capped(sizes: Sequence[int], cap: int) -> Tables:
    """Ids beyond `cap` share rows by hash; a sample reads one row a column as before."""
    return Tables(name=f"at most {cap / 1e6:.0f} M rows", each=tuple(min(s, cap) for s in sizes))


def quotient_remainder(sizes: Sequence[int], collisions: int, above: int) -> Tables:
    """Columns of more than `above` rows become two tables, the row of the remainder times the row of the quotient.

    Every id keeps a vector of its own (Shi et al., arXiv 1909.02107); such a column reads two rows a sample.
    """
    each: list[int] = []
    for size in sizes:
        each += [math.ceil(size / collisions), collisions] if size > above else [size]
    return Tables(name=f"quotient-remainder, {collisions:,} ids a row", each=tuple(each))


def ways() -> list[Tables]:
    """Uncapped, caps, and quotient-remainder at its default and at the square root, where it is smallest."""
    sizes = uncapped()
    return [
        Tables(name="no cap", each=sizes),
        *(capped(sizes, cap) for cap in CAPS),
        *(quotient_remainder(sizes, c, above=SPLIT_ABOVE) for c in (COLLISIONS, math.isqrt(max(sizes)))),
    ]


def of_bytes(weights: float, width: int, tables: int = len(SIZES)) -> Tables:
    """Equal tables of so many bytes together, e.g. 10e12."""
    return Tables(name=f"width {width}", each=(round(weights / (width * VALUE_BYTES * tables)),) * tables, width=width)


def exchange(tables: Tables, samples: int, world: int, fabric: Fabric) -> tuple[float, Band]:
    """(bytes, seconds) of what a step sends for its tables, by row with small ones on every accelerator."""
    read = tuple(Table(rows=rows, ids=1, features=1, width=tables.width) for rows in tables.each)
    work = Work(samples=samples, tables=read, modules=1, dense=0.0, seconds=(0.0, 0.0))
    found = step(work, world, fabric, "small_replicated")
    return found.traffic.total, found.communication


def accelerators(tables: Tables, gpu: str, machine: int = 1) -> int:
    """Accelerators of the catalogue that hold tables and optimizer, in whole machines."""
    return accelerators_for(tables.bytes, catalogue()[gpu].memory_gb, machine)


def usd_per_hour(count: int, gpu: str, prices: Prices) -> Band | None:
    """Of so many accelerators; None where there is no price."""
    price = prices.get(f"{GPU}{gpu}")
    return (price.low * count, price.high * count) if price else None


def checkpoint_usd_per_month(tables: Tables, prices: Prices) -> Band | None:
    """Of one checkpoint kept in object storage; None where there is no price."""
    price = prices.get(OBJECT)
    return (price.low * tables.bytes / 1e9, price.high * tables.bytes / 1e9) if price else None

"""Negatives for data that holds positives only: items drawn from a pool of events, by popularity or uniformly.

The pool decides what a model can learn from the target's id alone: one that is not much larger than the positives
leaks the label (data.md, section 4), so the pool is its own file and a control is trained on target ids only.

Dims: N positives, K negatives (N x ratio), J pool rows (item, category), M own events
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from ctrbench.datasets.errors import BadInput, nearest
from ctrbench.datasets.hex_tokens import Counts

Integers = npt.NDArray[np.int64]

WEIGHTINGS = ("popularity", "uniform")
REDRAWS = 100
"""Times that a user's own item is drawn again before the pool is called too small."""
SORTED = 8_388_608
"""Events whose pairs of item and category are sorted together when they are counted: 64 MB."""
NARROW = 32
"""Bits of an item and of a category that fit one number together; wider ids are counted by a hash table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """How negatives are drawn; all of it goes to the manifest."""

    weighting: str = "popularity"
    """popularity: a random event of the pool, so an item's chance grows with its events; uniform: a random item."""
    ratio: int = 1
    """Negatives a positive."""
    seed: int = 0
    """Of the draws."""
    exclude_own: bool = True
    """Never an item that the user has an event with, at any time of the period."""

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise BadInput(f"option weighting: unknown value {nearest(self.weighting, WEIGHTINGS)}")
        if self.ratio < 1 or self.seed < 0:
            raise BadInput(f"options ratio={self.ratio}, seed={self.seed}: ratio must be at least 1, seed at least 0")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Pool:
    """Distinct items of the pool with their events; filled chunk by chunk, then drawn from.

    An item of several categories is one row a category.

    Attributes:
        table: item, category and events.
        events: of all items.
    """

    def __init__(self, counted: pl.DataFrame | None = None) -> None:
        """Empty, or the closed pool whose `table` is given."""
        self._pairs, self._waiting = Counts(np.uint64), [np.empty(0, np.uint64)]
        self._wide = pl.DataFrame(schema={"item": pl.Int64, "category": pl.Int64, "events": pl.Int64})
        self.table = self._wide if counted is None else counted
        self._item_J = self._cumulated_J = self._distinct_I = np.empty(0, np.int64)
        self.events = int(self.table["events"].sum())
        if counted is not None:
            self.close()

    def add(self, rows: pl.DataFrame) -> None:
        """Counts the events of `rows` (columns item and category)."""
        self.events += rows.height
        item_E, category_E = rows["item"].to_numpy(), rows["category"].to_numpy()
        narrow_E = (item_E | category_E) >> NARROW == 0
        pair_E = item_E.astype(np.uint64) << np.uint64(NARROW) | category_E.astype(np.uint64)
        self._waiting.append(pair_E[narrow_E])
        if sum(map(len, self._waiting)) >= SORTED:
            self._count()
        if not narrow_E.all():
            found = rows.filter(~narrow_E).group_by("item", "category").agg(pl.len().cast(pl.Int64).alias("events"))
            self._wide = pl.concat([self._wide, found]).group_by("item", "category").agg(pl.col("events").sum())

    def _count(self) -> None:
        self._pairs.add(np.concatenate(self._waiting))
        self._waiting = [np.empty(0, np.uint64)]

    def close(self) -> None:
        """Ends the counting; from here on rows can be drawn."""
        self._count()
        pair_J = self._pairs.value_N
        narrow = {"item": pair_J >> np.uint64(NARROW), "category": pair_J & np.uint64((1 << NARROW) - 1),
                  "events": self._pairs.count_N}  # fmt: skip
        counted = pl.DataFrame({k: v.astype(np.int64) for k, v in narrow.items()})
        self.table = pl.concat([self.table, counted, self._wide]).sort("item", "category")
        self._pairs, self._wide = Counts(np.uint64), self._wide.clear()
        self._item_J = self.table["item"].rle_id().to_numpy().astype(np.int64)
        self._distinct_I = self.table["item"].unique(maintain_order=True).to_numpy()
        self._cumulated_J = self.table["events"].cum_sum().to_numpy()

    @property
    def items(self) -> int:
        """Distinct items."""
        return int(self._item_J[-1]) + 1 if len(self._item_J) else 0

    def rows(self, index_K: Integers) -> pl.DataFrame:
        """item and category of drawn pool rows."""
        return self.table.select("item", "category")[index_K]

    def draw(self, sampler: Sampler, rng: np.random.Generator, user_N: Integers, own: pl.DataFrame) -> Integers:
        """`ratio` pool rows for every positive, those of one positive side by side.

        Args:
            sampler: weighting, ratio, exclusion.
            rng: its seed is the caller's, one stream a group of users.
            user_N: user of each positive.
            own: user_id and item of all events of these users.

        Returns:
            index_K into the pool.

        Raises:
            BadInput: a user has events with (nearly) every item of the pool.
        """
        user_K = np.repeat(user_N, sampler.ratio)
        index_K = self._random(sampler, rng, len(user_K))
        if not sampler.exclude_own:
            return index_K
        users, item_N = np.unique(own["user_id"].to_numpy()), own["item"].to_numpy()
        rank_N, known_N = _found(self._distinct_I, item_N)
        own_M = np.sort(np.searchsorted(users, own["user_id"].to_numpy()[known_N]) * self.items + rank_N[known_N])
        row_K = np.searchsorted(users, user_K) * self.items
        todo = np.arange(len(user_K))
        for _ in range(REDRAWS):
            todo = todo[_found(own_M, row_K[todo] + self._item_J[index_K[todo]])[1]]
            if not len(todo):
                return index_K
            index_K[todo] = self._random(sampler, rng, len(todo))
        raise BadInput(
            f"pool of {self.items} items: {REDRAWS} draws gave user {user_K[todo[0]]} only own items; "
            "give a larger pool or set exclude_own=false"
        )

    def _random(self, sampler: Sampler, rng: np.random.Generator, size: int) -> Integers:
        if sampler.weighting == "uniform":
            return rng.integers(0, len(self._item_J), size)
        event_K = rng.integers(0, self._cumulated_J[-1], size)
        return _places(self._cumulated_J, event_K, side="right")


def _places(sorted_N: Integers, wanted_K: Integers, side: Literal["left", "right"] = "left") -> Integers:
    """`np.searchsorted` for many values in random order: sorted first, since else each step of a search is a miss of
    the cache. At 4 million items a draw takes a quarter of the time, and hardly more than at one million."""
    order_K = np.argsort(wanted_K)
    at_K = np.empty(len(wanted_K), np.int64)
    at_K[order_K] = np.searchsorted(sorted_N, wanted_K[order_K], side)
    return at_K


def _found(sorted_N: Integers, wanted_K: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Place of each value, and whether it is there."""
    at_K = _places(sorted_N, wanted_K)
    if not len(sorted_N):
        return at_K, np.zeros(len(at_K), bool)
    return at_K, sorted_N[np.minimum(at_K, len(sorted_N) - 1)] == wanted_K

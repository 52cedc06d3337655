"""Six counts of a row's history: the features of the floor that a sequence model must beat (data.md, sections 4 and 7).

Two sets: where events are liked or not, rates of likes; where actions are behaviours, what recurs and how long ago.

Dims: N rows, E events of their histories, F features
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ctrbench.datasets.schema import FIRST_ID, FeatureSchema, Field

Floats = npt.NDArray[np.float32]

LIKED = FIRST_ID + 1
"""Encoded action of a positive event; FIRST_ID is the negative one, and an action field of likes has no third."""
CHUNK = 50_000
"""Rows whose histories are unrolled at a time: bounds memory at some 100 bytes an event."""
LAST_EVENTS = 5
LIKES = (
    "events",
    "like_rate",
    "category_like_rate",
    "category_events",
    f"last_{LAST_EVENTS}_like_rate",
    "gap_seconds",
)
WINDOW, SHORT = 50, 10
RECURRENCES = (
    f"category_in_last_{WINDOW}",
    f"category_in_last_{SHORT}",
    "category_is_last",
    f"item_in_last_{WINDOW}",
    "events",
    "category_distance",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which fields of a schema play which part."""

    item: Field | None
    item_mirror: Field | None
    """The history's field that mirrors `item`."""
    user: Field | None
    history: str | None
    category: Field | None
    mirror: Field | None
    """The history's field that mirrors `category`."""
    action: Field | None

    @classmethod
    def of(cls, schema: FeatureSchema) -> Layout:
        """Reads the parts off the first history.

        Of the target fields that it mirrors the largest is the item and the smallest the category; its field that
        mirrors none is the action. The user is the largest categorical field of that role.
        """
        users = sorted((f for f in schema.categorical if f.role == "user"), key=lambda f: f.cardinality)
        history, fields = next(iter(schema.histories.items()), (None, ()))
        mirrors = sorted((f for f in fields if f.target), key=lambda f: schema[f.table].cardinality)
        mirror = mirrors[0] if len(mirrors) > 1 else None
        return cls(
            item=schema[mirrors[-1].table] if mirrors else None,
            item_mirror=mirrors[-1] if mirrors else None,
            user=users[-1] if users else None,
            history=history,
            category=schema[mirror.table] if mirror else None,
            mirror=mirror,
            action=next((f for f in fields if f.target is None), None),
        )

    def keys(self, schema: FeatureSchema) -> list[tuple[str, ...]]:
        """Every categorical field, and user x category where there are both."""
        keys: list[tuple[str, ...]] = [(f.name,) for f in schema.categorical]
        if self.user is not None and self.category is not None:
            keys.append((self.user.name, self.category.name))
        return keys

    @property
    def likes(self) -> bool:
        """Whether events are liked or not, and nothing else."""
        return self.action is not None and self.action.cardinality == LIKED + 1

    @property
    def counts(self) -> tuple[str, ...]:
        """Names of the six counts."""
        return LIKES if self.likes else RECURRENCES


def history_counts(part: pl.DataFrame, layout: Layout, length: int) -> Floats:
    """The six counts [N, 6] of the last `length` stored events, which are strictly earlier than the row.

    Columns are `layout.counts`; a rate of no event, the gap of an empty history and the distance to no event are NaN.
    """
    counted: Callable[[pl.DataFrame, Layout, int], Floats] = _likes if layout.likes else _recurrences
    return np.vstack([counted(chunk, layout, length) for chunk in part.iter_slices(CHUNK)])


@dataclass(frozen=True, slots=True)
class _Unrolled:
    """Events of the rows of a chunk, row after row, oldest first."""

    n_N: npt.NDArray[np.int64]
    row_E: npt.NDArray[np.int64]
    back_E: npt.NDArray[np.int64]
    """1 for a row's last event, 2 for the one before."""
    columns: tuple[npt.NDArray[np.int64], ...]

    @classmethod
    def of(cls, rows: pl.DataFrame, names: Iterator[str], length: int) -> _Unrolled:
        lists = rows.select(pl.col(list(names)).list.tail(length))
        columns = tuple(column.to_arrow().flatten().to_numpy() for column in lists)
        n_N = lists.to_series().list.len().to_numpy().astype(np.int64)
        row_E = np.repeat(np.arange(len(n_N)), n_N)
        back_E = np.cumsum(n_N)[row_E] - np.arange(len(row_E))
        return cls(n_N, row_E, back_E, columns)

    def count(self, mask_E: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Events of each row where the mask is set."""
        return np.bincount(self.row_E[mask_E], minlength=len(self.n_N))


def _likes(rows: pl.DataFrame, layout: Layout, length: int) -> Floats:
    assert layout.action is not None
    assert layout.mirror is not None
    assert layout.category is not None
    names = iter((layout.action.name, layout.mirror.name, f"{layout.history}_time"))
    events = _Unrolled.of(rows, names, length)
    action_E, category_E, time_E = events.columns
    n_N = events.n_N
    liked_E = action_E == LIKED
    same_E = category_E == rows[layout.category.name].to_numpy()[events.row_E]
    late_E = events.back_E <= LAST_EVENTS

    def share(mask_E: npt.NDArray[np.bool_], of_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        with np.errstate(invalid="ignore"):  # 0 / 0: no event, no rate
            return np.asarray(events.count(liked_E & mask_E) / of_N)

    every_E = np.ones(len(time_E), dtype=np.bool_)
    gap_N = np.full(len(n_N), np.nan)
    gap_N[n_N > 0] = rows["time"].to_numpy()[n_N > 0] - time_E[events.back_E == 1]
    same_N = events.count(same_E)
    columns = [
        n_N, share(every_E, n_N), share(same_E, same_N), same_N, share(late_E, np.minimum(n_N, LAST_EVENTS)), gap_N
    ]  # fmt: skip
    return np.column_stack(columns).astype(np.float32)


def _recurrences(rows: pl.DataFrame, layout: Layout, length: int) -> Floats:
    """Values out of vocabulary are not known to be the same, so they never recur."""
    assert layout.item is not None
    assert layout.item_mirror is not None
    assert layout.category is not None
    assert layout.mirror is not None
    events = _Unrolled.of(rows, iter((layout.item_mirror.name, layout.mirror.name)), length)

    def same(event_E: npt.NDArray[np.int64], target: Field) -> npt.NDArray[np.bool_]:
        return np.asarray((event_E == rows[target.name].to_numpy()[events.row_E]) & (event_E >= FIRST_ID))

    recent_E = events.back_E <= WINDOW
    item_E = same(events.columns[0], layout.item) & recent_E
    category_E = same(events.columns[1], layout.category) & recent_E
    distance_N = np.full(len(events.n_N), np.inf)
    np.minimum.at(distance_N, events.row_E[category_E], events.back_E[category_E])
    distance_N[np.isinf(distance_N)] = np.nan
    columns = [
        events.count(category_E), events.count(category_E & (events.back_E <= SHORT)),
        events.count(category_E & (events.back_E == 1)), events.count(item_E), events.n_N, distance_N,
    ]  # fmt: skip
    return np.column_stack(columns).astype(np.float32)

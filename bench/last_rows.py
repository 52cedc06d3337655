"""Leave-last-out: the last row of every user, what it may see, and the pieces of history that training gets.

Dims: U users, W pieces of history, N events of the log
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ctrbench.datasets.prepared import Prepared
from ctrbench.models.lum_backbone import EventFields


@dataclass(frozen=True, slots=True)
class LastRows:
    """The last row of every user who has a history there."""

    spans_U2: np.ndarray
    """int64 begin and end in the event log of what the row may see."""
    item_U: np.ndarray
    """The row's own item, which no span holds, its condition, time and user."""
    cond_U: np.ndarray
    time_U: np.ndarray
    user_U: np.ndarray

    def take(self, index: np.ndarray) -> LastRows:
        """Some users."""
        columns = self.spans_U2, self.item_U, self.cond_U, self.time_U, self.user_U
        return LastRows(*(column[index] for column in columns))


def last_rows(
    prepared: Prepared, roles: EventFields, train_rows: int | None = None, splits: Sequence[str] = ("train",)
) -> LastRows:
    """What each user's last row of these splits may see, and what it was about.

    The span is the row's own: data sets that keep one log a user and those that keep one a row are read alike. Where
    negatives were sampled, only rows of real events count.

    Args:
        prepared: the data.
        roles: fields of its history.
        train_rows: only users of that many most recent rows.
        splits: in the order of time.
    """
    begin, end = f"{roles.history}_begin", f"{roles.history}_end"
    columns = ["user_id", "label", "time", begin, end, roles.item_target, roles.cond_target]
    scan = pl.scan_parquet([p for s in splits for p, _ in prepared.shards(s)]).select(columns)
    scan = scan if train_rows is None else scan.tail(train_rows)
    if prepared.sampler is not None:
        scan = scan.filter(pl.col("label") == 1)
    last = scan.sort(end, maintain_order=True).group_by("user_id").last().filter(pl.col(end) > pl.col(begin))
    table = last.sort("user_id").collect()
    names = (roles.item_target, roles.cond_target, "time", "user_id")
    return LastRows(table.select(begin, end).to_numpy(), *(table[n].to_numpy().astype(np.int64) for n in names))


def second_to_last(rows: LastRows, item_N: np.ndarray, cond_N: np.ndarray, time_N: np.ndarray) -> LastRows:
    """The newest event that each user's last row may see, to be looked for among the events strictly before it.

    Users for whom no event is left then are not among them.
    """
    at_U = rows.spans_U2[:, 1] - 1
    end_U = at_U.copy()
    while (tied_U := (end_U > rows.spans_U2[:, 0]) & (time_N[end_U - 1] == time_N[at_U])).any():
        end_U[tied_U] -= 1
    spans_U2 = np.stack([rows.spans_U2[:, 0], end_U], axis=1)
    known = LastRows(spans_U2, item_N[at_U], cond_N[at_U], time_N[at_U], rows.user_U)
    return known.take(np.flatnonzero(spans_U2[:, 1] > spans_U2[:, 0]))


def windows(spans_U2: np.ndarray, length: int) -> np.ndarray:
    """int64 [W, 2]: the spans cut into pieces of at most `length` events, from the newest event back."""
    out = []
    for begin, end in spans_U2.tolist():
        out += [(max(begin, stop - length), stop) for stop in range(end, begin, -length)]
    return np.array(out, dtype=np.int64).reshape(-1, 2)


def event_log(prepared: Prepared, roles: EventFields) -> dict[str, np.ndarray]:
    """Event field -> int64 [N] of the whole log."""
    log = prepared.events(roles.history)
    return {n: log[n].to_numpy().astype(np.int64) for n in (roles.item, roles.cond, *roles.side)}

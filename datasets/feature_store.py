"""What a feature server keeps in memory between requests: counters for a legacy ranker, histories for a transformer.

Both take events as they come and answer for one user at one second, from what lies strictly before it. Answers are
those of the batch path (`legacy_features`, `Prepared`), to the last bit.

Dims: C candidates, Q values looked up, K values of all keys, M values seen (rows x keys), W windows, T events
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctrbench.datasets.legacy_features import (
    SPAN_BITS,
    Ids,
    ImpressionLog,
    Ints,
    Key,
    Recipe,
    absorbed,
    clock,
    count_ids,
    cumulative,
    hash_ids,
    rate_ids,
    salt,
)

GROWTH = 8
"""A run of counters is merged into the one before it unless that one is so many times as large."""
FIRST_EVENTS = 16
"""Events that a new user's history has room for."""


@dataclass(frozen=True, slots=True)
class Features:
    """Legacy columns of one request."""

    user_U: Ids
    """Those that all candidates share."""
    item_JC: Ids
    """Those of each candidate."""

    def full(self, made: Recipe) -> Ids:
        """All columns in the recipe's order, [F, C]."""
        out_FC = np.empty((made.columns, self.item_JC.shape[1]), np.int32)
        out_FC[made.of_item], out_FC[~made.of_item] = self.item_JC, self.user_U[:, None]
        return out_FC


@dataclass(frozen=True, slots=True)
class _Run:
    """Counted rows, sorted: all values of all keys, and within each its seconds."""

    code_K: Ints
    """Distinct values."""
    moment_M: Ints
    """Place in `code_K` and second."""
    clicks_M1: Ints
    """Labels before each."""

    @classmethod
    def of(cls, code_M: Ints, time_M: Ints, label_M: Ints) -> _Run:
        order_M = np.lexsort((time_M, code_M))
        sorted_M = code_M[order_M]
        new_M = np.concatenate([[True], sorted_M[1:] != sorted_M[:-1]])
        moment_M = ((np.cumsum(new_M) - 1) << SPAN_BITS) + time_M[order_M]
        return cls(sorted_M[new_M], moment_M, cumulative(label_M[order_M]))

    def merged(self, later: _Run) -> _Run:
        """Both runs in one."""
        parts = [
            (run.code_K[run.moment_M >> SPAN_BITS], run.moment_M & ((1 << SPAN_BITS) - 1), np.diff(run.clicks_M1))
            for run in (self, later)
        ]
        code_M, time_M, label_M = (np.concatenate(column) for column in zip(*parts, strict=True))
        return _Run.of(code_M, time_M, label_M)

    def add(self, code_Q: Ints, time: int, windows_W: Ints, counts_QW: Ints, clicks_QW: Ints) -> None:
        """Adds the rows of [time - window, time) that have the code, and their labels."""
        at_Q = np.minimum(np.searchsorted(self.code_K, code_Q), len(self.code_K) - 1)
        known = np.flatnonzero(self.code_K[at_Q] == code_Q)
        group_Q = at_Q[known] << SPAN_BITS
        end_Q = np.searchsorted(self.moment_M, group_Q + time)
        begin_QW = np.searchsorted(self.moment_M, group_Q[:, None] + np.maximum(time - windows_W, 0))
        counts_QW[known] += end_Q[:, None] - begin_QW
        clicks_QW[known] += self.clicks_M1[end_Q][:, None] - self.clicks_M1[begin_QW]


@dataclass(frozen=True, slots=True)
class _CrossPlan:
    """Which part each cross takes in at which step, so that numpy is called once a step and not once a cross."""

    salts_X: npt.NDArray[np.uint64]
    shared: list[str]
    """Parts that all candidates share."""
    steps: list[tuple[Ints, Ints]]
    """Crosses that take in a shared part, and which one."""
    of_item: npt.NDArray[np.bool_]
    items: list[str]
    """Last part of each cross of an item."""

    @classmethod
    def of(cls, made: Recipe) -> _CrossPlan:
        keys = made.crosses
        before = [key[:-1] if made.has_item(key) else key for key in keys]
        shared = list(dict.fromkeys(name for key in before for name in key))
        steps = []
        for step in range(max(map(len, before), default=0)):
            rows = [x for x, key in enumerate(before) if len(key) > step]
            steps.append((np.array(rows), np.array([shared.index(before[x][step]) for x in rows])))
        own = np.array([made.has_item(key) for key in keys], np.bool_)
        return cls(
            np.array([salt(k) for k in keys], np.uint64), shared, steps, own, [k[-1] for k in keys if made.has_item(k)]
        )


class CounterStore:
    """Counters of a recipe, exact to the second: every value keeps its seconds and labels, sorted.

    New rows make a small run of their own, and runs are merged as they grow, so that a row is sorted a few times in
    its life and a look-up searches a few runs. A user's counters are looked up once a request, an item field's once a
    distinct value. Nothing expires.

    Args:
        made: the recipe.
    """

    def __init__(self, made: Recipe) -> None:
        self.recipe = made
        self._offset: dict[Key, int] = {}
        total = 0
        for key in made.statistics:
            self._offset[key] = total
            total += int(np.prod([made.sizes[name] for name in key]))
        self._runs: list[_Run] = []
        self._groups = _groups(made)
        self._crosses = _CrossPlan.of(made)
        self._counted_items = list(dict.fromkeys(key[-1] for key in made.statistics if made.has_item(key)))

    @property
    def nbytes(self) -> int:
        """Bytes of the counters."""
        return sum(run.code_K.nbytes + run.moment_M.nbytes + run.clicks_M1.nbytes for run in self._runs)

    def update(self, rows: ImpressionLog) -> None:
        """Counts impressions with their labels."""
        keys = self.recipe.statistics
        if not rows.size or not keys:
            return
        code_M = np.concatenate([self._code(key, rows.parts) for key in keys])
        self._runs.append(_Run.of(code_M, np.tile(rows.time_N, len(keys)), np.tile(rows.label_N, len(keys))))
        while len(self._runs) > 1 and len(self._runs[-2].moment_M) < GROWTH * len(self._runs[-1].moment_M):
            last = self._runs.pop()
            self._runs[-1] = self._runs[-1].merged(last)

    def statistics(self, user: Mapping[str, int], candidates: Mapping[str, Ints], time: int) -> Features:
        """Counts and rates of a request, without its crosses.

        Args:
            user: ids of the user's and the context's fields.
            candidates: item field -> ids [C].
            time: second of the request.
        """
        values, back = {}, {}
        for name in self._counted_items:
            values[name], back[name] = np.unique(candidates[name], return_inverse=True)
        parts = {**_shared(user, time), **values}
        rows: dict[Key, Ids] = {}
        for windows, keys in self._groups:
            codes = [self._code(key, parts) for key in keys]
            ids_QS = self._looked_up(np.concatenate(codes), time, windows)
            at = 0
            for key, code_Q in zip(keys, codes, strict=True):
                rows[key] = ids_QS[at : at + len(code_Q)].T
                at += len(code_Q)
        made, count = self.recipe, len(next(iter(candidates.values())))
        shared = [rows[key][:, 0] for key in made.statistics if not made.has_item(key)]
        of_item = [rows[key][:, back[key[-1]]] for key in made.statistics if made.has_item(key)]
        return Features(
            np.concatenate([np.empty(0, np.int32), *shared]),
            np.concatenate([np.empty((0, count), np.int32), *of_item]),
        )

    def crosses(self, user: Mapping[str, int], candidates: Mapping[str, Ints], time: int) -> Features:
        """Hashed crosses of a request, all at once; arguments as `statistics`."""
        parts, plan = _shared(user, time), self._crosses
        shared_P = np.concatenate([parts[name] for name in plan.shared]) if plan.shared else np.empty(0, np.int64)
        state_X = plan.salts_X
        for at, places in plan.steps:
            state_X = state_X.copy()
            state_X[at] = absorbed(state_X[at], shared_P[places])
        items_IC = np.stack(list(candidates.values()))
        rows = [list(candidates).index(name) for name in plan.items]
        item_JC = absorbed(state_X[plan.of_item, None], items_IC[rows])
        return Features(hash_ids(state_X[~plan.of_item]), hash_ids(item_JC))

    def features(self, user: Mapping[str, int], candidates: Mapping[str, Ints], time: int) -> Features:
        """All columns of a request; arguments as `statistics`."""
        return joined(self.crosses(user, candidates, time), self.statistics(user, candidates, time))

    def _code(self, key: Key, parts: Mapping[str, Ints]) -> Ints:
        return self.recipe.code(key, parts) + self._offset[key]

    def _looked_up(self, code_Q: Ints, time: int, windows: Sequence[int]) -> Ids:
        """Buckets of counts, then of rates, [Q, 2 W]."""
        windows_W = np.array(windows)
        counts_QW, clicks_QW = np.zeros((2, len(code_Q), len(windows)), np.int64)
        for run in self._runs:
            run.add(code_Q, time, windows_W, counts_QW, clicks_QW)
        return np.hstack([count_ids(counts_QW), rate_ids(counts_QW, clicks_QW, self.recipe.prior)])


def joined(crosses: Features, statistics: Features) -> Features:
    """Columns of both, in the recipe's order."""
    return Features(
        np.concatenate([crosses.user_U, statistics.user_U]), np.concatenate([crosses.item_JC, statistics.item_JC])
    )


def _shared(user: Mapping[str, int], time: int) -> dict[str, Ints]:
    return {**{name: np.array([value]) for name, value in user.items()}, **clock(np.array([time]))}


def _groups(made: Recipe) -> list[tuple[tuple[int, ...], list[Key]]]:
    """Keys that are looked up over the same windows."""
    out: dict[tuple[int, ...], list[Key]] = {}
    for key, windows in made.statistics.items():
        out.setdefault(windows, []).append(key)
    return list(out.items())


class HistoryStore:
    """Events of every user in the order of time, as a transformer reads them.

    Args:
        fields: event fields that are kept, as ids, beside the second.
    """

    def __init__(self, fields: Sequence[str]) -> None:
        self.fields = (*fields, "time")
        self._events: dict[int, npt.NDArray[np.int64]] = {}
        self._count: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the events, room for more included."""
        return sum(events.nbytes for events in self._events.values())

    def append(self, user: int, event: Sequence[int]) -> None:
        """One more event of a user: its fields in the store's order, then its second, not before the last one's."""
        count = self._count.get(user, 0)
        events_ET = self._events.get(user)
        if events_ET is None or count == events_ET.shape[1]:
            grown_ET = np.empty((len(self.fields), max(FIRST_EVENTS, 2 * count)), np.int64)
            if events_ET is not None:
                grown_ET[:, :count] = events_ET
            events_ET = self._events[user] = grown_ET
        events_ET[:, count] = event
        self._count[user] = count + 1

    def last(self, user: int, length: int, time: int) -> npt.NDArray[np.int64]:
        """The last `length` events before a second, oldest first: a view [fields and second, T]."""
        events_ET = self._events.get(user)
        if events_ET is None:
            return np.empty((len(self.fields), 0), np.int64)
        end = int(np.searchsorted(events_ET[-1, : self._count[user]], time))
        return events_ET[:, max(0, end - length) : end]

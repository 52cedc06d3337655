"""Hand-made features of a legacy ranker: windowed counters, smoothed click rates and hashed crosses of a log.

What is known of an impression at second t are the impressions strictly before t, never those of the same second: the
same rule as for histories (data.md, section 4). This file is the batch path, the whole log at once, column after column
without a Python step a row; `feature_store` answers the same for one request.

Dims: N impressions in the order of time, F columns, Q values looked up, W windows of one key
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
import polars as pl

from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema

Ints = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]
Key = tuple[str, ...]
"""Fields that together are one value; at most one of them is the item's, and that one comes last."""

CLOCK = {"hour": 24, "weekday": 7}
"""What the second of an impression tells, in UTC -> values."""
HOUR, DAY = 3_600, 86_400
ALWAYS = 1 << 32
"""A window that holds every second."""
WINDOWS = (HOUR, DAY, 7 * DAY, ALWAYS, 28 * DAY, 6 * HOUR, 3 * DAY, 90 * DAY, 12 * HOUR)
"""Seconds."""
KEYS_TIER, WINDOWS_TIER = 5, 3
"""A recipe takes that many more keys and windows at a time."""
CROSSES = 0.25
"""Share of the columns that are crosses, where there are as many."""
SMOOTHING = 20.0
"""Impressions at the prior rate that every click rate starts from."""
COUNTS, RATES = 16, 20
"""Buckets: floor(log2(1 + count)), and equal widths of a smoothed rate."""
HASH_ROWS = 1 << 18
"""Values that a cross may take, a power of two."""
SPAN_BITS = 33
"""Bits of the second in a sorted (key, second)."""

_GOLDEN, _MIX = np.uint64(0x9E3779B97F4A7C15), (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_30, _27, _31, _LAST = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(HASH_ROWS - 1)


@dataclass(frozen=True)
class ImpressionLog:
    """Impressions sorted by time."""

    time_N: Ints
    """Epoch seconds."""
    label_N: Ints
    """0 or 1."""
    ids: Mapping[str, Ints]
    """Categorical field -> its ids [N]."""

    def __post_init__(self) -> None:
        if self.size and (self.time_N[0] < 0 or np.any(self.time_N[1:] < self.time_N[:-1])):
            raise BadInput("an impression log must be sorted by time, from 1970 on: sort its rows by `time`")

    @classmethod
    def of(cls, frame: pl.DataFrame, schema: FeatureSchema) -> ImpressionLog:
        """The categorical columns of prepared rows in the order of time; rows of one second keep theirs.

        Args:
            frame: `label`, `time` and the categorical fields of `schema`, e.g. of `Prepared.frame`.
            schema: of the rows.
        """
        rows = frame.sort("time", maintain_order=True)
        names = ("time", "label", *(f.name for f in schema.categorical))
        columns = {name: rows[name].to_numpy().astype(np.int64) for name in names}
        return cls(columns.pop("time"), columns.pop("label"), columns)

    @property
    def size(self) -> int:
        """N."""
        return len(self.time_N)

    @cached_property
    def parts(self) -> dict[str, Ints]:
        """Ids, and what the clock tells."""
        return {**self.ids, **clock(self.time_N)}

    def take(self, begin: int, end: int) -> ImpressionLog:
        """Impressions [begin, end)."""
        at = slice(begin, end)
        return ImpressionLog(self.time_N[at], self.label_N[at], {name: v[at] for name, v in self.ids.items()})


def clock(time_N: Ints) -> dict[str, Ints]:
    """`CLOCK` of seconds; weekday 0 is Sunday."""
    return {"hour": time_N // HOUR % 24, "weekday": (time_N // DAY + 4) % 7}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Which columns are made. Their order: crosses, then for every key its counts, then its rates, window by window."""

    crosses: tuple[Key, ...]
    statistics: Mapping[Key, tuple[int, ...]]
    """Key -> windows in seconds; each gives a bucketised count and a bucketised click rate."""
    sizes: Mapping[str, int]
    """Field or part of the clock -> values it can take."""
    items: frozenset[str]
    """Fields of a candidate."""
    prior: float
    """Click rate that a rate without impressions starts from, in (0, 1): of rows that are known before."""

    @property
    def columns(self) -> int:
        """F."""
        return len(self.crosses) + 2 * sum(map(len, self.statistics.values()))

    @property
    def names(self) -> list[str]:
        """One a column."""
        made = [
            f"{what} {' x '.join(key)} {'always' if w == ALWAYS else f'{w // HOUR} h'}"
            for key, windows in self.statistics.items() for what in ("count", "rate") for w in windows
        ]  # fmt: skip
        return [f"cross {' x '.join(key)}" for key in self.crosses] + made

    @property
    def cardinalities(self) -> list[int]:
        """Table rows of each column, the reserved ones included."""
        made = [n for w in self.statistics.values() for n in (COUNTS, RATES) for _ in w]
        return [FIRST_ID + n for n in [HASH_ROWS] * len(self.crosses) + made]

    @property
    def of_item(self) -> npt.NDArray[np.bool_]:
        """Per column: whether it differs between candidates of a request."""
        made = [self.has_item(key) for key, windows in self.statistics.items() for _ in range(2 * len(windows))]
        return np.array([*map(self.has_item, self.crosses), *made], dtype=np.bool_)

    def has_item(self, key: Key) -> bool:
        """Whether a field of a candidate is among the key's."""
        return key[-1] in self.items

    def code(self, key: Key, parts: Mapping[str, Ints]) -> Ints:
        """One number a value of the key, exact; parts are broadcast.

        Raises:
            BadInput: values that no 63 bits hold.
        """
        if math.prod(self.sizes[name] for name in key) >= 2**62:
            raise BadInput(f"legacy features: {' x '.join(key)} has more values than 62 bits; leave that key out")
        code: Ints = parts[key[0]]
        for name in key[1:]:
            code = code * self.sizes[name] + parts[name]
        return code


def recipe(schema: FeatureSchema, columns: int, prior: float) -> Recipe:
    """The `columns` most usual features of a schema.

    Crosses are of a user's field or the clock with an item's field, and of a user's field with the clock; statistics
    are of single fields and of the same crosses, over `WINDOWS`.

    Args:
        schema: with categorical fields of roles user and item.
        columns: of the result.
        prior: as in `Recipe`.

    Raises:
        BadInput: no such fields, a prior outside (0, 1), or more columns than there are keys and windows for.
    """
    users, items = ([f.name for f in schema.categorical if f.role == role] for role in ("user", "item"))
    if not users or not items:
        raise BadInput(f"{schema.name}: legacy features need a categorical field of role user and one of role item")
    if not 0 < prior < 1:
        raise BadInput(f"legacy features: prior={prior} must lie between 0 and 1: a click rate of earlier rows")
    pairs = [(u, i) for i in (*items[1:], items[0]) for u in users]
    hours, days = ([*((u, c) for u in users), *((c, i) for i in items)] for c in CLOCK)
    triples = [(u, "hour", i) for u, i in pairs]
    mixed = [key for both in zip_longest(pairs, hours) for key in both if key]
    single: list[Key] = [(name,) for name in (users[0], *items[:2])]
    rest: list[Key] = [(name,) for name in (*items[2:], *users[1:])]
    crosses: list[Key] = [*mixed, *days, *triples]
    keys: list[Key] = [*single, *mixed, *rest, *days, *triples]
    taken = min(int(columns * CROSSES), len(crosses))
    if (columns - taken) % 2:  # statistics come two by two
        taken += 1 if taken < len(crosses) else -1
    wanted = (columns - taken) // 2
    tiers = sorted(
        (max(k // KEYS_TIER, w // WINDOWS_TIER), k, w) for k in range(len(keys)) for w in range(len(WINDOWS))
    )
    most = len(crosses) + 2 * len(tiers)
    if columns < 1 or wanted > len(tiers):
        raise BadInput(f"{schema.name}: {columns} legacy columns; its fields and windows give 1 to {most}")
    made: dict[Key, tuple[int, ...]] = {}
    for _, k, w in sorted(tiers[:wanted], key=lambda tier: tier[1:]):
        made[keys[k]] = (*made.get(keys[k], ()), WINDOWS[w])
    sizes = {f.name: f.cardinality for f in schema.categorical} | CLOCK
    return Recipe(crosses=tuple(crosses[:taken]), statistics=made, sizes=sizes, items=frozenset(items), prior=prior)


def batch_features(log: ImpressionLog, made: Recipe) -> Ids:
    """All columns of a log, [F, N], column after column as a KeyedJaggedTensor wants them; ids from `FIRST_ID` on."""
    out_FN = np.empty((made.columns, log.size), np.int32)
    crosses(made, log.parts, out_FN[: len(made.crosses)])
    statistics(made, log, out_FN[len(made.crosses) :])
    return out_FN


def crosses(made: Recipe, parts: Mapping[str, Ints], out_XN: Ids) -> None:
    """Hashed crosses of `parts`, each [N] or [1]."""
    for row, key in enumerate(made.crosses):
        out_XN[row] = hashed(key, parts)


def hashed(key: Key, parts: Mapping[str, Ints]) -> Ids:
    """Ids of a cross: its values spread over `HASH_ROWS` by splitmix64 (Steele et al. 2014), salted by its name."""
    state = np.array([salt(key)], np.uint64)
    for name in key:
        state = absorbed(state, parts[name])
    return hash_ids(state)


def salt(key: Key) -> int:
    """Of a cross."""
    return zlib.crc32(" x ".join(key).encode())


def absorbed(state: npt.NDArray[np.uint64], ids: Ints) -> npt.NDArray[np.uint64]:
    """The hash state once a part's ids are taken in; shapes are broadcast."""
    state = state ^ (ids.astype(np.uint64) + _GOLDEN)
    state ^= state >> _30
    state *= _MIX[0]
    state ^= state >> _27
    state *= _MIX[1]
    state ^= state >> _31
    return state


def hash_ids(state: npt.NDArray[np.uint64]) -> Ids:
    """Rows of the crosses' tables."""
    return (state & _LAST).astype(np.int32) + np.int32(FIRST_ID)


def statistics(made: Recipe, log: ImpressionLog, out_SN: Ids) -> None:
    """Bucketised counts and click rates of the impressions strictly before each: one sort a key, searches a window."""
    row = 0
    for key, windows in made.statistics.items():
        code_N = made.code(key, log.parts)
        order_N = np.argsort(code_N, kind="stable")  # the log is in the order of time, and so is every group of it
        sorted_N = code_N[order_N]
        first_N = np.concatenate([[False], sorted_N[1:] != sorted_N[:-1]]) if log.size else np.empty(0, np.bool_)
        group_N = np.cumsum(first_N) << SPAN_BITS
        moment_N = group_N + log.time_N[order_N]
        clicks_N1 = cumulative(log.label_N[order_N])
        end_N = np.searchsorted(moment_N, moment_N)
        for w, window in enumerate(windows):
            begin_N = np.searchsorted(moment_N, np.maximum(moment_N - window, group_N))
            count_N, clicks_N = end_N - begin_N, clicks_N1[end_N] - clicks_N1[begin_N]
            out_SN[row + w, order_N] = count_ids(count_N)
            out_SN[row + len(windows) + w, order_N] = rate_ids(count_N, clicks_N, made.prior)
        row += 2 * len(windows)


def cumulative(label_N: Ints) -> Ints:
    """Clicks before each row and after the last, [N + 1]."""
    out = np.zeros(len(label_N) + 1, np.int64)
    np.cumsum(label_N, out=out[1:])
    return out


def count_ids(count_N: Ints) -> Ids:
    """Bucket of a count: floor(log2(1 + count)), the last one open."""
    return np.minimum(np.frexp(count_N + 1.0)[1] - 1, COUNTS - 1).astype(np.int32) + np.int32(FIRST_ID)


def rate_ids(count_N: Ints, clicks_N: Ints, prior: float) -> Ids:
    """Bucket of a click rate smoothed towards the prior."""
    rate_N = (clicks_N + SMOOTHING * prior) / (count_N + SMOOTHING)
    return (RATES * rate_N).astype(np.int32) + np.int32(FIRST_ID)

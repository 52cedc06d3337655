"""Features of many columns at once: ids hashed into rows of one stacked table, numbers bucketised, numbers logged.

A loop over columns pays the calls of its operations once a column; here every operation runs over a block of columns
whose work arrays stay in cache, and pays them once a block. `Columns.fused` is that, `Columns.looped` the same
arithmetic a column at a time, `Columns.plain` what one would write with the array library's own functions: the twin.

Dims: B rows, H hashed columns, U bucketised columns, L logged columns, E edges of a column; columns before rows, so
that a column lies in one piece
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ctrbench.datasets.errors import BadInput

BLOCK_VALUES = 16_384
"""Values of a block of columns: its 64-bit work array is an eighth of a MiB."""
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Multipliers of splitmix64 (Steele et al. 2014, as published with Vigna's generators)."""
_GOLDEN = 0x9E3779B97F4A7C15
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_HALF = np.uint64(32)
_WORD = 1 << 64


@dataclass(frozen=True, slots=True)
class Made:
    """Features of a batch."""

    rows_FB: np.ndarray
    """int64 [H + U, B]: rows of the stacked table, hashed columns first."""
    dense_LB: np.ndarray
    """float32, NaN where missing."""


class Columns:
    """What becomes of the columns of a batch.

    A hashed id becomes `start + (high 32 bits of splitmix64(id + salt)) * rows / 2^32`, a bucketised number
    `start + edges at or below it` (NaN: the row after the last bucket), a logged one sign(x) log(1 + |x|).

    Args:
        hash_rows: table rows of each hashed column.
        edges_UE: ascending edges of each bucketised column; E edges make E + 1 buckets and a row for missing.
        logged: columns that are logged.

    Raises:
        BadInput: a table without rows or beyond 2^31, or edges that do not ascend.
    """

    def __init__(self, hash_rows: np.ndarray, edges_UE: np.ndarray, logged: int) -> None:
        if (hash_rows < 1).any() or (hash_rows >= 1 << 31).any():
            raise BadInput("Columns: every hashed column needs 1..2^31 - 1 table rows")
        if (np.diff(edges_UE, axis=1) <= 0).any():
            raise BadInput("Columns: the edges of a bucketised column must ascend")
        self.hashed, self.bucketised, self.logged = len(hash_rows), len(edges_UE), logged
        self.edges_UE = edges_UE.astype(np.float32)
        buckets = np.full(self.bucketised, edges_UE.shape[1] + 2, np.int64)
        rows = np.concatenate([hash_rows.astype(np.int64), buckets])
        ends = np.cumsum(rows)
        self.table_rows = int(ends[-1]) if len(ends) else 0
        """Rows of the stacked table."""
        self._start = ends - rows
        self._range = hash_rows.astype(np.uint64)
        self._salt = np.array([(i + 1) * _GOLDEN % _WORD for i in range(self.hashed)], np.uint64)

    def fused(self, ids_HB: np.ndarray, bucket_UB: np.ndarray, log_LB: np.ndarray) -> Made:
        """All columns, a block of them at a time.

        Args:
            ids_HB: int64 raw ids.
            bucket_UB: float32 numbers to bucketise, NaN = missing.
            log_LB: float32 numbers to log, NaN = missing.
        """
        return self._made(ids_HB, bucket_UB, log_LB, max(1, BLOCK_VALUES // max(1, ids_HB.shape[1])))

    def looped(self, ids_HB: np.ndarray, bucket_UB: np.ndarray, log_LB: np.ndarray) -> Made:
        """The arithmetic of `fused`, one column at a time."""
        return self._made(ids_HB, bucket_UB, log_LB, 1)

    def _made(self, ids_HB: np.ndarray, bucket_UB: np.ndarray, log_LB: np.ndarray, block: int) -> Made:
        size = ids_HB.shape[1]
        made = Made(np.empty((self.hashed + self.bucketised, size), np.int64), np.empty_like(log_LB))
        many = min(block, max(self.hashed, self.bucketised, self.logged, 1))
        work, spare = np.empty((2, many, size), np.uint64)
        for at, to in _blocks(self.hashed, block):
            self._hash(ids_HB[at:to], at, to, made.rows_FB[at:to], work[: to - at], spare[: to - at])
        for at, to in _blocks(self.bucketised, block):
            out = made.rows_FB[self.hashed + at : self.hashed + to]
            self._bucketise(bucket_UB[at:to], at, to, out)
        for at, to in _blocks(self.logged, block):
            _log(log_LB[at:to], made.dense_LB[at:to])
        return made

    def _hash(self, ids: np.ndarray, at: int, to: int, out: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
        np.add(ids.view(np.uint64), self._salt[at:to, None], out=x)
        for shift, factor in zip(_SHIFTS, _MIX, strict=False):
            np.right_shift(x, shift, out=y)
            np.bitwise_xor(x, y, out=x)
            np.multiply(x, factor, out=x)
        np.right_shift(x, _SHIFTS[2], out=y)
        np.bitwise_xor(x, y, out=x)
        # The high half times the range, shifted down: a remainder without a division.
        np.right_shift(x, _HALF, out=x)
        np.multiply(x, self._range[at:to, None], out=x)
        np.right_shift(x, _HALF, out=x)
        np.add(x.view(np.int64), self._start[at:to, None], out=out)

    def _bucketise(self, values: np.ndarray, at: int, to: int, out: np.ndarray) -> None:
        edges = self.edges_UE[at:to]
        count = np.zeros(values.shape, np.int16)
        reached = np.empty(values.shape, bool)
        for e in range(edges.shape[1]):
            np.greater_equal(values, edges[:, e : e + 1], out=reached)
            np.add(count, reached, out=count)
        count[np.isnan(values)] = edges.shape[1] + 1
        first = self.hashed
        np.add(count, self._start[first + at : first + to, None], out=out)

    def plain(self, ids_HB: np.ndarray, bucket_UB: np.ndarray, log_LB: np.ndarray) -> Made:
        """The twin: column after column with `searchsorted`, `log1p` and whole-array expressions."""
        size = ids_HB.shape[1]
        rows_FB = np.empty((self.hashed + self.bucketised, size), np.int64)
        for i in range(self.hashed):
            x = ids_HB[i].astype(np.uint64) + self._salt[i]
            x = (x ^ (x >> _SHIFTS[0])) * _MIX[0]
            x = (x ^ (x >> _SHIFTS[1])) * _MIX[1]
            x = x ^ (x >> _SHIFTS[2])
            rows_FB[i] = ((x >> _HALF) * self._range[i] >> _HALF).astype(np.int64) + self._start[i]
        for i in range(self.bucketised):
            known = np.searchsorted(self.edges_UE[i], bucket_UB[i], side="right")
            place = np.where(np.isnan(bucket_UB[i]), self.edges_UE.shape[1] + 1, known)
            rows_FB[self.hashed + i] = place + self._start[self.hashed + i]
        dense_LB = np.empty_like(log_LB)
        for i in range(self.logged):
            dense_LB[i] = np.sign(log_LB[i]) * np.log1p(np.abs(log_LB[i]))
        return Made(rows_FB, dense_LB)


Way = Callable[[np.ndarray, np.ndarray, np.ndarray], Made]


def _blocks(columns: int, block: int) -> list[tuple[int, int]]:
    return [(at, min(at + block, columns)) for at in range(0, columns, block)]


def _log(values: np.ndarray, out: np.ndarray) -> None:
    # log(1 + |x|), not log1p: the logarithm is vectorised. Below 2^-24 it gives 0, an absolute error of as much.
    np.abs(values, out=out)
    np.add(out, np.float32(1), out=out)
    np.log(out, out=out)
    np.copysign(out, values, out=out)

"""Tokens of eight lower-case hex digits as uint32: a quarter of the memory of text, counted and coded by NumPy.

`00000000` is 0 and `ffffffff` is 2^32 - 1, so the order of numbers is that of texts. Columns that hold any other text
stay text. Plain twins: `Counter` and `dict` (tests/property/test_hex_tokens.py).

Dims: R rows, N distinct values, K keys of an index, S slots
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

DIGITS = 8
_ODD = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)
"""Multipliers of an index's levels (primes of xxHash, Y. Collet)."""
_PAIRS = np.array([f"{b:02x}" for b in range(256)], "S2")


def pack(text: pl.DataFrame, columns: Sequence[str], digits_only: bool = False) -> pl.DataFrame:
    """Text columns whose present values are all tokens become uint32, null staying null; the others stay.

    Args:
        text: holds the columns.
        columns: which to try.
        digits_only: the caller knows that no value has an upper-case digit or a sign.
    """
    wide = pl.col(columns)
    number = wide.str.to_integer(base=16, dtype=pl.UInt32, strict=False)
    token = wide.is_null() | ((wide.str.len_bytes() == DIGITS) & number.is_not_null())
    if not digits_only:
        token = token & ~wide.str.contains("[^0-9a-f]").fill_null(False)
    whole = text.select(token.all())
    return text.with_columns(number) if all(whole.row(0)) else text.with_columns(
        pl.col(c).str.to_integer(base=16, dtype=pl.UInt32, strict=False) for c in columns if whole[c].item()
    )  # fmt: skip


def text_of(value_N: np.ndarray) -> pl.Series:
    """uint32 as text again."""
    text = _PAIRS[value_N.astype(">u4").view(np.uint8)].tobytes()
    offsets = np.arange(0, DIGITS * len(value_N) + 1, DIGITS, dtype=np.int64)
    strings = pa.LargeStringArray.from_buffers(len(value_N), pa.py_buffer(offsets), pa.py_buffer(text))
    return cast(pl.Series, pl.from_arrow(strings))


def of_text(text: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """uint32 of those values of a column that are tokens, and the places of these."""
    token = text.str.contains(f"^[0-9a-f]{{{DIGITS}}}$").fill_null(False)
    numbers = text.filter(token).str.to_integer(base=16, dtype=pl.UInt32)
    return numbers.to_numpy(), np.flatnonzero(token.to_numpy())


class Counts:
    """How often each value occurs, grown part by part; memory is that of the distinct values.

    Every part is merged with all values so far: few large parts cost less than many small ones.

    Args:
        dtype: of the values, an unsigned type.

    Attributes:
        value_N: distinct values in rising order.
        count_N: int64.
    """

    def __init__(self, dtype: npt.DTypeLike = np.uint32) -> None:
        self.value_N = np.empty(0, dtype)
        self.count_N = np.empty(0, np.int64)

    def add(self, value_R: np.ndarray) -> None:
        """Counts values."""
        if len(value_R):
            sorted_R = np.sort(value_R)  # vectorised in NumPy: several times as fast as a hash table
            start_N = np.append(0, np.flatnonzero(sorted_R[1:] != sorted_R[:-1]) + 1)
            self._merge(sorted_R[start_N], np.diff(start_N, append=len(sorted_R)))

    def _merge(self, value_N: np.ndarray, count_N: np.ndarray) -> None:
        if not len(self.value_N):
            self.value_N, self.count_N = value_N, count_N
            return
        both = np.concatenate([self.value_N, value_N])
        order = np.argsort(both, kind="stable")  # two runs that are sorted already: a merge
        both, counts = both[order], np.concatenate([self.count_N, count_N])[order]
        start_N = np.append(0, np.flatnonzero(both[1:] != both[:-1]) + 1)
        self.value_N, self.count_N = both[start_N], np.add.reduceat(counts, start_N)

    def frame(self) -> pl.DataFrame:
        """`value` (text of a uint32 token) and `count`."""
        return pl.DataFrame({"value": text_of(self.value_N), "count": pl.Series(self.count_N, dtype=pl.UInt32)})


class Index:
    """Ids of known uint32 values: a cascade of hash tables without chains, then a search among the few left over.

    Each level takes the first key of every slot; keys that meet go on to the next. Keys come in falling frequency, so
    that nearly all rows are found in the first one.

    Args:
        key_K: distinct uint32, the most frequent first.
        id_K: int32, not negative.
    """

    def __init__(self, key_K: np.ndarray, id_K: np.ndarray) -> None:
        self._levels: list[tuple[np.uint32, np.uint32, np.ndarray, np.ndarray]] = []
        for odd in _ODD:
            if not len(key_K):
                break
            bits = max(1, int(2 * len(key_K) - 1).bit_length())
            shift = np.uint32(32 - min(bits, 31))
            slot_K = (key_K * np.uint32(odd)) >> shift
            key_S, id_S = np.zeros(1 << min(bits, 31), np.uint32), np.full(1 << min(bits, 31), -1, np.int32)
            key_S[slot_K[::-1]], id_S[slot_K[::-1]] = key_K[::-1], id_K[::-1]  # of equal slots the last one stays
            self._levels.append((np.uint32(odd), shift, key_S, id_S))
            left_K = key_S[slot_K] != key_K
            key_K, id_K = key_K[left_K], id_K[left_K]
        order = np.argsort(key_K)
        self._key_K, self._id_K = key_K[order], id_K[order]

    def ids(self, value_R: np.ndarray, unknown: int) -> np.ndarray:
        """int32 id of each value, `unknown` where it is not a key."""
        id_R = np.full(len(value_R), unknown, np.int32)
        place_R: np.ndarray | None = None  # rows still sought; None = all
        for odd, shift, key_S, id_S in self._levels:
            slot_R = (value_R * odd) >> shift
            found_R = id_S[slot_R]
            hit_R = (key_S[slot_R] == value_R) & (found_R >= 0)
            if place_R is None:
                np.copyto(id_R, found_R, where=hit_R)
                place_R = np.flatnonzero(~hit_R)
                value_R = value_R[place_R]
            else:
                id_R[place_R[hit_R]] = found_R[hit_R]
                place_R, value_R = place_R[~hit_R], value_R[~hit_R]
        if len(self._key_K):
            at_R = np.minimum(np.searchsorted(self._key_K, value_R), len(self._key_K) - 1)
            hit_R = self._key_K[at_R] == value_R
            place_R = np.arange(len(id_R)) if place_R is None else place_R
            id_R[place_R[hit_R]] = self._id_K[at_R[hit_R]]
        return id_R

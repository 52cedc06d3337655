"""Rows of prepared shards packed for reading by the batch: one int32 record a row, all its columns side by side.

A random row of a packed window costs the cache lines of one record, not one line a column. Floats are stored by their
bits, 64-bit columns as two halves; the columns come back as views.

Dims: B rows of a batch, C categorical fields, I dense fields, W rows of a window, K int32 places of a record
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ctrbench.datasets.prepared import FIXED
from ctrbench.datasets.schema import FeatureSchema

BLOCK = 8_192
"""Rows packed at a time: their records stay in cache while column after column is written into them."""


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop) of one shard."""

    file: Path
    start: int
    stop: int
    number: int
    """Of the first row in the prepared data (`Batch.row_B`)."""

    @property
    def rows(self) -> int:
        return self.stop - self.start


class Layout:
    """Where the columns of a schema stand in a record.

    Args:
        schema: ids first, then dense values, then label, user, time and number of the row, then begin and end of
            each history.
    """

    def __init__(self, schema: FeatureSchema) -> None:
        self.ids = [f.name for f in schema.categorical]
        self.dense = [f.name for f in schema.dense]
        self.histories = list(schema.histories)
        self.wide = [*FIXED, "", *(f"{h}_{end}" for h in self.histories for end in ("begin", "end"))]
        """64-bit columns; the empty name is the number of the row."""
        self.at_dense = len(self.ids)
        # An even place, so that 64-bit views of a record are aligned.
        self.at_wide = (self.at_dense + len(self.dense) + 1) // 2 * 2
        self.width = self.at_wide + 2 * len(self.wide)

    @property
    def columns(self) -> list[str]:
        """Columns to read from a shard."""
        return [*self.ids, *self.dense, *(c for c in self.wide if c)]

    def ids_BC(self, rows_BK: np.ndarray) -> np.ndarray:
        """int32 view."""
        return rows_BK[:, : self.at_dense]

    def dense_BI(self, rows_BK: np.ndarray) -> np.ndarray:
        """float32 view, NaN where missing."""
        return rows_BK[:, self.at_dense : self.at_dense + len(self.dense)].view(np.float32)

    def wide_B(self, rows_BK: np.ndarray, column: str) -> np.ndarray:
        """int64 view of `label`, `user_id`, `time`, "" (number of the row), or `<history>_begin` and `_end`."""
        at = self.at_wide + 2 * self.wide.index(column)
        view: np.ndarray = rows_BK[:, at : at + 2].view(np.int64)[:, 0]
        return view

    def write(self, rows_BK: np.ndarray, columns: Sequence[np.ndarray], number: int) -> None:
        """Fills records, a block in cache at a time.

        Args:
            rows_BK: records to fill.
            columns: arrays in the order of `columns`.
            number: of the first row.
        """
        ids, dense = len(self.ids), len(self.dense)
        for start in range(0, len(rows_BK), BLOCK):
            part = rows_BK[start : start + BLOCK]
            stop = start + len(part)
            wide = part[:, self.at_wide :].view(np.int64)
            for i in range(ids):
                part[:, i] = columns[i][start:stop]
            floats = self.dense_BI(part)
            for i in range(dense):
                floats[:, i] = columns[ids + i][start:stop]
            given = iter(columns[ids + dense :])
            for i, name in enumerate(self.wide):
                wide[:, i] = next(given)[start:stop] if name else np.arange(number + start, number + stop)


def read_spans(spans: Sequence[Span], layout: Layout) -> np.ndarray:
    """The rows of spans as records [W, K], read a slice of a row group at a time."""
    rows_WK = np.zeros((sum(s.rows for s in spans), layout.width), np.int32)
    at = 0
    for span in spans:
        number = span.number
        for part in _slices(span, layout.columns):
            size = part.num_rows
            columns = [c.to_numpy(zero_copy_only=False) for c in part.columns]
            layout.write(rows_WK[at : at + size], columns, number)
            at, number = at + size, number + size
    return rows_WK


def _slices(span: Span, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows of a span in order; row groups before and after it are not read."""
    # One thread, so that the CPU time of the reading thread is the whole cost.
    file = pq.ParquetFile(span.file)
    ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
    groups = [i for i, end in enumerate(ends) if end > span.start and (i == 0 or ends[i - 1] < span.stop)]
    at = int(ends[groups[0] - 1]) if groups and groups[0] else 0
    for part in file.iter_batches(8 * BLOCK, groups, columns, use_threads=False):
        first, last = max(span.start - at, 0), min(span.stop - at, part.num_rows)
        at += part.num_rows
        if first < last:
            yield part.slice(first, last - first)


def between(shards: Sequence[tuple[Path, int]], start: int, stop: int, first: int) -> list[Span]:
    """Spans of rows [start, stop) of the shards, counted over all of them.

    Args:
        shards: file and rows of each, in stored order.
        start: first row wanted.
        stop: end of the rows wanted.
        first: number of the first row of all (`Batch.row_B`).
    """
    out: list[Span] = []
    at = 0
    for file, size in shards:
        low, high = max(start - at, 0), min(stop - at, size)
        if low < high:
            out.append(Span(file, low, high, first + at + low))
        at += size
    return out


def windows(spans: list[Span], window: int, shuffle: np.random.Generator | None) -> list[list[Span]]:
    """Groups of spans of at most `window` rows (one shard at least); shuffled only if there is more than one."""
    if sum(s.rows for s in spans) > window and shuffle is not None:
        spans = [spans[i] for i in shuffle.permutation(len(spans))]
    out: list[list[Span]] = []
    size = 0
    for span in spans:
        if not out or size + span.rows > window:
            out.append([])
            size = 0
        out[-1].append(span)
        size += span.rows
    return out

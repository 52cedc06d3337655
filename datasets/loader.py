"""Shards to batches: columnar, vectorised, one background thread that stays a few batches ahead.

Dims: B batch, I dense fields, C categorical fields, N ids, W rows of a window
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepared import FIXED, Prepared, history_index
from ctrbench.datasets.schema import Batch, FeatureSchema

WINDOW = 2_000_000
"""Rows held in memory at a time (about 350 MB of Criteo); below it a shuffle is a full permutation."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Rows [start, stop) of one shard."""

    file: Path
    start: int
    stop: int
    number: int
    """Of the first row in the prepared data (`Batch.row_B`)."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows as arrays: what a window holds, and what a batch is gathered into."""

    ids_BC: np.ndarray
    dense_BI: np.ndarray
    """float32, NaN where missing."""
    fixed_B4: np.ndarray
    """int64: label, user, time, number of the row."""
    spans_B2: dict[str, np.ndarray]
    """history -> int64 begin and end in its event log."""

    def take(self, index_B: np.ndarray) -> _Rows:
        spans = {h: s.take(index_B, axis=0) for h, s in self.spans_B2.items()}
        return _Rows(self.ids_BC[index_B], self.dense_BI[index_B], self.fixed_B4[index_B], spans)

    @staticmethod
    def join(parts: list[_Rows]) -> _Rows:
        if len(parts) == 1:
            return parts[0]
        spans = {h: np.concatenate([p.spans_B2[h] for p in parts]) for h in parts[0].spans_B2}
        return _Rows(
            np.concatenate([p.ids_BC for p in parts]),
            np.concatenate([p.dense_BI for p in parts]),
            np.concatenate([p.fixed_B4 for p in parts]),
            spans,
        )


class Loader:
    """Batches of one split; every iteration is one pass over the rows, in the same order each time.

    Args:
        prepared: where the rows are.
        split: train, valid or test.
        batch: rows a batch; the last one may be smaller unless `drop_last`.
        rows: only that many most recent rows of the split; None or more than there are: all.
        shuffle_seed: permutes the rows; None keeps stored order. The permutation is of all rows if they fit into
            `window`, else of the shards and then of the rows of each window.
        history_length: events kept of each history; None keeps what was prepared.
        prefetch: batches made ahead by the background thread; 0 makes them in the calling thread.
        drop_last: leave out a last batch that is not full.
        window: rows held in memory at a time.
        labels: one a row, in stored order, in place of the stored ones: for controls.

    Attributes:
        schema: features of the batches.
        cpu_seconds: CPU time spent on making batches so far, all passes together; reading runs in the same thread.
    """

    def __init__(
        self, prepared: Prepared, split: str, batch: int, *, rows: int | None = None, shuffle_seed: int | None = None,
        history_length: int | None = None, prefetch: int = 2, drop_last: bool = False, window: int = WINDOW,
        labels: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        if batch < 1 or prefetch < 0 or window < 1 or (rows is not None and rows < 1):
            raise BadInput(f"Loader: batch={batch} rows={rows} window={window} must be >= 1, prefetch={prefetch} >= 0")
        self.schema: FeatureSchema = prepared.schema_for(history_length)
        self.cpu_seconds = 0.0
        self.rows = min(prepared.rows(split), rows or prepared.rows(split))
        if labels is not None and len(labels) != self.rows:
            raise BadInput(f"Loader: {len(labels)} labels for {self.rows} rows of {split}; give one a row")
        self._labels = labels
        self._batch, self._drop_last, self._prefetch, self._seed = batch, drop_last, prefetch, shuffle_seed
        self._first = prepared.first_row(split) + prepared.rows(split) - self.rows
        spans = _last(prepared.shards(split), self.rows, prepared.first_row(split))
        self._windows = _windows(spans, window, self._generator(0))
        self._prepared = prepared
        self._held: _Rows | None = None
        self._log: dict[str, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.rows // self._batch if self._drop_last else -(-self.rows // self._batch)

    def __iter__(self) -> Iterator[Batch]:
        batches = self._batches()
        if self._prefetch == 0:
            while (batch := self._next(batches)) is not None:
                yield batch
            return
        pool = ThreadPoolExecutor(1, thread_name_prefix="ctrbench-loader")
        try:
            ahead = deque(pool.submit(self._next, batches) for _ in range(self._prefetch))
            while (ready := ahead.popleft().result()) is not None:
                ahead.append(pool.submit(self._next, batches))
                yield ready
        finally:  # also when the caller abandons the pass
            pool.shutdown(wait=True, cancel_futures=True)

    def _generator(self, part: int) -> np.random.Generator | None:
        return None if self._seed is None else np.random.default_rng([self._seed, part])

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        start = time.thread_time()
        batch = next(batches, None)
        self.cpu_seconds += time.thread_time() - start
        return batch

    def _batches(self) -> Iterator[Batch]:
        parts: list[_Rows] = []
        have = 0
        for number, spans in enumerate(self._windows):
            window = self._read(spans)
            size = len(window.fixed_B4)
            shuffle = self._generator(number + 1)
            order_W = np.arange(size) if shuffle is None else shuffle.permutation(size)
            at = 0
            while at < size:
                part_B = order_W[at : at + self._batch - have]
                parts.append(window.take(part_B))
                at, have = at + len(part_B), have + len(part_B)
                if have == self._batch:
                    yield self._make(_Rows.join(parts))
                    parts, have = [], 0
        if parts and not self._drop_last:
            yield self._make(_Rows.join(parts))

    def _read(self, spans: list[_Span]) -> _Rows:
        """A window; kept for the next pass if it is the only one."""
        if self._held is not None:
            return self._held
        rows = _Rows.join([self._read_span(s) for s in spans])
        if len(self._windows) == 1:
            self._held = rows
        return rows

    def _read_span(self, span: _Span) -> _Rows:
        histories = list(self.schema.histories)
        ends = [[f"{h}_begin", f"{h}_end"] for h in histories]
        ids, dense = ([f.name for f in fields] for fields in (self.schema.categorical, self.schema.dense))
        # One thread, so that `cpu_seconds` sees the whole cost.
        columns = [*ids, *dense, *FIXED, *chain.from_iterable(ends)]
        table = pq.ParquetFile(span.file).read(columns, use_threads=False).slice(span.start, span.stop - span.start)

        def matrix(columns: list[str], dtype: type) -> np.ndarray:
            out = np.empty((table.num_rows, len(columns)), dtype)
            for i, column in enumerate(columns):
                out[:, i] = table[column].to_numpy()
            return out

        spans_B2 = {h: matrix(e, np.int64) for h, e in zip(histories, ends, strict=True)}
        number_B = np.arange(span.number, span.number + table.num_rows)
        fixed_B4 = np.column_stack([matrix(list(FIXED), np.int64), number_B])
        if self._labels is not None:
            fixed_B4[:, FIXED.index("label")] = self._labels[number_B - self._first]
        return _Rows(matrix(ids, np.int32), matrix(dense, np.float32), fixed_B4, spans_B2)

    def _events(self, history: str) -> dict[str, np.ndarray]:
        if history not in self._log:
            table = pq.ParquetFile(self._prepared.path / f"events-{history}.parquet").read(use_threads=False)
            self._log[history] = {c: table[c].to_numpy().astype(np.int64) for c in table.column_names}
        return self._log[history]

    def _make(self, rows: _Rows) -> Batch:
        size = len(rows.fixed_B4)
        indexes = {}
        for history, fields in self.schema.histories.items():
            spans_B2 = rows.spans_B2[history]
            indexes[history] = history_index(spans_B2[:, 0], spans_B2[:, 1], fields[0].max_length)
        keys = [*self.schema.categorical, *self.schema.sequences]
        per_key = [len(indexes[f.history][0]) if f.history else size for f in keys]
        values_N = np.empty(sum(per_key), np.int64)
        lengths = np.ones((len(per_key), size), np.int32)
        at = size * len(self.schema.categorical)
        values_N[:at].reshape(-1, size)[:] = rows.ids_BC.T
        for i, field in enumerate(keys):
            if field.history:
                index_N, n_B = indexes[field.history]
                np.take(self._events(field.history)[field.name], index_N, out=values_N[at : at + per_key[i]])
                lengths[i] = n_B
                at += per_key[i]
        missing_BI = np.isnan(rows.dense_BI)
        return Batch(
            dense_BI=torch.from_numpy(np.where(missing_BI, np.float32(0), rows.dense_BI)),
            missing_BI=torch.from_numpy(missing_BI.astype(np.float32)),
            ids=KeyedJaggedTensor(
                keys=[f.name for f in keys],
                values=torch.from_numpy(values_N),
                lengths=torch.from_numpy(lengths.reshape(-1)),
                length_per_key=per_key,
                stride=size,
            ),
            event_times={h: torch.from_numpy(self._events(h)["time"][index_N]) for h, (index_N, _) in indexes.items()},
            time_B=torch.from_numpy(rows.fixed_B4[:, 2].copy()),
            label_B=torch.from_numpy(rows.fixed_B4[:, 0].astype(np.float32)),
            user_B=torch.from_numpy(rows.fixed_B4[:, 1].copy()),
            host={"lengths": {h: n_B.tolist() for h, (_, n_B) in indexes.items()}},
            row_B=torch.from_numpy(rows.fixed_B4[:, 3].copy()),
        )  # fmt: skip


def _last(shards: list[tuple[Path, int]], rows: int, first: int) -> list[_Span]:
    """Spans of the last `rows` rows of the shards, in stored order; `first` is the number of the first row of all."""
    out: list[_Span] = []
    end = first + sum(size for _, size in shards)
    for file, size in reversed(shards):
        taken = min(size, rows)
        if taken:
            out.append(_Span(file, size - taken, size, end - taken))
        rows, end = rows - taken, end - size
    return out[::-1]


def _windows(spans: list[_Span], window: int, shuffle: np.random.Generator | None) -> list[list[_Span]]:
    """Groups of spans of at most `window` rows (one shard at least); shuffled only if there is more than one."""
    if sum(s.stop - s.start for s in spans) > window and shuffle is not None:
        spans = [spans[i] for i in shuffle.permutation(len(spans))]
    out: list[list[_Span]] = []
    size = 0
    for span in spans:
        rows = span.stop - span.start
        if not out or size + rows > window:
            out.append([])
            size = 0
        out[-1].append(span)
        size += rows
    return out

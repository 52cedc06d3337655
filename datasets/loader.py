"""Shards to batches: columnar, vectorised, one background thread that stays a few batches ahead.

A window of rows lies packed in memory (datasets/packed_rows.py); a chunk of batches is gathered from it at once, in the
order of the pass, and cut into batches, so that what a gather costs in calls is shared by the batches of the chunk.

Dims: B rows of a batch, C categorical fields, I dense fields, K int32 places of a record, N ids or events, R rows of a
chunk, W rows of a window
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Event, Thread

import numpy as np
import pyarrow.parquet as pq
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.packed_rows import Layout, Span, between, read_spans, windows
from ctrbench.datasets.prepared import Prepared, history_index
from ctrbench.datasets.schema import FIRST_ID, Batch, FeatureSchema

WINDOW = 2_000_000
"""Rows held in memory at a time (about 400 MB of Criteo); below it a shuffle is a full permutation."""
CHUNK = 4_096
"""Rows gathered at once, in whole batches; a batch may be larger."""
PREFETCH = 4
"""Batches made ahead: enough for a chunk to be gathered while a small model's steps use them up. Every array operation
of the thread has to win the interpreter back from the step, which takes up to its switch interval of 5 ms."""


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
        labels: one a row of all shards, in stored order, in place of the stored ones: for controls.
        shard: (index, count): only the rows of process `index` of `count`; neighbours in stored order, whose numbers
            differ by one at most. Together the shards are all rows, each once, and nobody reads another's.
        part: (index, count): of every batch only the rows of process `index` of `count`, neighbours in the order of the
            pass, so that the batches of all processes together are those of one alone. Each reads all rows.
        pin: batches in page-locked memory, made so in the background thread: what `Batch.to(device,
            non_blocking=True)` copies while the device computes. Only with a CUDA device.

    Attributes:
        schema: features of the batches.
        rows: rows of a pass.
        cpu_seconds: CPU time spent on making batches so far, all passes together; reading runs in the same thread.
    """

    def __init__(
        self, prepared: Prepared, split: str, batch: int, *, rows: int | None = None, shuffle_seed: int | None = None,
        history_length: int | None = None, prefetch: int = PREFETCH, drop_last: bool = False, window: int = WINDOW,
        labels: np.ndarray | None = None, shard: tuple[int, int] = (0, 1),
        part: tuple[int, int] = (0, 1), pin: bool = False,
    ) -> None:  # fmt: skip
        if batch < 1 or prefetch < 0 or window < 1 or (rows is not None and rows < 1):
            raise BadInput(f"Loader: batch={batch} rows={rows} window={window} must be >= 1, prefetch={prefetch} >= 0")
        if pin and not torch.cuda.is_available():
            raise BadInput("Loader: pin=True needs a CUDA device, torch sees none; leave pin out on a CPU")
        self.schema: FeatureSchema = prepared.schema_for(history_length)
        self.cpu_seconds = 0.0
        whole = prepared.rows(split)
        wanted = min(whole, rows or whole)
        if labels is not None and len(labels) != wanted:
            raise BadInput(f"Loader: {len(labels)} labels for {wanted} rows of {split}; give one a row")
        self._labels, self._first = labels, prepared.first_row(split) + whole - wanted
        begin, end = (whole - wanted + edge for edge in _shard(wanted, *shard))
        self.rows = end - begin
        self._batch, self._drop_last, self._prefetch, self._seed = batch, drop_last, prefetch, shuffle_seed
        self._chunk, self._part = max(1, CHUNK // batch) * batch, part
        spans = between(prepared.shards(split), begin, end, prepared.first_row(split))
        self._windows = windows(spans, window, self._generator(0))
        self._prepared, self._layout, self._pin = prepared, Layout(self.schema), pin
        self._histories = {h: fields[0].max_length for h, fields in self.schema.histories.items()}
        self._sequences = [(f.name, str(f.history)) for f in self.schema.sequences]
        self._keys = [f.name for f in (*self.schema.categorical, *self.schema.sequences)]
        self._most = prepared.table_rows
        self._held: np.ndarray | None = None
        self._log: dict[str, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.rows // self._batch if self._drop_last else -(-self.rows // self._batch)

    def __iter__(self) -> Iterator[Batch]:
        batches = self._batches()
        if self._prefetch == 0:
            while (batch := self._next(batches)) is not None:
                yield batch
            return
        # Queues in C: taking what is ready and ordering the next one does not let go of the interpreter.
        orders: SimpleQueue[bool] = SimpleQueue()
        ready: SimpleQueue[Batch | BaseException | None] = SimpleQueue()
        stop = Event()
        for _ in range(self._prefetch):
            orders.put(True)
        thread = Thread(target=self._serve, args=(batches, orders, ready, stop), name="ctrbench-loader", daemon=True)
        thread.start()
        try:
            while (made := ready.get()) is not None:
                if isinstance(made, BaseException):
                    raise made
                orders.put(True)
                yield made
        finally:  # also when the caller abandons the pass
            stop.set()
            orders.put(True)  # wakes a thread that waits for one
            thread.join()

    def _serve(self, batches: Iterator[Batch], orders: SimpleQueue[bool],
               ready: SimpleQueue[Batch | BaseException | None], stop: Event) -> None:  # fmt: skip
        """The thread: a batch an order, until the batches end or the caller has gone."""
        made: Batch | BaseException | None = None
        while orders.get() and not stop.is_set():
            try:
                made = self._next(batches)
            except BaseException as error:  # the caller must see it
                made = error
            ready.put(made)
            if not isinstance(made, Batch):
                return

    def _generator(self, part: int) -> np.random.Generator | None:
        return None if self._seed is None else np.random.default_rng([self._seed, part])

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        start = time.thread_time()
        batch = next(batches, None)
        if self._pin and batch is not None:
            batch = batch.pin_memory()
        self.cpu_seconds += time.thread_time() - start
        return batch

    def _batches(self) -> Iterator[Batch]:
        for rows_RK in self._chunks():
            yield from self._make(rows_RK)

    def _chunks(self) -> Iterator[np.ndarray]:
        """Records in the order of the pass, some whole batches at a time; only the last chunk may end in a part."""
        parts: list[np.ndarray] = []
        have = 0
        for number, spans in enumerate(self._windows):
            window_WK = self._read(spans)
            size = len(window_WK)
            shuffle = self._generator(number + 1)
            order_W = None if shuffle is None else shuffle.permutation(size)
            at = 0
            while at < size:
                stop = min(at + self._chunk - have, size)
                parts.append(window_WK[at:stop] if order_W is None else window_WK.take(order_W[at:stop], axis=0))
                at, have = stop, have + stop - at
                if have == self._chunk:
                    yield parts[0] if len(parts) == 1 else np.concatenate(parts)
                    parts, have = [], 0
        if parts:
            yield np.concatenate(parts)

    def _read(self, spans: list[Span]) -> np.ndarray:
        """A window; kept for the next pass if it is the only one."""
        if self._held is not None:
            return self._held
        rows_WK = read_spans(spans, self._layout)
        if self._labels is not None:
            given = self._labels[self._layout.wide_B(rows_WK, "") - self._first]
            self._layout.wide_B(rows_WK, "label")[:] = given
        if len(self._windows) == 1:
            self._held = rows_WK
        return rows_WK

    def _events(self, history: str) -> dict[str, np.ndarray]:
        if history not in self._log:
            table = pq.ParquetFile(self._prepared.path / f"events-{history}.parquet").read(use_threads=False)
            self._log[history] = {c: table[c].to_numpy().astype(np.int64) for c in table.column_names}
        return self._log[history]

    def _make(self, rows_RK: np.ndarray) -> Iterator[Batch]:
        """The batches of a chunk."""
        place, many = self._layout, len(rows_RK)
        indexes = {}
        for history, length in self._histories.items():
            begin_R, end_R = (place.wide_B(rows_RK, f"{history}_{end}") for end in ("begin", "end"))
            index_N, n_R = history_index(begin_R, end_R, length)
            indexes[history] = index_N, n_R, np.concatenate([[0], np.cumsum(n_R)])
        ids_RC, raw_RI = place.ids_BC(rows_RK), place.dense_BI(rows_RK)
        missing_RI = np.isnan(raw_RI)
        dense_RI = np.where(missing_RI, np.float32(0), raw_RI)
        missing_RI = missing_RI.astype(np.float32)
        label_R = place.wide_B(rows_RK, "label").astype(np.float32)
        user_R, time_R, row_R = (place.wide_B(rows_RK, c).copy() for c in ("user_id", "time", ""))
        for start in range(0, many, self._batch):
            stop = min(start + self._batch, many)
            if self._drop_last and stop - start < self._batch:
                return
            start, stop = (start + edge for edge in _shard(stop - start, *self._part))
            mine = {h: (i[edge[start] : edge[stop]], n[start:stop]) for h, (i, n, edge) in indexes.items()}
            yield Batch(
                dense_BI=torch.from_numpy(dense_RI[start:stop]),
                missing_BI=torch.from_numpy(missing_RI[start:stop]),
                ids=self._jagged(ids_RC[start:stop], mine),
                event_times={
                    h: torch.from_numpy(self._events(h)["time"].take(index_N, mode="clip"))
                    for h, (index_N, _) in mine.items()
                },
                time_B=torch.from_numpy(time_R[start:stop]),
                label_B=torch.from_numpy(label_R[start:stop]),
                user_B=torch.from_numpy(user_R[start:stop]),
                host={"lengths": {h: n_B.tolist() for h, (_, n_B) in mine.items()}},
                row_B=torch.from_numpy(row_R[start:stop]),
            )

    def _jagged(self, ids_BC: np.ndarray, indexes: dict[str, tuple[np.ndarray, np.ndarray]]) -> KeyedJaggedTensor:
        """Ids of a batch, key after key.

        Args:
            ids_BC: categorical ids.
            indexes: history -> positions of its events in the log, and events a row.
        """
        size, columns = ids_BC.shape
        per_key = [size] * columns + [len(indexes[h][0]) for _, h in self._sequences]
        values_N = np.empty(sum(per_key), np.int64)
        lengths = np.ones((len(per_key), size), np.int32)
        at = size * columns
        values_N[:at].reshape(-1, size)[:] = ids_BC.T
        for i, (name, history) in enumerate(self._sequences, columns):
            index_N, n_B = indexes[history]
            # `clip` writes in place, the default would fill a copy first; the index is in range by construction.
            np.take(self._events(history)[name], index_N, out=values_N[at : at + per_key[i]], mode="clip")
            lengths[i] = n_B
            at += per_key[i]
        if self._most:
            values_N = shared_rows(values_N, self._most)
        return KeyedJaggedTensor(
            keys=self._keys,
            values=torch.from_numpy(values_N),
            lengths=torch.from_numpy(lengths.reshape(-1)),
            length_per_key=per_key,
            stride=size,
        )


def shared_rows(ids_N: np.ndarray, most: int) -> np.ndarray:
    """Ids of tables of at most `most` rows; those from there on take the row of their remainder (`with_table_rows`)."""
    return np.where(ids_N < most, ids_N, FIRST_ID + (ids_N - FIRST_ID) % (most - FIRST_ID))


def _shard(rows: int, index: int, count: int) -> tuple[int, int]:
    """First row and end of a shard's rows.

    Raises:
        BadInput: there is no such shard, or it would be empty.
    """
    if not 0 <= index < count or count > rows:
        raise BadInput(f"Loader: shard={(index, count)}: the index is within 0..count-1, and {rows} rows are enough "
                       f"for {rows} shards")  # fmt: skip
    return rows * index // count, rows * (index + 1) // count

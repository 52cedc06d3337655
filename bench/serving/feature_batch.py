"""The batch path: training rows of both paradigms from raw impressions, a whole log at once, no Python step a row.

Dims: N impressions, B rows of a batch, F made columns, K keys, E events, M events of a batch's rows
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.bench.serving.feature_data import (
    ITEM,
    USER,
    Steps,
    mirrors,
    raw_data,
    rows_of_users,
    vocabularies,
)  # fmt: skip
from ctrbench.datasets.legacy_features import SPAN_BITS, ImpressionLog, crosses, recipe, statistics
from ctrbench.datasets.prepared import Prepared, history_index

Ints = npt.NDArray[np.int64]

BATCH = 2_048
"""Rows of a training batch."""


class BatchPath:
    """Training rows from raw impressions, all at once.

    Args:
        prepared: whose rows.
        rows: impressions at least, of whole users.
        seed: of the choice of users.
    """

    def __init__(self, prepared: Prepared, rows: int, seed: int) -> None:
        self.schema, self.data = prepared.schema, raw_data(prepared, rows_of_users(prepared, rows, seed))
        self.vocabularies = vocabularies(prepared)
        self.prior = float(prepared.positive_rate("train"))

    @property
    def size(self) -> int:
        """N."""
        return self.data.impressions.height

    def _joined(self) -> pl.DataFrame:
        rows = self.data.impressions
        for key, table in ((USER, self.data.users), (ITEM, self.data.items)):
            rows = rows.join(table, on=key, how="left", maintain_order="left")
        return rows

    def _encoded(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(self.vocabularies[f.name].encode(f.name) for f in self.schema.categorical)

    def legacy(self, columns: int, steps: Steps) -> list[KeyedJaggedTensor]:
        """Batches of single values and made columns."""
        made = recipe(self.schema, columns, self.prior)
        with steps("join"):
            rows = self._joined()
        with steps("vocabulary"):
            log = ImpressionLog.of(self._encoded(rows), self.schema)
        out_FN = np.empty((made.columns, log.size), np.int32)
        with steps("statistics"):
            statistics(made, log, out_FN[len(made.crosses) :])
        with steps("cross+hash"):
            crosses(made, log.parts, out_FN[: len(made.crosses)])
        with steps("kjt"):
            keys = [*log.ids, *made.names]
            return [self._legacy_batch(keys, log, out_FN, at) for at in range(0, log.size, BATCH)]

    def _legacy_batch(
        self, keys: list[str], log: ImpressionLog, out_FN: npt.NDArray[np.int32], at: int
    ) -> KeyedJaggedTensor:
        size, base = min(BATCH, log.size - at), len(log.ids)
        values_KB = np.empty((len(keys), size), np.int64)
        for k, ids_N in enumerate(log.ids.values()):
            values_KB[k] = ids_N[at : at + size]
        values_KB[base:] = out_FN[:, at : at + size]
        return KeyedJaggedTensor(
            keys=keys, values=torch.from_numpy(values_KB.reshape(-1)),
            lengths=torch.ones(values_KB.size, dtype=torch.int32), length_per_key=[size] * len(keys), stride=size,
        )  # fmt: skip

    def transformer(self, steps: Steps) -> list[KeyedJaggedTensor]:
        """Batches of single values and histories."""
        events, fields = self.data.events, next(iter(self.schema.histories.values()))
        with steps("join"):
            rows = self._joined()
            begin_N, end_N, order_E = self._slices(rows)
        with steps("vocabulary"):
            log = ImpressionLog.of(self._encoded(rows), self.schema)
            mirrored = events.text.with_columns(self.vocabularies[f.table].encode(f.name) for f in mirrors(fields))
        with steps("history"):
            plain = {f.name: mirrored[f.name] if f.target else events.ids[f.name] for f in fields}
            sorted_E = {name: np.asarray(values).astype(np.int64)[order_E] for name, values in plain.items()}
            time_E, length = events.time_E[order_E], fields[0].max_length
            parts = []
            for at in range(0, log.size, BATCH):
                index_M, n_B = history_index(begin_N[at : at + BATCH], end_N[at : at + BATCH], length)
                parts.append((n_B, [ids_E[index_M] for ids_E in sorted_E.values()], time_E[index_M]))
        with steps("kjt"):
            keys = [*log.ids, *sorted_E]
            return [self._history_batch(keys, log, at * BATCH, n_B, ids) for at, (n_B, ids, _) in enumerate(parts)]

    def _slices(self, rows: pl.DataFrame) -> tuple[Ints, Ints, Ints]:
        """Where the strictly earlier events of each row's user begin and end once events are sorted by user."""
        events = self.data.events
        order_E = np.argsort(events.user_E, kind="stable")
        moment_E = (events.user_E[order_E] << SPAN_BITS) + events.time_E[order_E]
        user_N = rows["user_id"].to_numpy() << SPAN_BITS
        return np.searchsorted(moment_E, user_N), np.searchsorted(moment_E, user_N + rows["time"].to_numpy()), order_E

    def _history_batch(
        self, keys: list[str], log: ImpressionLog, at: int, n_B: Ints, ids: list[Ints]
    ) -> KeyedJaggedTensor:
        size, plain = len(n_B), len(log.ids)
        single = [ids_N[at : at + size] for ids_N in log.ids.values()]
        lengths_KB = np.ones((len(keys), size), np.int32)
        lengths_KB[plain:] = n_B
        return KeyedJaggedTensor(
            keys=keys, values=torch.from_numpy(np.concatenate([*single, *ids])),
            lengths=torch.from_numpy(lengths_KB.reshape(-1)), length_per_key=[size] * plain + [len(v) for v in ids],
            stride=size,
        )  # fmt: skip

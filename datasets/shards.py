"""Writing a prepared directory: vocabularies, encoded shards, event logs, and the counts that go with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepared import SPLITS
from ctrbench.datasets.schema import FIRST_ID, MISSING, OOV

SHARD_ROWS = 262_144
"""Rows of a full shard."""


class Vocabulary:
    """Ids of the values of one column, fixed by the train rows.

    Args:
        counts: `value` (text) and `count` of the train rows; null values are left out: they are missing, not a value.
        min_count: rarer values are out of vocabulary.
        values: all values in the order of their ids, whatever the train rows hold; empty = by count.
    """

    def __init__(self, counts: pl.DataFrame, min_count: int, values: Sequence[str] = ()) -> None:
        if values:
            listed = pl.DataFrame({"value": list(values)})
            kept = listed.join(counts, on="value", how="left", maintain_order="left").with_columns(
                pl.col("count").fill_null(0)
            )
        else:
            kept = counts.filter(pl.col("value").is_not_null() & (pl.col("count") >= min_count))
            kept = kept.sort(["count", "value"], descending=[True, False])
        self.table = kept.select(
            "value", pl.int_range(FIRST_ID, FIRST_ID + pl.len(), dtype=pl.Int32).alias("id"), "count"
        )

    @cached_property
    def _enum(self) -> pl.Enum:
        return pl.Enum(self.table["value"])

    @property
    def cardinality(self) -> int:
        """Table rows, the reserved ones included; at least one for a value."""
        return FIRST_ID + max(1, self.table.height)

    def encode(self, column: str, missing: int = MISSING) -> pl.Expr:
        """Ids of a text column: `missing`, out of vocabulary or the value's own."""
        known = pl.col(column).cast(self._enum, strict=False).to_physical().cast(pl.Int32) + FIRST_ID
        ids = pl.when(pl.col(column).is_null()).then(missing).otherwise(known.fill_null(OOV))
        return ids.cast(pl.Int32).alias(column)


class Shards:
    """Files of a prepared directory in the making.

    Args:
        folder: an existing empty directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.splits: dict[str, dict[str, Any]] = {s: {"rows": 0, "positives": 0, "shards": []} for s in SPLITS}
        self.events: dict[str, int] = {}
        self.vocabularies: dict[str, dict[str, int]] = {}
        self._oov: dict[str, Counter[str]] = {s: Counter() for s in SPLITS}
        self._missing: dict[str, Counter[str]] = {s: Counter() for s in SPLITS}

    def vocabulary(self, column: str, counts: pl.DataFrame, min_count: int, values: Sequence[str] = ()) -> Vocabulary:
        """Makes and stores the vocabulary of a column."""
        vocabulary = Vocabulary(counts, min_count, values)
        vocabulary.table.write_parquet(self.folder / f"vocabulary-{column}.parquet")
        seen = counts.filter(pl.col("value").is_not_null()).height
        self.vocabularies[column] = {"kept": vocabulary.table.height, "seen_in_train": seen, "min_count": min_count}
        return vocabulary

    def write(self, split: str, rows: pl.DataFrame) -> None:
        """Appends encoded rows to a split; every call is at least one shard."""
        body = self.splits[split]
        for part in rows.iter_slices(SHARD_ROWS):
            file = f"{split}-{len(body['shards']):05d}.parquet"
            part.write_parquet(self.folder / file, compression="lz4", statistics=False)
            body["shards"].append({"file": file, "rows": part.height})
            body["rows"] += part.height
            body["positives"] += int(part["label"].sum())
        self._count(split, rows)

    def write_events(self, history: str, log: pl.DataFrame) -> None:
        """Stores the event log of a history."""
        self.write_event_parts(history, [log])

    def write_event_parts(self, history: str, parts: Iterable[pl.DataFrame]) -> None:
        """Stores an event log that comes in parts, one part in memory at a time."""
        writer: pq.ParquetWriter | None = None
        self.events[history] = 0
        for part in parts:
            table = part.to_arrow()
            if writer is None:
                path = self.folder / f"events-{history}.parquet"
                writer = pq.ParquetWriter(path, table.schema, compression="zstd", write_statistics=False)
            writer.write_table(table)
            self.events[history] += part.height
        if writer is not None:
            writer.close()

    def rates(self) -> dict[str, dict[str, dict[str, float]]]:
        """split -> column -> share of its rows that are out of vocabulary, and missing."""
        return {
            s: {
                c: {"oov": self._oov[s][c] / body["rows"], "missing": n / body["rows"]}
                for c, n in self._missing[s].items()
            }
            for s, body in self.splits.items()
        }

    def check(self, path: Path) -> None:
        """Raises BadInput if a split is empty or has one class only: no AUC could be computed on it."""
        for split, body in self.splits.items():
            if body["rows"] == 0:
                raise BadInput(f"{path}: no rows for split {split!r}; give more rows")
            if body["positives"] in (0, body["rows"]):
                label = int(body["positives"] > 0)
                raise BadInput(
                    f"{path}: all {body['rows']} rows of split {split!r} have label {label}; give rows of both classes"
                )

    def files(self) -> Mapping[str, int]:
        """Name -> size of everything written."""
        return {p.name: p.stat().st_size for p in sorted(self.folder.iterdir())}

    def _count(self, split: str, rows: pl.DataFrame) -> None:
        coded = [c for c in rows.columns if c in self.vocabularies]
        plain = [c for c, kind in rows.schema.items() if kind == pl.Float32 and c not in coded]
        found = (
            (self._oov, coded, (pl.col(coded) == OOV).sum()),
            (self._missing, coded, (pl.col(coded) == MISSING).sum()),
            (self._missing, plain, pl.col(plain).null_count()),
        )
        for counter, names, count in found:
            if names:
                counter[split].update(rows.select(count).row(0, named=True))

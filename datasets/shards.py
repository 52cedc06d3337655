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
from ctrbench.datasets.hex_tokens import Index
from ctrbench.datasets.journal import Journal
from ctrbench.datasets.prepared import SPLITS
from ctrbench.datasets.schema import FIRST_ID, MISSING, OOV
from ctrbench.datasets.watch import Watch

SHARD_ROWS = 262_144
"""Rows of a full shard."""


class Vocabulary:
    """Ids of the values of one column, fixed by the train rows.

    Args:
        table: `value` (text), `id` (Int32) and train `count`, in the order of the ids.
    """

    def __init__(self, table: pl.DataFrame) -> None:
        self.table = table

    @classmethod
    def of(cls, counts: pl.DataFrame, min_count: int, values: Sequence[str] = ()) -> Vocabulary:
        """That of counted values, the most frequent first.

        Args:
            counts: `value` (text) and `count` of the train rows; null values are left out: they are missing, not a
                value.
            min_count: rarer values are out of vocabulary.
            values: all values in the order of their ids, whatever the train rows hold; empty = by count.
        """
        if values:
            listed = pl.DataFrame({"value": list(values)})
            kept = listed.join(counts, on="value", how="left", maintain_order="left").with_columns(
                pl.col("count").fill_null(0)
            )
        else:
            kept = counts.filter(pl.col("value").is_not_null() & (pl.col("count") >= min_count))
            kept = kept.sort(["count", "value"], descending=[True, False])
        ids = pl.int_range(FIRST_ID, FIRST_ID + pl.len(), dtype=pl.Int32).alias("id")
        return cls(kept.select("value", ids, "count"))

    @cached_property
    def _enum(self) -> pl.Enum:
        return pl.Enum(self.table["value"])

    @cached_property
    def _numbers(self) -> Index | None:
        """The values as numbers; None where one is no whole number below 2^32 or is written in another way."""
        number = self.table["value"].cast(pl.UInt32, strict=False)
        if not (number.cast(pl.String) == self.table["value"]).fill_null(False).all():
            return None
        return Index(number.to_numpy(), self.table["id"].to_numpy())

    @property
    def cardinality(self) -> int:
        """Table rows, the reserved ones included; at least one for a value."""
        return FIRST_ID + max(1, self.table.height)

    def encode(self, column: str, missing: int = MISSING) -> pl.Expr:
        """Ids of a text column: `missing`, out of vocabulary or the value's own."""
        text = pl.col(column)
        known = text.cast(self._enum, strict=False).to_physical().cast(pl.Int32) + FIRST_ID
        return pl.when(text.is_null()).then(missing).otherwise(known.fill_null(OOV)).cast(pl.Int32).alias(column)

    def ids(self, column: pl.Series, missing: int = MISSING) -> pl.Series:
        """As `encode`, of a column of any type that is read as text.

        Whole numbers go through a table that is made once. Polars makes an Enum's anew in every call: 3.5 s of CPU at 4
        million values, however few rows (docs/log.md).
        """
        if column.dtype.is_integer() and self._numbers is not None:
            least, most = column.min(), column.max()
            if least is None or (least >= 0 and most < 1 << 32):  # type: ignore[operator]
                id_R = self._numbers.ids(column.fill_null(0).cast(pl.UInt32).to_numpy(), OOV)
                id_R[column.is_null().to_numpy()] = missing
                return pl.Series(column.name, id_R)
        text = column.cast(pl.String).to_frame()
        return text.select(self.encode(column.name, missing)).to_series()


class Shards:
    """Files of a prepared directory in the making.

    Args:
        folder: absent, empty, or as an attempt that was killed left it; `journal` says what of it is whole.
        watch: is told how far the work is.
    """

    def __init__(self, folder: Path, watch: Watch | None = None) -> None:
        self.folder, self.journal, self.watch = folder, Journal(folder), watch or Watch()
        self.splits: dict[str, dict[str, Any]] = {s: {"rows": 0, "positives": 0, "shards": []} for s in SPLITS}
        self.events: dict[str, int] = {}
        self.vocabularies: dict[str, dict[str, int]] = {}
        self._oov: dict[str, Counter[str]] = {s: Counter() for s in SPLITS}
        self._missing: dict[str, Counter[str]] = {s: Counter() for s in SPLITS}

    def vocabulary(self, column: str, counts: pl.DataFrame, min_count: int, values: Sequence[str] = ()) -> Vocabulary:
        """Makes and stores the vocabulary of a column."""
        vocabulary = Vocabulary.of(counts, min_count, values)
        vocabulary.table.write_parquet(self.vocabulary_file(column))
        seen = counts.filter(pl.col("value").is_not_null()).height
        self.vocabularies[column] = {"kept": vocabulary.table.height, "seen_in_train": seen, "min_count": min_count}
        return vocabulary

    def vocabulary_file(self, column: str) -> Path:
        """Where the vocabulary of a column is stored."""
        return self.folder / f"vocabulary-{column}.parquet"

    def stored_vocabulary(self, column: str) -> Vocabulary:
        """The vocabulary that was made before."""
        return Vocabulary(pl.read_parquet(self.vocabulary_file(column)))

    def state(self) -> dict[str, Any]:
        """What was written so far, for `restore`."""
        counts = {"oov": self._oov, "missing": self._missing}
        return {
            "splits": {s: {**body, "shards": list(body["shards"])} for s, body in self.splits.items()},
            "events": dict(self.events), "vocabularies": dict(self.vocabularies),
            **{name: {s: dict(counter[s]) for s in SPLITS} for name, counter in counts.items()},
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state` was taken."""
        self.splits = {s: {**body, "shards": list(body["shards"])} for s, body in state["splits"].items()}
        self.events, self.vocabularies = dict(state["events"]), dict(state["vocabularies"])
        self._oov, self._missing = ({s: Counter(state[name][s]) for s in SPLITS} for name in ("oov", "missing"))

    def write(self, split: str, rows: pl.DataFrame) -> list[Path]:
        """Appends encoded rows to a split; every call is at least one shard. Returns its files."""
        body, files = self.splits[split], []
        for part in rows.iter_slices(SHARD_ROWS):
            file = f"{split}-{len(body['shards']):05d}.parquet"
            part.write_parquet(self.folder / file, compression="lz4", statistics=False)
            files.append(self.folder / file)
            body["shards"].append({"file": file, "rows": part.height})
            body["rows"] += part.height
            body["positives"] += int(part["label"].sum())
        self._count(split, rows)
        return files

    def write_events(self, history: str, log: pl.DataFrame) -> None:
        """Stores the event log of a history."""
        self.write_event_parts(history, [log])

    def events_file(self, history: str) -> Path:
        """Where the event log of a history is stored."""
        return self.folder / f"events-{history}.parquet"

    def write_event_parts(self, history: str, parts: Iterable[pl.DataFrame]) -> None:
        """Stores an event log that comes in parts, one part in memory at a time."""
        writer: pq.ParquetWriter | None = None
        self.events[history] = 0
        for part in parts:
            table = part.to_arrow()
            if writer is None:
                path = self.events_file(history)
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
        """Name -> size of everything written, the journal aside."""
        written = (p for p in sorted(self.folder.iterdir()) if p.is_file() and not p.name.startswith("."))
        return {p.name: p.stat().st_size for p in written}

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

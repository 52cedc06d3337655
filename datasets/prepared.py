"""A prepared data set on disk: Parquet shards per split, one event log per history, `manifest.json` written last.

Rows do not carry copies of their history. A history is the tail of a slice of one log sorted by (user, time), so a
row stores where its slice begins and ends; any history length up to the prepared one is cut at reading time.

Dims: B rows, N events of all their histories
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from ctrbench.datasets.errors import BadInput, nearest
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema, Field

FORMAT = 2
"""Version of this layout and of the code that writes it; part of every fingerprint."""

MANIFEST = "manifest.json"
_KEYS = ("name", "fingerprint", "schema", "split", "splits", "rows", "raw", "files")
_OBJECTS = ("schema", "split", "splits", "rows", "raw", "files")
SPLITS = ("train", "valid", "test")
FIXED = ("label", "user_id", "time")
"""Columns that every row has beside its features."""


def history_index(begin_B: np.ndarray, end_B: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the event log of the last `length` events of every slice, row after row, oldest first.

    Returns:
        index_N int64, and n_B int64, the number of events of each row.
    """
    n_B = np.minimum(end_B - begin_B, length)
    last_B = np.cumsum(n_B)
    shift_B = (end_B - n_B) - (last_B - n_B)
    total = int(last_B[-1]) if len(last_B) else 0
    return np.repeat(shift_B, n_B) + np.arange(total), n_B


@dataclass(frozen=True)
class Prepared:
    """A whole prepared directory.

    Attributes:
        path: the directory.
        manifest: its manifest: schema, splits, row accounting, vocabularies, rates, source, fingerprint.
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> Prepared:
        """Opens a prepared directory.

        Raises:
            BadInput: if it is not one, was written by another version, or a shard is absent or of another size.
        """
        path = Path(path)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise BadInput(f"{path}: no {MANIFEST} there; run `ctrbench data prepare` to make it") from None
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path / MANIFEST}: damaged: {error}; delete {path} and prepare again") from None
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if found != FORMAT:
            raise BadInput(
                f"{path / MANIFEST}: format {found}, this version reads {FORMAT}; delete {path} and prepare again"
            )
        if absent := [key for key in _KEYS if key not in manifest]:
            raise BadInput(f"{path / MANIFEST}: damaged: no {absent[0]!r}; delete {path} and prepare again")
        if other := [key for key in _OBJECTS if not isinstance(manifest[key], dict)]:
            raise BadInput(f"{path / MANIFEST}: damaged: {other[0]!r} is no object; delete {path} and prepare again")
        for name, size in manifest["files"].items():
            file = path / name
            if not file.is_file() or file.stat().st_size != size:
                raise BadInput(
                    f"{file}: absent or not of the {size} bytes that the manifest says; delete {path} and prepare again"
                )
        found = cls(path, manifest)
        try:
            parts = {split: sum(rows for _, rows in found.shards(split)) for split in manifest["splits"]}
            if not found.schema.fields or parts != {split: found.rows(split) for split in parts}:
                raise ValueError("no features, or other rows in the shards than in their split")
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            why = f"{type(error).__name__}: {error}"
            raise BadInput(f"{path / MANIFEST}: damaged: {why}; delete {path} and prepare again") from None
        return found

    @cached_property
    def schema(self) -> FeatureSchema:
        """Features, histories at the longest length prepared."""
        body = self.manifest["schema"]
        fields = tuple(Field(**{**f, "unique_rows": tuple(map(tuple, f["unique_rows"]))}) for f in body["fields"])
        return FeatureSchema(name=body["name"], track=body["track"], fields=fields)

    def schema_for(self, history_length: int | None = None) -> FeatureSchema:
        """Features with histories cut to `history_length` events; None keeps what was prepared.

        Raises:
            BadInput: if the data has histories and the length is not within 1..prepared.
        """
        schema = self.schema
        if history_length is None or not schema.sequences:
            return schema
        longest = min(f.max_length for f in schema.sequences)
        if not 1 <= history_length <= longest:
            raise BadInput(
                f"history_length={history_length}: {schema.name} was prepared with 1..{longest}; "
                "use run.history_length within that, or prepare it with longer histories"
            )
        fields = tuple(replace(f, max_length=history_length) if f.kind == "sequence" else f for f in schema.fields)
        return replace(schema, fields=fields)

    def with_table_rows(self, most: int) -> Prepared:
        """The same data with at most `most` rows a table (0 = as many as there are values): the hashing trick.

        Ids are in order of train frequency, so that frequent values keep a row of their own; an id from `most` on
        shares the row of its remainder, as under DLRM's `--max-ind-range`. Reserved ids are nobody's.

        Raises:
            BadInput: no room beside the reserved ids.
        """
        if not most:
            return self
        if most <= FIRST_ID:
            raise BadInput(f"table_rows={most}: {FIRST_ID} ids are reserved; give more rows, or 0 for all")
        body = self.manifest["schema"]
        fields = [{**f, "cardinality": min(f["cardinality"], most)} for f in body["fields"]]
        return replace(self, manifest={**self.manifest, "schema": {**body, "fields": fields}, "table_rows": most})

    @property
    def table_rows(self) -> int:
        """Most rows a table (`with_table_rows`); 0 = as many as there are values."""
        return int(self.manifest.get("table_rows", 0))

    @property
    def fingerprint(self) -> str:
        """Stable hash of raw bytes, options, split and layout version."""
        return str(self.manifest["fingerprint"])

    @property
    def split(self) -> str:
        """Name of the split rule."""
        return str(self.manifest["split"]["rule"])

    @property
    def bytes_raw(self) -> int:
        """Size of the raw file."""
        return int(self.manifest["raw"]["bytes"])

    @property
    def bytes_shards(self) -> int:
        """Size of everything that the loader reads."""
        return sum(size for name, size in self.manifest["files"].items() if not name.startswith("vocabulary"))

    @property
    def sampler(self) -> Mapping[str, Any] | None:
        """How negatives were sampled; None where every label was observed."""
        return self.manifest.get("sampler")

    @property
    def aside(self) -> tuple[str, ...]:
        """Columns that rows have beside their features, for controls; no model gets them."""
        return tuple(self.manifest.get("aside", ()))

    def rows(self, split: str) -> int:
        """Rows of a split."""
        return int(self._split(split)["rows"])

    def first_row(self, split: str) -> int:
        """Number of a split's first row, the splits counted one after another (`Batch.row_B`)."""
        return sum(self.rows(s) for s in SPLITS[: SPLITS.index(split)])

    def positive_rate(self, split: str) -> float:
        """Share of positive labels of a split."""
        return float(self._split(split)["positives"] / self._split(split)["rows"])

    def shards(self, split: str) -> list[tuple[Path, int]]:
        """Files of a split in row order and the rows of each."""
        return [(self.path / s["file"], int(s["rows"])) for s in self._split(split)["shards"]]

    def vocabulary(self, name: str) -> pl.DataFrame:
        """`value`, `id` and train `count` of a categorical field, most frequent first."""
        return pl.read_parquet(self.path / f"vocabulary-{name}.parquet")

    def events(self, history: str) -> pl.DataFrame:
        """The event log of a history, a user's events together by (time, file order): its fields' ids and `time`."""
        return pl.read_parquet(self.path / f"events-{history}.parquet")

    def frame(self, split: str, last: int | None = None, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Rows of a split in stored order (by time).

        Args:
            split: train, valid or test.
            last: only that many most recent rows.
            columns: which ones, `aside` included; None for all but `aside`.

        Returns:
            label, user_id, time (int64), categorical ids (int32), dense (float32, null = missing), and for each
            history its fields (list of int32, oldest event first) and `<history>_time` (list of int64 seconds).
        """
        schema = self.schema
        plain = [*FIXED, *(f.name for f in (*schema.categorical, *schema.dense))]
        owner = {f.name: h for h, fields in schema.histories.items() for f in fields}
        owner |= {f"{h}_time": h for h in schema.histories}
        wanted = list(columns) if columns is not None else [*plain, *owner]
        plain += self.aside
        for name in wanted:
            if name not in plain and name not in owner:
                raise BadInput(f"{schema.name}: unknown column {nearest(name, [*plain, *owner])}")
        used = list(dict.fromkeys(owner[c] for c in wanted if c in owner))
        spans = [c for h in used for c in (f"{h}_begin", f"{h}_end")]
        scan = pl.scan_parquet([p for p, _ in self.shards(split)]).select([c for c in wanted if c in plain] + spans)
        table = (scan if last is None else scan.tail(last)).collect()
        if "label" in wanted:
            table = table.with_columns(pl.col("label").cast(pl.Int64))
        for history in used:
            names = [c for c in wanted if owner.get(c) == history]
            table = table.with_columns(self._lists(history, names, table))
        return table.select(wanted)

    def _lists(self, history: str, names: Sequence[str], table: pl.DataFrame) -> list[pl.Series]:
        length = self.schema.histories[history][0].max_length
        begin_B, end_B = table[f"{history}_begin"].to_numpy(), table[f"{history}_end"].to_numpy()
        index_N, n_B = history_index(begin_B, end_B, length)
        offsets = pa.array(np.concatenate([[0], np.cumsum(n_B)]), pa.int64())
        log = self.events(history)
        out = []
        for name in names:
            values = log["time" if name == f"{history}_time" else name].to_numpy()[index_N]
            series = pl.from_arrow(pa.LargeListArray.from_arrays(offsets, pa.array(values)))
            assert isinstance(series, pl.Series)
            out.append(series.alias(name))
        return out

    def _split(self, split: str) -> Mapping[str, Any]:
        if split not in self.manifest["splits"]:
            raise BadInput(f"{self.path}: unknown split {nearest(split, self.manifest['splits'])}")
        body: Mapping[str, Any] = self.manifest["splits"][split]
        return body


def schema_json(schema: FeatureSchema) -> dict[str, Any]:
    """The schema as the manifest holds it."""
    return {"name": schema.name, "track": schema.track, "fields": [asdict(f) for f in schema.fields]}

"""Criteo rows from readers to shards: spilled to disk as they come, coded once the train rows are known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ctrbench.datasets.account import Account
from ctrbench.datasets.criteo_text import CATEGORIES, INTEGERS
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.schema import MISSING, OOV, FeatureSchema, Field
from ctrbench.datasets.shards import Shards, Vocabulary
from ctrbench.datasets.spec import Raw
from ctrbench.datasets.transforms import check_transform, dense, log_square

GENERATED = "generated.json"
"""In folders that the generator wrote: their rows are never taken for Criteo's."""
AS_CATEGORIES = "log_square_category"
"""Name of the integer transform that makes categories of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coding:
    """How rows become ids and dense values."""

    min_count: int
    """Rarer values of the train rows are out of vocabulary."""
    integers: str = "signed_log"
    """One of `TRANSFORMS`, or `AS_CATEGORIES`."""
    merge_missing: bool = False
    """Missing categories share the row of those out of vocabulary, as in the library behind BARS."""
    hex_tokens: bool = True
    """Original tokens: those that are not 8 hex digits are noted."""

    def check(self, name: str) -> None:
        """Raises BadInput, naming the data set, for a transform that does not exist or a minimum below 1."""
        check_transform(self.integers, f"{name}: option integers", (AS_CATEGORIES,))
        if self.min_count < 1:
            raise BadInput(f"{name}: option min_count={self.min_count} must be at least 1")


class Parts:
    """Good rows of all files in order, on disk.

    Args:
        folder: where shards will be; parts lie beside them until they are coded.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0
        self._parts: list[tuple[Path, int]] = []

    def add(self, chunks: Iterable[pl.DataFrame]) -> int:
        """Spills chunks of a reader; returns how many rows they hold."""
        before = self.rows
        for rows in chunks:
            file = self.folder / f"part-{len(self._parts):05d}.parquet"
            rows.write_parquet(file, compression="lz4", statistics=False)
            self._parts.append((file, rows.height))
            self.rows += rows.height
        return self.rows - before

    def head(self, rows: int) -> pl.LazyFrame:
        """The first rows."""
        return pl.scan_parquet([file for file, _ in self._parts]).head(rows)

    def store(
        self, name: str, valid: int, test: int, coding: Coding, account: Account, shards: Shards
    ) -> FeatureSchema:
        """Codes every row by the train rows and writes them; the parts are gone afterwards.

        Args:
            name: of the schema.
            valid: first row of the validation split; rows before it are train.
            test: first row of the test split.
            coding: how.
            account: gets notes.
            shards: gets vocabularies and rows, `time` being the row's number.
        """
        train = self.head(valid)
        columns = [*CATEGORIES, *(INTEGERS if coding.integers == AS_CATEGORIES else ())]
        vocabularies = {c: _vocabulary(c, train, coding, account, shards) for c in columns}
        encoders = [v.encode(c, OOV if coding.merge_missing else MISSING) for c, v in vocabularies.items()]
        ready = [log_square(c) for c in columns if c in INTEGERS]
        ready += [dense(c, coding.integers, train) for c in INTEGERS if c not in columns]
        at = 0
        for file, height in self._parts:
            place = pl.int_range(at, at + height, dtype=pl.Int64).alias("time")
            rows = pl.read_parquet(file).with_columns(ready).select(
                "label", pl.lit(-1, pl.Int64).alias("user_id"), place, *(c for c in INTEGERS if c not in columns),
                *encoders,
            )  # fmt: skip
            file.unlink()
            for split, start, stop in (("train", 0, valid), ("valid", valid, test), ("test", test, self.rows)):
                part = rows.slice(max(0, start - at), max(0, stop - max(start, at)))
                if part.height:
                    shards.write(split, part)
            at += height
        return schema(name, {c: v.cardinality for c, v in vocabularies.items()})


def _vocabulary(column: str, train: pl.LazyFrame, coding: Coding, account: Account, shards: Shards) -> Vocabulary:
    source = log_square(column) if column in INTEGERS else pl.col(column)
    counts = train.select(source.alias("value")).group_by("value").agg(pl.len().alias("count"))
    seen = counts.collect(engine="streaming")
    if coding.hex_tokens and column in CATEGORIES:
        odd = seen.filter(~pl.col("value").str.contains("^[0-9a-f]{8}$")).height
        if odd:
            account.notes[f"{column}: values that are not 8 hex digits, kept as text"] += odd
    return shards.vocabulary(column, seen, coding.min_count)


def schema(name: str, cardinality: Mapping[str, int]) -> FeatureSchema:
    """13 integers and 26 categories, all context: the publisher does not say what they mean."""
    fields = [
        Field(name=c, kind="categorical", role="context", cardinality=cardinality[c])
        if c in cardinality
        else Field(name=c, kind="dense", role="context")
        for c in (*INTEGERS, *CATEGORIES)
    ]
    return FeatureSchema(name=name, track="tabular", fields=tuple(fields))


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What the publisher says of a file."""

    rows: int
    md5: str = ""
    """Of the plain text; empty where none is published."""


def folder_raw(name: str, files: list[Path], folder: Path) -> Raw:
    """Files of one folder as one raw source; sha256 and md5 of each are in the detail.

    Raises:
        BadInput: a file that cannot be read.
    """
    detail: dict[str, dict[str, Any]] = {}
    for file in files:
        sha256, md5 = _digests(file)
        detail[file.name] = {"bytes": file.stat().st_size, "sha256": sha256, "md5": md5}
    generated = (folder / GENERATED).is_file()  # part of the fingerprint: the manifest says so
    text = "".join(f"{n}:{d['sha256']};" for n, d in detail.items()) + ("generated" if generated else "")
    size = sum(d["bytes"] for d in detail.values())
    whole = hashlib.sha256(text.encode()).hexdigest()
    return Raw(path=folder, sha256=whole, bytes=size, synthetic=generated, detail={"layout": name, "files": detail})


def _digests(file: Path) -> tuple[str, str]:
    """sha256 and md5 of a file in one pass."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    try:
        with file.open("rb") as f:
            while block := f.read(1 << 20):
                sha256.update(block)
                md5.update(block)
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}; check the path") from None
    return sha256.hexdigest(), md5.hexdigest()


def note_generated(raw: Raw, account: Account) -> None:
    """Notes that the rows are ours."""
    if raw.synthetic:
        account.notes[f"the folder holds {GENERATED}: these rows were generated and are not Criteo's"] += 1


def compare(part: Account, detail: Mapping[str, Any], published: Published) -> None:
    """Notes where a file is not the published one; other rows are no error, but no leaderboard either."""
    name, rows = part.path.name, part.read - part.header
    if rows != published.rows:
        part.notes[f"{name}: {rows:,} rows, the published file has {published.rows:,}"] += 1
    if published.md5 and not name.endswith(".gz") and detail["md5"] != published.md5:
        part.notes[f"{name}: md5 {detail['md5']}, that of the published file is {published.md5}"] += 1

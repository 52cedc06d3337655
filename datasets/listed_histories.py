"""Data of BARS whose rows carry their histories as joined text: `train.csv` and `test.csv` with `a^b^c`, oldest first.

No row has a time. Rows count as being in time order within a file and train before test; validation is the end of train
(BARS itself takes the test rows for validation, so that its early stopping saw them). An event counts as one second
older than its row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctrbench.datasets import csv_reader
from ctrbench.datasets.account import Account
from ctrbench.datasets.buckets import Buckets, Columns
from ctrbench.datasets.criteo_parts import folder_raw
from ctrbench.datasets.csv_reader import Format
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.published import Published, compare
from ctrbench.datasets.schema import FeatureSchema, Field, Role
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import Raw

PARTS = ("train", "test")
VALID_SHARE = 0.1
SEPARATOR = "^"


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """One data set of this form."""

    name: str
    label: str
    user: str
    """Column of the user, numbers."""
    roles: Mapping[str, Role]
    """Categorical column -> role."""
    histories: Mapping[str, str]
    """Column of a history -> categorical column whose values it repeats; all are aligned event by event."""
    length: int
    """Longest history in the files."""
    dense: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Values that mean missing."""
    ignored: tuple[str, ...] = ()
    published: Mapping[str, Published]

    @property
    def fields(self) -> dict[str, str]:
        """Categorical field -> column; every row has a `user_id` of its own already."""
        return {("user" if c == self.user else c): c for c in self.roles}

    @property
    def form(self) -> Format:
        """Of its files."""
        plain = [c for c in self.roles if c != self.user]
        texts = dict.fromkeys((*plain, *self.histories), "text")
        return Format(
            columns={self.label: "flag", self.user: "id", **texts, **dict.fromkeys(self.dense, "decimal")},  # type: ignore[dict-item]
            optional=(*plain, *self.histories, *self.dense), missing=self.missing, ignored=self.ignored,
        )  # fmt: skip


def fetch(listed: Listed, path: Path | None) -> Raw:
    """The user's folder."""
    if path is None:
        raise BadInput(f"{listed.name}: no folder given; pass the one with train.csv and test.csv (data.path=, --path)")
    return folder_raw(listed.name, list(csv_reader.files(listed.name, path, PARTS).values()), path)


def build(listed: Listed, raw: Raw, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """Rows as their makers split them, the end of train cut off for validation."""
    if options["min_count"] < 1 or not 1 <= options["history"] <= listed.length:
        raise BadInput(
            f"{listed.name}: options {dict(options)}: min_count must be at least 1, history within 1..{listed.length}"
        )
    buckets, form, lines = Buckets(shards, raw.text_bytes), listed.form, {}
    for part, file in csv_reader.files(listed.name, raw.path, PARTS).items():
        own = account.part(file)
        buckets.read(f"lines_{part}", own, lambda path, a: _read(path, a, form), user="position")
        lines[part] = own.read
        rows = own.read - own.header
        compare(own, file.name, listed.published[part], rows=rows, md5=raw.detail["files"][file.name]["md5"]
                if not file.name.endswith(".gz") else "")  # fmt: skip
        account.absorb(own)
    account.close()
    kinds: dict[str, Any] = {"id": pl.Int64, "flag": pl.Int64, "decimal": pl.Float64, "text": pl.String}
    kinds = {c: kinds[k] for c, k in form.columns.items()} | {"position": pl.Int64}

    def make(bucket: int) -> tuple[pl.DataFrame, pl.DataFrame, list[Path]]:
        train, spent = buckets.frame("lines_train", bucket, kinds)
        test, more = buckets.frame("lines_test", bucket, kinds)
        late = pl.when(pl.col("position") > (1 - VALID_SHARE) * lines["train"]).then(pl.lit("valid"))
        rows = pl.concat([
            train.with_columns(pl.col("position").alias("time"), late.otherwise(pl.lit("train")).alias("split")),
            test.with_columns((pl.col("position") + lines["train"]).alias("time"), pl.lit("test").alias("split")),
        ])  # fmt: skip
        rows = rows.with_columns(
            pl.col(listed.label).cast(pl.Int8).alias("label"), pl.col(listed.user).alias("user_id"),
            pl.lit(0, pl.Int64).alias("shuffle"),
        )  # fmt: skip
        rows, log = _exploded(rows.sort("time"), listed, options["history"], account)
        return rows, log, spent + more

    buckets.each(make, account)
    by = f"the files, as published; the last {VALID_SHARE:.0%} of train's lines are validation, test rows never are"
    cut = buckets.cut(by, None, VALID_SHARE, raw.path)
    columns = Columns(
        categorical=listed.fields, dense={c: c for c in listed.dense}, min_count=options["min_count"],
        events={f"hist_{target}": (column, target) for column, target in listed.histories.items()},
    )  # fmt: skip
    cardinality = buckets.store(columns, cut)
    return {"schema": _schema(listed, cardinality, options["history"]), "split": cut.said}


def _read(path: Path, account: Account, form: Format) -> Iterator[pl.DataFrame]:
    yield from csv_reader.read(path, account, form)


def _exploded(rows: pl.DataFrame, listed: Listed, length: int, account: Account) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows with slices, and the log of their events, row after row."""
    names = list(listed.histories)
    items = [pl.when(pl.col(c) != "").then(pl.col(c).str.split(SEPARATOR)).alias(c) for c in names]
    lists = rows.select("time", *items).with_columns(pl.col(names).fill_null(pl.lit([], pl.List(pl.String))))
    lengths = lists.select(pl.col(c).list.len().cast(pl.Int64) for c in names)
    shortest = lengths.select(pl.min_horizontal(pl.all())).to_series()
    uneven = int((lengths.select(pl.max_horizontal(pl.all())).to_series() != shortest).sum())
    if uneven:
        account.notes["histories of different lengths in a row, aligned from the end"] += uneven
    kept = pl.Series("kept", np.minimum(shortest.to_numpy(), length))
    log = lists.with_columns(kept).select("time", *(pl.col(c).list.tail(pl.col("kept")) for c in names))
    log = log.filter(kept > 0).explode(names)
    empty = pl.col(names).is_in(["", *listed.missing])
    log = log.with_columns(pl.when(~empty).then(pl.col(names)), (pl.col("time") - 1).alias("time"))
    end_R = np.cumsum(kept.to_numpy())
    spans = (pl.Series("hist_begin", end_R - kept.to_numpy()), pl.Series("hist_end", end_R))
    return rows.drop(names).with_columns(*spans), log


def _schema(listed: Listed, cardinality: Mapping[str, int], length: int) -> FeatureSchema:
    plain = [
        Field(name=n, kind="categorical", role=r, cardinality=cardinality[n])
        for n, r in zip(listed.fields, listed.roles.values(), strict=True)
    ]
    plain += [Field(name=n, kind="dense", role="item") for n in listed.dense]
    events = [
        Field(name=f"hist_{target}", kind="sequence", role="behaviour", max_length=length, history="hist",
              cardinality=cardinality[target], target=target)
        for target in listed.histories.values()
    ]  # fmt: skip
    return FeatureSchema(name=listed.name, track="sequence", fields=(*plain, *events))

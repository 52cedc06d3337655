"""Avazu click-through rate prediction: impressions of ten days by the hour, 21 categories, no user.

`train` in its original form: comma, header, `id` a number up to 2^64 that no model may see. Inside an hour rows are in
the order of their random ids, so that nothing finer than the hour is time. Format: data.md, 3.6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from ctrbench.datasets import csv_reader
from ctrbench.datasets.account import Account
from ctrbench.datasets.buckets import Buckets, Columns
from ctrbench.datasets.csv_reader import Format
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.published import Published, compare
from ctrbench.datasets.schema import FeatureSchema, Field
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import DataSpec, Raw, sha256_file

CATEGORIES = (
    "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category", "device_id",
    "device_ip", "device_model", "device_type", "device_conn_type", *(f"C{i}" for i in range(14, 22)),
)  # fmt: skip
FORM = Format(columns={"click": "flag", "hour": "text", **dict.fromkeys(CATEGORIES, "text")}, ignored=("id",))
PUBLISHED = Published(rows=40_428_967, positive_rate=0.1698)
VALID_SHARE = 0.1
FIELDS = ("hour_of_day", "weekday", *CATEGORIES)


def fetch(path: Path | None, options: Mapping[str, Any]) -> Raw:
    """The user's file."""
    if path is None:
        raise BadInput("avazu: no file given; pass the path of train or train.gz (data.path=FILE, --path FILE)")
    return Raw(path=path, sha256=sha256_file(path), bytes=path.stat().st_size)


def read(path: Path, account: Account) -> Iterator[pl.DataFrame]:
    """Good rows with `time`, seconds since 1970 of the file's own clock, whose zone nobody states."""
    for rows in csv_reader.read(path, account, FORM):
        moment = (pl.col("hour") + "00").str.to_datetime("%y%m%d%H%M", strict=False, time_unit="us")
        rows = rows.with_columns(moment.alias("moment"))
        for line, hour in rows.filter(pl.col("moment").is_null()).select("position", "hour").iter_rows():
            account.bad(line, "hour is not YYMMDDHH", "hour", hour)
            account.kept -= 1
        rows = rows.filter(pl.col("moment").is_not_null())
        yield rows.select(
            "position", pl.col("click").cast(pl.Int8).alias("label"), pl.col("moment").dt.epoch("s").alias("time"),
            pl.col("moment").dt.hour().cast(pl.Int64).alias("hour_of_day"),
            pl.col("moment").dt.weekday().cast(pl.Int64).alias("weekday"), *CATEGORIES,
        )  # fmt: skip


def build(raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """The last day is test, the latest tenth of the other days' clicks begins validation."""
    if options["min_count"] < 1:
        raise BadInput(f"avazu: option min_count={options['min_count']} must be at least 1")
    buckets = Buckets(shards, raw.text_bytes)
    buckets.read("lines", account, read, user="position")
    account.close()

    def make(bucket: int) -> tuple[pl.DataFrame, pl.DataFrame, list[Path]]:
        kinds = {"position": pl.Int64, "label": pl.Int8, "time": pl.Int64, "hour_of_day": pl.Int64, "weekday": pl.Int64}
        rows, spent = buckets.frame("lines", bucket, kinds | dict.fromkeys(CATEGORIES, pl.String))
        zero = pl.lit(0, pl.Int64)
        rows = rows.with_columns(
            pl.lit(-1, pl.Int64).alias("user_id"), zero.alias("shuffle"), zero.alias("hist_begin"),
            zero.alias("hist_end"),
        )  # fmt: skip
        return rows, pl.DataFrame(schema={"time": pl.Int64}), spent

    buckets.each(make, account)
    last = buckets.rows().select(pl.col("time").max()).collect().item()
    test_from = last - last % 86_400
    cut = buckets.cut("hour; ties in file order", test_from, VALID_SHARE, raw.path)
    columns = Columns(categorical={f: f for f in FIELDS}, min_count=options["min_count"])
    cardinality = buckets.store(columns, cut)
    compare(account, raw.path.name, PUBLISHED, rows=account.read - account.header, positives=cut.positives)
    fields = tuple(Field(name=f, kind="categorical", role="context", cardinality=cardinality[f]) for f in FIELDS)
    return {"schema": FeatureSchema(name="avazu", track="tabular", fields=fields), "split": cut.said}


SPEC = DataSpec(
    name="avazu",
    title="Avazu click-through rate prediction, original CSV",
    track="tabular",
    description="21 categories, hour of day and weekday, no user; give your own copy of train, plain or gzipped",
    terms="the rules of Kaggle's 2014 Avazu competition; ctrbench neither ships nor downloads it",
    splits=("last_day",),
    options={"min_count": 10},
    fetch=fetch,
    build=build,
    room=4.0,
)

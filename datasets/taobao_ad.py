"""Taobao display ads (Tianchi 56), raw tables: impressions of eight days with the user's behaviour of 22 days before.

Four files are joined: `raw_sample` (impressions), `ad_feature`, `user_profile` and `behavior_log`, 723 million rows
without item ids. The log reaches into the week of the impressions: what is not strictly earlier than an impression's
second is no history of it. Format: data.md, 3.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctrbench.datasets import csv_reader
from ctrbench.datasets.account import Account
from ctrbench.datasets.buckets import Buckets, Columns, slices
from ctrbench.datasets.criteo_parts import folder_raw
from ctrbench.datasets.csv_reader import Format
from ctrbench.datasets.errors import BadInput, nearest
from ctrbench.datasets.published import Published, compare
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema, Field, Role
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import DataSpec, Raw

ACTIONS = {"pv": FIRST_ID, "cart": FIRST_ID + 1, "fav": FIRST_ID + 2, "buy": FIRST_ID + 3}
START, END = 1_494_000_000, 1_494_691_200
"""2017-05-06 00:00 and 2017-05-14 00:00 in UTC+8: the impressions."""
LOG_START = 1_492_790_400
"""2017-04-22 00:00 in UTC+8: first second of the behaviour log."""
TEST_FROM = 1_494_604_800
"""2017-05-13 00:00 in UTC+8: the last day is test."""
VALID_SHARE = 0.1
PROFILE = (
    "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level", "occupation",
    "new_user_class_level",
)  # fmt: skip
AD = ("cate_id", "campaign_id", "customer", "brand")
SAMPLE_FORM = Format(
    columns={"user": "id", "time_stamp": "id", "adgroup_id": "id", "pid": "text", "nonclk": "flag", "clk": "flag"},
    period=("time_stamp", START, END), outside="time outside 2017-05-06..13 (UTC+8)",
)  # fmt: skip
LOG_FORM = Format(
    columns={"user": "id", "time_stamp": "integer", "btag": "text", "cate": "id", "brand": "id"},
    period=("time_stamp", LOG_START, END), outside="time outside 2017-04-22..05-13 (UTC+8)",
)  # fmt: skip
AD_FORM = Format(
    columns={"adgroup_id": "id", **dict.fromkeys(AD, "id"), "price": "decimal"}, optional=("brand",), missing=("NULL",)
)
PROFILE_FORM = Format(columns={"userid": "id", **dict.fromkeys(PROFILE, "id")},
                      optional=("pvalue_level", "new_user_class_level"))  # fmt: skip
FILES = ("raw_sample", "ad_feature", "user_profile", "behavior_log")
PUBLISHED = {
    "raw_sample": Published(rows=26_557_961, positive_rate=0.0514), "ad_feature": Published(rows=846_811),
    "user_profile": Published(rows=1_061_768), "behavior_log": Published(rows=723_268_134),
}  # fmt: skip
ROLES: dict[str, Role] = {
    "user": "user", **dict.fromkeys(PROFILE, "user"), "adgroup": "item", "cate": "item", "campaign": "item",
    "customer": "item", "brand": "item", "pid": "context", "hour_of_day": "context",
}  # fmt: skip
SOURCES = {"user": "user_id", "adgroup": "adgroup_id", "cate": "cate_id", "campaign": "campaign_id"}
"""Field -> column, where they differ."""
EVENTS = ("cate", "brand", "action")
FIT = {"composite": {"liked_ids": tuple(ACTIONS[a] for a in ("cart", "fav", "buy"))}}


def fetch(path: Path | None, options: Mapping[str, Any]) -> Raw:
    """The user's folder; every byte of it is hashed."""
    if path is None:
        raise BadInput("taobao_ad: no folder given; pass the one with raw_sample.csv (data.path=, --path)")
    return folder_raw("taobao_ad", list(csv_reader.files("taobao_ad", path, FILES).values()), path)


def read_sample(path: Path, account: Account) -> Iterator[pl.DataFrame]:
    """Impressions; `nonclk` must be the opposite of `clk`."""
    for rows in csv_reader.read(path, account, SAMPLE_FORM):
        odd = rows.filter(pl.col("nonclk") == pl.col("clk"))
        for line, value in odd.select("position", "clk").iter_rows():
            account.bad(line, "nonclk equals clk", "clk", str(value))
            account.kept -= 1
        rows = rows.filter(pl.col("nonclk") != pl.col("clk"))
        yield rows.select(
            pl.col("user").alias("user_id"), pl.col("time_stamp").alias("time"), "adgroup_id", "pid",
            pl.col("clk").cast(pl.Int8).alias("label"), "position",
        )  # fmt: skip


def read_log(path: Path, account: Account) -> Iterator[pl.DataFrame]:
    """Behaviour events with the id of their action."""
    for rows in csv_reader.read(path, account, LOG_FORM):
        action = pl.col("btag").replace_strict(ACTIONS, default=None, return_dtype=pl.Int8)
        rows = rows.with_columns(action.alias("action"))
        for line, tag in rows.filter(pl.col("action").is_null()).select("position", "btag").iter_rows():
            account.bad(line, f"btag is not one of {', '.join(ACTIONS)}", "btag", tag)
            account.kept -= 1
        rows = rows.filter(pl.col("action").is_not_null())
        yield rows.select(
            pl.col("user").alias("user_id"), pl.col("time_stamp").alias("time"), "action", "cate", "brand", "position"
        )


SAMPLE_KINDS = {"user_id": pl.Int64, "time": pl.Int64, "adgroup_id": pl.Int64, "pid": pl.String, "label": pl.Int8,
                "position": pl.Int64}  # fmt: skip
LOG_KINDS = {"user_id": pl.Int64, "time": pl.Int64, "action": pl.Int8, "cate": pl.Int64, "brand": pl.Int64,
             "position": pl.Int64}  # fmt: skip


def build(raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """The last day is test, the latest tenth of the other clicks begins validation."""
    if options["duplicates"] not in ("keep", "drop_exact"):
        raise BadInput(f"option duplicates: unknown value {nearest(options['duplicates'], ('keep', 'drop_exact'))}")
    if options["min_count"] < 1 or options["history"] < 1:
        raise BadInput(f"taobao_ad: options {dict(options)}: min_count and history must be at least 1")
    found = csv_reader.files("taobao_ad", raw.path, FILES)
    buckets = Buckets(shards, raw.text_bytes)
    events = account.part(found["behavior_log"])
    buckets.read("events", events, read_log)
    events.close()
    part = account.part(found["raw_sample"])
    buckets.read("impressions", part, read_sample)
    account.absorb(part)
    tables = {name: _table(found[name], form, key, account) for name, form, key in
              (("ad_feature", AD_FORM, "adgroup_id"), ("user_profile", PROFILE_FORM, "userid"))}  # fmt: skip
    account.close()

    def make(bucket: int) -> tuple[pl.DataFrame, pl.DataFrame, list[Path]]:
        log, spent = buckets.frame("events", bucket, LOG_KINDS)
        log = log.sort("user_id", "time", "position")
        if options["duplicates"] == "drop_exact":
            whole = log.height
            log = log.unique(["user_id", "time", "action", "cate", "brand"], keep="first", maintain_order=True)
            account.notes["behavior_log: exact duplicates of a row, dropped"] += whole - log.height
        rows, more = buckets.frame("impressions", bucket, SAMPLE_KINDS)
        rows = rows.join(tables["ad_feature"], on="adgroup_id", how="left", maintain_order="left")
        rows = rows.join(
            tables["user_profile"], left_on="user_id", right_on="userid", how="left", maintain_order="left"
        )
        hour = ((pl.col("time") + 8 * 3600) // 3600 % 24).alias("hour_of_day")
        rows = slices(rows.with_columns(hour, pl.Series("shuffle", np.zeros(rows.height, np.int64))), log)
        return rows, log.select("cate", "brand", "action", "time"), spent + more

    buckets.each(make, account)
    cut = buckets.cut("time of the impression", TEST_FROM, VALID_SHARE, raw.path)
    columns = Columns(
        categorical={f: SOURCES.get(f, f) for f in ROLES},
        dense={"price": "price"}, min_count=options["min_count"], counted=("cate", "brand"),
        events={f"hist_{n}": (n, n if n in ROLES else None) for n in EVENTS},
    )  # fmt: skip
    cardinality = buckets.store(columns, cut)
    compare(account, part.path.name, PUBLISHED["raw_sample"], rows=part.read - part.header, positives=cut.positives)
    compare(account, events.path.name, PUBLISHED["behavior_log"], rows=events.read - events.header)
    for name, table in tables.items():
        compare(account, found[name].name, PUBLISHED[name], rows=table.height)
    split = {**cut.said, "events": events.to_json()}
    return {"schema": _schema(cardinality, options["history"]), "split": split}


def _table(file: Path, form: Format, key: str, account: Account) -> pl.DataFrame:
    """A side table, one row a key."""
    part = account.part(file)
    table = pl.concat(list(csv_reader.read(file, part, form))).drop("position")
    part.close()
    if twice := table.height - table[key].n_unique():
        account.notes[f"{file.name}: keys listed twice, the first kept"] += twice
        table = table.unique(key, keep="first", maintain_order=True)
    account.note(part)
    return table


def _schema(cardinality: Mapping[str, int], history: int) -> FeatureSchema:
    plain = [Field(name=n, kind="categorical", role=r, cardinality=cardinality[n]) for n, r in ROLES.items()]
    plain.append(Field(name="price", kind="dense", role="item"))
    events = [
        Field(
            name=f"hist_{n}", kind="sequence", role="behaviour", max_length=history, history="hist",
            cardinality=cardinality.get(n, FIRST_ID + len(ACTIONS)), target=n if n in cardinality else None,
        )
        for n in EVENTS
    ]  # fmt: skip
    return FeatureSchema(name="taobao_ad", track="sequence", fields=(*plain, *events))


SPEC = DataSpec(
    name="taobao_ad",
    title="Taobao display ads, raw tables",
    track="sequence",
    description="impressions of eight days with user profile, ad and 22 days of behaviour; give the folder with "
    "raw_sample, ad_feature, user_profile and behavior_log",
    terms="Alibaba Tianchi data set 56: registration, research; ctrbench neither ships nor downloads it",
    splits=("last_day",),
    options={"min_count": 10, "history": 50, "duplicates": "drop_exact"},
    fetch=fetch,
    build=build,
    room=3.0,
    fit=FIT,
)

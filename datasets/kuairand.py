"""KuaiRand: short-video impressions of a month with the feedback to each; Pure, 1K and 27K.

A row is an impression of the standard logs, its label one kind of feedback. History: the user's strictly earlier
impressions with what came of them. Pure holds a sample of its users' impressions, so that its histories have holes and
rows get none. What is known only after the impression (play time, stay times) is no feature. Format: data.md, 3.8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctrbench.datasets import csv_reader
from ctrbench.datasets.account import Account
from ctrbench.datasets.buckets import Buckets, Columns
from ctrbench.datasets.criteo_parts import folder_raw
from ctrbench.datasets.csv_reader import Format
from ctrbench.datasets.errors import BadInput, nearest
from ctrbench.datasets.movielens_1m import with_history
from ctrbench.datasets.numbers import number
from ctrbench.datasets.published import Published, compare
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema, Field, Role
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import DataSpec, Raw

LABELS = ("is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward")
START, END = 1_649_347_200, 1_652_025_600
"""2022-04-08 00:00 and 2022-05-09 00:00 in UTC+8."""
TEST_FROM = 1_651_766_400
"""2022-05-06 00:00 in UTC+8: the last three of the 31 days are test."""
VALID_SHARE = 0.1
ACTIONS = {"shown": FIRST_ID, "click": FIRST_ID + 1, "long view": FIRST_ID + 2, "engaged": FIRST_ID + 3}
"""What came of an impression -> id, stronger ones later; engaged: like, follow, comment or forward."""
FORM = Format(
    columns={"user_id": "id", "video_id": "id", "time_ms": "id", **dict.fromkeys(LABELS, "flag"),
             "duration_ms": "decimal", "tab": "id"},
    optional=("duration_ms",),
    ignored=("date", "hourmin", "is_hate", "play_time_ms", "profile_stay_time", "comment_stay_time", "is_profile_enter",
             "is_rand"),
    period=("time_ms", START * 1000, END * 1000), outside="time outside 2022-04-08..05-08 (UTC+8)",
)  # fmt: skip
PUBLISHED = {"pure": 1_436_609, "1k": 11_713_045, "27k": 322_278_385}
"""Rows of the standard logs."""
ROLES: dict[str, Role] = {
    "user": "user", "video": "item", "author": "item", "tag": "item", "tab": "context", "hour_of_day": "context",
}  # fmt: skip
KINDS = {
    "user_id": pl.Int64, "video_id": pl.Int64, "time": pl.Int64, "label": pl.Int8, "action": pl.Int8,
    "duration_ms": pl.Float64, "tab": pl.Int64, "position": pl.Int64,
}  # fmt: skip
FIT = {"composite": {"liked_ids": tuple(ACTIONS[a] for a in ("click", "long view", "engaged"))}}


def size_of(folder: Path) -> str:
    """pure, 1k or 27k.

    Raises:
        BadInput: no folder, no standard log in it, or logs of two sizes.
    """
    if not folder.is_dir():
        raise BadInput(f"kuairand: {folder}: no such folder; pass the one with log_standard_4_08_to_4_21_*.csv")
    names = (re.fullmatch(r"log_standard_.*_(pure|1k|27k)(_part\d)?\.csv(\.gz)?", f.name) for f in folder.iterdir())
    found = sorted({m[1] for m in names if m})
    if len(found) != 1:
        there = ", ".join(sorted(f.name for f in folder.iterdir())[:6]) or "nothing"
        raise BadInput(
            f"{folder}: standard logs of {' and '.join(found) or 'no size'} found; one of pure, 1k, 27k is needed; "
            f"there: {there}"
        )
    return found[0]


def logs(folder: Path, size: str) -> list[Path]:
    """Standard logs, earlier ones first."""
    return sorted(f for f in folder.iterdir() if re.match(rf"log_standard_.*_{size}(_part\d)?\.csv", f.name))


def videos(folder: Path, size: str) -> Path:
    """The table of videos.

    Raises:
        BadInput: it is not there.
    """
    for file in (folder / f"video_features_basic_{size}.csv", folder / f"video_features_basic_{size}.csv.gz"):
        if file.is_file():
            return file
    raise BadInput(f"{folder}: video_features_basic_{size}.csv not found; it belongs to the set: add it")


def fetch(path: Path | None, options: Mapping[str, Any]) -> Raw:
    """The user's folder `data` of one size."""
    if path is None:
        raise BadInput("kuairand: no folder given; pass the one with the logs (data.path=FOLDER, --path FOLDER)")
    size = size_of(path)
    return folder_raw("kuairand", [*logs(path, size), videos(path, size)], path)


def build(raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """The last three days are test."""
    label = options["label"]
    if label not in LABELS:
        raise BadInput(f"kuairand: option label: unknown value {nearest(label, LABELS)}")
    if options["min_count"] < 1 or options["history"] < 1:
        raise BadInput(f"kuairand: options {dict(options)}: min_count and history must be at least 1")
    size = size_of(raw.path)

    def read(path: Path, part: Account) -> Iterator[pl.DataFrame]:
        engaged = pl.any_horizontal(pl.col("is_like", "is_follow", "is_comment", "is_forward") == 1)
        action = pl.when(engaged).then(ACTIONS["engaged"]).when(pl.col("long_view") == 1).then(ACTIONS["long view"])
        outcome = action.when(pl.col("is_click") == 1).then(ACTIONS["click"]).otherwise(ACTIONS["shown"])
        for rows in csv_reader.read(path, part, FORM):
            yield rows.select(
                "user_id", "video_id", (pl.col("time_ms") // 1000).alias("time"),
                pl.col(label).cast(pl.Int8).alias("label"), outcome.cast(pl.Int8).alias("action"), "duration_ms", "tab",
                "position",
            )  # fmt: skip

    buckets = Buckets(shards, raw.text_bytes)
    sources = []
    for file in logs(raw.path, size):
        part = account.part(file)
        buckets.read(file.name, part, read)
        account.absorb(part)
        sources.append(file.name)
    known = _videos(videos(raw.path, size), account)
    account.close()

    def make(bucket: int) -> tuple[pl.DataFrame, pl.DataFrame, list[Path]]:
        found = [buckets.frame(source, bucket, KINDS) for source in sources]
        events = pl.concat([rows.with_columns(pl.lit(n).alias("file")) for n, (rows, _) in enumerate(found)])
        # Lines are numbered file by file; of one second the earlier file's come first.
        order = pl.col("file").cast(pl.Int64) * 2**40 + pl.col("position")
        events = events.with_columns(order.alias("position")).drop("file").join(known, on="video_id", how="left")
        log = with_history(events)
        hour = ((pl.col("time") + 8 * 3600) // 3600 % 24).alias("hour_of_day")
        shuffle = pl.Series("shuffle", np.zeros(log.height, np.int64))
        return (log.with_columns(hour, shuffle), log.select("video_id", "author", "tag", "action", "time"),
                [f for _, files in found for f in files])  # fmt: skip

    buckets.each(make, account)
    cut = buckets.cut("time of the impression", TEST_FROM, VALID_SHARE, raw.path)
    cardinality = buckets.store(_columns(size, options["min_count"]), cut)
    compare(account, f"standard logs of {size}", Published(rows=PUBLISHED[size]), rows=account.read - account.header)
    return {"schema": _schema(size, cardinality, options["history"]), "split": cut.said}


def _columns(size: str, min_count: int) -> Columns:
    events = {
        "hist_video": ("video_id", "video"), "hist_author": ("author", "author"), "hist_tag": ("tag", "tag"),
        "hist_action": ("action", None),
    }  # fmt: skip
    return Columns(
        categorical={"user": "user_id", "video": "video_id", "author": "author", "tag": "tag", "tab": "tab",
                     "hour_of_day": "hour_of_day"},
        dense={"duration": "duration_ms"}, events={} if size == "pure" else events, min_count=min_count,
    )  # fmt: skip


def _videos(file: Path, account: Account) -> pl.DataFrame:
    """video_id, author and first tag; `tag` is a quoted list.

    Raises:
        BadInput: a column is absent, a damaged file; under strict, the first row without a whole video_id.
    """
    wanted = ("video_id", "author_id", "tag")
    try:
        table = pl.read_csv(file, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BadInput(f"{file}: cannot be read: {str(error).splitlines()[0]}; fetch the file again") from None
    table = table.rename({c: c.strip() for c in table.columns}, strict=False)
    if absent := [c for c in wanted if c not in table.columns]:
        found = ", ".join(table.columns)[:80]
        raise BadInput(
            f"{file}:1: required column absent: {absent[0]}: found {found!r}; is it another file of the set?"
        )
    part = account.part(file)
    video = number(pl.col("video_id"), "id")
    odd = table.with_row_index("line", 2).filter(video.is_null())
    for line, value in odd.select("line", "video_id").iter_rows():
        part.bad(line, "video_id is not an id", "video_id", value or "")
    table = table.select(wanted).with_columns(video).drop_nulls("video_id")
    part.read, part.header, part.kept = table.height + odd.height + 1, 1, table.height
    part.close()
    account.note(part)
    if twice := table.height - table["video_id"].n_unique():
        account.notes[f"{file.name}: videos listed twice, the first kept"] += twice
        table = table.unique("video_id", keep="first", maintain_order=True)
    tag = pl.col("tag").str.split(",").list.first().str.strip_chars().replace("", None)
    return table.select("video_id", pl.col("author_id").alias("author"), tag)


def _schema(size: str, cardinality: Mapping[str, int], history: int) -> FeatureSchema:
    plain = [Field(name=n, kind="categorical", role=r, cardinality=cardinality[n]) for n, r in ROLES.items()]
    plain.append(Field(name="duration", kind="dense", role="item"))
    events = [
        Field(
            name=f"hist_{n}", kind="sequence", role="behaviour", max_length=history, history="hist",
            cardinality=cardinality.get(n, FIRST_ID + len(ACTIONS)), target=n if n in cardinality else None,
        )
        for n in (() if size == "pure" else ("video", "author", "tag", "action"))
    ]  # fmt: skip
    return FeatureSchema(name="kuairand", track="sequence" if events else "tabular", fields=(*plain, *events))


SPEC = DataSpec(
    name="kuairand",
    title="KuaiRand, impressions of the standard logs",
    track=None,
    description="user, video, author, tag, tab, hour and duration with the user's earlier impressions (Pure: without); "
    "give the folder of one size, Pure, 1K or 27K",
    terms="CC BY-SA 4.0, Kuaishou and USTC; ctrbench neither ships nor downloads it",
    splits=("global_time",),
    options={"label": "is_click", "min_count": 2, "history": 50},
    fetch=fetch,
    build=build,
    room=4.0,
    fit=FIT,
)

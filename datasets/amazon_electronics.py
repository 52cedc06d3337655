"""Amazon Electronics as in DIN's paper, from the raw files: is this the product that the user reviews next?

A positive is a review with an earlier one of its user, its negative a random item of the data that the user never
reviewed. Test is each user's last review, as in DIN: other users' train events lie later. Times are days, so that
reviews of one day are tied. DIN sorts a user's reviews by time, ties as its sort leaves them, and takes all before a
review for its history, those of the same day too. Here history is strictly earlier days, and a review of a user's first
day, which has none, is history alone: there are fewer rows than DIN's 1,304,382 positives for training and 192,403 for
test. DIN has no validation rows; here the last train review of one user in ten is validation. Format: data.md, 3.7.

In memory nothing grows with the files but the items and the vocabularies (datasets/buckets.py).

Dims: K negatives
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl

from ctrbench.datasets.account import Account
from ctrbench.datasets.buckets import Buckets, Columns
from ctrbench.datasets.criteo_parts import folder_raw
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.movielens_1m import with_history
from ctrbench.datasets.negatives import Pool, Sampler
from ctrbench.datasets.published import Published, compare
from ctrbench.datasets.schema import FeatureSchema, Field, Role
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import DataSpec, Raw
from ctrbench.datasets.textfile import CHUNK, read_lines

REVIEWS, META = "reviews_Electronics_5.json", "meta_Electronics.json"
PUBLISHED = Published(rows=1_689_188)
COUNTS = {"users": 192_403, "items": 63_001, "categories": 801}
"""As published, of the items that are reviewed."""
VALID_USERS = 10
"""One user in so many gives its last train review to validation."""
BOUND = 2**63
KINDS = {"user_id": pl.Int64, "user": pl.String, "asin": pl.String, "time": pl.Int64, "position": pl.Int64}
"""Columns of a review."""
ROLES: Mapping[str, Role] = {"user": "user", "item": "item", "category": "item"}


def files(folder: Path) -> tuple[Path, Path]:
    """Reviews and descriptions of items, gzipped or plain.

    Raises:
        BadInput: no folder, or one of them is absent.
    """
    if not folder.is_dir():
        raise BadInput(f"amazon_electronics: {folder}: no such folder; pass the one with {REVIEWS}.gz and {META}.gz")
    found = []
    for name in (REVIEWS, META):
        here = [f for f in (folder / f"{name}.gz", folder / name) if f.is_file()]
        if not here:
            there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            raise BadInput(f"{folder}: {name}.gz not found, nor {name}; there: {there}; rename or add the file")
        found.append(here[0])
    return found[0], found[1]


def fetch(path: Path | None, options: Mapping[str, Any]) -> Raw:
    """The user's folder; every byte of both files is hashed."""
    if path is None:
        raise BadInput(f"amazon_electronics: no folder given; pass the one with {REVIEWS}.gz (data.path=, --path)")
    return folder_raw("amazon_electronics", list(files(path)), path)


def read_reviews(path: Path, account: Account, chunk: int = CHUNK) -> Iterator[pl.DataFrame]:
    """Reviews in file order, chunk by chunk, from `account.mark` on; one JSON object a line.

    Returns:
        columns of `KINDS`; user_id is 63 bits of a hash of the user's name.

    Raises:
        BadInput: as `read_lines`; under strict, the first bad line.
    """
    for lines in read_lines(path, account, chunk, start=account.mark):
        rows = []
        for line, text in enumerate(lines.text.split(b"\n")[:-1], lines.first):
            row = _review(text)
            if row[0]:
                account.bad(line, *row[0])
            else:
                rows.append((_number(row[1]), *row[1:], line))
        account.kept += len(rows)
        account.mark = lines.end
        yield pl.DataFrame(rows, schema=KINDS, orient="row")


def _review(text: bytes) -> tuple[tuple[str, str, str] | None, str, str, int]:
    """What is wrong with a line (reason, field, value), else user, item, time."""
    shown = text.decode()
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError:
        return ("not a JSON object", "line", shown), "", "", 0
    if not isinstance(body, dict):
        return ("not a JSON object", "line", shown), "", "", 0
    for name in ("reviewerID", "asin"):
        if not isinstance(body.get(name), str) or not body[name]:
            return (f"{name} is empty or no text", name, str(body.get(name, ""))), "", "", 0
    time = body.get("unixReviewTime")
    if type(time) is not int or not 0 <= time < BOUND:
        return ("unixReviewTime is not a whole number of seconds", "unixReviewTime", str(time or "")), "", "", 0
    return None, body["reviewerID"], body["asin"], time


def _number(user: str) -> int:
    return int.from_bytes(hashlib.blake2b(user.encode(), digest_size=8).digest()) >> 1


def read_categories(path: Path, account: Account, wanted: set[str], chunk: int = CHUNK) -> dict[str, str]:
    """Item -> its last category, of the wanted ones; one Python literal a line, read as such and never run.

    A line of an item that nobody reviewed is left out before it is parsed.
    """
    found: dict[str, str] = {}
    for lines in read_lines(path, account, chunk):
        for line, text in enumerate(lines.text.decode().split("\n")[:-1], lines.first):
            named = re.match(r"\{'asin': '([^']*)'", text)
            if named and named[1] not in wanted:
                account.leave_out(line, "item without a review", "asin", named[1])
                continue
            reason, item, category = _description(text)
            if reason:
                account.bad(line, *reason)
            elif item not in wanted:
                account.leave_out(line, "item without a review", "asin", item)
            elif item in found:
                account.leave_out(line, "item described twice, the first kept", "asin", item)
            else:
                found[item] = category
                account.kept += 1
    return found


def _description(text: str) -> tuple[tuple[str, str, str] | None, str, str]:
    """What is wrong with a line, else the item and its last category."""
    try:
        body = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ("not a Python literal", "line", text), "", ""
    if not isinstance(body, dict):
        return ("not a Python dict", "line", text), "", ""
    if not isinstance(body.get("asin"), str) or not body["asin"]:
        return ("asin is empty or no text", "asin", str(body.get("asin", ""))), "", ""
    try:
        category = body["categories"][-1][-1]
    except (KeyError, IndexError, TypeError):
        category = None
    if not isinstance(category, str) or not category:
        return ("categories hold no category", "categories", str(body.get("categories", ""))), "", ""
    return None, body["asin"], category


def build(raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """Each user's last review is test; one negative a positive, or `ratio`."""
    if options["min_count"] < 1 or options["history"] < 1:
        raise BadInput(f"amazon_electronics: options {dict(options)}: min_count and history must be at least 1")
    sampler = Sampler(weighting="uniform", ratio=options["ratio"], seed=options["seed"])
    reviews, meta = files(raw.path)
    buckets, part = Buckets(shards, raw.text_bytes), account.part(reviews)
    buckets.read("reviews", part, read_reviews)
    compare(part, reviews.name, PUBLISHED, rows=part.read)
    account.absorb(part)
    items = _items(buckets, meta, account)
    account.close()
    pool = Pool(items.select("item", pl.lit(0, pl.Int64).alias("category"), "events"))
    names = items.rename({"category": "category_name"}).drop("events")

    def make(bucket: int) -> tuple[pl.DataFrame, pl.DataFrame, list[Path]]:
        events, spent = buckets.frame("reviews", bucket, KINDS)
        if events.select("user_id", "user").n_unique() != events["user_id"].n_unique():
            raise AssertionError(f"{reviews}: two users share a hash")
        events = events.join(names, on="asin", how="left", maintain_order="left")
        rng = np.random.default_rng([sampler.seed, bucket])
        return (*_rows_and_log(events, sampler, pool, names, rng), spent)

    buckets.each(make, account)
    by = (
        "each user's last review is test, the last other one of every tenth user validation; a review of a user's "
        "first day is history alone"
    )
    cut = buckets.cut(by, None, 0.0, raw.path)
    columns = Columns(
        categorical={"user": "user", "item": "asin", "category": "category_name"}, min_count=options["min_count"],
        events={"hist_item": ("asin", "item"), "hist_category": ("category_name", "category")},
    )  # fmt: skip
    cardinality = buckets.store(columns, cut)
    described = {
        "pool": "the items of the file", "pool_events": pool.events, "pool_items": pool.items,
        "positive_events": cut.positives, **sampler.to_json(),
    }  # fmt: skip
    return {
        "schema": _schema(cardinality, options["history"]), "split": cut.said, "sampler": described,
        "history_only": account.kept - cut.positives, "sampled": cut.positives * sampler.ratio,
    }  # fmt: skip


def _items(buckets: Buckets, meta: Path, account: Account) -> pl.DataFrame:
    """asin, its number `item`, its events, its category (null where the file has none), in the order of asin."""
    file, noted = buckets.folder / "items.parquet", buckets.journal.done("items")
    if noted is None:
        counts, users = pl.DataFrame(schema={"asin": pl.String, "events": pl.Int64}), set[int]()
        for rows in buckets.chunks("reviews", ["asin", "user_id"]):
            more = rows.group_by("asin").agg(pl.len().cast(pl.Int64).alias("events"))
            counts = pl.concat([counts, more]).group_by("asin").agg(pl.col("events").sum())
            users.update(rows["user_id"].unique())
        part = account.part(meta)
        known = read_categories(meta, part, set(counts["asin"]))
        if part.kept:  # without one the account would say that the file has no rows
            part.close()
        table = counts.sort("asin").with_row_index("item").with_columns(
            pl.col("item").cast(pl.Int64),
            pl.Series("category", [known.get(a) for a in counts["asin"].sort()], pl.String),
        )  # fmt: skip
        table.write_parquet(file)
        noted = {"users": len(users), "fate": part.state()}
        buckets.journal.finish("items", noted, [file])
    table = pl.read_parquet(file)
    fate = noted["fate"]
    account.files[meta.name] = {
        "read": fate["read"], "header": 0, "kept": fate["kept"], "skipped": sum(fate["skipped"].values()),
    }  # fmt: skip
    bad = {r: n for r, n in fate["skipped"].items() if r not in fate["left_out"]}
    account.notes.update({f"{meta.name}: {reason}, line dropped": n for reason, n in bad.items()})
    account.notes.update(fate["notes"])
    if without := table["category"].null_count():
        account.notes[f"items that {meta.name} does not describe, their category missing"] += without
    have = {"users": noted["users"], "items": table.height, "categories": table["category"].drop_nulls().n_unique()}
    for what, count in have.items():
        if count != COUNTS[what]:
            account.notes[f"{count:,} {what}, published are {COUNTS[what]:,}"] += 1
    return table


def _rows_and_log(
    events: pl.DataFrame, sampler: Sampler, pool: Pool, names: pl.DataFrame, rng: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Histories, splits and negatives of a bucket of users."""
    log = with_history(events)
    back = pl.int_range(pl.len(), dtype=pl.Int64).over("user_id")
    count = pl.len().over("user_id")
    held = (back == count - 2) & (pl.col("user_id") % VALID_USERS == 0)
    split = pl.when(back == count - 1).then(pl.lit("test")).when(held).then(pl.lit("valid")).otherwise(pl.lit("train"))
    log = log.with_columns(split.alias("split"))
    positive = log.filter(pl.col("hist_end") > pl.col("hist_begin"))
    drawn_K = pool.draw(sampler, rng, positive["user_id"].to_numpy(), events)
    drawn = pool.rows(drawn_K).select("item").join(names, on="item", how="left", maintain_order="left")
    negative = positive[np.repeat(np.arange(positive.height), sampler.ratio)].with_columns(drawn)
    rows = pl.concat([p.with_columns(pl.lit(y, pl.Int8).alias("label")) for y, p in ((1, positive), (0, negative))])
    # Rows of one second are shuffled: were the positive always first, statistics of earlier rows would tell labels.
    shuffle = pl.Series("shuffle", rng.integers(0, 2**63, rows.height, dtype=np.int64))
    return rows.with_columns(shuffle), log.select("asin", "category_name", "time")


def _schema(cardinality: Mapping[str, int], history: int) -> FeatureSchema:
    plain = [Field(name=n, kind="categorical", role=r, cardinality=cardinality[n]) for n, r in ROLES.items()]
    events = [
        Field(name=f"hist_{n}", kind="sequence", role="behaviour", max_length=history, history="hist",
              cardinality=cardinality[n], target=n)
        for n in ("item", "category")
    ]  # fmt: skip
    return FeatureSchema(name="amazon_electronics", track="sequence", fields=(*plain, *events))


SPEC = DataSpec(
    name="amazon_electronics",
    title="Amazon Electronics, next review (DIN's protocol, strictly earlier days)",
    track="sequence",
    description=f"user, item, category and the user's earlier reviews; give the folder with {REVIEWS}.gz and {META}.gz",
    terms="Amazon review data of J. McAuley, research; ctrbench neither ships nor downloads it",
    splits=("last_review",),
    options={"min_count": 1, "history": 100, "ratio": 1, "seed": 0},
    fetch=fetch,
    build=build,
    room=4.0,
)

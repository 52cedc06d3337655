"""Taobao UserBehavior (Tianchi 649) as a ranking task: will this user view this item now?

A positive is an event of the file (page views by default) of a user with some past; its negatives are items drawn from
a pool of events at the same second. History: all events of the user with a strictly earlier second, whatever their
behaviour, with item, category and action.

In memory nothing grows with the file but the vocabularies and the pool's distinct items: users are spread over buckets
that are sorted one at a time, and rows are brought into time order one window at a time.

Dims: T seconds of the period, K negatives
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput, nearest
from ctrbench.datasets.movielens_1m import assign_splits, with_history
from ctrbench.datasets.negatives import Pool, Sampler
from ctrbench.datasets.prepared import SPLITS
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema, Field
from ctrbench.datasets.shards import Shards, Vocabulary
from ctrbench.datasets.spec import DataSpec, Raw, sha256_file
from ctrbench.datasets.taobao_reader import ACTIONS, END, START, read

TEST_FROM = 1_512_144_000
"""2017-12-02 00:00 in UTC+8: the last two of the nine days are test (data.md, section 4)."""
VALID_SHARE = 0.1
"""Validation is this share of the positives before the test cut, the latest ones."""
BUCKET_BYTES = 96 << 20
"""Text a bucket of users: some 2.7 million events and twice as many rows."""
GZ_RATIO = 4
"""Text bytes that a gzipped file is taken for, a byte."""
WINDOW_ROWS = 2_000_000
"""Rows that are in memory while they are brought into time order."""
CATEGORICAL = {"user": "user", "item": "item", "category": "item"}
"""Categorical field -> role."""
ASIDE = ("raw_item", "raw_category")
"""Target ids of the file: the control must see items that `min_count` hides from models, or it misses leaks."""


FIT = {"composite": {"liked_ids": tuple(ACTIONS[a] for a in ("cart", "fav", "buy"))}}
"""Its two histories are page views and everything stronger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What becomes a row; with `Sampler`, all options of the data set but the pool's path."""

    positives: str = "pv"
    """Behaviours whose events are positives, separated by commas; the others are history only."""
    min_history: int = 5
    """Earlier events that a positive's user must have; 5 gives the rows of data.md, section 4."""
    history: int = 50
    """Longest history that can be read."""
    min_count: int = 1
    """Rarer values of a column in train rows are out of vocabulary."""
    duplicates: str = "keep"
    """keep, or drop_exact: of rows equal in all five columns the first stays, the others are counted."""

    def __post_init__(self) -> None:
        for name in self.behaviours:
            if name not in ACTIONS:
                raise BadInput(f"option positives={self.positives}: unknown behaviour {nearest(name, ACTIONS)}")
        if self.duplicates not in ("keep", "drop_exact"):
            raise BadInput(f"option duplicates: unknown value {nearest(self.duplicates, ('keep', 'drop_exact'))}")
        if self.min_history < 0 or self.history < 1 or self.min_count < 1:
            raise BadInput(f"options of the task: {self}: min_history >= 0, history >= 1, min_count >= 1")

    @property
    def behaviours(self) -> tuple[str, ...]:
        """`positives` taken apart."""
        return tuple(name.strip() for name in self.positives.split(","))


def fetch(path: Path | None, options: Mapping[str, Any]) -> Raw:
    """The user's file, and the pool's digest in the data's identity."""
    if path is None:
        raise BadInput(
            "taobao_behaviour: no file given; pass the path of UserBehavior.csv or a .gz of it (data.path=FILE, "
            "--path FILE)"
        )
    digest = sha256_file(path)
    if not options["pool"]:
        return Raw(path=path, sha256=digest, bytes=path.stat().st_size)
    pool = Path(options["pool"])
    detail = {"sha256_file": digest, "sha256_pool": sha256_file(pool)}
    both = hashlib.sha256("".join(detail.values()).encode()).hexdigest()
    return Raw(path=path, sha256=both, bytes=path.stat().st_size, detail=detail)


def build(raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """Rows of each split by time; one event log for the history `hist`."""
    return build_from(raw, rule, options, account, shards, Path(options["pool"]) if options["pool"] else None)


def build_from(
    raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards, pool_path: Path | None,
    name: str = "taobao_behaviour",
) -> dict[str, Any]:  # fmt: skip
    """As `build`, with the pool's file; None draws from the file's own events."""
    task = Task(**{f.name: options[f.name] for f in fields(Task)})
    sampler = Sampler(**{f.name: options[f.name] for f in fields(Sampler)})
    pool, pool_account = Pool(), None
    if pool_path is not None:
        pool_account = Account(pool_path, account.policy, account.max_bad_fraction)
        for rows in read(pool_path, pool_account):
            pool.add(rows)
        pool_account.close()
    parts = _Parts(shards.folder / "parts", _buckets(raw))
    for rows in read(raw.path, account):
        parts.add_events(rows)
        if pool_path is None:
            pool.add(rows)
    account.close()
    pool.close()
    count_T = np.zeros(END - START, np.int64)
    for bucket in range(parts.buckets):
        count_T += _rows_of_bucket(parts, bucket, task, sampler, pool, rule, account)
    positives = int(count_T.sum())
    cuts, split = _cuts(rule, count_T, account)
    vocabularies = _vocabularies(parts, split, shards, task.min_count)
    shards.write_event_parts("hist", _event_parts(parts, vocabularies))
    _spread_rows(parts, split, count_T * (1 + sampler.ratio))
    _write_rows(parts, vocabularies, shards)
    shutil.rmtree(parts.folder)
    described = {
        "pool": pool_path.name if pool_path else "the file's own events",
        "pool_events": pool.events, "pool_items": pool.items, "positive_events": positives,
        "pool_rows": pool_account.to_json() if pool_account else None, **sampler.to_json(), **asdict(task),
    }  # fmt: skip
    return {
        "schema": schema(name, {c: v.cardinality for c, v in vocabularies.items()}, task.history), "split": cuts,
        "aside": ASIDE, "sampler": described, "history_only": account.kept - positives,
        "sampled": positives * sampler.ratio,
    }  # fmt: skip


def _buckets(raw: Raw) -> int:
    with raw.path.open("rb") as f:
        text = raw.bytes * (GZ_RATIO if f.read(2) == b"\x1f\x8b" else 1)
    return max(1, -(-text // BUCKET_BYTES))


class _Parts:
    """Files between the passes: events by bucket of users, then rows and the event log of each bucket."""

    def __init__(self, folder: Path, buckets: int) -> None:
        folder.mkdir()
        self.folder, self.buckets, self.chunks = folder, buckets, 0

    def add_events(self, rows: pl.DataFrame) -> None:
        """Spreads a chunk of events over the buckets."""
        keyed = rows.with_columns((pl.col("user_id") % self.buckets).alias("bucket"))
        for (bucket,), part in keyed.partition_by("bucket", as_dict=True, include_key=False).items():
            part.write_parquet(self.folder / f"events-{bucket}-{self.chunks:05d}.parquet", compression="lz4")
        self.chunks += 1

    def take_events(self, bucket: int) -> pl.DataFrame:
        """All events of a bucket in file order; they are gone from disk then."""
        files = sorted(self.folder.glob(f"events-{bucket}-*.parquet"))
        columns = ("user_id", "item", "category", "time", "action", "position")
        kinds = dict.fromkeys(columns, pl.Int64) | {"action": pl.Int8}
        rows = pl.concat([pl.DataFrame(schema=kinds), *(pl.read_parquet(f) for f in files)])
        for f in files:
            f.unlink()
        return rows

    def file(self, kind: str, bucket: int) -> Path:
        """`rows` or `log` of a bucket."""
        return self.folder / f"{kind}-{bucket:05d}.parquet"

    def rows(self) -> pl.LazyFrame:
        """The rows of all buckets."""
        return pl.scan_parquet([self.file("rows", b) for b in range(self.buckets)])


def _rows_of_bucket(
    parts: _Parts, bucket: int, task: Task, sampler: Sampler, pool: Pool, rule: str, account: Account
) -> np.ndarray:
    """Sorts the events of a bucket of users, finds histories and positives, draws negatives; rows and log go to disk.

    Returns:
        count_T: positives of each second of the period, int64.
    """
    events = parts.take_events(bucket)
    if task.duplicates == "drop_exact":
        events = _drop_duplicates(events, account)
    log = with_history(events)
    log.select("item", "category", "action", "time").write_parquet(parts.file("log", bucket), compression="lz4")
    wanted = pl.col("action").is_in([ACTIONS[b] for b in task.behaviours])
    positive = log.filter(wanted & (pl.col("hist_end") - pl.col("hist_begin") >= task.min_history))
    if rule == "per_user":
        positive, _ = assign_splits(positive, rule)
    # One stream a bucket: how many buckets there are follows from the bytes of the file.
    rng = np.random.default_rng([sampler.seed, bucket])
    drawn_K = pool.draw(sampler, rng, positive["user_id"].to_numpy(), events)
    negative = positive[np.repeat(np.arange(positive.height), sampler.ratio)].with_columns(pool.rows(drawn_K))
    rows = pl.concat([p.with_columns(pl.lit(y, pl.Int8).alias("label")) for y, p in ((1, positive), (0, negative))])
    # Rows of one second are shuffled: were the positive always first, statistics of earlier rows would tell labels.
    shuffle = pl.Series("shuffle", rng.integers(0, 2**63, rows.height, dtype=np.int64))
    rows.drop("action").with_columns(shuffle).write_parquet(parts.file("rows", bucket), compression="lz4")
    return np.bincount(positive["time"].to_numpy() - START, minlength=END - START)


def _drop_duplicates(events: pl.DataFrame, account: Account) -> pl.DataFrame:
    """The first of every group of equal events."""
    columns = ["user_id", "item", "category", "time", "action"]
    again = ~pl.struct(columns).is_first_distinct()
    names = {v: k for k, v in ACTIONS.items()}
    for user, item, category, time, action, line in events.filter(again).select(*columns, "position").iter_rows():
        text = f"{user},{item},{category},{names[action]},{time}"
        account.leave_out(line, "duplicate row", "line", text)
        account.kept -= 1
    return events.filter(~again)


def _cuts(rule: str, count_T: np.ndarray, account: Account) -> tuple[dict[str, Any], pl.Expr]:
    """The split for the manifest, and as an expression on rows."""
    if rule == "per_user":
        by = "last 20 % of each user's positives are test, the last tenth of the others validation; ties in file order"
        return {"by": by}, pl.col("split")
    before_T = np.cumsum(count_T[: TEST_FROM - START])
    if not before_T[-1]:
        raise BadInput(f"{account.path}: no positive before 2017-12-02 (UTC+8), so no train row; give more rows")
    valid_from = START + int(np.searchsorted(before_T, (1 - VALID_SHARE) * before_T[-1]))
    late = pl.when(pl.col("time") >= TEST_FROM).then(pl.lit("test"))
    split = late.when(pl.col("time") >= valid_from).then(pl.lit("valid")).otherwise(pl.lit("train"))
    cuts = {"by": "time of the event", "valid_from_time": valid_from, "test_from_time": TEST_FROM}
    return cuts, split


def _vocabularies(parts: _Parts, split: pl.Expr, shards: Shards, min_count: int) -> dict[str, Vocabulary]:
    """Ids of users, items and categories from the train rows, negatives included."""
    out = {}
    for column, source in (("user", "user_id"), ("item", "item"), ("category", "category")):
        train = parts.rows().filter(split == "train").group_by(pl.col(source).alias("value"))
        counts = train.agg(pl.len().alias("count")).collect(engine="streaming")
        out[column] = shards.vocabulary(column, counts.with_columns(pl.col("value").cast(pl.String)), min_count)
    return out


def _encoded(rows: pl.DataFrame, vocabularies: Mapping[str, Vocabulary], columns: tuple[str, ...]) -> pl.DataFrame:
    text = rows.with_columns(pl.col(columns).cast(pl.String))
    return text.with_columns(vocabularies[c].encode(c) for c in columns)


def _event_parts(parts: _Parts, vocabularies: Mapping[str, Vocabulary]) -> Iterator[pl.DataFrame]:
    for bucket in range(parts.buckets):
        log = _encoded(pl.read_parquet(parts.file("log", bucket)), vocabularies, ("item", "category"))
        yield log.select(
            pl.col("item").alias("hist_item"), pl.col("category").alias("hist_category"),
            pl.col("action").cast(pl.Int32).alias("hist_action"), "time",
        )  # fmt: skip


def _spread_rows(parts: _Parts, split: pl.Expr, rows_T: np.ndarray) -> None:
    """From files by bucket of users to files by split and window of seconds; slices become those of the whole log."""
    sum_T = np.cumsum(rows_T)
    edges = [np.searchsorted(sum_T, at, side="right") for at in range(WINDOW_ROWS, int(sum_T[-1]), WINDOW_ROWS)]
    bounds = np.unique(edges) + START
    at = 0
    for bucket in range(parts.buckets):
        rows = pl.read_parquet(parts.file("rows", bucket))
        window = pl.Series("window", np.searchsorted(bounds, rows["time"].to_numpy(), side="right"))
        rows = rows.with_columns(pl.col("hist_begin", "hist_end") + at, split.alias("split"), window)
        for (name, number), part in rows.partition_by("split", "window", as_dict=True, include_key=False).items():
            part.write_parquet(parts.file(f"{name}-{number:05d}", bucket), compression="lz4")
        parts.file("rows", bucket).unlink()
        at += pl.scan_parquet(parts.file("log", bucket)).select(pl.len()).collect().item()


def _write_rows(parts: _Parts, vocabularies: Mapping[str, Vocabulary], shards: Shards) -> None:
    """Every split in time order, window after window."""
    for name in SPLITS:
        files = sorted(parts.folder.glob(f"{name}-*.parquet"))
        for _, group in groupby(files, key=lambda f: f.name.split("-")[1]):
            rows = pl.concat([pl.read_parquet(f) for f in group]).sort("time", "shuffle", "position", "label")
            rows = rows.with_columns(pl.col("user_id").alias("user"), pl.col("item", "category").name.prefix("raw_"))
            fixed = ("label", "user_id", "time", "hist_begin", "hist_end")
            encoded = _encoded(rows, vocabularies, ("user", "item", "category"))
            shards.write(name, encoded.select(*fixed, *CATEGORICAL, *ASIDE))


def schema(name: str, cardinality: Mapping[str, int], history: int) -> FeatureSchema:
    """User, item, category and the history `hist` of item, category and action."""
    known = [Field(name=n, kind="categorical", role=r, cardinality=cardinality[n]) for n, r in CATEGORICAL.items()]  # type: ignore[arg-type]
    events = [
        Field(
            name=f"hist_{n}", kind="sequence", role="behaviour", max_length=history, history="hist",
            cardinality=cardinality.get(n, FIRST_ID + len(ACTIONS)), target=n if n in cardinality else None,
        )
        for n in ("item", "category", "action")
    ]  # fmt: skip
    return FeatureSchema(name=name, track="sequence", fields=(*known, *events))


OPTIONS: dict[str, Any] = {**asdict(Task()), **asdict(Sampler())}

SPEC = DataSpec(
    name="taobao_behaviour",
    title="Taobao UserBehavior, sampled negatives",
    track="sequence",
    description="events of nine days with category and behaviour; give your own copy of UserBehavior.csv, plain or "
    "gzipped, and, if it is a part of the whole, a larger pool for the negatives (pool=FILE)",
    terms="Alibaba Tianchi data set 649: registration, research; ctrbench neither ships nor downloads it",
    splits=("global_time", "per_user"),
    options={"pool": "", **OPTIONS},
    fetch=fetch,
    build=build,
    fetch_options=("pool",),
    fit=FIT,
)

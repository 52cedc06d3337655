"""Taobao UserBehavior (Tianchi 649) as a ranking task: will this user view this item now?

A positive is an event of the file (page views by default) of a user with some past; its negatives are items drawn from
a pool of events at the same second. History: all events of the user with a strictly earlier second, whatever their
behaviour, with item, category and action.

In memory nothing grows with the file but the vocabularies and the pool's distinct items (datasets/buckets.py).

Dims: K negatives
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctrbench.datasets.account import Account
from ctrbench.datasets.buckets import Buckets, Columns
from ctrbench.datasets.errors import BadInput, nearest
from ctrbench.datasets.movielens_1m import assign_splits, with_history
from ctrbench.datasets.negatives import Pool, Sampler
from ctrbench.datasets.published import Published, compare
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema, Field
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import DataSpec, Raw, plain_bytes, sha256_file
from ctrbench.datasets.taobao_reader import ACTIONS, read

TEST_FROM = 1_512_144_000
"""2017-12-02 00:00 in UTC+8: the last two of the nine days are test (data.md, section 4)."""
PUBLISHED = Published(rows=100_150_807)
VALID_SHARE = 0.1
"""Validation is this share of the positives before the test cut, the latest ones."""
CATEGORICAL = {"user": "user", "item": "item", "category": "item"}
"""Categorical field -> role."""
ASIDE = {"raw_item": "item", "raw_category": "category"}
"""Target ids of the file: the control must see items that `min_count` hides from models, or it misses leaks."""
COLUMNS = Columns(
    categorical={"user": "user_id", "item": "item", "category": "category"},
    events={
        "hist_item": ("item", "item"), "hist_category": ("category", "category"), "hist_action": ("action", None),
    }, aside=ASIDE,
)  # fmt: skip
KINDS = dict.fromkeys(("user_id", "item", "category", "time", "action", "position"), pl.Int64) | {"action": pl.Int8}
"""Columns of an event."""
BY = {
    "global_time": "time of the event",
    "per_user": "last 20 % of each user's positives are test, the last tenth of the others validation; ties in file "
    "order",
}
"""Split rule -> how the manifest words it."""


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
    buckets = Buckets(shards, raw.text_bytes)
    buckets.read("events", account, read)
    account.close()
    if not raw.synthetic:
        compare(account, raw.path.name, PUBLISHED, rows=account.read)
    pool, pool_rows = _pool(buckets, pool_path, account)

    def make(bucket: int) -> tuple[pl.DataFrame, pl.DataFrame, list[Path]]:
        events, spent = buckets.frame("events", bucket, KINDS)
        # One stream a bucket: how many buckets there are follows from the bytes of the file.
        rng = np.random.default_rng([sampler.seed, bucket])
        return (*_rows_and_log(events, task, sampler, pool, rule, rng, account), spent)

    buckets.each(make, account)
    cut = buckets.cut(BY[rule], None if rule == "per_user" else TEST_FROM, VALID_SHARE, raw.path)
    cardinality = buckets.store(replace(COLUMNS, min_count=task.min_count), cut)
    described = {
        "pool": pool_path.name if pool_path else "the file's own events",
        "pool_events": pool.events, "pool_items": pool.items, "positive_events": cut.positives,
        "pool_rows": pool_rows, **sampler.to_json(), **asdict(task),
    }  # fmt: skip
    return {
        "schema": schema(name, cardinality, task.history), "split": cut.said, "aside": list(ASIDE),
        "sampler": described, "history_only": account.kept - cut.positives, "sampled": cut.positives * sampler.ratio,
    }  # fmt: skip


def _pool(buckets: Buckets, path: Path | None, account: Account) -> tuple[Pool, dict[str, Any] | None]:
    """The pool of a file, or of the events that were read; and how the lines of the file fared."""
    noted, file = buckets.journal.done("pool"), buckets.folder / "pool.parquet"
    if noted is not None:
        return Pool(pl.read_parquet(file)), noted["rows"]
    pool, counted = Pool(), None
    if path is None:
        for events in buckets.chunks("events", ["item", "category"]):
            pool.add(events)
    else:
        counted = Account(path, account.policy, account.max_bad_fraction)
        for events in read(path, counted):
            pool.add(events)
            buckets.watch.at(f"reading {path.name}", counted.mark, plain_bytes(path))
        counted.close()
    pool.close()
    pool.table.write_parquet(file)
    fate = counted.to_json() if counted else None
    buckets.journal.finish("pool", {"rows": fate}, [file])
    return pool, fate


def _rows_and_log(
    events: pl.DataFrame, task: Task, sampler: Sampler, pool: Pool, rule: str, rng: np.random.Generator,
    account: Account,
) -> tuple[pl.DataFrame, pl.DataFrame]:  # fmt: skip
    """Sorts the events of a bucket of users, finds histories and positives, draws negatives."""
    if task.duplicates == "drop_exact":
        events = _drop_duplicates(events, account)
    log = with_history(events)
    wanted = pl.col("action").is_in([ACTIONS[b] for b in task.behaviours])
    positive = log.filter(wanted & (pl.col("hist_end") - pl.col("hist_begin") >= task.min_history))
    if rule == "per_user":
        positive, _ = assign_splits(positive, rule)
    drawn_K = pool.draw(sampler, rng, positive["user_id"].to_numpy(), events)
    negative = positive[np.repeat(np.arange(positive.height), sampler.ratio)].with_columns(pool.rows(drawn_K))
    rows = pl.concat([p.with_columns(pl.lit(y, pl.Int8).alias("label")) for y, p in ((1, positive), (0, negative))])
    # Rows of one second are shuffled: were the positive always first, statistics of earlier rows would tell labels.
    shuffle = pl.Series("shuffle", rng.integers(0, 2**63, rows.height, dtype=np.int64))
    return rows.drop("action").with_columns(shuffle), log.select("item", "category", "action", "time")


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
    room=5.0,
    fit=FIT,
)

"""Prepared rows made raw again, so that a feature path can be run on them from its beginning.

A raw impression knows its user, its item, its second and its label; what else is known of them lies in two side tables,
as text. A prepared row tells that text through its vocabularies; values out of vocabulary get a text that none holds.

Dims: N impressions, E events
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepared import SPLITS, Prepared
from ctrbench.datasets.schema import MISSING, OOV, FeatureSchema, Field
from ctrbench.datasets.shards import Vocabulary

Ints = npt.NDArray[np.int64]
USER, ITEM = "user_key", "item_key"
"""Columns by which side tables are joined."""
UNSEEN = "value of no train row"


@dataclass(slots=True)
class Steps:
    """CPU seconds of the steps of one pass, all threads of the process."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Adds what the block takes; `time.process_time` ticks in ns, `os.times` in 10 ms."""
        start = time.process_time()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.process_time() - start


@dataclass(frozen=True, kw_only=True)
class Events:
    """Events of some users in the order of time."""

    user_E: Ints
    """As `Prepared`'s `user_id`."""
    time_E: Ints
    text: pl.DataFrame
    """Raw values of the fields that mirror a target, by the events' own names."""
    ids: dict[str, Ints]
    """All fields as ids."""


@dataclass(frozen=True, kw_only=True)
class RawData:
    """Impressions in the order of time, what they join with, and what their users did before."""

    impressions: pl.DataFrame
    """`USER`, `ITEM`, `user_id`, `time`, `label`, and the categorical fields of neither side as text."""
    users: pl.DataFrame
    """`USER` and the user's fields as text."""
    items: pl.DataFrame
    """`ITEM` and the item's fields as text."""
    events: Events


def sides(schema: FeatureSchema) -> tuple[list[str], list[str], list[str]]:
    """Names of the categorical fields of the user, of the item, and of neither.

    Raises:
        BadInput: no user, no item or no history.
    """
    user, item = ([f.name for f in schema.categorical if f.role == role] for role in ("user", "item"))
    if not user or not item or not schema.histories:
        raise BadInput(f"{schema.name}: a feature path needs fields of a user, of an item, and a history")
    return user, item, [f.name for f in schema.categorical if f.role not in ("user", "item")]


def texts(prepared: Prepared, name: str, ids: pl.Series) -> pl.Series:
    """Raw values of a field's ids; null where missing, `UNSEEN` where out of vocabulary."""
    table = prepared.vocabulary(name)
    known = pl.DataFrame({"id": [MISSING, OOV], "text": [None, UNSEEN]}, schema={"id": pl.Int32, "text": pl.String})
    known = pl.concat([known, table.select("id", pl.col("value").alias("text"))])
    asked = pl.DataFrame({"id": ids.cast(pl.Int32)})
    return asked.join(known, on="id", how="left", maintain_order="left")["text"].alias(ids.name)


def vocabularies(prepared: Prepared) -> dict[str, Vocabulary]:
    """Of every categorical field, as `prepare` used them."""
    out = {}
    for f in prepared.schema.categorical:
        table = prepared.vocabulary(f.name)
        out[f.name] = Vocabulary.of(table.select("value", "count"), 0, table["value"].to_list())
    return out


def rows_of_users(prepared: Prepared, rows: int, seed: int) -> pl.DataFrame:
    """All impressions of randomly chosen users, as many users as make `rows` impressions, in the order of time."""
    schema = prepared.schema
    history = next(iter(schema.histories))
    columns = ["label", "user_id", "time", f"{history}_begin", f"{history}_end", *(f.name for f in schema.categorical)]
    log = pl.concat([pl.read_parquet([p for p, _ in prepared.shards(s)], columns=columns) for s in SPLITS])
    users = log.group_by("user_id").len().sort("user_id").sample(fraction=1.0, shuffle=True, seed=seed)
    chosen = users.filter(pl.col("len").cum_sum() - pl.col("len") < rows)["user_id"]
    return log.filter(pl.col("user_id").is_in(chosen.implode())).sort("time", maintain_order=True)


def raw_data(prepared: Prepared, rows: pl.DataFrame) -> RawData:
    """Rows of `rows_of_users` as they were before any feature was made.

    Raises:
        BadInput: as `sides`.
    """
    user, item, neither = sides(prepared.schema)
    text = rows.with_columns(texts(prepared, name, rows[name]) for name in (*user, *item, *neither))
    # Items out of vocabulary are told apart by their other fields, so that the side table has one row a key.
    unseen = pl.concat_str([pl.col(c).fill_null("") for c in item], separator="|")
    text = text.with_columns(
        pl.col("user_id").cast(pl.String).alias(USER),
        pl.when(pl.col(item[0]) == UNSEEN).then(unseen).otherwise(pl.col(item[0]).fill_null("")).alias(ITEM),
    )
    return RawData(
        impressions=text.select(USER, ITEM, "user_id", "time", "label", *neither),
        users=text.select(USER, *user).unique(USER, keep="first", maintain_order=True),
        items=text.select(ITEM, *item).unique(ITEM, keep="first", maintain_order=True),
        events=_events(prepared, rows),
    )  # fmt: skip


def _events(prepared: Prepared, rows: pl.DataFrame) -> Events:
    """Events that any of the rows may see; a user's events lie together in the log."""
    history, fields = next(iter(prepared.schema.histories.items()))
    log = prepared.events(history)
    spans = rows.group_by("user_id").agg(pl.col(f"{history}_begin").min(), pl.col(f"{history}_end").max())
    begin_U, end_U = spans[f"{history}_begin"].to_numpy(), spans[f"{history}_end"].to_numpy()
    user_E = np.repeat(spans["user_id"].to_numpy(), end_U - begin_U)
    at_E = np.concatenate([np.arange(b, e) for b, e in zip(begin_U, end_U, strict=True)])
    order_E = np.argsort(log["time"].to_numpy()[at_E], kind="stable")
    user_E, part = user_E[order_E], log[at_E[order_E]]
    return Events(
        user_E=user_E, time_E=part["time"].to_numpy().astype(np.int64),
        text=pl.DataFrame([texts(prepared, f.table, part[f.name]) for f in mirrors(fields)]),
        ids={f.name: part[f.name].to_numpy().astype(np.int64) for f in fields},
    )  # fmt: skip


def mirrors(fields: tuple[Field, ...]) -> list[Field]:
    """Event fields whose values go through a target's vocabulary."""
    return [f for f in fields if f.target is not None]

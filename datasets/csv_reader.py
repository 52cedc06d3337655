"""Comma-separated logs with a header, as publishers write them: no quotes, one row a line, columns found by name.

Two readers of a line: `explain` is the plain one, `_parse` the fast one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput, nearest
from ctrbench.datasets.numbers import number, wrong_number
from ctrbench.datasets.textfile import CHUNK, Lines, read_lines, split_cells

Kind = Literal["id", "integer", "decimal", "flag", "text"]
HEAD = 1 << 16
"""Bytes read for a header alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """What a file's columns are."""

    columns: Mapping[str, Kind]
    """Those that are read; others are ignored, with a note unless they are in `ignored`."""
    optional: tuple[str, ...] = ()
    """Columns that may be empty: missing."""
    missing: tuple[str, ...] = ()
    """Texts that mean a missing value too, in optional columns."""
    ignored: tuple[str, ...] = ()
    """Columns of the publisher's that are left out on purpose."""
    period: tuple[str, int, int] | None = None
    """(column, first second, first second after): rows outside are no part of the data set."""
    outside: str = "time outside the period"
    most_outside: float = 0.01
    """Share of rows outside above which the unit or the zone is taken for wrong."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other spelling, lower case -> name."""

    def kind(self, name: str) -> Kind:
        return self.columns[name]


def explain(line: str, names: list[str], form: Format) -> tuple[str, str, str] | None:
    """The plain reader: (reason, field, value) of the first thing wrong with a line, None for a good one."""
    values = line.split(",")
    if len(values) != len(names):
        return f"wrong field count, {len(names)} expected", f"{len(values)} fields", line
    row = dict(zip(names, values, strict=True))
    for name, kind in form.columns.items():
        value = row[name]
        if value == "" or (name in form.optional and value in form.missing):
            if name in form.optional:
                continue
            return f"{name} is empty", name, value
        if kind == "flag" and value not in ("0", "1"):
            return f"{name} is not 0 or 1", name, value
        if kind not in ("flag", "text") and (reason := wrong_number(value, kind)):  # type: ignore[arg-type]
            return reason, name, value
    if form.period is not None:
        name, start, end = form.period
        if not start <= int(row[name].split(".")[0]) < end:
            return form.outside, name, row[name]
    return None


def read(path: Path, account: Account, form: Format, chunk: int = CHUNK) -> Iterator[pl.DataFrame]:
    """Good rows in file order, chunk by chunk, from `account.mark` on.

    Yields:
        the columns of `form` (ids, integers and flags Int64, decimals Float64, text; null = missing) and `position`,
        the line.

    Raises:
        BadInput: as `read_lines`; a required column absent or named twice; too many rows outside the period; under
            strict, the first bad row.
    """
    names: list[str] = []
    if account.mark:
        first = account.part(path)
        for lines in read_lines(path, first, HEAD, most=1):
            names = _header(lines.line(lines.bounds(), 0), form, first)
    for lines in read_lines(path, account, chunk, start=account.mark):
        if lines.first == 1:
            names = _header(lines.line(lines.bounds(), 0), form, account)
            account.header += 1
            lines = lines.after_first()
        rows = _parse(lines, names, form, account)
        account.kept += rows.height
        account.mark = lines.end
        _check_period(account, form, 0.5)  # hopeless files end at the first chunk
        yield rows
    _check_period(account, form, form.most_outside)


def _header(line: str, form: Format, account: Account) -> list[str]:
    """Names of the columns, ours by our names."""
    found = [n.strip() for n in line.split(",")]
    if found != line.split(","):
        account.notes["header names with spaces around them"] += 1
    names = [form.aliases.get(n.casefold(), n) for n in found]
    shown = f"found {', '.join(found)[:80]!r}"
    absent = [c for c in form.columns if c not in names]
    if len(absent) == len(form.columns):
        account.fail(1, "no header where one belongs", shown, f"line 1 must name {', '.join(form.columns)}")
    if absent:
        account.fail(1, f"required column absent: {nearest(absent[0], names)}", shown, "is it another file of the set?")
    if twice := [c for c in form.columns if names.count(c) > 1]:
        account.fail(1, f"column named twice: {twice[0]}", shown, "remove or rename one of them")
    others = [n for n in names if n not in form.columns and n not in form.ignored]
    if others:
        account.notes[f"columns that are not the publisher's, ignored: {', '.join(others)[:120]}"] += 1
    return names


def _parse(lines: Lines, names: list[str], form: Format, account: Account) -> pl.DataFrame:
    """The fast reader; only lines that are not kept are looked at one by one."""
    ends = lines.bounds()
    whole = lines.delimiters(",", ends) == len(names) - 1
    places = [str(i) for i in range(len(names))]  # names may repeat among those that are not read
    table = split_cells(lines.only(ends, whole), ",", places)
    at = np.flatnonzero(whole)
    made, checks = [], []
    for name, kind in form.columns.items():
        text = pl.col(str(names.index(name)))
        empty = text.is_null()
        if name in form.optional and form.missing:
            empty = empty | text.is_in(form.missing)
        text = pl.when(~empty).then(text)
        value = _value(text, kind)
        made.append(value.alias(name))
        checks.append(value.is_not_null() | empty if name in form.optional else value.is_not_null())
    if form.period is not None:
        name, start, end = form.period
        checks.append(_value(pl.col(str(names.index(name))), form.columns[name]).is_between(start, end, closed="left"))
    good = table.select(pl.all_horizontal(checks).fill_null(False)).to_series().to_numpy()
    _report(lines, ends, np.sort(np.concatenate([np.flatnonzero(~whole), at[~good]])), names, form, account)
    rows = table.select(*made, pl.Series("position", at + lines.first, dtype=pl.Int64)).filter(pl.Series(good))
    return rows


def _value(text: pl.Expr, kind: Kind) -> pl.Expr:
    if kind == "text":
        return text
    if kind == "flag":
        return pl.when(text.is_in(["0", "1"])).then(text.cast(pl.Int64, strict=False))
    return number(text, kind)


def _report(lines: Lines, ends: np.ndarray, at: np.ndarray, names: list[str], form: Format, account: Account) -> None:
    """Hands every line that is not kept to the account: left out for its time, or bad."""
    for i in at:
        text, place = lines.line(ends, int(i)), lines.first + int(i)
        found = explain(text, names, form)
        if found is None:
            raise AssertionError(f"{account.path}:{place}: the fast and the plain reader disagree on {text!r}")
        reason, column, value = found
        if lines.unterminated and i == len(ends) - 1:
            account.bad(place, f"truncated last line, {reason}", column, value)
        elif form.period is not None and reason == form.outside:
            account.leave_out(place, reason, column, value)
        else:
            account.bad(place, reason, column, value)


def _check_period(account: Account, form: Format, limit: float) -> None:
    count, rows = account.left_out[form.outside], account.read - account.header
    if count > limit * rows:
        line = int(account.places[form.outside][0].removeprefix(f"{account.path}:").split(":")[0])
        reason = f"{count} of {rows} rows have a {form.outside}, more than {limit:.0%}"
        account.fail(line, reason, remedy="is it another unit, another zone, or another data set?")


def files(data: str, folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Name -> its file in the folder, plain or gzipped.

    Raises:
        BadInput: no folder, or one of them is absent; names the data set.
    """
    if not folder.is_dir():
        wanted = ", ".join(f"{name}.csv" for name in names)
        raise BadInput(f"{data}: {folder}: no such folder; pass the one with {wanted}")
    found = {}
    for name in names:
        here = [f for f in (folder / f"{name}.csv", folder / f"{name}.csv.gz") if f.is_file()]
        if not here:
            there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            raise BadInput(f"{folder}: {name}.csv not found, nor {name}.csv.gz; there: {there}; rename or add the file")
        found[name] = here[0]
    return found

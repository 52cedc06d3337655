"""Lines of Criteo data in its three public forms: tab-separated without header, and comma-separated with one.

Two readers of a line: `explain` is the plain one, `_parse` the fast one. Missing = empty field; categories are opaque
text, integers may be negative; in the encoded form (Criteo_x1) both are numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ctrbench.datasets.account import Account
from ctrbench.datasets.numbers import Number, number, wrong_number
from ctrbench.datasets.textfile import CHUNK, Lines, read_lines, split_cells

INTEGERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = ("label", *INTEGERS, *CATEGORIES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """One public form of the 40 columns."""

    delimiter: str
    header: bool
    """Line 1 names the columns, in any order and letter case; else they are `COLUMNS`, in that order."""
    encoded: bool = False
    """I1..I13 are decimals and C1..C26 whole numbers; else integers and text."""
    negative: str = "I2"
    """Column whose negative integers are the publisher's; those elsewhere are noted."""
    remedy: str
    """What to do with a file of another form."""

    @property
    def numbers(self) -> dict[str, Number]:
        """Columns that hold numbers."""
        ids: dict[str, Number] = dict.fromkeys(CATEGORIES, "id") if self.encoded else {}
        integers: Number = "decimal" if self.encoded else "integer"
        return {**dict.fromkeys(INTEGERS, integers), **ids}


TSV = Layout(
    delimiter="\t", header=False,
    remedy="the original file has none: remove it, and write tabs if the fields are separated by commas",
)  # fmt: skip
CSV = Layout(delimiter=",", header=True, remedy="line 1 must be the header Label,I1..I13,C1..C26, separated by commas")
ENCODED = Layout(
    delimiter=",", header=True, encoded=True,
    remedy="line 1 must be the header label,I1..I13,C1..C26, separated by commas",
)  # fmt: skip


def explain(line: str, layout: Layout = TSV, columns: tuple[str, ...] = COLUMNS) -> tuple[str, str, str] | None:
    """The plain reader: (reason, field, value) of the first thing wrong with a line, None for a good one.

    Args:
        line: without its end.
        layout: form of the file.
        columns: what its fields are, in order.
    """
    values = line.split(layout.delimiter)
    if len(values) != len(columns):
        return f"wrong field count, {len(columns)} expected", f"{len(values)} fields", line
    row = dict(zip(columns, values, strict=True))
    if row["label"] not in ("0", "1"):
        return ("label is not 0 or 1" if row["label"] else "label is empty"), "label", row["label"]
    for name, kind in layout.numbers.items():
        if row[name] and (reason := wrong_number(row[name], kind)):
            return reason, name, row[name]
    return None


def read(
    path: Path, account: Account, chunk: int = CHUNK, *, layout: Layout = TSV, most: int = 0
) -> Iterator[pl.DataFrame]:
    """Good rows in file order, chunk by chunk: label Int8, I1..I13 Int64, C1..C26 text; null = missing.

    In the encoded form I1..I13 are Float64 and ids are text without leading zeros or decimals.

    Args:
        path: plain or gzipped file.
        account: of this file alone.
        chunk: bytes of text held at a time.
        layout: form of the file.
        most: lines after which the rest is not read; 0 reads all.

    Raises:
        BadInput: as `read_lines`; a header too many or absent; an unlabelled file; under strict, the first bad row.
    """
    columns = COLUMNS
    for lines in read_lines(path, account, chunk, most):
        if lines.first == 1 and layout.header:
            columns = _header(lines.line(lines.bounds(), 0), layout, account)
            lines = lines.after_first()
        elif lines.first == 1:
            _no_header(lines, layout, account)
        rows = _parse(lines, layout, columns, account)
        account.kept += rows.height
        yield rows


def _header(head: str, layout: Layout, account: Account) -> tuple[str, ...]:
    """The columns that a header names, ours by our names."""
    known = {name.casefold(): name for name in COLUMNS}
    found = [name.strip() for name in head.split(layout.delimiter)]
    columns = tuple(known.get(name.casefold(), name) for name in found)
    absent = [name for name in COLUMNS if name not in columns]
    shown = f"found {', '.join(found)[:80]!r}"
    if len(absent) == len(COLUMNS):
        account.fail(1, "no header where one belongs", shown, layout.remedy)
    if absent:
        account.fail(1, f"required columns absent: {', '.join(absent)}", shown, layout.remedy)
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        account.fail(1, f"column named twice: {twice[0]}", shown, "remove or rename one of them")
    for name in columns:
        if name not in COLUMNS:
            account.notes[f"column {name!r} is not Criteo's and was ignored"] += 1
    account.header += 1
    return columns


def _no_header(lines: Lines, layout: Layout, account: Account) -> None:
    ends = lines.bounds()
    head = lines.line(ends, 0)
    names = {n.strip().casefold() for n in re.split(r"[\t,]", head)}
    if names & {"label", "i1", "c1"}:
        account.fail(1, "header where none belongs", repr(head[:40]), layout.remedy)
    if (lines.delimiters(layout.delimiter, ends) == len(COLUMNS) - 2).all():
        account.fail(
            1, "unlabelled test file: 39 fields in every row, 40 expected", repr(head[:40]),
            "use train.txt, the labelled file",
        )  # fmt: skip


def _parse(lines: Lines, layout: Layout, columns: tuple[str, ...], account: Account) -> pl.DataFrame:
    """The fast reader of a chunk; only bad lines are looked at one by one."""
    ends = lines.bounds()
    whole = lines.delimiters(layout.delimiter, ends) == len(columns) - 1
    table = split_cells(lines.only(ends, whole), layout.delimiter, columns)
    numbers = layout.numbers
    table = table.with_columns(number(pl.col(name), kind).alias(f"{name}_number") for name, kind in numbers.items())
    good = table.select(
        pl.all_horizontal(
            pl.col("label").is_in(["0", "1"]).fill_null(False),
            *(pl.col(name).is_null() | pl.col(f"{name}_number").is_not_null() for name in numbers),
        )
    ).to_series()
    bad = np.sort(np.concatenate([np.flatnonzero(~whole), np.flatnonzero(whole)[~good.to_numpy()]]))
    _report(lines, ends, bad, layout, columns, account)
    table = table.filter(good)
    _note_oddities(table, layout, account)
    ids = (pl.col(f"{c}_number").cast(pl.String).alias(c) if layout.encoded else pl.col(c) for c in CATEGORIES)
    return table.select(
        pl.col("label").cast(pl.Int8), *(pl.col(f"{c}_number").alias(c) for c in INTEGERS), *ids
    )  # fmt: skip


def _report(
    lines: Lines, ends: np.ndarray, bad: np.ndarray, layout: Layout, columns: tuple[str, ...], account: Account
) -> None:
    for i in bad:
        text = lines.line(ends, int(i))
        found = explain(text, layout, columns)
        if found is None:
            raise AssertionError(
                f"{account.path}:{lines.first + i}: the fast and the plain reader disagree on {text!r}"
            )
        reason, field, value = found
        if lines.unterminated and i == len(ends) - 1:
            reason = f"truncated last line, {reason}"
        account.bad(lines.first + int(i), reason, field, value)


def _note_oddities(table: pl.DataFrame, layout: Layout, account: Account) -> None:
    whole = [name for name, kind in layout.numbers.items() if kind != "decimal"]
    decimals = table.select(pl.sum_horizontal(pl.col(whole).str.contains(".", literal=True).sum())).item()
    if decimals:
        account.notes[f"{'ids' if layout.encoded else 'integers'} written as decimals (1.0)"] += int(decimals)
    if layout.encoded:
        return
    negative = table.select(
        pl.sum_horizontal((pl.col([f"{c}_number" for c in INTEGERS if c != layout.negative]) < 0).sum())
    ).item()
    if negative:
        account.notes[f"negative integers outside {layout.negative}"] += int(negative)

"""Lines of Criteo data in its three public forms: tab-separated without header, and comma-separated with one.

Three readers: `explain` is the plain one, of a line; `_parse` takes any chunk and asks it about bad lines; `_quick`
takes chunks in which nothing is odd, nearly all of them, and hands every other one to `_parse`. Missing = empty field;
categories are opaque text, integers may be negative; in the encoded form (Criteo_x1) both are numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ctrbench.datasets.account import Account
from ctrbench.datasets.ahead import ahead
from ctrbench.datasets.hex_tokens import pack
from ctrbench.datasets.numbers import Number, number, wrong_number
from ctrbench.datasets.textfile import CHUNK, Lines, read_lines, split_cells

INTEGERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = ("label", *INTEGERS, *CATEGORIES)
HEAD = 1 << 16
"""Bytes read for a header alone."""


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
    path: Path, account: Account, chunk: int = CHUNK, *, layout: Layout = TSV, most: int = 0, tokens: bool = False
) -> Iterator[pl.DataFrame]:
    """Good rows in file order, chunk by chunk: label Int8, I1..I13 Int64, C1..C26 text; null = missing.

    In the encoded form I1..I13 are Float64 and ids are text without leading zeros or decimals.

    Args:
        path: plain or gzipped file.
        account: of this file alone; rows come from `account.mark` on, of which it knows those before.
        chunk: bytes of text held at a time; a few chunks are in work at once.
        layout: form of the file.
        most: lines after which the rest is not read; 0 reads all.
        tokens: a column of C1..C26 is uint32 in those chunks where all its values are 8 hex digits (`hex_tokens`).

    Raises:
        BadInput: as `read_lines`; a header too many or absent; an unlabelled file; under strict, the first bad row.
    """
    # Text is read ahead of the rows: its lines and oddities are counted apart, and count when their rows come out.
    text = account.part(path)
    text.read = account.read
    seen = Counter[str]()
    for (lines, columns, read_so_far, noted), quick in ahead(
        _with_columns(path, text, chunk, most, account.mark, layout), lambda c: _quick(c[0], c[1], layout, tokens)
    ):
        account.read, account.header, account.mark = read_so_far, text.header or account.header, lines.end
        account.notes += noted - seen
        seen = noted
        if quick is None:
            rows = _parse(lines, layout, columns, account)
            rows = pack(rows, CATEGORIES) if tokens and not layout.encoded else rows
        else:
            rows, negative = quick
            _note_negative(negative, layout, account)
        account.kept += rows.height
        yield rows


def _with_columns(
    path: Path, text: Account, chunk: int, most: int, start: int, layout: Layout
) -> Iterator[tuple[Lines, tuple[str, ...], int, Counter[str]]]:
    """Chunks below the header, with what their fields are, and the lines read and the notes made up to there."""
    columns = COLUMNS
    if start and layout.header:
        first = text.part(path)
        for lines in read_lines(path, first, HEAD, most=1):
            columns = _header(lines.line(lines.bounds(), 0), layout, first)
    for lines in read_lines(path, text, chunk, most, start):
        if lines.first == 1 and layout.header:
            columns = _header(lines.line(lines.bounds(), 0), layout, text)
            lines = lines.after_first()
        elif lines.first == 1:
            _no_header(lines, layout, text)
        yield lines, columns, text.read, Counter(text.notes)


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
    unlabelled = len(COLUMNS) - 2
    if head.count(layout.delimiter) == unlabelled and (lines.delimiters(layout.delimiter, ends) == unlabelled).all():
        account.fail(
            1, "unlabelled test file: 39 fields in every row, 40 expected", repr(head[:40]),
            "use train.txt, the labelled file",
        )  # fmt: skip


def _quick(lines: Lines, columns: tuple[str, ...], layout: Layout, tokens: bool) -> tuple[pl.DataFrame, int] | None:
    """The rows of a chunk without an oddity and how many negative integers are noted; None = let `_parse` see it.

    With digits, a to f, minus, delimiters and newlines alone, as many delimiters as there must be and no line with
    too many of them, Polars takes for integers what `explain` does, less than that for `1.0`.
    """
    text = lines.text
    allowed = b"0123456789abcdef-\n" + layout.delimiter.encode()
    if layout.encoded or not text or text.translate(None, allowed):
        return None
    per_line = len(columns) - 1
    marks = np.frombuffer(text, np.uint8)
    height = int(np.count_nonzero(marks == ord("\n")))
    if np.count_nonzero(marks == ord(layout.delimiter)) != height * per_line:
        return None
    try:
        table = split_cells(text, layout.delimiter, columns, INTEGERS)
    except (pl.exceptions.ComputeError, pl.exceptions.SchemaError):  # no integer, or a line with a field too many
        return None
    label = pl.col("label")
    others = pl.col([c for c in INTEGERS if c != layout.negative])
    good, negative = table.select(
        (label.is_in(["0", "1"]).fill_null(False)).all().alias("good"),
        pl.sum_horizontal((others < 0).sum()).alias("negative"),
    ).row(0)
    if table.height != height or not good:
        return None
    table = table.select(label.cast(pl.Int8), *INTEGERS, *CATEGORIES)
    return pack(table, CATEGORIES, digits_only=True) if tokens else table, int(negative)


def _parse(lines: Lines, layout: Layout, columns: tuple[str, ...], account: Account) -> pl.DataFrame:
    """The reader of any chunk; only bad lines are looked at one by one."""
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
    _note_negative(int(negative), layout, account)


def _note_negative(found: int, layout: Layout, account: Account) -> None:
    if found:
        account.notes[f"negative integers outside {layout.negative}"] += found

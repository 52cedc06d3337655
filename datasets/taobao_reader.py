"""Lines of Taobao's UserBehavior.csv: `user,item,category,behaviour,unix seconds`, commas, no header (Tianchi 649).

The data set is nine days in UTC+8; rows of another time are in the public file and are no part of it. Users are not
assumed to be contiguous, nor their rows to be sorted. Two readers of a line: `explain` is the plain one, `_parse` the
fast one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from ctrbench.datasets.account import Account
from ctrbench.datasets.schema import FIRST_ID
from ctrbench.datasets.textfile import CHUNK, Lines, read_lines, split_cells

COLUMNS = ("user", "item", "category", "behaviour", "time")
ACTIONS = {"pv": FIRST_ID, "cart": FIRST_ID + 1, "fav": FIRST_ID + 2, "buy": FIRST_ID + 3}
"""Behaviour -> id of the action, stronger ones later."""
START, END = 1_511_539_200, 1_512_316_800
"""2017-11-25 00:00 and 2017-12-04 00:00 in UTC+8: first second, and first second after."""
OUTSIDE = "time outside 2017-11-25..12-03 (UTC+8)"
MAX_OUTSIDE = 0.01
"""The public file has 4 such rows in 10,000; more of them are another unit or zone."""

_WHOLE = r"[0-9]+(\.0+)?"
"""ASCII digits only; `1.0`, which data frames write for 1, is accepted and noted."""
_BOUND = 2**63
_HEADS = {"user", "item", "category", "behavior", "behaviour", "time", "timestamp"}
_HEADS |= {f"{name}{end}" for name in ("user", "item", "category") for end in ("id", "_id")} | {"behavior_type"}


def explain(line: str) -> tuple[str, str, str] | None:
    """The plain reader: (reason, field, value) of the first thing wrong with a line, None for a good one."""
    values = line.split(",")
    if len(values) != len(COLUMNS):
        return f"wrong field count, {len(COLUMNS)} expected", f"{len(values)} fields", line
    for name, value in zip(COLUMNS, values, strict=True):
        if not value:
            return f"{name} is empty", name, value
        if name == "behaviour":
            if value not in ACTIONS:
                return f"behaviour is not one of {', '.join(ACTIONS)}", name, value
        elif not re.fullmatch(_WHOLE, value, re.ASCII):
            return f"{name} is not a whole number", name, value
        elif int(value.split(".")[0]) >= _BOUND:
            return f"{name} is beyond 64 bits", name, value
    return None if START <= int(values[4].split(".")[0]) < END else (OUTSIDE, "time", values[4])


def read(path: Path, account: Account, chunk: int = CHUNK) -> Iterator[pl.DataFrame]:
    """Good rows of the nine days in file order, chunk by chunk, from `account.mark` on.

    Returns:
        user_id, item, category, time (Int64), action (Int8, a value of `ACTIONS`), position (Int64: the line).

    Raises:
        BadInput: as `read_lines`; a header; more than `MAX_OUTSIDE` of the rows of another time; under strict, the
            first bad row.
    """
    for lines in read_lines(path, account, chunk, start=account.mark):
        rows = _parse(lines, account)
        account.kept += rows.height
        account.mark = lines.end
        # Hopeless files end at the first chunk, doubtful ones when all is counted.
        _check_period(account, 0.5)
        yield rows
    _check_period(account, MAX_OUTSIDE)


def _check_period(account: Account, limit: float) -> None:
    count, rows = account.left_out[OUTSIDE], account.read - account.header
    if count > limit * rows:
        line = int(account.places[OUTSIDE][0].removeprefix(f"{account.path}:").split(":")[0])
        reason = f"{count} of {rows} rows have a {OUTSIDE}, more than {limit:.0%}"
        account.fail(line, reason, remedy="is it another unit than seconds, another zone, or another data set?")


def _parse(lines: Lines, account: Account) -> pl.DataFrame:
    """The fast reader of a chunk; only lines that are not kept are looked at one by one."""
    ends = lines.bounds()
    if lines.first == 1:
        _refuse_header(_line(lines, ends, 0).decode("utf-8"), account)
    whole = lines.delimiters(",", ends) == len(COLUMNS) - 1
    table = split_cells(lines.only(ends, whole), ",", COLUMNS)
    at = np.flatnonzero(whole)
    numbers = [c for c in COLUMNS if c != "behaviour"]
    parsed = table.select(
        *(pl.col(c).str.contains(f"^{_WHOLE}$").fill_null(False).alias(f"{c}_good") for c in numbers),
        *(pl.col(c).str.replace(r"\.0+$", "").cast(pl.Int64, strict=False) for c in numbers),
        pl.col("behaviour").replace_strict(ACTIONS, default=None, return_dtype=pl.Int8).alias("action"),
        pl.sum_horizontal(pl.col(numbers).str.contains(".", literal=True)).fill_null(0).alias("decimals"),
        pl.Series("position", at + lines.first, dtype=pl.Int64),
    )
    good = parsed.select(
        pl.all_horizontal(
            *(pl.col(f"{c}_good") & pl.col(c).is_not_null() for c in numbers),
            pl.col("action").is_not_null(),
            pl.col("time").is_between(START, END, closed="left").fill_null(False),
        )
    ).to_series()
    _report(lines, ends, np.sort(np.concatenate([np.flatnonzero(~whole), at[~good.to_numpy()]])), account)
    parsed = parsed.filter(good)
    if decimals := int(parsed["decimals"].sum()):
        account.notes["integers written as decimals (1.0)"] += decimals
    return parsed.select(pl.col("user").alias("user_id"), "item", "category", "time", "action", "position")


def _report(lines: Lines, ends: np.ndarray, at: np.ndarray, account: Account) -> None:
    """Hands every line that is not kept to the account: left out for its time, or bad."""
    for i in at:
        text = _line(lines, ends, int(i)).decode("utf-8")
        found = explain(text)
        if found is None:
            raise AssertionError(
                f"{account.path}:{lines.first + i}: the fast and the plain reader disagree on {text!r}"
            )
        reason, field, value = found
        if lines.unterminated and i == len(ends) - 1:
            # Copies in circulation end in `...,pv,15`: five fields and a time that parses.
            account.bad(lines.first + int(i), f"truncated last line, {reason}", field, value)
        elif reason == OUTSIDE:
            account.leave_out(lines.first + int(i), reason, field, value)
        else:
            account.bad(lines.first + int(i), reason, field, value)


def _refuse_header(head: str, account: Account) -> None:
    names = {n.strip().strip('"').casefold() for n in re.split(r"[\t,;]", head)}
    if names & _HEADS:
        account.fail(1, "header where none belongs", repr(head[:40]), "the original file has none: remove it")


def _line(lines: Lines, ends: np.ndarray, i: int) -> bytes:
    return lines.text[ends[i - 1] + 1 if i else 0 : ends[i]]

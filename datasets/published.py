"""What publishers say of their files, held against what is there: a warning, never an error.

A part of a log is a legal input, and no leaderboard's.
"""

from __future__ import annotations

from dataclasses import dataclass

from ctrbench.datasets.account import Account

RATE_DIGITS = 4
"""Rates are published to this many digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """Figures of one file."""

    rows: int
    positive_rate: float | None = None
    md5: str = ""
    """Of the plain text; empty where none is published."""


def compare(
    account: Account, file: str, published: Published, *, rows: int, positives: int | None = None, md5: str = ""
) -> None:
    """Notes every figure that differs.

    Args:
        account: gets the notes.
        file: named in them.
        published: what should be there.
        rows: lines of the file below its header.
        positives: of them; None where nobody counted.
        md5: of the file's plain text, if it was read.
    """
    if rows != published.rows:
        account.notes[f"{file}: {rows:,} rows, the published file has {published.rows:,}"] += 1
    if published.positive_rate is not None and positives is not None and rows:
        rate = positives / rows
        if round(rate, RATE_DIGITS) != round(published.positive_rate, RATE_DIGITS):
            account.notes[
                f"{file}: {rate:.4f} of the rows are positive, published are {published.positive_rate:.4f}"
            ] += 1
    if published.md5 and md5 and md5 != published.md5:
        account.notes[f"{file}: md5 {md5}, that of the published file is {published.md5}"] += 1

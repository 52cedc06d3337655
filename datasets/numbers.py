"""Numbers in text files: what counts as one, by a plain reader of one value and a fast one of a column.

ASCII digits only: Python's own `int` also takes `1_000`, ` 7`, `+3` and other scripts' digits.
"""

from __future__ import annotations

import re
from typing import Literal

import polars as pl

Number = Literal["integer", "decimal", "id"]
PATTERNS: dict[Number, str] = {
    "integer": r"-?[0-9]+(\.0+)?",
    "decimal": r"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?",
    "id": r"[0-9]+(\.0+)?",
}
"""`1.0`, which data frames write for 1, is an integer."""
_NOT: dict[Number, str] = {"integer": "not an integer", "decimal": "not a number", "id": "not an id"}
_INTEGER_BOUND = 2**63
_LARGEST = 3.4028234663852886e38
"""Of float32, which dense values end in."""
_ID_BOUND = 2**53
"""Ids read as floats: from here on two of them would meet."""


def wrong_number(value: str, kind: Number) -> str | None:
    """The plain reader: why a text is no such number, None if it is one."""
    if not re.fullmatch(PATTERNS[kind], value):
        return _NOT[kind]
    if kind == "integer" and not -_INTEGER_BOUND <= int(value.split(".")[0]) < _INTEGER_BOUND:
        return "integer beyond 64 bits"
    if kind == "decimal" and abs(float(value)) > _LARGEST:
        return "number beyond single precision"
    if kind == "id" and int(value.split(".")[0]) > _ID_BOUND:
        return "id beyond 2^53"
    return None


def number(text: pl.Expr, kind: Number) -> pl.Expr:
    """The fast reader: Int64, decimals Float64; null where `wrong_number` has a reason or there is no text."""
    value = (
        text.cast(pl.Float64, strict=False)
        if kind == "decimal"
        else text.str.replace(r"\.0+$", "").cast(pl.Int64, strict=False)
    )
    inside = {"integer": value.is_not_null(), "decimal": value.abs() <= _LARGEST, "id": value <= _ID_BOUND}[kind]
    return pl.when(text.str.contains(f"^(?:{PATTERNS[kind]})$") & inside).then(value)

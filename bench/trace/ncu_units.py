"""Numbers and units as Nsight Compute prints them, brought to base units.

Base units: ns for times, 1/s for rates, byte, cycle, inst ... without a decimal prefix; a percentage stays one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

_PREFIX = {"": 0, "K": 3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15}
_SCALED = {"byte", "bit", "hz", "inst", "cycle", "sector", "request", "warp", "thread", "block", "op", "FLOP"}
_TIME = {
    "s": 9, "second": 9, "sec": 9, "ms": 6, "msecond": 6, "us": 3, "usecond": 3, "ns": 0, "nsecond": 0,
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?([eE][+-]?\d+)?")
_ABSENT = {"", "n/a", "N/A", "(!) n/a", "nan", "-nan", "inf", "-inf", "no data"}
_DOT_DECIMAL = re.compile(r".*,\d{3}\.\d+|\d+,\d{3}(,\d{3})+|[\d,]*\.(\d{1,2}|\d{4,})([eE].*)?|0\.\d+")
_COMMA_DECIMAL = re.compile(r".*\.\d{3},\d+|\d+\.\d{3}(\.\d{3})+|[\d.]*,(\d{1,2}|\d{4,})([eE].*)?|0,\d+")
_EITHER = re.compile(r"[1-9]\d{0,2}\.\d{3}")
_DIGITS = re.compile(r"[+-]?[.,]?\d[\d.,\s'’]*([eE][+-]?\d+)?")


class BadNumber(ValueError):
    """A cell that looks like a number and cannot be one."""


def number(text: str) -> Decimal | str | None:
    """The value of a cell: a number, a text (the name of a device), or None where the tool had nothing to say.

    Raises:
        BadNumber: digits with separators that are no thousands separators (`12,34`).
    """
    text = text.strip()
    if text in _ABSENT:
        return None
    if _NUMBER.fullmatch(text):
        return Decimal(text.replace(",", ""))
    if _DIGITS.fullmatch(text):
        raise BadNumber(f"{text[:40]!r} is no number with thousands commas and a decimal point")
    return text


def wrong_locale(cells: Iterable[str]) -> str | None:
    """Why the numbers of a table cannot be trusted, or None.

    ncu prints in the locale of its machine: `117.344` is 117 in one and 117344 in another. A table that shows no sign
    of decimal points but has such cells, or that shows signs of decimal commas, has no certain value.
    """
    dot = comma = either = None
    for cell in cells:
        text = cell.strip().lstrip("+-")
        if _COMMA_DECIMAL.fullmatch(text):
            comma = comma or text
        elif _DOT_DECIMAL.fullmatch(text):
            dot = dot or text
        elif _EITHER.fullmatch(text):
            either = either or text
    if comma:
        return f"{comma!r} is written with a decimal comma"
    if either and not dot:
        return f"{either!r} may be a thousand times larger: no other number shows whether '.' is a decimal point"
    return None


def to_base(value: Decimal, unit: str) -> tuple[float, str, bool]:
    """(value, unit, whether ncu had scaled it) in base units; an unknown unit stays as it is.

    >>> to_base(Decimal("134.22"), "Mbyte")
    (134220000.0, 'byte', True)
    >>> to_base(Decimal("5.5"), "cycle/usecond")
    (5500000.0, 'hz', True)
    """
    above, slash, below = unit.strip().partition("/")
    power, name = _numerator(above)
    if slash and below in _TIME:
        power, below = power + 9 - _TIME[below], "s"
    if name in _TIME:
        power, name = power + _TIME[name], "ns"
    base = f"{name}/{below}" if slash else name
    if base == "cycle/s":
        base = "hz"
    return float(value.scaleb(power)), base, power != 0


def _numerator(unit: str) -> tuple[int, str]:
    if unit in _SCALED or unit in _TIME:
        return 0, unit
    name = unit[1:].lower() if unit[1:].lower() in ("byte", "hz") else unit[1:]
    if unit[:1] in _PREFIX and name in _SCALED:
        return _PREFIX[unit[0]], name
    return 0, "hz" if unit.lower() == "hz" else unit

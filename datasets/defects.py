"""Defects seen in copies of comma-separated event logs, put into good text one by one (data.md, section 6).

For files that show how a reader takes them: the whole text is held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from ctrbench.datasets.errors import BadInput, nearest

Lines = list[bytes]
HEADER = b"user_id,item_id,category_id,behavior_type,timestamp"


def _line(edit: Callable[[bytes], bytes]) -> Callable[[Lines], Lines]:
    """Edits the line in the middle."""

    def edited(lines: Lines) -> Lines:
        middle = len(lines) // 2
        return [*lines[:middle], edit(lines[middle]), *lines[middle + 1 :]]

    return edited


def _field(number: int, edit: Callable[[bytes], bytes]) -> Callable[[Lines], Lines]:
    """Edits one field of the line in the middle."""

    def edited(line: bytes) -> bytes:
        fields = line.split(b",")
        fields[number] = edit(fields[number])
        return b",".join(fields)

    return _line(edited)


_ON_LINES: Mapping[str, Callable[[Lines], Lines]] = MappingProxyType({
    "short_line": _line(lambda line: line.rsplit(b",", 1)[0]),
    "long_line": _line(lambda line: line + b",1"),
    "empty_field": _field(1, lambda _: b""),
    "negative_id": _field(1, lambda value: b"-" + value),
    "decimal": _field(0, lambda value: value + b".0"),
    "fraction": _field(4, lambda value: value + b".5"),
    "beyond_64_bits": _field(1, lambda _: b"18446744073709551616"),
    "other_behaviour": _field(3, lambda _: b"click"),
    "out_of_period": _field(4, lambda _: b"1511539199"),
    "milliseconds": lambda lines: [line + b"000" for line in lines],
    "header": lambda lines: [HEADER, *lines],
    "duplicate": lambda lines: [*lines, lines[len(lines) // 2]],
    "unsorted": lambda lines: [*lines[1::2], *lines[::2][::-1]],
    "nul": _line(lambda line: line + b"\0"),
    "not_utf8": _line(lambda line: b"\xff" + line),
})  # fmt: skip

_ON_TEXT: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType({
    "crlf": lambda text: text.replace(b"\n", b"\r\n"),
    "bom": lambda text: b"\xef\xbb\xbf" + text,
    "no_final_newline": lambda text: text.removesuffix(b"\n"),
    "cut_last_line": lambda text: text.rstrip(b"\r\n")[:-8],
    "empty": lambda text: b"",
})  # fmt: skip

DEFECTS: tuple[str, ...] = (*_ON_LINES, *_ON_TEXT)
"""Names, in the order in which several are applied."""


def check(names: Iterable[str]) -> None:
    """Raises BadInput for a name that is no defect."""
    for name in names:
        if name not in DEFECTS:
            raise BadInput(f"unknown defect {nearest(name, DEFECTS)}")


def spoil(text: bytes, names: Iterable[str]) -> bytes:
    """Good text, every line ended by a newline, with the named defects."""
    chosen = set(names)
    lines = text.splitlines()
    for name, edit in _ON_LINES.items():
        lines = edit(lines) if name in chosen else lines
    text = b"".join(line + b"\n" for line in lines)
    for name, change in _ON_TEXT.items():
        text = change(text) if name in chosen else text
    return text

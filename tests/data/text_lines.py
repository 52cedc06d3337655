"""Lines of a text file, one of them replaced."""

from __future__ import annotations


def with_line(good: list[bytes], line: int, field: int | None, value: bytes, delimiter: bytes) -> list[bytes]:
    """The good lines with one field of one line (1-based) replaced, or the whole line."""
    lines = list(good)
    fields = lines[line - 1].split(delimiter)
    if field is None:
        lines[line - 1] = value
    else:
        fields[field] = value
        lines[line - 1] = delimiter.join(fields)
    return lines

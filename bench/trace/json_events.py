"""Event lists of large JSON files, parsed piece by piece: the objects of one piece at a time are in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from ctrbench.bench.trace.columns import BadRecording

PIECE = 1 << 23
"""Bytes parsed at once."""
TRIES = 32
"""Places tried for the end of a piece, or of the list, before the file is parsed whole."""

_LIST = re.compile(rb'"traceEvents"\s*:\s*\[')
_BETWEEN = re.compile(rb"\}\s*,\s*\{")


def read_events(path: Path, raw: bytes, piece: int = PIECE) -> tuple[dict[str, Any], Iterator[list[Any]]]:
    """Top level without its events, and the events in lists, in file order.

    A piece is a run of bytes that is a list of JSON values once brackets are put around it. A list that starts at the
    level of the events and is balanced ends there too, so pieces never cut an event; where no such run is found the
    rest of the file is parsed as one.

    Raises:
        BadRecording: no JSON, cut in the middle, or without a list of events.
    """
    span = _span(raw) if len(raw) > piece else None
    if span is None:
        body = _whole(path, raw)
        events = body.get("traceEvents") if isinstance(body, dict) else body
        if not isinstance(events, list):
            raise BadRecording(f"{path}: JSON without `traceEvents`; not a torch.profiler recording")
        top = {k: v for k, v in body.items() if k != "traceEvents"} if isinstance(body, dict) else {}
        return top, iter([events])
    begin, end, top = span
    return top, _pieces(path, raw, begin, end, piece)


def _span(raw: bytes) -> tuple[int, int, dict[str, Any]] | None:
    """(first byte of the events, byte after the last, top level), or None if the file has another form."""
    found = _LIST.search(raw)
    if found is None:
        return None
    head, at = raw[: found.end()], len(raw)
    for _ in range(TRIES):
        at = raw.rfind(b"]", found.end(), at)
        if at < 0:
            return None
        try:
            top = orjson.loads(head + raw[at:])
        except orjson.JSONDecodeError:
            continue
        if isinstance(top, dict) and top.pop("traceEvents", None) == []:
            return found.end(), at, top
    return None


def _pieces(path: Path, raw: bytes, begin: int, end: int, piece: int) -> Iterator[list[Any]]:
    while end - begin > piece:
        part, begin = _next(path, raw, begin, end, piece)
        yield part
    yield _rest(path, raw, begin, end)


def _next(path: Path, raw: bytes, begin: int, end: int, piece: int) -> tuple[list[Any], int]:
    """(events, byte after them and their comma)."""
    at = begin + piece
    for _ in range(TRIES):
        found = _BETWEEN.search(raw, at, end)
        if found is None:
            break
        try:
            events = orjson.loads(b"[%b]" % raw[begin : found.start() + 1])
        except orjson.JSONDecodeError:
            at = found.start() + 1
            continue
        return events, found.end() - 1
    return _rest(path, raw, begin, end), end


def _rest(path: Path, raw: bytes, begin: int, end: int) -> list[Any]:
    if not raw[begin:end].strip():
        return []
    events = _whole(path, b"[%b]" % raw[begin:end], raw[:begin].count(b"\n"))
    assert isinstance(events, list)
    return events


def _whole(path: Path, raw: bytes, lines_before: int = 0) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if b"NaN" in raw or b"Infinity" in raw:  # written by Python's json and by some profilers; no JSON
            try:
                return json.loads(raw)
            except ValueError:
                pass
        raise BadRecording(
            f"{path}: no whole JSON (line {error.lineno + lines_before}, column {error.colno}: {error.msg}); "
            "truncated or damaged: copy or record it again"
        ) from None

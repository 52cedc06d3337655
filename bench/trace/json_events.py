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
"""Places tried for the end of a piece before the rest of the file is parsed as one."""

_LIST = re.compile(rb'"traceEvents"\s*:\s*\[')
_BETWEEN = re.compile(rb"\}\s*,\s*\{")


class JsonEvents:
    """The events of one file in lists, in file order; `top` is complete after the last list.

    A piece is a run of bytes that is a list of JSON values once brackets are put around it. A list that starts at the
    level of the events and is balanced ends there too, so pieces never cut an event. What comes before the events and
    what is left after the last piece are one JSON document again.

    Args:
        path: name of the file in messages.
        raw: its bytes, decompressed.
        piece: bytes parsed at once.
    """

    def __init__(self, path: Path, raw: bytes, piece: int = PIECE) -> None:
        self._path, self._raw, self._piece = path, raw, piece
        self.top: dict[str, Any] = {}
        """The document without its events."""

    def __iter__(self) -> Iterator[list[Any]]:
        """Raises:
        BadRecording: no JSON, cut in the middle, or without a list of events.
        """
        head = begin = self._first()
        while head is not None and begin is not None and len(self._raw) - begin > self._piece:
            found = self._next(begin)
            if found is None:
                break
            events, begin = found
            yield events
        if head is None or begin is None:
            head = begin = 0
        body = self._parsed(self._raw[:head] + self._raw[begin:] if begin > head else self._raw, head, begin)
        events = body.pop("traceEvents", None) if isinstance(body, dict) else body
        if not isinstance(events, list):
            raise BadRecording(f"{self._path}: JSON without `traceEvents`; not a torch.profiler recording")
        self.top = body if isinstance(body, dict) else {}
        yield events

    def _first(self) -> int | None:
        """Byte after the bracket that opens the events; None if they are not where they should be."""
        start = len(self._raw) - len(self._raw.lstrip()) if self._raw[:1].isspace() else 0
        if self._raw[start : start + 1] == b"[":
            return start + 1
        found = _LIST.search(self._raw)
        if found is None:
            return None
        try:
            top = orjson.loads(self._raw[: found.end()] + b"]}")
        except orjson.JSONDecodeError:
            return None
        return found.end() if isinstance(top, dict) and top.get("traceEvents") == [] else None

    def _next(self, begin: int) -> tuple[list[Any], int] | None:
        """(events, byte after them and their comma), or None if no end was found."""
        at = begin + self._piece
        for _ in range(TRIES):
            found = _BETWEEN.search(self._raw, at)
            if found is None:
                return None
            try:
                return orjson.loads(b"[%b]" % self._raw[begin : found.start() + 1]), found.end() - 1
            except orjson.JSONDecodeError:
                at = found.start() + 1
        return None

    def _parsed(self, raw: bytes, head: int, begin: int) -> Any:
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            if b"NaN" in raw or b"Infinity" in raw:  # written by Python's json and by some profilers; no JSON
                try:
                    return json.loads(raw)
                except ValueError:
                    pass
            line = error.lineno + self._raw.count(b"\n", head, begin)
            raise BadRecording(
                f"{self._path}: no whole JSON (line {line}, column {error.colno}: {error.msg}); truncated or damaged: "
                "copy or record it again"
            ) from None

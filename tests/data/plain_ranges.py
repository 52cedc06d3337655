"""Plain twin of the reader and the time split: rows of NVTX_EVENTS one by one, and the host time they explain."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ctrbench.bench.trace.names import (
    BLOCK_PREFIX,
    DOMAIN,
    ITER,
    OP_PREFIX,
    OTHER,
    STAGE_PREFIX,
    STAGES,
    TRACER,
    join_key,
)
from ctrbench.bench.trace.recorder import CATEGORY, DOMAIN_CREATE, PUSH_POP, START_END
from ctrbench.datasets.errors import BadInput

Place = tuple[str, str]
"""(stage, block); block is empty outside blocks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NvtxRange:
    """One range of a recording; times in ns of its own clock."""

    name: str
    start: int
    end: int | None
    """None where the recording holds no end."""
    thread: int
    """Process and thread that opened it (globalTid)."""
    end_thread: int | None
    """The same of its end, for start/end ranges."""
    payload: int | float | None
    category: str | None
    color: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRow:
    """Host time of one stage outside its blocks, or of one block."""

    stage: str
    block: str
    key: str
    ranges: int
    ns: int
    """Exclusive: without the ranges inside."""
    share: float


@dataclass(frozen=True, kw_only=True)
class TimeSplit:
    """Where the time of the recorded steps went on the host."""

    steps: tuple[int | float | None, ...]
    """Payload of each `iter`, by start."""
    step_ns: int
    """All steps together, without the tracer's own work."""
    tracer_ns: int
    rows: tuple[SplitRow, ...]
    open_ranges: int
    """Ranges without an end; they are in no row."""

    @property
    def coverage(self) -> float:
        """Share of the steps in a named stage; the rest is `other`."""
        return sum(r.share for r in self.rows if r.stage != OTHER)

    def shares(self) -> dict[str, float]:
        """Scope of the records -> share: `stage:x` with its blocks (these sum to 1), and `stage:x/block:y`."""
        out: dict[str, float] = defaultdict(float)
        for row in self.rows:
            out[f"{STAGE_PREFIX}{row.stage}"] += row.share
        blocks = {f"{STAGE_PREFIX}{r.stage}/{BLOCK_PREFIX}{r.block}": r.share for r in self.rows if r.block}
        return dict(out) | blocks


def read_ranges(path: Path, domain: str = DOMAIN) -> list[NvtxRange]:
    """Push/pop and start/end ranges of one domain, by start.

    Args:
        path: `.sqlite` of the recorder or of `nsys export`.
        domain: its name; empty for the default one.

    Raises:
        BadInput: no SQLite file, or no NVTX table in it.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        strings = dict(connection.execute("SELECT id, value FROM StringIds").fetchall())
        events = connection.execute("SELECT * FROM NVTX_EVENTS ORDER BY start").fetchall()
    except sqlite3.DatabaseError as error:
        raise BadInput(f"{path}: {error}: give the SQLite export of a recording with NVTX ranges") from None
    finally:
        connection.close()
    domains = {0: ""} | {e["domainId"]: _text(e, strings) for e in events if e["eventType"] == DOMAIN_CREATE}
    wanted = {i for i, name in domains.items() if name == domain}
    mine = [e for e in events if (e["domainId"] or 0) in wanted]
    categories = {e["category"]: _text(e, strings) for e in mine if e["eventType"] == CATEGORY}
    return [
        NvtxRange(
            name=_text(e, strings) or "", start=e["start"], end=e["end"], thread=e["globalTid"],
            end_thread=e["endGlobalTid"], payload=_payload(e), category=categories.get(e["category"]),
            color=e["color"],
        )
        for e in mine if e["eventType"] in (PUSH_POP, START_END)
    ]  # fmt: skip


def _text(event: sqlite3.Row, strings: dict[int, str]) -> str | None:
    return event["text"] if event["text"] is not None else strings.get(event["textId"])


def _payload(event: sqlite3.Row) -> Any:
    columns = ("int64Value", "uint64Value", "int32Value", "uint32Value", "doubleValue", "floatValue")
    return next((event[c] for c in columns if event[c] is not None), None)


def split_time(ranges: Sequence[NvtxRange]) -> TimeSplit:
    """Splits the steps of our own ranges.

    Raises:
        BadInput: no `iter` among them.
    """
    closed = [r for r in ranges if r.end is not None]
    iters = [r for r in closed if r.name == ITER]
    if not iters:
        raise BadInput(f"no range `{ITER}` in the domain {DOMAIN}: record with `ctrbench profile`, ranges switched on")
    spent: dict[Place | None, int] = defaultdict(int)
    calls: dict[Place, int] = defaultdict(int)
    by_process: dict[int, list[NvtxRange]] = defaultdict(list)
    for r in closed:
        by_process[r.thread >> 24].append(r)
    for mine in by_process.values():
        places = _places(mine)
        for r, place in zip(mine, places, strict=True):
            if place is not None and place[0] != OTHER and not r.name.startswith(OP_PREFIX):
                calls[place] += 1
        for place, ns in _exclusive(mine, places):
            spent[place] += ns
    tracer_ns = spent.pop(None, 0)
    step_ns = sum((r.end or 0) - r.start for r in iters) - tracer_ns
    if step_ns <= 0:
        raise BadInput(f"the ranges `{ITER}` hold no time: their clock is broken; record again")
    order = {stage: i for i, stage in enumerate((*STAGES, OTHER))}
    found = sorted(((p, ns) for p, ns in spent.items() if p), key=lambda row: (order.get(row[0][0], 99), row[0][1]))
    rows = tuple(
        SplitRow(
            stage=place[0], block=place[1], key=join_key(*place), ranges=calls[place], ns=ns, share=ns / step_ns
        )
        for place, ns in found
    )  # fmt: skip
    return TimeSplit(
        steps=tuple(r.payload for r in sorted(iters, key=lambda r: r.start)), step_ns=step_ns, tracer_ns=tracer_ns,
        rows=rows, open_ranges=len(ranges) - len(closed),
    )  # fmt: skip


def _places(ranges: Sequence[NvtxRange]) -> list[Place | None]:
    """The place of each range by the stages and blocks open around it on its thread; None for the tracer's own work."""
    out: list[Place | None] = [None] * len(ranges)
    stacks: dict[int, list[tuple[int, Place]]] = defaultdict(list)
    for i in sorted(range(len(ranges)), key=lambda i: (ranges[i].start, -(ranges[i].end or 0))):
        r = ranges[i]
        stack = stacks[r.thread]
        while stack and stack[-1][0] <= r.start:
            stack.pop()
        around = stack[-1][1] if stack else (OTHER, "")
        if r.name == TRACER:
            continue
        if r.name.startswith(STAGE_PREFIX):
            around = (r.name.removeprefix(STAGE_PREFIX), "")
        elif r.name.startswith(BLOCK_PREFIX):
            around = (around[0], r.name.removeprefix(BLOCK_PREFIX))
        out[i] = around
        stack.append((r.end or 0, around))
    return out


def _exclusive(ranges: Sequence[NvtxRange], places: Sequence[Place | None]) -> Iterator[tuple[Place | None, int]]:
    """(place, ns) of every stretch of a step between two edges of ranges, whatever their thread."""
    edges = sorted({t for r in ranges for t in (r.start, r.end or 0)})
    starts = sorted(range(len(ranges)), key=lambda i: (ranges[i].start, -(ranges[i].end or 0)))
    stack: list[int] = []
    at = 0
    for now, then in pairwise(edges):
        while at < len(starts) and ranges[starts[at]].start <= now:
            stack.append(starts[at])
            at += 1
        stack = [i for i in stack if (ranges[i].end or 0) > now]
        if any(ranges[i].name == ITER for i in stack):
            yield places[stack[-1]], then - now

"""Where a step's time goes, read from the ranges of a recording (measures.md section 4).

A stage's time is exclusive wall time: every instant of a step belongs to the range that was opened last. Operators
belong to the ranges of their own thread, at the instant they end: autograd opens an operator before the hook of
its node can open the range of its block.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd

from ctrbench.bench.trace.columns import HostEvent
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
from ctrbench.bench.trace.recording import Recording

COVERAGE = 0.98
"""Least share of the step that the named stages must explain."""

_ITER, _TRACER = f"{DOMAIN}/{ITER}", f"{DOMAIN}/{TRACER}"
_COLUMNS = ("stage", "block", "calls", "op_calls", "op_self_ns", "ns", "share", "key")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The time of the traced steps by stage and block."""

    steps: int
    step_ns: int
    """Wall time of all steps together, without the tracer's own work between forward and backward."""
    tracer_ns: int
    table: pd.DataFrame
    """stage, block (empty: the stage outside its blocks), calls, op_calls, op_self_ns, ns, share, key."""
    ops: pd.DataFrame
    """stage, block, op, calls, self_ns; largest first."""
    silent_blocks: tuple[str, ...] = ()
    """Blocks of `model.phases` that no forward entered through `__call__`."""

    @property
    def coverage(self) -> float:
        """Share of the step that lies in a named stage; the rest is `other`."""
        return float(self.table.loc[self.table["stage"] != OTHER, "share"].sum())

    @property
    def complete(self) -> bool:
        """Whether the named stages explain the step well enough to publish the split."""
        return self.coverage >= COVERAGE

    def shares(self) -> dict[str, float]:
        """Scope -> share: `stage:x` rows (blocks included) sum to 1, `stage:x/block:y` rows are parts of them."""
        stages: dict[str, float] = {}
        blocks: dict[str, float] = {}
        for stage, block, share in self.table[["stage", "block", "share"]].values.tolist():
            stages[f"stage:{stage}"] = stages.get(f"stage:{stage}", 0.0) + share
            if block:
                blocks[f"stage:{stage}/block:{block}"] = share
        return stages | blocks

    def operators(self, top: int = 5) -> list[dict[str, Any]]:
        """The operators of most self time of every stage and block, with the record's join key."""
        best = self.ops.groupby(["stage", "block"], sort=False).head(top)
        rows: list[dict[str, Any]] = [dict(zip(best.columns, row, strict=True)) for row in best.values.tolist()]
        return [
            row | {"key": join_key(row["stage"], row["block"]), "share": row["self_ns"] / self.step_ns} for row in rows
        ]


def split_of(recording: Recording, silent_blocks: tuple[str, ...] = ()) -> Split:
    """Splits a recording of our ranges: NVTX ones, or those mirrored for Kineto.

    Raises:
        ValueError: no `ctrbench/iter` in it.
    """
    own = recording.our_events
    iters = [r for r in own if r.name == _ITER]
    if not iters:
        raise ValueError(f"{recording.path}: no {_ITER} range; record with NvtxRanges(profiler=True)")
    wall = exclusive(own)
    tracer_ns = wall.pop(_TRACER, 0)
    step_ns = sum(r.end - r.start for r in iters) - tracer_ns
    if step_ns <= 0:
        raise ValueError(f"{recording.path}: {_ITER} ranges of no time; record whole steps")
    calls = Counter(place(r.name) for r in own if r.name not in (_ITER, _TRACER) and f"/{OP_PREFIX}" not in r.name)
    ops = _operators(recording.events(recording.ops), own)
    op_calls: Counter[tuple[str, str]] = Counter()
    op_ns: Counter[tuple[str, str]] = Counter()
    for stage, block, _, n, self_ns in ops.values.tolist():
        op_calls[stage, block] += n
        op_ns[stage, block] += self_ns
    spent: Counter[tuple[str, str]] = Counter()
    for name, ns in wall.items():
        spent[place(name)] += ns
    order = {s: i for i, s in enumerate((*STAGES, OTHER))}
    rows = []
    for at in sorted(spent, key=lambda p: (order.get(p[0], len(order)), p[1])):
        share = spent[at] / step_ns
        rows.append((*at, calls[at], op_calls[at], op_ns[at], spent[at], share, join_key(*at)))
    return Split(
        steps=len(iters), step_ns=step_ns, tracer_ns=tracer_ns, table=pd.DataFrame(rows, columns=list(_COLUMNS)),
        ops=ops, silent_blocks=silent_blocks,
    )  # fmt: skip


def place(name: str) -> tuple[str, str]:
    """(stage, block) of a range's name; what is only inside `iter` is `other`."""
    parts = name.split("/")
    if len(parts) < 2 or not parts[1].startswith(STAGE_PREFIX):
        return OTHER, ""
    block = parts[2].removeprefix(BLOCK_PREFIX) if len(parts) > 2 and parts[2].startswith(BLOCK_PREFIX) else ""
    return parts[1].removeprefix(STAGE_PREFIX), block


def exclusive(ranges: Sequence[HostEvent]) -> dict[str, int]:
    """Name -> ns in which no range inside it was open, whatever the thread: each instant counts once.

    The innermost range of an instant is the one opened last (of several opened at once, the shortest).
    Ranges outside every `iter` are not part of a step.
    """
    edges = sorted({t for r in ranges for t in (r.start, r.end)})
    starts = sorted(ranges, key=lambda r: (r.start, -r.end))
    out: dict[str, int] = defaultdict(int)
    stack: list[HostEvent] = []
    at = 0
    for now, then in pairwise(edges):
        while at < len(starts) and starts[at].start <= now:
            stack.append(starts[at])
            at += 1
        stack = [r for r in stack if r.end > now]
        if any(r.name == _ITER for r in stack):
            out[stack[-1].name] += then - now
    return dict(out)


def _operators(ops: Sequence[HostEvent], ranges: Sequence[HostEvent]) -> pd.DataFrame:
    """Calls and self time of every operator by the innermost range of its thread; none outside the steps."""
    rows: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for i, self_ns, key in placed(ops, ranges):
        row = rows[(*place(key), ops[i].name)]
        row[0] += 1
        row[1] += self_ns
    frame = pd.DataFrame(
        [(*at, *values) for at, values in rows.items()], columns=["stage", "block", "op", "calls", "self_ns"]
    )
    return frame.sort_values("self_ns", ascending=False, kind="stable", ignore_index=True)


def placed(ops: Sequence[HostEvent], ranges: Sequence[HostEvent]) -> Iterator[tuple[int, int, str]]:
    """(index of an operator, its ns without the operators inside, key of the innermost range of its thread as it ends).

    Operators outside every range and those of the tracer are left out.
    """
    for thread in dict.fromkeys(r.thread for r in ranges):
        mine = [i for i, op in enumerate(ops) if op.thread == thread]
        around = open_at([r for r in ranges if r.thread == thread], [ops[i].end for i in mine])
        for i, self_ns, range_ in zip(mine, self_times([ops[i] for i in mine]), around, strict=True):
            if range_ is not None and range_.name != _TRACER:
                yield i, self_ns, range_.name


def open_at(ranges: Iterable[HostEvent], times: Sequence[int]) -> list[HostEvent | None]:
    """For each time the range opened last that is still open then."""
    starts = sorted(ranges, key=lambda r: (r.start, -r.end))
    out: list[HostEvent | None] = [None] * len(times)
    stack: list[HostEvent] = []
    at = 0
    for i in sorted(range(len(times)), key=lambda i: times[i]):
        while at < len(starts) and starts[at].start < times[i]:
            stack.append(starts[at])
            at += 1
        stack = [r for r in stack if r.end >= times[i]]
        out[i] = stack[-1] if stack else None
    return out


def self_times(ops: Sequence[HostEvent]) -> list[int]:
    """Time of each operator of one thread without the operators inside it, ns."""
    out = [op.end - op.start for op in ops]
    stack: list[int] = []
    for i in sorted(range(len(ops)), key=lambda i: (ops[i].start, -ops[i].end)):
        while stack and ops[stack[-1]].end <= ops[i].start:
            stack.pop()
        if stack:
            out[stack[-1]] -= ops[i].end - ops[i].start
        stack.append(i)
    return out

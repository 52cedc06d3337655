"""Device operations of a Kineto file by a plain loop, and the rules by which HolisticTraceAnalysis 0.5.0 alters them.

Independent of `kineto.py`: the arbiter between that reader and the peer. The rules are applied one after the other, so
that every cause of a difference has its share; what the peer prints beyond them stays visible as unexplained.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctrbench.bench.trace.source import content

UNLINKED = "no host event"
LAST_STEP = "last step"
REPEATED = "several host events"
ROUNDED = "rounding"
NAMES = "launch names"

KNOWN_LAUNCHES = frozenset(
    {"cudaLaunchKernel", "cudaLaunchKernelExC", "runFunction - job_prep_and_submit_for_execution"}
)
"""hta/analyzers/cuda_kernel_analysis.py, `cuda_kernel_launch_stats`."""

_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})


@dataclass(frozen=True, kw_only=True)
class Call:
    """A host event that carries a correlation id."""

    name: str
    ts: float
    """us, as in the file."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A kernel, copy or set."""

    category: str
    device: int
    start: int
    """ns."""
    end: int
    """ns."""
    ts: float
    """us, as in the file: rounding starts from it."""
    dur: float
    calls: tuple[Call, ...]
    """Host events of its correlation id, in file order."""
    rows: int = 1
    """Times that it is counted."""
    linked: int
    """Times that it is counted as launched by a known call."""


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """What the rules need of a file."""

    operations: tuple[Operation, ...]
    steps: tuple[tuple[float, float], ...]
    """(start, end) in us of every `ProfilerStep` range."""
    step_names: int
    fractional: bool
    """Some event has no integer `ts`, so that the peer's column of times is floating point."""

    @property
    def devices(self) -> list[int]:
        return sorted({operation.device for operation in self.operations})


def read_raw(path: Path) -> RawFile:
    """Reads a file with the standard library alone.

    Raises:
        BadRecording: missing, or cut or damaged gzip.
        ValueError: no Kineto JSON; `read_kineto` says what is wrong with it.
    """
    body = json.loads(content(path))
    events = body if isinstance(body, list) else body["traceEvents"]
    complete = [
        e for e in events if e.get("ph") == "X" and e.get("dur") is not None and e.get("cat") not in (None, "Trace")
    ]
    calls: dict[Any, list[Call]] = defaultdict(list)
    steps, names = list[tuple[float, float]](), set[str]()
    for event in complete:
        if event["cat"] in _DEVICE:
            continue
        correlation = (event.get("args") or {}).get("correlation", -1)
        if correlation != -1:
            calls[correlation].append(Call(name=event["name"], ts=event["ts"]))
        if "ProfilerStep" in event["name"]:
            steps.append((event["ts"], event["ts"] + event["dur"]))
            names.add(event["name"])
    found = [
        _operation(event, tuple(calls.get((event.get("args") or {}).get("correlation", -1), ())))
        for event in complete
        if event["cat"] in _DEVICE
    ]
    fractional = any(not isinstance(event.get("ts"), int) for event in events)
    return RawFile(operations=tuple(found), steps=tuple(steps), step_names=len(names), fractional=fractional)


def _operation(event: dict[str, Any], calls: tuple[Call, ...]) -> Operation:
    start, args = _nanoseconds(event["ts"]), event.get("args") or {}
    return Operation(
        category=event["cat"], device=args["device"] if "device" in args else event["pid"], start=start,
        end=start + _nanoseconds(event["dur"]), ts=event["ts"], dur=event["dur"], calls=calls,
        linked=min(1, len(calls)),
    )  # fmt: skip


def _nanoseconds(us: float) -> int:
    return us * 1000 if isinstance(us, int) else round(us * 1000)


def figures(operations: Sequence[Operation], devices: Sequence[int]) -> dict[str, int]:
    """Counts and times in ns; busy and idle time of each device."""
    counted = {c: sum(o.rows for o in operations if o.category == c) for c in _DEVICE}
    kernels = [o for o in operations if o.category == "kernel"]
    found = {
        "kernels": counted["kernel"],
        "kernel_ns": sum(o.rows * (o.end - o.start) for o in kernels),
        "memcpy": counted["gpu_memcpy"],
        "memset": counted["gpu_memset"],
        "linked_kernels": sum(o.linked for o in kernels),
    }
    for device in devices:
        busy, span = busy_and_span([(o.start, o.end) for o in operations if o.device == device])
        found |= {f"busy_ns of device {device}": busy, f"idle_ns of device {device}": span - busy}
    return found


def busy_and_span(intervals: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(length of the union, last end minus first start).

    An interval that rounding turned round counts negative, as in the peer's `merge_kernel_intervals`.
    """
    merged: list[list[int]] = []
    reach: int | None = None
    for start, end in sorted(intervals):
        if reach is None or start > reach:
            merged.append([start, end])
        else:
            merged[-1][1] = max(merged[-1][1], end)
        reach = end if reach is None else max(reach, end)
    if not merged:
        return 0, 0
    return sum(end - start for start, end in merged), merged[-1][1] - merged[0][0]


def causes(raw: RawFile, everything: bool) -> dict[str, dict[str, int]]:
    """Figure -> cause -> what that rule adds to the raw figure.

    Args:
        raw: the file.
        everything: the peer keeps the last profiler step and does not round.
    """
    devices = raw.devices
    before, found = figures(raw.operations, devices), defaultdict[str, dict[str, int]](dict)
    for cause, operations in _altered(raw, everything):
        after = figures(operations, devices)
        for figure, value in after.items():
            if value != before[figure]:
                found[figure][cause] = value - before[figure]
        before = after
    return dict(found)


def _altered(raw: RawFile, everything: bool) -> Iterator[tuple[str, list[Operation]]]:
    """(cause, operations that are left once its rule was applied on top of those before it)."""
    rounds = raw.fractional and not everything
    left = list(raw.operations)
    joined = raw.step_names > 1
    if joined:  # hta/common/trace.py, `_filter_irrelevant_gpu_kernels`
        left = [o for o in left if o.calls]
        yield UNLINKED, left
        left = [replace(o, calls=kept) for o in left if (kept := _kept(o.calls, raw.steps, rounds, everything))]
        yield LAST_STEP, left
    # joins on the correlation id: that filter's, and the one of host and device events for the launches
    left = [replace(o, rows=len(o.calls) if joined else 1) for o in left]
    left = [replace(o, linked=o.rows * len(o.calls)) for o in left]
    yield REPEATED, left
    if rounds:  # hta/common/trace_parser.py, `round_down_time_stamps`
        left = [replace(o, start=math.ceil(o.ts) * 1000, end=math.floor(o.ts + o.dur) * 1000) for o in left]
        yield ROUNDED, left
    # hta/analyzers/cuda_kernel_analysis.py, `cuda_kernel_launch_stats`: ids that some known call carries
    known = [any(c.name in KNOWN_LAUNCHES for c in o.calls) for o in left]
    yield NAMES, [replace(o, linked=o.linked if k else 0) for o, k in zip(left, known, strict=True)]


def _kept(
    calls: tuple[Call, ...], steps: tuple[tuple[float, float], ...], rounds: bool, everything: bool
) -> tuple[Call, ...]:
    """The calls before the last step starts or, with everything kept, before it ends."""
    if everything:
        limit = max(end for _, end in steps)
        return tuple(c for c in calls if c.ts <= limit)
    limit = max(start for start, _ in steps)
    if rounds:
        return tuple(c for c in calls if math.ceil(c.ts) < math.ceil(limit))
    return tuple(c for c in calls if c.ts < limit)

"""One recorded step as a trace for Perfetto (Chrome trace JSON): iter > stage > block > operators, and kernels beside.

Every slice keeps the start and the duration of the recording. Slices of one track must lie in one another; autograd
opens some operators before the range of their block, and those go to a track of their own, whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ctrbench.reports import kernel_rows as rows_of
from ctrbench.reports.records import write_atomic

STEP_NAME = "iter"
"""The NVTX range of a whole step."""
RECORD = "record a step with `ctrbench profile model=NAME --tool torch --out DIR` and export DIR"


Trace = tuple[str, pd.DataFrame, Mapping[str, Any]]
"""Name, rows of `kernel_rows.COLUMNS`, facts of the recording: `step_ns`, `withheld`."""


class NoTrace(ValueError):
    """Records without a step that could be drawn; says why and what to do."""


class Slice(NamedTuple):
    """One event of a step."""

    start_ns: int
    end_ns: int
    name: str
    category: str
    args: dict[str, Any]


def write_trace(traces: Sequence[Trace], out: Path) -> Path:
    """Writes one step of each recording, each as a process of its own that begins at 0; whole or not at all.

    Args:
        traces: the recordings.
        out: file to write.

    Returns:
        `out`.

    Raises:
        NoTrace: none of them holds a step.
    """
    events, reasons, processes = list[dict[str, Any]](), list[str](), 0
    for name, rows, facts in traces:
        step = rows[rows["view"] == rows_of.STEP]
        why = dict(facts.get("withheld") or {}).get("timeline", "")
        if why or step.empty or not facts.get("step_ns"):
            reasons.append(f"{name}: {why or 'its recording marks no step'}")
            continue
        processes += 1
        events += _process(processes, name, step, int(facts["step_ns"]))
    if not events:
        raise NoTrace("; ".join(reasons) or "no run was traced")
    body = {"displayTimeUnit": "ns", "otherData": {"format": "ctrbench step trace 1"}, "traceEvents": events}
    write_atomic(out, json.dumps(body, separators=(",", ":")).encode())
    return out


def of_records(kernels: pd.DataFrame, bodies: Mapping[str, Mapping[str, Any]]) -> list[Trace]:
    """What `write_trace` takes, of loaded records: those whose process was traced."""
    out = list[Trace]()
    for key, body in bodies.items():
        facts = body.get("extra", {}).get("kernels")
        if facts is not None:
            out.append((key, kernels[kernels["run"] == key], facts))
    return out


def _process(pid: int, name: str, step: pd.DataFrame, step_ns: int) -> list[dict[str, Any]]:
    """Events of one step: the ranges' thread first, its `iter` around all, then what else ran."""
    lanes: dict[str, list[Slice]] = {}
    ranges: dict[str, list[Slice]] = {}
    for row in step.to_dict("records"):
        found = _slice(row)
        of = ranges if row["kind"] == rows_of.RANGE else lanes
        of.setdefault(str(row["lane"]), []).append(found)
    first = next(iter(ranges), "steps")
    whole = Slice(0, step_ns, STEP_NAME, rows_of.RANGE, {"origin": str(step["origin"].iloc[0])})
    ranges[first] = [whole, *ranges.get(first, [])]
    tracks: list[tuple[str, list[Slice]]] = []
    for lane in dict.fromkeys([*ranges, *lanes]):
        tracks += _nested(lane, ranges.get(lane, []), lanes.get(lane, []))
    out = [_meta("process_name", pid, 0, name=name)]
    for tid, (title, slices) in enumerate(tracks, start=1):
        out += [_meta("thread_name", pid, tid, name=title), _meta("thread_sort_index", pid, tid, sort_index=tid)]
        out += [
            {"ph": "X", "pid": pid, "tid": tid, "name": s.name, "cat": s.category, "ts": s.start_ns / 1000,
             "dur": (s.end_ns - s.start_ns) / 1000, "args": s.args}
            for s in slices
        ]  # fmt: skip
    return out


def _slice(row: Mapping[Any, Any]) -> Slice:
    kind, name = str(row["kind"]), str(row["name"])
    shown = name.rsplit("/", 1)[-1] if kind == rows_of.RANGE else name
    keys = ("stage", "block") if kind == rows_of.RANGE else ("stage", "block", "family", "device")
    args = {k: str(row[k]) for k in keys if not pd.isna(row[k]) and row[k] != ""}
    start = int(row["start_ns"])
    return Slice(start, start + int(row["duration_ns"]), shown, kind, args | {"origin": str(row["origin"])})


def _meta(kind: str, pid: int, tid: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": args}


def _nested(lane: str, ranges: Sequence[Slice], others: Sequence[Slice]) -> list[tuple[str, list[Slice]]]:
    """(title, slices) of the tracks of a lane; on each the slices lie in one another or apart, outer ones first."""
    tracks: list[tuple[str, list[Slice]]] = []
    left = list(ranges)
    inside = others
    while left or inside:
        base, left = _fit(left)
        crossing = [s for s in inside if any(_cross(s, r) for r in base)]
        out = {id(s) for s in crossing}
        whole, more = _fit([s for s in inside if id(s) not in out])
        title = lane if not tracks else f"{lane}, across ranges" + (f" {len(tracks)}" if len(tracks) > 1 else "")
        tracks.append((title, sorted([*base, *whole], key=_order)))
        inside = [*crossing, *more]
    return tracks


def _fit(slices: Sequence[Slice]) -> tuple[list[Slice], list[Slice]]:
    """(slices that lie in one another or apart, those that do not fit among them)."""
    fit, left, stack = list[Slice](), list[Slice](), list[Slice]()
    for s in sorted(slices, key=_order):
        while stack and stack[-1].end_ns <= s.start_ns:
            stack.pop()
        if stack and s.end_ns > stack[-1].end_ns:
            left.append(s)
            continue
        stack.append(s)
        fit.append(s)
    return fit, left


def _order(s: Slice) -> tuple[int, int, int]:
    """Outer before inner; of two equal ones the range."""
    return s.start_ns, -s.end_ns, int(s.category != rows_of.RANGE)


def _cross(a: Slice, b: Slice) -> bool:
    """Whether two slices overlap and neither holds the other."""
    return a.start_ns < b.start_ns < a.end_ns < b.end_ns or b.start_ns < a.start_ns < b.end_ns < a.end_ns

"""NVTX ranges and user annotations projected onto the device operations that were launched inside them.

An operation belongs to a range if its launch call lies fully inside the range, on the thread that started the range
(measures.md section 10); all ranges around a call own its operations. A range without an end owns nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ctrbench.bench.trace.columns import MISSING, HostEvents, Ints, known, total
from ctrbench.bench.trace.sweep import Owned, add_owned, innermost, nothing_owned, parents

if TYPE_CHECKING:
    from ctrbench.bench.trace.recording import Recording


def innermost_of(recording: Recording, events: HostEvents, rows: Ints) -> Ints:
    """For each of these operations the innermost event around its launch call on its thread, -1 for none."""
    out = np.full(len(rows), -1, np.int64)
    call = recording.call_of[rows]
    linked = np.flatnonzero(call >= 0)
    linked = linked[recording.api.end[call[linked]] != MISSING]
    thread = recording.api.thread[call[linked]]
    for at in np.unique(thread).tolist():
        mine = np.flatnonzero((events.thread == at) & (events.end != MISSING))
        wanted = linked[thread == at]
        found = innermost(
            events.start[mine], events.end[mine], recording.api.start[call[wanted]], recording.api.end[call[wanted]]
        )
        out[wanted] = np.where(found >= 0, mine[found] if len(mine) else -1, -1)
    return out


def owned(recording: Recording, events: HostEvents, *, any_thread: bool = False) -> Owned:
    """What each range owns.

    Args:
        recording: its operations and launch calls.
        events: its ranges.
        any_thread: count calls of every thread of the range's process, as a step's window does: the backward has
            threads of its own.
    """
    out = nothing_owned(len(events))
    rows = np.flatnonzero(recording.call_of >= 0)
    rows = rows[recording.api.end[recording.call_of[rows]] != MISSING]
    call = recording.call_of[rows]
    closed = events.end != MISSING
    for thread in np.unique(recording.api.thread[call]).tolist():
        if any_thread:
            same = recording.thread_process[events.thread] == recording.thread_process[thread]
        else:
            same = events.thread == thread
        mine, ranges = recording.api.thread[call] == thread, np.flatnonzero(same & closed)
        at, of = rows[mine], call[mine]
        add_owned(
            out, ranges, events.start[ranges], events.end[ranges],
            (recording.api.start[of], recording.api.end[of]), (recording.gpu.start[at], recording.gpu.end[at]),
            recording.gpu.is_kernel[at],
        )  # fmt: skip
    return out


def by_name(recording: Recording, events: HostEvents, own: Owned) -> dict[str, dict[str, int | None]]:
    """Name -> ranges, ops, kernels, gpu_ns, first_start, last_end; most device time first."""
    closed = np.flatnonzero(events.end != MISSING)
    columns = {"ranges": np.ones(len(closed), np.int64), "ops": own.ops[closed], "kernels": own.kernels[closed]}
    names, sums = grouped(events.name[closed], columns | {"gpu_ns": own.gpu_ns[closed]})
    at = np.searchsorted(names, events.name[closed])
    first, last = np.full(len(names), np.iinfo(np.int64).max), np.full(len(names), MISSING)
    some = own.ops[closed] > 0
    np.minimum.at(first, at[some], own.first_start[closed][some])
    np.maximum.at(last, at[some], own.last_end[closed][some])
    order = sorted(range(len(names)), key=lambda i: (-sums[i]["gpu_ns"], recording.string(int(names[i]))))
    found: dict[str, dict[str, int | None]] = {}
    for i in order:
        extent = {"first_start": int(first[i]) if sums[i]["ops"] else None, "last_end": known(last[i])}
        found[recording.string(int(names[i]))] = {**sums[i], **extent}
    return found


def grouped(codes: Ints, columns: dict[str, Ints]) -> tuple[Ints, list[dict[str, int]]]:
    """(distinct codes, sums of every column by code)."""
    distinct, at = np.unique(codes, return_inverse=True)
    sums = {}
    for name, values in columns.items():
        sums[name] = np.zeros(len(distinct), np.int64)
        np.add.at(sums[name], at, values)
    rows = zip(*(column.tolist() for column in sums.values()), strict=True)
    return distinct, [dict(zip(sums, row, strict=True)) for row in rows]


def by_innermost(recording: Recording) -> dict[str, dict[str, int]]:
    """Key of a range -> operations launched in it and in no range inside it; the sum is all device time exactly.

    "" holds what no range owns.
    """
    at, keys = recording.range_keys
    row = recording.annotation_of
    key = np.where(row >= 0, at[row], -1) if len(at) else np.full(len(row), -1, np.int64)
    kernel = recording.gpu.is_kernel.astype(np.int64)
    codes, sums = grouped(key, {"ops": np.ones(len(key), np.int64), "kernels": kernel, "gpu_ns": recording.gpu.ns})
    out = {keys[code] if code >= 0 else "": row for code, row in zip(codes.tolist(), sums, strict=True)}
    return dict(sorted(out.items(), key=lambda item: (-item[1]["gpu_ns"], item[0])))


def paths(recording: Recording, events: HostEvents) -> tuple[Ints, list[str]]:
    """(index of each range's path, paths): the names of the ranges around it on its thread and its own, by `/`.

    A `/` inside a name stays: only the stack says what nests.
    """
    above = np.full(len(events), -1, np.int64)
    closed = events.end != MISSING
    for thread in np.unique(events.thread).tolist():
        mine = np.flatnonzero((events.thread == thread) & closed)
        found = parents(events.start[mine], events.end[mine])
        above[mine] = np.where(found >= 0, mine[found] if len(mine) else -1, -1)
    known_paths: dict[tuple[int, int], int] = {}
    texts: list[str] = []
    out, names, up = [-1] * len(events), events.name.tolist(), above.tolist()
    # parents come before their children in this order, the order of `parents`
    for row in np.lexsort((np.arange(len(events)), -events.end, events.start)).tolist():
        parent = out[up[row]] if up[row] >= 0 else -1
        key = (parent, names[row])
        if key not in known_paths:
            known_paths[key] = len(texts)
            name = recording.string(names[row])
            texts.append(f"{texts[parent]}/{name}" if parent >= 0 else name)
        out[row] = known_paths[key]
    return np.array(out, np.int64), texts


def step_figures(recording: Recording, steps: HostEvents) -> dict[str, Any] | None:
    """True launches of each step: kernels whose launch call lies in the step on any thread of its process.

    A graph launch is one call and all kernels of its graph, which belong to the step of that call. None without steps.
    """
    steps = steps.take(steps.end != MISSING)
    if not len(steps):
        return None
    own = owned(recording, steps, any_thread=True)
    call, kernel = recording.call_of, recording.gpu.is_kernel
    launching = np.unique(call[(call >= 0) & kernel])
    graph = kernel & (call >= 0) & recording.is_graph_launch[recording.api.name[call]]
    launching = launching[recording.api.end[launching] != MISSING]
    calls = nothing_owned(len(steps))
    thread, process = recording.api.thread[launching], recording.thread_process
    for at in np.unique(thread).tolist():
        rows = np.flatnonzero(process[steps.thread] == process[at])
        mine = launching[thread == at]
        span = (recording.api.start[mine], recording.api.end[mine])
        add_owned(calls, rows, steps.start[rows], steps.end[rows], span, span, np.ones(len(mine), bool))
    return {
        "steps": len(steps),
        "kernels_per_step": own.kernels.tolist(),
        "launch_calls_per_step": calls.ops.tolist(),
        "kernel_ns_per_step": own.kernel_ns.tolist(),
        "kernels_from_graph_launch": int(graph.sum()),
        "kernels_in_no_step": int(kernel.sum()) - total(own.kernels),
        "kernels_unlinked": int((kernel & (call < 0)).sum()),
    }

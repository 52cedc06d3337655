"""Busy and idle time of a device, and the launch verdict (measures.md section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ctrbench.bench.trace.columns import MISSING, UNNAMED, Ints, total

if TYPE_CHECKING:
    from ctrbench.bench.trace.recording import Recording

LAUNCHES = frozenset({
    "cudaLaunchKernel", "cudaLaunchKernelExC", "cudaLaunchCooperativeKernel", "cuLaunchKernel", "cuLaunchKernelEx",
    "cuLaunchCooperativeKernel", "hipLaunchKernel", "hipExtLaunchKernel", "hipModuleLaunchKernel",
    "hipExtModuleLaunchKernel", "hipLaunchCooperativeKernel",
})  # fmt: skip
GRAPH_LAUNCHES = frozenset({"cudaGraphLaunch", "cuGraphLaunch", "hipGraphLaunch"})
UNLINKED_LIMIT = 0.05
HOST_LATE_LIMIT = 0.30
BUSY_LIMIT = 0.90


def device_time(recording: Recording, device: int) -> dict[str, Any]:
    """Union and span of the operations of one device; they may overlap."""
    at = np.flatnonzero(recording.gpu.device == device)
    _, gap, span = _gaps(recording.gpu.start[at], recording.gpu.end[at])
    busy = span - total(gap[gap > 0])
    return {"ops": len(at), "busy_ns": busy, "span_ns": span, "idle_share": 1 - busy / span if span else None}


def _gaps(start: Ints, end: Ints) -> tuple[Ints, Ints, int]:
    """(order by start, time from the end of all before to each start, span); gaps of an overlap are negative."""
    order = np.argsort(start, kind="stable")
    until = np.maximum.accumulate(end[order])
    gap = np.concatenate(([0], start[order][1:] - until[:-1]))
    return order, gap, int(until[-1]) - int(start[order[0]])


def idle_split(recording: Recording, device: int) -> dict[str, int | None]:
    """Why a device had nothing to do: gaps in which the next launch came too late, by `host_late`'s formula."""
    at = np.flatnonzero(recording.gpu.device == device)
    order, gap, _ = _gaps(recording.gpu.start[at], recording.gpu.end[at])
    call, start = recording.call_of[at], recording.gpu.start[at]
    linked = call >= 0
    fastest = int((start[linked] - recording.api.start[call[linked]]).min()) if linked.any() else None
    gaps = gap > 0
    idle, late, unknown = total(gap[gaps]), 0, total(gap[gaps & ~linked[order]])
    if fastest is not None:
        rows = order[gaps & linked[order]]
        launch, width = call[rows], gap[gaps & linked[order]]
        ready = recording.api.start[launch] + fastest
        plain = recording.is_launch[recording.api.name[launch]]
        ready = np.where(plain, np.maximum(ready, recording.api.end[launch]), ready)
        late = total(np.clip(np.minimum(start[rows], ready) - (start[rows] - width), 0, None))
    return {
        "gaps": int(gaps.sum()),
        "idle_ns": idle,
        "min_launch_to_start_ns": fastest,
        "idle_host_late_ns": late,
        "idle_unknown_ns": unknown,
        "idle_other_ns": idle - late - unknown,
    }


def launch_verdict(recording: Recording, device: int) -> dict[str, Any]:
    """`launch-bound`, `gpu-bound`, `mixed`, or None with the reason it is withheld."""
    here = recording.gpu.device == device
    share = recording.unlinked_share(device)
    if not (here & recording.gpu.is_kernel).any():
        return {"verdict": None, "reason": "no_kernel_table"}
    if "thinned_recording" in recording.refused:
        return {"verdict": None, "reason": f"thinned_recording: {recording.refused['thinned_recording']}"}
    time = device_time(recording, device)
    if share is None or share > UNLINKED_LIMIT or not time["span_ns"]:
        text = f"unlinked_share: {share or 0:.3f} of the operations have no recorded launch"
        return {"verdict": None, "reason": text}
    call = recording.call_of[here]
    call = call[call >= 0]
    if (recording.api.end[call] == MISSING).any() or (recording.api.name[call] == UNNAMED).any():
        return {"verdict": None, "reason": "field_missing: end or name of a launching call"}
    late = (idle_split(recording, device)["idle_host_late_ns"] or 0) / time["span_ns"]
    busy = time["busy_ns"] / time["span_ns"]
    verdict = "launch-bound" if late >= HOST_LATE_LIMIT else "gpu-bound" if busy >= BUSY_LIMIT else "mixed"
    return {"verdict": verdict, "host_late": late, "gpu_busy": busy}


def verdict(by_device: dict[str, dict[str, Any]]) -> str | None:
    """One word for the recording: that of all devices, `mixed` where they differ, None if one is withheld."""
    words = {row["verdict"] for row in by_device.values()}
    if not words or None in words:
        return None
    return str(words.pop()) if len(words) == 1 else "mixed"

"""A synthetic Kineto file on which each rule of HolisticTraceAnalysis changes something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# What HolisticTraceAnalysis 0.5.0 printed for this file (tests/golden/test_hta_recordings.py runs it if it is there).
PLANTED: dict[str, dict[str, int]] = {
    "default": {"kernels": 5, "kernel_ns": 27_000, "memcpy": 0, "memset": 0, "busy_ns": 20_000, "idle_ns": 26_000,
                "linked_kernels": 6},
    "everything": {"kernels": 6, "kernel_ns": 34_000, "memcpy": 0, "memset": 0, "busy_ns": 27_000, "idle_ns": 76_750,
                   "linked_kernels": 7},
}  # fmt: skip


def event(cat: str, name: str, ts: float, dur: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 1, "tid": 1, "args": args}


def device_event(cat: str, ts: float, dur: float, correlation: int, device: int = 0) -> dict[str, Any]:
    args = {"device": device, "stream": 7, "correlation": correlation}
    return {**event(cat, "Memcpy HtoD" if cat == "gpu_memcpy" else "gemm", ts, dur, **args), "pid": device, "tid": 7}


def call(name: str, ts: float, correlation: int, cat: str = "cuda_runtime") -> dict[str, Any]:
    return event(cat, name, ts, 2.0, correlation=correlation)


def write_synthetic_file(folder: Path, second_device: bool = False) -> Path:
    """Two steps; raw kernels: 10.4, 0.6, 5.0, 7.0, 4.0 us, one copy of 3.0 us.

    Args:
        folder: where it is written.
        second_device: the kernel of the last step runs on device 1.
    """
    events = [
        event("user_annotation", "ProfilerStep#1", 0.5, 100.0),
        event("user_annotation", "ProfilerStep#2", 100.5, 100.0),
        call("cudaLaunchKernel", 1.25, 1),
        device_event("kernel", 10.25, 10.4, 1),  # rounded: 11 to 20
        call("cudaLaunchKernel", 4.25, 2),
        device_event("kernel", 30.2, 0.6, 2),  # rounded: 31 to 30, a negative time
        call("cuLaunchKernel", 7.25, 3, "cuda_driver"),
        device_event("kernel", 40.0, 5.0, 3),
        call("cudaLaunchKernel", 10.25, 4),
        call("cuLaunchKernel", 10.5, 4, "cuda_driver"),  # one launch recorded at both levels
        device_event("kernel", 50.0, 7.0, 4),
        device_event("gpu_memcpy", 60.0, 3.0, 99),  # no host event
        call("cudaLaunchKernel", 101.0, 5),
        device_event("kernel", 110.0, 4.0, 5, device=int(second_device)),
    ]
    path = folder / "synthetic_every_rule.json"
    path.write_text(json.dumps({"schemaVersion": 1, "distributedInfo": {"rank": 0}, "traceEvents": events}, indent=1))
    return path

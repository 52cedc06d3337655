"""Times steps by CUDA events and by the wall clock, synchronised around every window of them, L2 flushed before it.

A window is one step, or as many as fill `WINDOW_S`: what starting and waiting cost, tens of microseconds, would
otherwise set the clocks of short steps apart.

On an H100 both clocks agreed within 5 % in all ten timings of the first record (docs/records).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import torch

from ctrbench.bench.hardware import Gpu, HardwareUnknown, peak
from ctrbench.bench.kit.record import judge_clocks, spread

WINDOW_S = 0.010
FLUSH_BYTES = 512 << 20
"""Written before every timed window: larger than any catalogued last-level cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How many windows of steps, and for how long."""

    warmup: int = 10
    """Single steps."""
    most: int = 50
    least: int = 5
    seconds: float = 20.0
    """After this no window is begun beyond `least`; a third of it is the warm-up's at most."""


class Clock(Protocol):
    """Runs a window of steps and says how long it took."""

    def __call__(self, run: Callable[[], object]) -> tuple[float, float | None]:
        """(seconds by the wall clock, seconds by the device's events or None)."""
        ...

    def peak_bytes(self) -> dict[str, int] | None:
        """Peak of the allocator since `reset`, without the clock's own buffer; None where there is none."""
        ...

    def reset(self) -> None:
        """Starts the peak anew."""
        ...


class WallClock:
    """Of a CPU: nothing to synchronise, no second clock."""

    def __call__(self, run: Callable[[], object]) -> tuple[float, float | None]:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start, None

    def peak_bytes(self) -> dict[str, int] | None:
        return None

    def reset(self) -> None:
        return None


class EventClock:
    """Of a CUDA device. Both clocks span the same work: the queue is empty when they start and when they stop."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, run: Callable[[], object]) -> tuple[float, float | None]:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._flush.zero_()
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - start, begin.elapsed_time(end) * 1e-3

    def peak_bytes(self) -> dict[str, int] | None:
        return {
            "allocated": torch.cuda.max_memory_allocated(self.device) - FLUSH_BYTES,
            "reserved": torch.cuda.max_memory_reserved(self.device) - FLUSH_BYTES,
        }

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)


def clock_of(device: torch.device) -> Clock:
    """The clock of a device."""
    return EventClock(device) if device.type == "cuda" else WallClock()


def time_steps(run: Callable[[int], object], clock: Clock, plan: Plan) -> dict[str, Any]:
    """Times `run(number)`, numbers growing from 0, warm-up included.

    Returns:
        `status`, `reason`, `n` windows of `steps_a_window`, `warmup`, seconds a step by `wall_s` and `event_s` (P10,
        P50, P90 over the windows), `disagreement`, `memory_peak`.
    """
    clock.reset()
    numbers, began = count(), time.perf_counter()
    warm, last = 0, 0.0
    while warm < plan.warmup and (warm < 2 or time.perf_counter() - began < plan.seconds / 3):
        last, _ = clock(lambda: run(next(numbers)))
        warm += 1
    steps = max(1, math.ceil(WINDOW_S / max(last, 1e-5)))

    def window() -> None:
        for _ in range(steps):
            run(next(numbers))

    wall: list[float] = []
    event: list[float] = []
    while len(wall) < plan.most and (len(wall) < plan.least or time.perf_counter() - began < plan.seconds):
        by_wall, by_event = clock(window)
        wall.append(by_wall / steps)
        if by_event is not None:
            event.append(by_event / steps)
    found: dict[str, Any] = {
        "status": "ok", "reason": "", "origin": "measured", "n": len(wall), "steps_a_window": steps,
        "warmup": warm, "wall_s": spread(wall),
        "event_s": None, "disagreement": None, "memory_peak": clock.peak_bytes(),
    }  # fmt: skip
    if event:
        found["event_s"] = spread(event)
        found["status"], found["disagreement"], found["reason"] = judge_clocks(event, wall)
    return found


def utilisation(
    timing: dict[str, Any], flops: float | None, why_none: str, gpu: Gpu | None, dtype: str
) -> dict[str, Any]:
    """MFU of a timing: value, origin `derived` and its inputs, or null with the reason.

    Args:
        timing: of `time_steps`.
        flops: model FLOPs of a step; None where they are withheld.
        why_none: the reason then.
        gpu: catalogue entry; None where the device has none.
        dtype: whose peak counts.
    """
    if flops is None:
        return _withheld(why_none)
    if timing["event_s"] is None:
        return _withheld("device_unknown: no CUDA device, no event")
    if timing["status"] != "ok":
        return _withheld(timing["reason"])
    if gpu is None:
        return _withheld("device_unknown: the device is not in bench/hardware.toml")
    try:
        value = flops / peak(gpu, dtype) / timing["event_s"]["p50"]
    except HardwareUnknown as error:
        return _withheld(str(error))
    if value > 1:
        return _withheld(f"clock_unstable: {value:.2f} of the catalogued peak")
    return {"value": value, "origin": "derived", "inputs": {"time": "measured", "flops": "counted", "peak": "cited"}}


def _withheld(reason: str) -> dict[str, Any]:
    return {"value": None, "origin": "abstained", "reason": reason}

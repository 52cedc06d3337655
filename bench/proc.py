"""What the operating system says of this process: memory, CPU time, input and output (Linux)."""

from __future__ import annotations

import ctypes
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_SELF = Path("/proc/self")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_KEPT = 2**31 - 1  # the largest int: nothing is given back
_kept_peak = 0
"""Peak before the last `memory_aside`, bytes."""
_keeps_freed = False


def keep_freed_memory() -> bool:
    """Lets glibc reuse freed blocks of any size instead of returning their pages to the kernel.

    By default every temporary of a batch is fresh pages again: a training of DIN spends a quarter of its time on them,
    and with blocks up to 32 MiB kept (the most that M_MMAP_THRESHOLD takes) still a third at batch 4096 (docs/log.md).
    For all models alike, at the start of their process.

    Returns:
        whether the C library took it; one without `mallopt` is left as it is.
    """
    global _keeps_freed
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        kept = [libc.mallopt(_M_MMAP_MAX, 0), libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)]
        _keeps_freed = all(kept)
    return _keeps_freed


def allocator() -> str:
    """For the manifest of a machine."""
    return "freed memory kept for reuse" if _keeps_freed else "as the C library has it"


def cpu_seconds(live_children: bool = False) -> float:
    """User + system seconds of all threads of this process and of its finished children.

    Args:
        live_children: add children still running (a walk over /proc, about a millisecond).
    """
    total = sum(os.times()[:4])
    if live_children:
        for child in psutil.Process().children(recursive=True):
            try:
                used = child.cpu_times()
            except psutil.NoSuchProcess:  # ended meanwhile: os.times() has it from the next call on
                continue
            total += used.user + used.system
    return total


def rss_peak() -> int:
    """Largest resident set so far, bytes; allocations made inside `memory_aside` do not count."""
    # VmHWM, not ru_maxrss: the latter survives exec, so a small worker would report its large parent's memory.
    try:
        text = (_SELF / "status").read_text()
        peak_kib = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(_kept_peak, peak_kib * 1024)


@contextmanager
def memory_aside() -> Iterator[None]:
    """Keeps the harness's own buffers out of `rss_peak`: the peak is reset when the block ends.

    Where the kernel does not allow it (no /proc/self/clear_refs) the buffers stay in the peak.
    """
    global _kept_peak
    _kept_peak = rss_peak()
    try:
        yield
    finally:
        if _keeps_freed:
            ctypes.CDLL(None).malloc_trim(0)  # the harness's freed buffers are no memory of the model
        try:
            (_SELF / "clear_refs").write_text("5")  # proc(5): resets the peak to the current resident set
        except OSError:
            _kept_peak = 0


def pss() -> int | None:
    """Proportional set of this process, bytes; None where the kernel does not tell. Sum it over loader workers."""
    try:
        text = (_SELF / "smaps_rollup").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Io:
    """Bytes this process asked for, and those that came from or went to a device."""

    rchar: int
    """Read calls, page cache included."""
    wchar: int
    read_bytes: int
    """From the device: 0 when the cache is warm."""
    write_bytes: int

    def __sub__(self, other: Io) -> Io:
        return Io(
            rchar=self.rchar - other.rchar, wchar=self.wchar - other.wchar,
            read_bytes=self.read_bytes - other.read_bytes, write_bytes=self.write_bytes - other.write_bytes,
        )  # fmt: skip


def io_counters() -> Io | None:
    """Counters of /proc/self/io since the start of the process; None where not readable."""
    try:
        pairs = dict(line.split(": ") for line in (_SELF / "io").read_text().splitlines())
    except OSError:
        return None
    return Io(
        rchar=int(pairs["rchar"]), wchar=int(pairs["wchar"]),
        read_bytes=int(pairs["read_bytes"]), write_bytes=int(pairs["write_bytes"]),
    )  # fmt: skip


@dataclass(slots=True)
class Usage:
    """What a `usage()` block cost; complete when the block has ended."""

    wall_s: float = 0.0
    cpu_core_s: float = 0.0
    io: Io | None = None

    @property
    def cores_used(self) -> float:
        """CPU core-seconds per second of wall time."""
        return self.cpu_core_s / self.wall_s


@contextmanager
def usage(live_children: bool = False) -> Iterator[Usage]:
    """Measures a block of code.

    Args:
        live_children: as in `cpu_seconds`.
    """
    out, io = Usage(), io_counters()
    cpu, wall = cpu_seconds(live_children), time.perf_counter()
    try:
        yield out
    finally:
        out.wall_s = time.perf_counter() - wall
        out.cpu_core_s = cpu_seconds(live_children) - cpu
        after = io_counters()
        out.io = after - io if after is not None and io is not None else None

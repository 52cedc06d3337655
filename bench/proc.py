"""What the operating system says of this process: memory and CPU time (Linux)."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def cpu_seconds() -> float:
    """User + system seconds of all threads of this process and of its finished children."""
    return sum(os.times()[:4])


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

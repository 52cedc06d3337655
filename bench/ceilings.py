"""What this CPU can do at most, measured in the same run as the steps it is compared with (measures.md section 6).

Dims: M side of a square product, N rows gathered, V rows of a table, D width of a row
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ctrbench.bench.proc import memory_aside
from ctrbench.kernels.linear import linear

CLOCK_DRIFT = 0.10
"""Change of a ceiling between two alternations above which utilisations are `clock_unstable`."""

_SIZES_M = (512, 1024, 2048)
_QUICK_M = 1024
_PROBE_M, _HOPELESS = 256, 4.0
_GATHER_D = (16, 64, 128)
_GATHERED = 1 << 20  # values a call
_IN_CACHE = 8 << 20  # at most, both arrays of a copy: long enough not to time the call, and other cores use the cache
_ASSUMED_LLC = 32 << 20  # where sysfs does not tell; EPYC cores share 16-32 MiB


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """Highest rates seen; None for what a quick measurement leaves out."""

    threads: int
    gemm_fp32_gflops: float
    gemm_fp32_size: int
    copy_gbs: float
    """Read + written bytes of a copy / time; write-allocate traffic not counted."""
    copy_cache_gbs: float | None = None
    """The same of arrays that lie in the last-level cache."""
    gemm_bf16_gflops: float | None = None
    gemm_bf16_size: int | None = None
    triad_gbs: float | None = None
    """a = b + s*c over three arrays, 3 * bytes / time."""
    gather_ns_per_row: Mapping[str, float] = field(default_factory=dict)
    """`D16`, `D64`, `D128`: random fp32 rows of a table larger than the last-level cache."""
    dispatch_us: float | None = None
    """One in-place operator on an empty tensor, called from Python."""
    llc_bytes: int = 0
    buffer_bytes: int = 0
    """Size of one array of copy and triad; a gather table is twice that."""
    seconds: float = 0.0
    """What the measurement itself took."""


def measure_ceilings(threads: int, seconds_each: float = 0.3, quick: bool = False, narrow: bool = False) -> Ceilings:
    """Measures the ceilings at a thread count.

    Args:
        threads: intra-op threads, as in the timed steps; restored afterwards.
        seconds_each: time spent on each figure; the best repetition counts.
        quick: fp32 product of one size, copies and dispatch only, for alternation with timed steps (about 0.2 s).
        narrow: the quick measurement has the bf16 product too, for steps whose products are bf16.

    The buffers do not count in `proc.rss_peak()`.
    """
    began = time.perf_counter()
    llc = last_level_cache()
    values = max(2 * llc, 64 << 20) // 4
    with thread_count(threads), torch.inference_mode(), memory_aside():
        if quick:
            bf16 = (_gemm(_QUICK_M, torch.bfloat16, 0.1), _QUICK_M) if narrow else (None, None)
            return Ceilings(
                threads=threads, gemm_fp32_gflops=_gemm(_QUICK_M, torch.float32, 0.1), gemm_fp32_size=_QUICK_M,
                gemm_bf16_gflops=bf16[0], gemm_bf16_size=bf16[1],
                copy_gbs=_stream(values, 0.05, arrays=2), copy_cache_gbs=_stream(cached_values(llc), 0.03, arrays=2),
                dispatch_us=_dispatch(0.02), llc_bytes=llc, buffer_bytes=values * 4,
                seconds=time.perf_counter() - began,
            )  # fmt: skip
        fp32, bf16 = (_best_gemm(dtype, seconds_each) for dtype in (torch.float32, torch.bfloat16))
        return Ceilings(
            threads=threads, gemm_fp32_gflops=fp32[0], gemm_fp32_size=fp32[1],
            gemm_bf16_gflops=bf16[0], gemm_bf16_size=bf16[1],
            copy_gbs=_stream(values, seconds_each, arrays=2),
            copy_cache_gbs=_stream(cached_values(llc), seconds_each, arrays=2),
            triad_gbs=_stream(values, seconds_each, arrays=3),
            gather_ns_per_row={f"D{d}": _gather(2 * values, d, seconds_each) for d in _GATHER_D},
            dispatch_us=_dispatch(seconds_each), llc_bytes=llc, buffer_bytes=values * 4,
            seconds=time.perf_counter() - began,
        )  # fmt: skip


def drift(a: Ceilings, b: Ceilings) -> float:
    """Largest relative change of a ceiling that two measurements share (product, copy); above `CLOCK_DRIFT` the
    clock or the neighbours changed and a utilisation is `clock_unstable`.

    Raises:
        ValueError: the two measured different things.
    """
    if (a.threads, a.buffer_bytes) != (b.threads, b.buffer_bytes):
        raise ValueError(f"ceilings at {a.threads} and {b.threads} threads do not compare; measure both the same way")
    pairs = [(a.copy_gbs, b.copy_gbs)]
    if a.gemm_fp32_size == b.gemm_fp32_size:
        pairs.append((a.gemm_fp32_gflops, b.gemm_fp32_gflops))
    if a.gemm_bf16_gflops and b.gemm_bf16_gflops and a.gemm_bf16_size == b.gemm_bf16_size:
        pairs.append((a.gemm_bf16_gflops, b.gemm_bf16_gflops))
    return max(max(x, y) / min(x, y) - 1 for x, y in pairs)


def last_level_cache() -> int:
    """Bytes of the largest cache of CPU 0 as sysfs gives it."""
    sizes = [_cache_bytes(p.read_text()) for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, default=_ASSUMED_LLC)


def cached_values(llc: int) -> int:
    """fp32 values of one of two arrays that fill at most a quarter of a last-level cache of `llc` bytes."""
    return min(llc // 4, _IN_CACHE) // 8


def _cache_bytes(text: str) -> int:
    number, unit = text.strip()[:-1], text.strip()[-1]
    return int(number) * {"K": 1 << 10, "M": 1 << 20}[unit]


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Intra-op threads within a block; restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fastest(run: Callable[[], object], seconds: float) -> float:
    """Shortest of the runs that fit into `seconds`, at least two after one warm-up run."""
    run()
    best, runs = float("inf"), 0
    end = time.perf_counter() + seconds
    while runs < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best


def gemm_ceiling(ceilings: Mapping[str, Any], dtype: str) -> float | None:
    """GFLOP/s of the product that steps of this dtype are read against, of a `Ceilings` as a record carries it."""
    value = ceilings.get("gemm_fp32_gflops" if dtype == "float32" else "gemm_bf16_gflops")
    return None if value is None else float(value)


def _gemm(m: int, dtype: torch.dtype, seconds: float) -> float:
    runs = quick_runs(m, dtype)
    return 2 * m**3 / min(_fastest(run, seconds / len(runs)) for run in runs) / 1e9


def quick_runs(m: int, dtype: torch.dtype) -> list[Callable[[], object]]:
    """`gemm_runs` less the libraries that are hopeless at a small size.

    Where a CPU has no bf16 units one library multiplies in float32 and another element by element: waiting for the
    second at full size takes as long as all that is timed beside it.
    """
    runs = gemm_runs(m, dtype)
    if dtype == torch.float32 or m <= _PROBE_M:
        return runs
    small = [_fastest(run, 0.0) for run in gemm_runs(_PROBE_M, dtype)]
    return [run for run, seconds in zip(runs, small, strict=True) if seconds <= _HOPELESS * min(small)]


def gemm_runs(m: int, dtype: torch.dtype) -> list[Callable[[], object]]:
    """A square product of 2*m^3 FLOP by each of the libraries that models may use (`kernels.linear`)."""
    left_MM, right_MM = torch.randn(m, m).to(dtype), torch.randn(m, m).to(dtype)
    out_MM = torch.empty(m, m, dtype=dtype)
    return [lambda: torch.mm(left_MM, right_MM, out=out_MM), lambda: linear(left_MM, right_MM)]


def _best_gemm(dtype: torch.dtype, seconds: float) -> tuple[float, int]:
    """(GFLOP/s, size) of the best size. A CPU without bf16 units is slow there: sizes that would not fit are left."""
    best = (0.0, 0)
    for m in _SIZES_M:
        if best[0] and 2 * m**3 / (best[0] * 1e9) > seconds:
            break
        best = max(best, (_gemm(m, dtype, seconds / len(_SIZES_M)), m))
    return best


def _stream(values: int, seconds: float, arrays: int) -> float:
    """GB/s of copy (2 arrays) or triad (3)."""
    return arrays * values * 4 / _fastest(stream_run(values, arrays), seconds) / 1e9


def stream_run(values: int, arrays: int) -> Callable[[], object]:
    """Copy (2 arrays of fp32) or triad a = b + 2c (3 arrays)."""
    out, b, c = torch.ones(values), torch.ones(values), torch.ones(values if arrays == 3 else 0)
    return (lambda: out.copy_(b)) if arrays == 2 else (lambda: torch.add(b, c, alpha=2.0, out=out))


def _gather(values: int, d: int, seconds: float) -> float:
    """ns a row."""
    run, rows = gather_run(values, d)
    return _fastest(run, seconds) / rows * 1e9


def gather_run(values: int, d: int, gathered: int = _GATHERED) -> tuple[Callable[[], object], int]:
    """(gather, rows a call) of a table of `values` fp32; the ids walk through a permutation of the whole table, so that
    no row is in the cache when asked.
    """
    table_VD = torch.ones(values // d, d)
    n = max(1, min(gathered // d, len(table_VD)))
    ids = [p for p in torch.randperm(len(table_VD), generator=torch.Generator().manual_seed(0)).split(n) if len(p) == n]
    out_ND = torch.empty(n, d)
    at = 0

    def run() -> None:
        nonlocal at
        torch.index_select(table_VD, 0, ids[at % len(ids)], out=out_ND)
        at += 1

    return run, n


def _dispatch(seconds: float, calls: int = 2000) -> float:
    empty = torch.empty(0)

    def run() -> None:
        for _ in range(calls):
            empty.add_(1.0)

    return _fastest(run, seconds) / calls * 1e6

"""Ceilings of this CPU and what the operating system says of the process."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from ctrbench.bench import proc
from ctrbench.bench.ceilings import CLOCK_DRIFT, Ceilings, drift, last_level_cache, measure_ceilings

A = Ceilings(threads=1, gemm_fp32_gflops=100.0, gemm_fp32_size=1024, copy_gbs=20.0, buffer_bytes=1 << 26)


def test_full_measurement_fills_every_figure_and_restores_threads() -> None:
    before = torch.get_num_threads()
    found = measure_ceilings(1, seconds_each=0.02)
    assert torch.get_num_threads() == before
    assert found.threads == 1
    assert found.gemm_fp32_size in (512, 1024, 2048)
    assert set(found.gather_ns_per_row) == {"D16", "D64", "D128"}
    figures = [v for v in asdict(found).values() if not isinstance(v, dict)] + list(found.gather_ns_per_row.values())
    assert all(v is not None and v > 0 for v in figures)
    # Bounds no machine of the last 15 years leaves: a wrong factor of 1000 or of the bytes would.
    assert 1 < found.gemm_fp32_gflops < 20_000
    assert 0.5 < found.copy_gbs < 1000
    assert 1 < found.gather_ns_per_row["D16"] < 10_000
    assert 0.05 < (found.dispatch_us or 0) < 200
    assert found.buffer_bytes >= 2 * last_level_cache()


def test_quick_measures_product_copies_and_dispatch_and_leaves_the_rest_unknown() -> None:
    found = measure_ceilings(1, quick=True)
    assert found.gemm_fp32_size == 1024
    assert found.copy_gbs > 0
    assert 0.05 < (found.dispatch_us or 0) < 200
    assert (found.triad_gbs, found.gemm_bf16_gflops) == (None, None)
    assert drift(found, found) == 0


def test_drift_is_the_larger_change_and_symmetric() -> None:
    slower = replace(A, gemm_fp32_gflops=80.0, copy_gbs=19.0)
    assert drift(A, slower) == pytest.approx(0.25)
    assert drift(slower, A) == pytest.approx(0.25)
    assert drift(A, replace(A, copy_gbs=21.0)) == pytest.approx(0.05)
    assert drift(A, replace(A, copy_gbs=21.0)) < CLOCK_DRIFT < drift(A, slower)
    # products of different sizes say nothing about the clock
    assert drift(A, replace(A, gemm_fp32_size=512, gemm_fp32_gflops=30.0)) == 0


def test_drift_needs_equal_conditions() -> None:
    with pytest.raises(ValueError, match="do not compare"):
        drift(A, replace(A, threads=2))


def test_cpu_seconds_count_work_and_not_waiting() -> None:
    before = proc.cpu_seconds()
    time.sleep(0.2)
    rested = proc.cpu_seconds()
    end = time.thread_time() + 0.2
    while time.thread_time() < end:
        pass
    assert rested - before < 0.1
    assert proc.cpu_seconds() - rested >= 0.18  # os.times() ticks in 10 ms


def test_cpu_seconds_of_finished_children() -> None:
    before = proc.cpu_seconds()
    burn = "import time\nend = time.thread_time() + 0.3\nwhile time.thread_time() < end: pass\n"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert proc.cpu_seconds() - before >= 0.28


PEAK = """
from ctrbench.bench import proc
base = proc.rss_peak()
with proc.memory_aside():
    big = bytearray(300 << 20)
    big[::4096] = b"x" * len(big[::4096])
    del big
aside = proc.rss_peak() - base
big = bytearray(100 << 20)
big[::4096] = b"x" * len(big[::4096])
del big
print(base >> 20, aside >> 20, (proc.rss_peak() - base) >> 20)
"""


def test_peak_memory_keeps_the_run_and_leaves_out_the_harness() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this kernel has no /proc/self/clear_refs: the harness's buffers stay in the peak, as documented")
    parent = bytearray(300 << 20)
    parent[::4096] = b"x" * len(parent[::4096])
    out = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True).stdout
    base, aside, own = map(int, out.split())
    assert base < 150, "the peak of the parent leaked into the child"
    assert aside < 50
    assert 90 <= own < 150


def test_the_peak_is_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  3000 kB\nVmRSS:\t  10 kB\n")  # kB there are KiB
    monkeypatch.setattr(proc, "_SELF", tmp_path)
    monkeypatch.setattr(proc, "_kept_peak", 0)
    assert proc.rss_peak() == 3000 * 1024


KEPT = """
import ctypes, sys
from ctrbench.bench import proc
if sys.argv[1] == "kept":
    assert proc.keep_freed_memory()
class Info(ctypes.Structure):  # mallinfo2(3)
    _fields_ = [(n, ctypes.c_size_t) for n in (
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost").split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
before = libc.mallinfo2()
block = libc.malloc(20 << 20)
held = libc.mallinfo2()
libc.free(block)
after = libc.mallinfo2()
print(proc.allocator())
print(held.hblks - before.hblks, (after.fordblks - before.fordblks) >> 20)
base = proc.rss_peak()
with proc.memory_aside():
    block = libc.malloc(20 << 20)
    ctypes.memset(block, 1, 20 << 20)
    libc.free(block)
print((proc.rss_peak() - base) >> 20)
"""


def test_freed_memory_is_kept_but_not_as_the_peak_of_a_model() -> None:
    def run(how: str) -> list[str]:
        out = subprocess.run([sys.executable, "-c", KEPT, how], check=True, capture_output=True, text=True).stdout
        return out.splitlines()

    assert run("returned")[:2] == ["as the C library has it", "1 0"], "a mapping of its own, unmapped when freed"
    name, heap, aside = run("kept")
    assert (name, heap) == ("freed memory kept for reuse", "0 20"), "from the heap, 20 MiB left there"
    assert int(aside) < 5

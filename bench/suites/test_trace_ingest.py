"""pytest-benchmark: reading large synthetic recordings against the least that reading them can cost.

Run with `pytest bench/suites/test_trace_ingest.py`. With CTRBENCH_INGEST_SCALE=0.05 the files are smaller and the
factors are not judged. Each way of reading has a process of its own. Time is CPU time: of the process, all threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ctrbench.bench.hardware import this_machine
from ctrbench.bench.suites.synthetic_traces import write_large_kineto, write_large_nsys

SCALE = float(os.environ.get("CTRBENCH_INGEST_SCALE", "1"))
KERNELS, RANGES, KINETO_BYTES = int(1_000_000 * SCALE), int(200_000 * SCALE), int(300_000_000 * SCALE)
GIB = 2**30


def run(way: str, path: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "ctrbench.bench.suites.ingest", way, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def judge(benchmark: BenchmarkFixture, path: Path, floor: str, most: float, memory: float) -> dict[str, Any]:
    """Reads both ways, once each, and compares."""
    least = run(floor, path)
    mine = benchmark.pedantic(run, args=("ingest", path), rounds=1, iterations=1)
    factor = mine["cpu_s"] / least["cpu_s"]
    benchmark.group = f"recording against its floor, {floor}"
    benchmark.extra_info |= {
        "file_bytes": path.stat().st_size, "ingest": mine, floor: least, "factor": factor, "machine": this_machine(),
    }  # fmt: skip
    both = {floor: least, "ingest": mine}
    shown = {way: f"{r['cpu_s']:.2f} CPU s, {r['peak_bytes'] / GIB:.2f} GiB" for way, r in both.items()}
    print(f"\n{path.name}: {shown}, {factor:.2f}x")
    if SCALE >= 1:
        assert factor <= most
        assert mine["peak_bytes"] < memory
    found: dict[str, Any] = mine["found"]
    return found


@pytest.mark.timeout(1800)
def test_nsys_export(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    path = write_large_nsys(tmp_path / "synthetic_large.sqlite", KERNELS, RANGES)
    found = judge(benchmark, path, "select", 8, 2 * GIB)
    assert (found["launches"], found["linked"], found["ranges"]) == (KERNELS, KERNELS, RANGES)
    assert found["inside"] > 0.9 * KERNELS


@pytest.mark.timeout(1800)
def test_kineto_file(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    path = write_large_kineto(tmp_path / "synthetic_large.json", KINETO_BYTES)
    found = judge(benchmark, path, "loads", 4, 3 * GIB)
    assert found["launches"] == found["linked"]
    assert found["launches"] >= 40 * (found["ranges"] - 1)

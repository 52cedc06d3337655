"""pytest-benchmark: rendering a report from synthetic records of several sizes: seconds, CPU, peak memory, page bytes.

Each page has a process of its own. pytest-benchmark's own time is the whole process, imports included; `seconds` and
`cpu_s` of `extra_info` are the rendering alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ctrbench.bench.hardware import this_machine

RUNS = (16, 64, 256)
"""16 is what `suite=quick` writes, more or less."""


def render(runs: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "ctrbench.bench.suites.rendering", str(runs), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("runs", RUNS, ids=lambda n: f"{n} runs")
def test_report(benchmark: BenchmarkFixture, tmp_path: Path, runs: int) -> None:
    benchmark.group, benchmark.name = "report from synthetic records", f"report[{runs} runs]"
    found = benchmark.pedantic(render, args=(runs, tmp_path), rounds=1)
    benchmark.extra_info |= {
        "seconds": {"value": found["seconds"], "unit": "s", "origin": "measured"},
        "cpu_s": {"value": found["cpu_s"], "unit": "core*s", "origin": "measured"},
        "rss_peak": {"value": found["peak_bytes"], "unit": "B", "origin": "measured"},
        "page_bytes": {"value": found["page_bytes"], "unit": "B", "origin": "measured"},
        "rows": {"value": found["rows"], "unit": "rows", "origin": "counted"},
        "machine": this_machine(),
    }  # fmt: skip
    print(f"\n{runs} runs, {found['rows']} rows: {found['cpu_s']:.2f} CPU s, {found['page_bytes'] / 1e6:.1f} MB")
    assert found["page_bytes"] > 1_000_000  # the figures' library is in it

"""docs/benchmarks.md: its test and its commands run as printed, in order, in an empty folder."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from ctrbench.bench.cli import main

PLUGIN = "ctrbench.bench.pytest_plugin"
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line]


@pytest.mark.timeout(1800)
def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    (test,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "test_speed.py").write_text(test)
    loaded = [] if any(e.value == PLUGIN for e in entry_points(group="pytest11")) else ["-p", PLUGIN]
    for command in COMMANDS:
        program, *words = shlex.split(command)
        if program == "ctrbench":
            assert main(words) == 0, command
            continue
        assert program == "pytest"
        line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *loaded, *words]
        # Beside other workers pytest-benchmark times nothing; this run has none.
        plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
        done = subprocess.run(line, env={**plain, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "DeepFM" in (tmp_path / "speed.md").read_text()
    assert "DeepFM" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "speed.html").stat().st_size > 1_000_000
    names = {e["name"] for e in json.loads((tmp_path / "step.json").read_text())["traceEvents"]}
    assert {"iter", "stage:backward", "block:tower"} <= names
    assert len(json.loads((tmp_path / "records.json").read_text())["records"]) == 1
    assert (tmp_path / "measurements.parquet").is_file()

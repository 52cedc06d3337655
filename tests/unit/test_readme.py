"""README's commands run as printed; its table comes from records."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ctrbench.bench.cli import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
MAKE = [c for c in COMMANDS if c.startswith("make ")]
OURS = [c for c in COMMANDS if c.startswith(".venv/bin/ctrbench ")]
TORCHRUN = [c for c in COMMANDS if c.startswith(".venv/bin/torchrun ")]  # run in tests/reference/test_distributed.py


def test_every_command_is_of_a_kind_that_is_run_here():
    assert set(COMMANDS) == set(MAKE) | set(OURS) | set(TORCHRUN)
    assert "make compare" in MAKE


@pytest.mark.parametrize("command", MAKE)
def test_make_targets_exist_and_parse(command):
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(1800)  # a minute alone, many times that beside other work
def test_our_commands_run_in_order(tmp_path, monkeypatch):
    """In an empty folder with an empty cache: what README prints is enough.

    The first as a process, the rest in this one, which imports torch once.
    """
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    first, *rest = (shlex.split(command)[1:] for command in OURS)
    program = Path(sys.executable).with_name("ctrbench")
    done = subprocess.run([program, *first], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for words in rest:
        assert _code(words) == 0, words
    assert (tmp_path / "report.html").stat().st_size > 100_000


def _code(words):
    try:
        return main(words)
    except SystemExit as end:  # argparse's, after --help
        return end.code or 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_make_compare(tmp_path):
    done = subprocess.run(
        ["make", "compare"], cwd=ROOT, env={**os.environ, "COLUMNS": "160"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (ROOT / "runs/latest/measurements.parquet").is_file()
    assert (ROOT / "runs/latest/report.html").is_file()


def test_table_is_there_and_names_the_models():
    table = README.split("<!-- table:")[1].split("<!-- /table -->")[0]
    for model in ("DeepFM", "DCN-v2", "DIN", "FAT", "OneTrans", "LightGBM"):
        assert model in table

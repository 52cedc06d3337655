"""The recipes of CONTRIBUTING.md, carried out on a copy of the tree with the files exactly as they are printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROOMS = ("bench", "datasets", "kernels", "legacy_baselines", "models", "reports")
FILES = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
ADDED = dict(re.findall(r"^Add to `([\w./]+)`:\n\n```\w+\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
            for line in block.splitlines()]  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rooms with every recipe's files in them, and a table for the schema."""
    copy = tmp_path_factory.mktemp("tree")
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / ".typing").mkdir()
    shutil.copytree(ROOT / ".typing", copy / ".typing", symlinks=True, dirs_exist_ok=True)
    for name, body in FILES.items():
        (copy / name).write_text(body)
    for name, body in ADDED.items():
        with (copy / name).open("a") as file:
            file.write("\n" + body)
    rows = [f"{20 + i % 50},{('Bern', 'Basel', 'Chur')[i % 3]},{('yes', 'no')[i % 2]}" for i in range(300)]
    (copy / "loans.csv").write_text("\n".join(["age,city,paid", *rows, ""]))
    return copy


def typed(tree: Path, command: str) -> str:
    words = [sys.executable, "-m", "ctrbench.bench.cli", *command.removeprefix("ctrbench ").split()]
    env = {**os.environ, "PYTHONPATH": str(tree / ".typing"), "CTRBENCH_CACHE": str(tree / "cache")}
    done = subprocess.run(words, cwd=tree, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


def test_every_command_is_one_of_a_recipe_below() -> None:
    assert [c.split()[1] for c in COMMANDS] == ["run", "data", "hardware"]
    assert set(FILES) == {"legacy_baselines/fwfm.py", "loans.yaml"}
    assert set(ADDED) == {"bench/hardware.toml"}


def test_a_model_is_one_file(tree: Path) -> None:
    quick = "timed=false published=false run.train_rows=2000 run.seeds=1"
    said = typed(tree, f"{COMMANDS[0]} {quick}")
    assert "FwFM" in said
    page = (tree / "runs" / "latest" / "report.html").read_text(encoding="utf-8")
    assert "FwFM" in page
    assert "fwfm" in typed(tree, "ctrbench list models").split()


def test_the_tests_of_all_models_find_it(tree: Path) -> None:
    """They walk the rooms; here those of the new model alone."""
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", tree)
    env = {**os.environ, "PYTHONPATH": str(tree / ".typing")}
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "fwfm",
        "tests/property/test_all_models.py",
    ]
    done = subprocess.run(words, cwd=tree, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"[1-9]\d* passed", done.stdout)


def test_a_data_set_is_one_file(tree: Path) -> None:
    assert '"kept": 300' in typed(tree, COMMANDS[1])


def test_a_gpu_is_one_table(tree: Path) -> None:
    assert "Example 100" in typed(tree, COMMANDS[2])

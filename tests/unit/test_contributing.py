"""The recipes of CONTRIBUTING.md, carried out on a copy of the tree with the files exactly as they are printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROOMS = ("bench", "datasets", "kernels", "legacy_baselines", "models", "reports")
FILES = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
ADDED = dict(re.findall(r"^Add to `([\w./]+)`:\n\n```\w+\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
            for line in block.splitlines()]  # fmt: skip
RUN, TABLE, LOG, PAGE, MARKDOWN, HARDWARE = range(6)
"""Commands in the order of the page."""
WITHOUT_VALUE = re.sub(r'"(brier|Brier score)"', '"never"', FILES["reports/brier.py"]).replace(
    "return float", "return None and float"
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rooms with every recipe's files in them, and rows for the data sets."""
    copy = tmp_path_factory.mktemp("tree")
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / ".typing").mkdir()
    shutil.copytree(ROOT / ".typing", copy / ".typing", symlinks=True, dirs_exist_ok=True)
    for name, body in FILES.items():
        (copy / name).write_text(body)
    (copy / "reports" / "never.py").write_text(WITHOUT_VALUE)
    for name, body in ADDED.items():
        with (copy / name).open("a") as file:
            file.write("\n" + body)
    rows = [f"{20 + i % 50},{('Bern', 'Basel', 'Chur')[i % 3]},{('yes', 'no')[i % 2]}" for i in range(300)]
    (copy / "loans.csv").write_text("\n".join(["age,city,paid", *rows, ""]))
    (copy / "books").mkdir()
    for part, count in (("train", 300), ("test", 60)):
        lines = [f"{i % 2},{i % 30},b{i % 17},g{i % 3},b{i % 5}^b{i % 7},g{i % 2}^g1" for i in range(count)]
        head = "read,reader,book,genre,books_before,genres_before"
        (copy / "books" / f"{part}.csv").write_text("\n".join([head, *lines, ""]))
    return copy


@pytest.fixture(scope="module")
def said(tree: Path) -> str:
    """What the run of the new model printed; the new measure's and figure's too."""
    return typed(tree, f"{COMMANDS[RUN]} timed=false published=false run.train_rows=2000 run.seeds=2")


def typed(tree: Path, command: str) -> str:
    words = [sys.executable, "-m", "ctrbench.bench.cli", *command.removeprefix("ctrbench ").split()]
    env = {**os.environ, "PYTHONPATH": str(tree / ".typing"), "CTRBENCH_CACHE": str(tree / "cache")}
    done = subprocess.run(words, cwd=tree, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


def test_every_file_and_command_is_one_of_a_recipe_below() -> None:
    assert [c.split()[1] for c in COMMANDS] == ["run", "data", "data", "report", "report", "hardware"]
    assert set(FILES) == {
        "legacy_baselines/fwfm.py", "loans.yaml", "datasets/books_x1.py", "reports/brier.py", "reports/brier_section.py"
    }  # fmt: skip
    assert set(ADDED) == {"bench/hardware.toml"}
    assert [name for name in FILES if (ROOT / name).exists()] == []


def test_a_model_is_one_file(tree: Path, said: str) -> None:
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
    assert '"kept": 300' in typed(tree, COMMANDS[TABLE])
    assert '"kept": 360' in typed(tree, COMMANDS[LOG])
    assert "books_x1" in typed(tree, "ctrbench list datasets").split()


@pytest.mark.usefixtures("said")
def test_a_measure_is_one_file(tree: Path) -> None:
    run = tree / "runs" / "latest"
    rows = pd.read_parquet(run / "measurements.parquet").query("metric == 'brier'")
    shards = sorted((tree / "cache").rglob("test*.parquet"))
    label = np.concatenate([pd.read_parquet(s, columns=["label"])["label"] for s in shards])
    keys = [(f, json.loads((f / "record.json").read_text())["spec"]) for f in (run / "records").iterdir() if f.is_dir()]
    kept = [f for f, spec in keys if spec.get("kind") == "quality" and spec["model"] == "fwfm"]
    expected = [np.mean((np.load(f / "scores.npz")["score"] - label) ** 2) for f in kept]
    (row,) = rows[rows["model"] == "fwfm"].to_dict("records")
    assert row["value"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert (row["unit"], row["better"], row["origin"], row["n"]) == ("1", "down", "measured", 2)
    typed(tree, COMMANDS[MARKDOWN])
    shown = (tree / "brier.md").read_text(encoding="utf-8")
    quality = shown[shown.index("## Quality") : shown.index("## Squared")]
    assert "Brier score" in quality
    assert f"{row['value']:.4f}" in quality


@pytest.mark.usefixtures("said")
def test_a_measure_without_a_value_is_withheld(tree: Path) -> None:
    rows = pd.read_parquet(tree / "runs" / "latest" / "measurements.parquet").query("metric == 'never'")
    (row,) = rows[rows["model"] == "fwfm"].to_dict("records")
    assert (row["origin"], row["status"]) == ("abstained", "skipped")
    assert "no value on these test scores" in row["reason"]


@pytest.mark.usefixtures("said")
def test_a_figure_is_one_file(tree: Path) -> None:
    typed(tree, COMMANDS[PAGE])
    page = (tree / "report.html").read_text(encoding="utf-8")
    ids = re.findall(r'<section[^>]* id="([\w-]+)"', page)
    assert ids[ids.index("quality") + 1] == "brier"
    part = page[page.index('id="brier"') :].split("</section>", 1)[0]
    assert "On criteo_synthetic the Brier score is" in part
    assert "Brier score on criteo_synthetic" in part
    (figure,) = set(re.findall(r'id="(figure-\d+)"', part))
    drawn = page[page.index(f'"{figure}":') :][:4000]
    assert "Brier score, measured" in drawn
    assert "FwFM" in drawn


def test_a_gpu_is_one_table(tree: Path) -> None:
    assert "Example 100" in typed(tree, COMMANDS[HARDWARE])

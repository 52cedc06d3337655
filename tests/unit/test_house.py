"""The rules of the house: one-way imports, no stray packages."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kernels", "datasets", "legacy_baselines", "models", "reports", "bench")


def tracked(pattern: str = "") -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [f for f in listed if re.search(pattern, f) and (ROOT / f).exists()]


def test_no_init_file_in_any_room():
    assert list(tracked(r"__init__\.py$")) == []


def test_packages_are_the_folders_that_hold_modules():
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    held = {"ctrbench." + str(Path(f).parent).replace("/", ".") for f in tracked(r"\.py$") if f.split("/")[0] in ROOMS}
    assert {d for d in declared if d != "ctrbench.bench.conf"} == held


def test_model_files_are_short():
    """At most 250 lines each, so that a model can be read in one sitting."""
    files = tracked(r"^(models|legacy_baselines)/[^/]+\.py$")
    assert len(files) > 30
    assert {f: n for f in files if (n := len((ROOT / f).read_text().splitlines())) > 250} == {}


def test_imports_go_one_way():
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".typing")}
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(linter)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_relative_imports():
    offenders = [f for f in tracked(r"\.py$") if re.search(r"^\s*from \.", (ROOT / f).read_text(), re.MULTILINE)]
    assert offenders == []


def test_reports_do_not_import_torch():
    code = "import sys, ctrbench.reports.page, ctrbench.reports.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_nothing_names_one_machine():
    pattern = re.compile(r"(?<![\w.])/(?:work|farm|tmp|root)/")
    offenders = [
        f
        for f in tracked(r"\.(py|md|toml|yaml|txt)$|Makefile|\.ci/run")
        if f != "tests/unit/test_house.py" and pattern.search((ROOT / f).read_text())
    ]
    assert offenders == []

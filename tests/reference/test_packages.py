"""Wheel and sdist: what they hold, and how they live in one environment with Hugging Face's `datasets`."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kernels", "datasets", "legacy_baselines", "models", "reports", "bench")
SMALL = ["suite=ci", "data=criteo_synthetic", "model=deepfm", "timed=false", "published=false", "run.train_rows=2000",
         "run.seeds=1"]  # fmt: skip
BOTH = """
import datasets, pathlib, ctrbench.datasets.schema as ours, ctrbench.bench.cli
assert datasets.Dataset.from_dict({"a": [1]})["a"][0] == 1
assert {pathlib.Path(m.__file__).is_relative_to(HERE) for m in (datasets, ours, ctrbench.bench.cli)} == {True}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel made of it: nothing but the sdist is there to make it from."""
    pytest.importorskip("build", reason="python -m build is not installed: no package was tested")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


@pytest.mark.timeout(300)
def test_packages_hold_every_file_of_the_rooms_and_nothing_else(built: dict[str, Path]) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *ROOMS],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    rooms = {f for f in listed if (ROOT / f).exists()}
    wheel = {n for n in zipfile.ZipFile(built["wheel"]).namelist() if ".dist-info/" not in n}
    assert wheel == {f"ctrbench/{f}" for f in rooms}
    with tarfile.open(built["sdist"]) as archive:
        sdist = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    beside = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert {f for f in sdist if not f.startswith("ctrbench.egg-info/")} == rooms | beside


def _files(environment: Path) -> set[str]:
    return {str(f.relative_to(environment)) for f in environment.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with `datasets` of the index. Torch and its kin are those of this environment, by a .pth file:
    they are gigabytes."""
    place = tmp_path_factory.mktemp("packages") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    own, here = (sysconfig.get_path("purelib", vars=v) for v in ({"base": str(place)}, {}))
    (Path(own) / "torch_of_the_tests.pth").write_text(here + "\n")
    done = _in(place, "python", "-m", "pip", "install", "-q", "datasets")
    if done.returncode:
        pytest.skip(f"pip reaches no index, wheel and sdist were not installed: {done.stderr.strip()[-200:]}")
    return place


def _in(environment: Path, program: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a program of an environment, without what this one says by its variables."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [str(environment / "bin" / program), *arguments],
        cwd=cwd or environment, env=kept | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
    )  # fmt: skip


def _succeeds(*arguments: str, environment: Path, cwd: Path | None = None) -> str:
    done = _in(environment, *arguments, cwd=cwd)
    assert done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("form", ["wheel", "sdist"])
def test_package_lives_beside_hugging_face_datasets_and_leaves_nothing(
    form: str, built: dict[str, Path], environment: Path, tmp_path: Path
) -> None:
    before = _files(environment)
    # --ignore-installed: the editable ctrbench of the .pth's environment is none of this one's
    _succeeds("python", "-m", "pip", "install", "-q", "--no-deps", "--ignore-installed", str(built[form]),
              environment=environment)  # fmt: skip
    record = next(environment.rglob("ctrbench-*.dist-info/RECORD"))
    ours = {os.path.relpath(record.parents[1] / line[0], environment) for line in csv.reader(record.open())}
    assert _files(environment) - before == ours

    both = BOTH.replace("HERE", repr(str(environment)))
    _succeeds("python", "-c", both, environment=environment)
    assert "onetrans" in _succeeds("ctrbench", "list", "models", environment=environment).split()
    _succeeds("ctrbench", "run", *SMALL, environment=environment, cwd=tmp_path)
    assert (tmp_path / "runs" / "latest" / "report.html").is_file()

    _succeeds("python", "-m", "pip", "uninstall", "-q", "-y", "ctrbench", environment=environment)
    assert _files(environment) == before
    _succeeds("python", "-c", "import datasets; datasets.Dataset.from_dict({'a': [1]})", environment=environment)
    assert "No module named 'ctrbench" in _in(environment, "python", "-c", "import ctrbench.bench.cli").stderr

"""What a command costs before it works: help imports no library of numbers, a report no torch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.data.resealed import resealed
from tests.data.synthetic_report import synthetic_records

from ctrbench.reports.records import RunRecord, save, typed

HEAVY = {"torch", "torchrec", "fbgemm_gpu", "lightgbm", "polars", "pandas", "pyarrow", "plotly", "numpy", "rich"}
ROUNDS = 9
MOST = 12.0
"""Times `python -c pass`."""

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchrec", "fbgemm_gpu", "lightgbm"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
from ctrbench.bench.cli import main
sys.exit(main(sys.argv[1:]))
"""


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["report", "--help"], 0), (["rnu"], 2), (["run", "--oops"], 2), ([], 2)]
)
def test_help_and_wrong_commands_import_no_library_of_numbers(arguments: list[str], code: int) -> None:
    told = (
        "import sys\nfrom ctrbench.bench.cli import main\n"
        "try: code = main(sys.argv[1:])\nexcept SystemExit as left: code = left.code\n"
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = _python("-c", told, *arguments)
    assert done.returncode == code, done.stderr
    assert not HEAVY & {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}


def test_help_costs_little_more_than_python() -> None:
    """In alternation; the least of each, which a busy machine moves least."""
    seconds: dict[str, list[float]] = {"python": [], "help": []}
    for _ in range(ROUNDS):
        for name, arguments in (("python", ["-c", "pass"]), ("help", ["-m", "ctrbench.bench.cli", "--help"])):
            start = time.perf_counter()
            assert _python(*arguments).returncode == 0
            seconds[name].append(time.perf_counter() - start)
    assert min(seconds["help"]) <= MOST * min(seconds["python"]), seconds


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SYNTHETIC run directory as a suite leaves it."""
    folder = tmp_path_factory.mktemp("recorded")
    rows, bodies = synthetic_records(0)
    for key, body in bodies.items():
        save(RunRecord(key=key, spec=body["spec"], rows=(), extra=body["extra"]), folder)
    summary = save(
        RunRecord(key="summary", spec={"kind": "summary", "level": "quick", "tuned": False}, rows=()), folder
    )
    typed(rows).to_parquet(summary / "measurements.parquet", index=False)
    resealed(summary)
    return folder


@pytest.mark.parametrize("arguments", [["out.html"], ["out.md", "--section", "summary"]], ids=" ".join)
def test_reports_are_drawn_where_torch_cannot_be_imported(arguments: list[str], recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / arguments[0]
    done = _python("-c", BLOCKED, "report", str(recorded), "-o", str(out), *arguments[1:])
    assert (done.returncode, done.stdout.strip()) == (0, str(out)), done.stderr
    assert "DCN-v2" in out.read_text()


def test_where_torch_cannot_be_imported_models_are_not_listed() -> None:
    """So the block above blocks."""
    done = _python("-c", BLOCKED, "list", "models")
    assert done.returncode != 0
    assert "torch is blocked" in done.stderr

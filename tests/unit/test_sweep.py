"""`ctrbench sweep`: its grid, what a resumed one runs again, gaps in its report, its launchers, and Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ctrbench.bench import multirun
from ctrbench.bench.cli import main
from ctrbench.bench.multirun import Point, points
from ctrbench.datasets.errors import BadInput
from ctrbench.reports import records
from ctrbench.reports.measures import make
from ctrbench.reports.records import RunRecord

ROOT = Path(__file__).resolve().parents[2]
STUB = textwrap.dedent(
    """
    # As the process of a suite: what it does is told by the file `plan.json` beside it, by the value of run.lr.
    import json, shutil, sys, time
    from pathlib import Path

    here = Path(__file__).parent
    given = dict(a.split("=", 1) for a in sys.argv[2:])
    code = json.loads((here / "plan.json").read_text())[given["run.lr"]]
    print("the suite says", given["run.lr"], flush=True)
    if code == "hang":
        time.sleep(60)
    if code == 2:
        print("error: train.csv:7: the reason")
    if code == "killed":
        import os, signal

        out = Path(given["run.out"])
        shutil.copytree(here / "run", out / "20260101-000000-ci")
        shutil.rmtree(out / "20260101-000000-ci" / "records" / "summary")
        os.kill(os.getpid(), signal.SIGKILL)
    if code in (0, 1):
        out = Path(given["run.out"])
        shutil.copytree(here / "run", out / "20260101-000000-ci", dirs_exist_ok=True)
        (out / "latest").unlink(missing_ok=True)
        (out / "latest").symlink_to("20260101-000000-ci")
    sys.exit(code)
    """
)
GRID = ["suite=ci", "data=criteo_synthetic", "model=deepfm", "run.lr=1e-3,2e-3,3e-3"]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of `ctrbench run`; `plan.json` holds its exit code by learning rate."""
    (tmp_path / "stub.py").write_text(STUB)
    base = {"run": "d-deepfm-quality-0", "model": "deepfm", "family": "legacy", "data": "criteo_synthetic",
            "track": "tabular", "split": "file_order", "phase": "train"}  # fmt: skip
    spec = {"kind": "quality", "model": "deepfm", "variant": "", "data": "criteo_synthetic", "split": "file_order",
            "level": "smoke", "seed": 0}  # fmt: skip
    rows = (make(base, "auc", 0.71, "measured", seed=0),)
    records.save(RunRecord(key="d-deepfm-quality-0", spec=spec, rows=rows), tmp_path / "run")
    rows = (make(base | {"run": "summary"}, "auc", 0.71, "measured"),)
    records.save(RunRecord(key="summary", spec={"kind": "summary"}, rows=rows), tmp_path / "run")
    (tmp_path / "run" / "plan.sha256").write_text("x")
    monkeypatch.setattr(multirun, "_program", lambda: [sys.executable, str(tmp_path / "stub.py")])
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No page at the end of a sweep, which takes seconds."""
    monkeypatch.setattr(multirun, "_draw", lambda out: 0)


def codes(folder: Path, *values: int | str) -> None:
    keys = (value.split("=")[1] for value in ("lr=0.001", "lr=0.002", "lr=0.003"))
    (folder / "plan.json").write_text(json.dumps(dict(zip(keys, values, strict=True))))


def stamps(out: Path, point: Point) -> dict[str, int]:
    """File -> time of writing, of all files of a point's suite and its log."""
    folder = point.folder(out)
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in folder.rglob("*")
            if f.name not in (multirun.ASKED, multirun.LOCK)}  # fmt: skip


# ------------------------------------------------------------------ wrong input, before any work


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run.lrr=1,2"], "unknown key 'run.lrr'"),
        (["suite=ci,qick"], "unknown suite"),
        (["model=deepfm,dim"], "unknown model"),
        (["suite=ci", "--launcher", "submitit_slrum"], "unknown launcher 'submitit_slrum'"),
    ],
)
def test_wrong_names_stop_before_any_point(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *arguments, "--out", str(tmp_path / "s")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_missing_launcher_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    for absent in (missing, lambda name: None):
        monkeypatch.setattr(multirun, "find_spec", absent)
        with pytest.raises(BadInput, match=r'launcher joblib: .* pip install "ctrbench\[sweep\]"'):
            multirun.sweep(["suite=ci"], "joblib", tmp_path, [])


def test_a_wrong_launcher_option_is_wrong_input(stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes(stub, 0, 0, 0)
    assert main(["sweep", *GRID, "--out", str(stub / "s"), "--option", "hydra.launcher.no_such=1"]) == 2
    assert "hydra.launcher.no_such" in capsys.readouterr().err


def test_help_imports_neither_torch_nor_frames() -> None:
    code = (
        "import sys; from ctrbench.bench.cli import main\n"
        "try: main(['sweep', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'polars', 'pandas', 'hydra') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "--launcher" in done.stdout
    assert done.stderr.strip() == "[]"


# ------------------------------------------------------------------ gaps and resuming, in this process


def test_gaps_are_named_and_only_they_run_again(stub: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, grid = stub / "s", points(GRID)
    codes(stub, 0, 2, "killed")
    assert main(["sweep", *GRID, "--out", str(out)]) == 1
    assert [p.state(out).status for p in grid] == ["done", "stopped", "stopped"]
    told = capfd.readouterr()
    assert "run.lr=0.002: stopped, exit code 2: error: train.csv:7: the reason" in told.err
    assert "run.lr=0.003: stopped, exit code -9" in told.err
    assert "1 of 3 points are done" in told.out
    page = (out / "report.html").read_text()
    assert "Points of the sweep" in page
    assert "1 of 3 points ran to their end without a failed run; 2 are gaps" in page
    for lr, reason in (("0.002", "exit code 2: error: train.csv:7: the reason"), ("0.003", "exit code -9")):
        notices = page.split("<h2>Failed runs</h2>")[1].split("</section>")[0]
        assert re.search(rf"gap: [^<]*run\.lr={lr}: stopped, {re.escape(reason)}", notices)

    before, rest = stamps(out, grid[0]), stamps(out, grid[1])
    codes(stub, 2, 0, 0)  # the first would fail if it ran
    assert main(["sweep", *GRID, "--out", str(out)]) == 0
    assert "3 points, 2 to run by basic" in capfd.readouterr().out
    assert stamps(out, grid[0]) == before
    assert stamps(out, grid[1]) != rest
    page = (out / "report.html").read_text()
    assert "3 of 3 points ran to their end" in page
    assert "gap: " not in page


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_that_is_done_runs_nothing(stub: Path, capfd: pytest.CaptureFixture[str]) -> None:
    codes(stub, 0, 0, 0)
    for left in (3, 0):
        assert main(["sweep", *GRID, "--out", str(stub / "s")]) == 0
        assert f"{left} to run" in capfd.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_a_failed_run_is_shown_and_tried_again(stub: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from ctrbench.bench.exports import loaded_all

    out, grid = stub / "s", points(GRID)
    codes(stub, 0, 1, 0)
    assert main(["sweep", *GRID, "--out", str(out)]) == 1
    assert [p.state(out).status for p in grid] == ["done", "failed", "done"]
    assert "gap:" not in capfd.readouterr().err
    assert {"file_order, run.lr=0.002"} <= set(loaded_all([out]).table["split"])
    codes(stub, 2, 0, 2)
    assert main(["sweep", *GRID, "--out", str(out)]) == 0


@pytest.mark.usefixtures("undrawn")
def test_a_longer_axis_runs_the_new_points_alone(stub: Path) -> None:
    out = stub / "s"
    codes(stub, 0, 2, 2)
    assert main(["sweep", *GRID[:3], "run.lr=0.001", "--out", str(out)]) == 0
    codes(stub, 2, 0, 0)
    assert main(["sweep", *GRID, "--out", str(out)]) == 0


def test_points_without_a_process_are_told_apart(tmp_path: Path) -> None:
    point = Point(("suite=ci",))
    assert point.state(tmp_path).status == "missing"
    folder = point.folder(tmp_path)
    (folder / "20260101-000000-ci" / "records" / "a").mkdir(parents=True)
    (folder / "20260101-000000-ci" / "plan.sha256").write_text("")
    (folder / "20260101-000000-ci" / "records" / "a" / "record.json").write_text("{}")
    (folder / multirun.LOG).write_text("begun\n")
    state = point.state(tmp_path)
    assert (state.status, "1 runs are recorded" in state.reason) == ("stopped", True)


def test_interrupted_it_stops_the_suite_and_says_how_to_go_on(stub: Path) -> None:
    codes(stub, 0, "hang", 0)
    code = (
        "import sys; from ctrbench.bench import multirun; from ctrbench.bench.cli import main\n"
        f"multirun._program = lambda: [sys.executable, {str(stub / 'stub.py')!r}]\n"
        "multirun._check = lambda asked: None\n"  # which imports torch
        f"sys.exit(main(['sweep', *{GRID!r}, '--out', {str(stub / 's')!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, grid = stub / "s", points(GRID)
    until = time.monotonic() + 180
    while not (pid := multirun.holder(grid[1].folder(out))) and time.monotonic() < until:
        time.sleep(0.05)
    assert pid
    assert grid[1].state(out).status == "running"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130
    assert "the same command goes on with the points that are not done" in err
    assert "Traceback" not in err
    assert not Path(f"/proc/{pid}").exists()
    assert [p.state(out).status for p in grid] == ["done", "stopped", "missing"]


@pytest.mark.usefixtures("undrawn")
def test_a_point_that_runs_is_left_alone(stub: Path, capfd: pytest.CaptureFixture[str]) -> None:
    codes(stub, 0, 0, 0)
    out, grid = stub / "s", points(GRID)
    grid[2].folder(out).mkdir(parents=True)
    with (grid[2].folder(out) / multirun.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["sweep", *GRID, "--out", str(out)]) == 1
    assert "run.lr=0.003: running, its suite is running" in capfd.readouterr().err
    assert not (grid[2].folder(out) / multirun.LOG).exists()


# ------------------------------------------------------------------ launchers

SLURM_OPTIONS = {
    "partition": ("cpu", "--partition=cpu"),
    "timeout_min": ("30", "--time=30"),
    "mem_gb": ("4", "--mem=4GB"),
    "cpus_per_task": ("2", "--cpus-per-task=2"),
    "array_parallelism": ("1", "--array=0-1%1"),
    "account": ("ctr", "--account=ctr"),
}
"""Option of Hydra's launcher -> value, and what Slurm is to be told."""
SBATCH = """#!/bin/bash
# As Slurm's sbatch: keeps the script, and without REFUSE runs it once for every task of its array.
cp "${@: -1}" "$(dirname "$0")/script.sh"
if [ -n "$REFUSE" ]; then echo "sbatch: error: invalid partition" >&2; exit 1; fi
for task in 0 1; do
  export SLURM_JOB_ID=7$task SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$task SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1
  export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NODELIST=localhost
  nohup bash "${@: -1}" > "$(dirname "$0")/task$task.txt" 2>&1 &
done
echo "Submitted batch job 77"
"""
SRUN = """#!/bin/bash
while [ $# -gt 0 ]; do case "$1" in --output|--error) shift 2;; -*) shift;; *) break;; esac; done
exec "$@"
"""
SACCT = """#!/bin/bash
echo 'JobID|State|NodeList'; echo '77_0|RUNNING|localhost'; echo '77_1|RUNNING|localhost'
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of programs of Slurm's names, first on the path. No cluster is behind them."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": "#!/bin/bash\n"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def _slurm_options() -> list[str]:
    return [word for key, (value, _) in SLURM_OPTIONS.items() for word in ("--option", f"hydra.launcher.{key}={value}")]


@pytest.mark.usefixtures("undrawn")
def test_what_slurm_is_told_and_a_refusal_is_a_gap(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("REFUSE", "1")
    out = tmp_path / "s"
    arguments = ["sweep", "--launcher", "submitit_slurm", *_slurm_options(), "--out", str(out), *GRID[:3]]
    assert main([*arguments, "run.lr=0.001,0.002"]) == 1
    told = capsys.readouterr().err
    assert "launcher submitit_slurm: FailedJobError" in told
    assert told.count("missing, never begun") == 2
    script = (slurm / "script.sh").read_text()
    lines = re.findall(r"^#SBATCH (\S+)", script, re.MULTILINE)
    assert {wanted for _, wanted in SLURM_OPTIONS.values()} <= set(lines)
    assert {"--nodes=1", "--ntasks-per-node=1", "--job-name=ctrbench_sweep", "--open-mode=append"} <= set(lines)
    (run,) = re.findall(r"^srun .*", script, re.MULTILINE)
    assert re.search(rf"-m submitit\.core\._submit \S*{re.escape(str(out))}/hydra/\.submitit/%j$", run)


SMALL = [
    "suite=ci", "data=criteo_synthetic", "data.options.rows=3000", "data.options.cap=100", "run.train_rows=1500",
    "run.valid_rows=200", "run.batch=64", "run.threads=1", "model=deepfm", "timed=false", "floors=false",
    "published=false", "run.lr=1e-3,3e-3",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("launcher", multirun.LAUNCHERS)
def test_a_real_sweep_with_a_killed_point(launcher: str, slurm: Path, cache_folder: Path, tmp_path: Path) -> None:
    """Both points run; one whose end is lost, as by a kill, runs again and the other does not."""
    pytest.importorskip("submitit")
    out, grid = tmp_path / "s", points(SMALL)
    options = {"joblib": ["--option", "hydra.launcher.n_jobs=2"], "submitit_slurm": _slurm_options()}
    command = ["sweep", "--launcher", launcher, *options.get(launcher, []), "--out", str(out), *SMALL]
    assert main(command) == 0
    assert [p.state(out).status for p in grid] == ["done", "done"]
    first, second = (stamps(out, p) for p in grid)
    suite = (grid[1].folder(out) / "latest").resolve()
    for folder in (suite / "records" / "summary", suite / "records" / _quality(suite)):
        for file in folder.iterdir():
            file.unlink()
    (grid[1].folder(out) / multirun.END).unlink()
    assert grid[1].state(out).status == "stopped"
    if launcher == "submitit_slurm":  # the array of one task is no array
        return
    assert main(command) == 0
    assert stamps(out, grid[0]) == first
    again = stamps(out, grid[1])
    changed = {Path(f).parts[-2] for f in again if f.endswith("record.json") and again[f] != second.get(f)}
    assert {"prepare", "summary", _quality(suite)} <= changed
    assert not any("-count-" in key for key in changed)  # of a killed point, too, what is recorded stays
    text = (out / "report.html").read_text()
    assert "2 of 2 points ran to their end" in text
    assert "run.lr=0.001" in text


def _quality(suite: Path) -> str:
    return next(p.name for p in (suite / "records").iterdir() if "-quality-" in p.name)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_page_s_commands_run_in_order(
    slurm: Path, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    commands = _commands()
    assert len(commands) >= 4
    for command in commands:
        if "submitit_slurm" not in command:
            assert main(shlex.split(command)[1:]) == 0, command
    assert (tmp_path / "runs/sweep/report.html").is_file()


def test_the_page_s_commands_parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken = []
    monkeypatch.setattr(multirun, "sweep", lambda *a: taken.append(a) or 0)
    monkeypatch.chdir(tmp_path)
    sweeps = [c for c in _commands() if c.startswith("ctrbench sweep ")]
    assert [main(shlex.split(c)[1:]) for c in sweeps] == [0] * len(sweeps)
    assert {launcher for _, launcher, _, _ in taken} == set(multirun.LAUNCHERS)
    assert all(len(points(settings)) > 1 for settings, *_ in taken)


def _commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "sweep.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]
    return [line for line in lines if not line.startswith("pip ")]

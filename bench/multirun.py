"""`ctrbench sweep`: `ctrbench run` over a grid of settings, by Hydra's multirun, on this machine or on Slurm.

    ctrbench sweep suite=ci data=criteo_synthetic model=deepfm run.lr=1e-3,3e-3
    ctrbench sweep --launcher submitit_slurm --option hydra.launcher.partition=cpu suite=quick run.batch=256,1024

A comma makes an axis; a value with commas of its own stands in quotes, `"model='deepfm,fat'"`, or is a list,
`deepfm.mlp=[64,32],[128,64]`. Every point is a suite in a process and a folder of its own, named by its settings; each
run of it is a process too, as in any suite. What finished is not run again; what did not is a gap that the report
names.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, Transformer
from hydra.errors import HydraException
from omegaconf import DictConfig

from ctrbench.datasets.errors import BadInput, UnknownName, is_utf8, nearest
from ctrbench.reports import grid
from ctrbench.reports.privacy import hidden
from ctrbench.reports.records import finished, write_atomic, write_json

CONF = Path(__file__).resolve().parent / "conf"
SUBMITIT = "hydra_plugins.hydra_submitit_launcher"
LAUNCHERS = {
    "basic": "hydra",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": SUBMITIT,
    "submitit_slurm": SUBMITIT,
}
"""Launcher -> module that brings it."""
ASKED, LOCK, LOG, END = "point.json", "lock", "log.txt", "end.json"
"""In the folder of a point: its label and settings, until its suite has ended; held while that runs, with the process
id; what it said; its exit code. `grid.GRID` in the folder of the sweep holds the settings of every point by its name.
What stays says nothing of this machine (`reports/privacy.py`)."""
BUSY = 3
"""Code of a job whose point runs already, or has been run by another."""


@dataclass(frozen=True, slots=True)
class State:
    """How a point stands."""

    settings: tuple[str, ...]
    status: str
    """done | failed (its suite ended, a run of it failed) | stopped | running | missing"""
    reason: str
    folder: str
    """Of its newest suite, else of the point; relative to that of the sweep."""


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of settings."""

    settings: tuple[str, ...]
    known: str = ""
    """Its name, where the settings are those of `grid.GRID`."""

    @property
    def name(self) -> str:
        """Of its folder: the same settings always have the same."""
        return self.known or hashlib.sha256("\n".join(sorted(self.settings)).encode()).hexdigest()[:12]

    def folder(self, out: Path) -> Path:
        """Where its suite writes."""
        return out / "points" / self.name

    def suite(self, out: Path) -> Path | None:
        """Run directory of its suite, once that has reported."""
        latest = self.folder(out) / "latest"
        return latest if latest.exists() and "summary" in finished(latest) else None

    def state(self, out: Path) -> State:
        """How it stands, by its files alone."""
        folder, suite = self.folder(out), self.suite(out)
        where = str((suite or folder).relative_to(out))
        if holder(folder) is not None:
            return State(self.settings, "running", "its suite is running", where)
        if not (folder / END).is_file():
            n = len({k for f in folder.glob("*/plan.sha256") for k in finished(f.parent)} - {"prepare", "summary"})
            begun = f"its suite ended without an exit code, killed perhaps; {n} runs are recorded"
            return State(
                self.settings, *(("stopped", begun) if (folder / LOG).is_file() else ("missing", "never begun")), where
            )
        try:
            code = int(json.loads((folder / END).read_text())["code"])
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            return State(self.settings, "stopped", f"{END} of its exit code is damaged", where)
        if code == 0 and suite is not None:
            return State(self.settings, "done", "", where)
        said = f"exit code {code}: {_last_words(folder / LOG)}"
        return State(self.settings, "failed" if code == 1 and suite is not None else "stopped", said, where)


def points(settings: Sequence[str]) -> list[Point]:
    """The grid of `key=value` settings, the last axis fastest.

    Raises:
        UnknownName: a setting that cannot be read, or that the sweep sets.
    """
    axes: dict[str, list[str]] = {}
    for text in settings:
        try:
            parsed = OverridesParser.create().parse_override(text.lstrip("+"))
            axis = [f"{parsed.key_or_group}={v}" for v in _values(parsed, text)]
        except HydraException as error:
            raise UnknownName(f"{text!r}: {str(error).splitlines()[0]}; quote text with signs in it") from None
        if parsed.key_or_group in ("run.out", "run.resume"):
            raise UnknownName(f"{parsed.key_or_group}: a sweep sets it; --out names the folder of the sweep")
        if parsed.key_or_group in axes:
            raise UnknownName(f"{parsed.key_or_group}: given twice; values of one axis are joined by commas")
        axes[parsed.key_or_group] = list(dict.fromkeys(axis))
    return [Point(tuple(chosen)) for chosen in product(*axes.values())]


def _values(parsed: Override, text: str) -> list[str]:
    """The values of one setting as `ctrbench run` takes them: one stays as typed, without its quotes."""
    if parsed.is_sweep_override():
        found = parsed.sweep_iterator()
        return [v.text if isinstance(v, QuotedString) else Transformer.str(v) for v in found]
    value, typed = parsed.value(), text.partition("=")[2]
    return [value if isinstance(value, str) and typed[:1] in ("'", '"') else typed]


def sweep(settings: Sequence[str], launcher: str, out: Path, options: Sequence[str]) -> int:
    """Runs every point that is not done, then draws the report of all.

    Returns:
        0; 1 if a point failed or is a gap; 130 if it was interrupted.

    Raises:
        UnknownName: a launcher that is not there, or a setting that cannot be read.
        BadInput: the launcher's package is not installed.
    """
    _check_launcher(launcher)
    asked, out = points(settings), out.resolve()  # jobs may start elsewhere
    _check(asked)
    write_json(out / grid.GRID, {p.name: p.settings for p in asked})
    todo = [p for p in asked if p.state(out).status not in ("done", "running")]
    print(f"{len(asked)} points, {len(todo)} to run by {launcher}; into {out}", flush=True)
    for point, label in zip(asked, labels(asked), strict=True):
        if point not in todo:
            continue
        write_atomic(point.folder(out) / ASKED, json.dumps([label, *point.settings]).encode())
    try:
        if todo:
            _launch(todo, launcher, out, options)
    except KeyboardInterrupt:
        _stop(todo, out)
        slurm = "; jobs that Slurm has go on, `scancel` ends them" if launcher == "submitit_slurm" else ""
        print(f"stopped; the same command goes on with the points that are not done{slurm}", file=sys.stderr)
        return 130
    return _close(out)


def _check(asked: Sequence[Point]) -> None:
    """A wrong name or value of any point fails before any work."""
    from ctrbench.bench.config import build_plan  # torch, which no job of a launcher needs

    for point in asked:
        build_plan(point.settings)


def _check_launcher(launcher: str) -> None:
    if launcher not in LAUNCHERS:
        raise UnknownName(f"unknown launcher {nearest(launcher, LAUNCHERS)}")
    try:
        there = find_spec(LAUNCHERS[launcher]) is not None
    except ModuleNotFoundError:
        there = False
    if not there:
        raise BadInput(f'launcher {launcher}: its package is not installed: pip install "ctrbench[sweep]"')


def _launch(todo: Sequence[Point], launcher: str, out: Path, options: Sequence[str]) -> None:
    """Hands the points to Hydra's launcher, one job each; a launcher that breaks is a note, its points are gaps."""
    quiet = [f"hydra/{part}_logging=none" for part in ("hydra", "job")]
    # One axis of whole points, so that a resumed grid with holes is a list like any other.
    overrides = [
        f"hydra/launcher={launcher}", f"hydra.sweep.dir={_quoted(out / 'hydra')}", r"hydra.sweep.subdir=${point}",
        "hydra.output_subdir=null", *quiet, f"+out={_quoted(out)}", f"+point={','.join(_quoted(p.name) for p in todo)}",
        *options,
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), job_name="ctrbench_sweep", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            hydra.multirun("config", run_point, overrides)
        except HydraException as error:
            raise UnknownName(f"--option: {str(error).splitlines()[0]}") from None
        except Exception as error:  # of submitit and joblib, each its own
            print(f"launcher {launcher}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        finally:
            (out / "hydra" / "multirun.yaml").unlink(missing_ok=True)  # Hydra's own; it names folders, nobody reads it


def _quoted(value: object) -> str:
    """As Hydra's grammar takes it, whatever signs it has."""
    return QuotedString(str(value), quote=Quote.single).with_quotes()


def run_point(config: DictConfig) -> int:
    """One job of a launcher: the suite of one point, in a process of its own, its words in a file; its exit code."""
    folder = Path(config.out) / "points" / config.point
    with (folder / LOCK).open("a+") as lock, (folder / LOG).open("ab") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return BUSY
        if not (folder / ASKED).is_file():  # another job ran it while this one waited
            return BUSY
        label, *settings = json.loads((folder / ASKED).read_text())
        (folder / END).unlink(missing_ok=True)
        print(f"{label}: {folder / LOG}", flush=True)
        command = [*_program(), "run", *settings, f"run.out={folder}", "run.resume=true"]
        # The suite holds the lock too: it may outlive this job.
        suite = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock.fileno(),))
        lock.truncate(0)
        lock.write(str(suite.pid))
        lock.flush()
        try:
            code = suite.wait()
        except KeyboardInterrupt:
            suite.terminate()
            suite.wait()
            raise
        finally:
            write_atomic(folder / LOG, hidden((folder / LOG).read_text(errors="replace")).encode())
        write_atomic(folder / END, json.dumps({"code": code}).encode())
        (folder / ASKED).unlink()
    print(f"{label}: exit code {code}", flush=True)
    return code


def _program() -> list[str]:
    return [sys.executable, "-m", "ctrbench.bench.cli"]


def holder(folder: Path) -> int | None:
    """Process id of the suite that runs in a point's folder, on whatever machine; 0 where it is not known yet."""
    if not (folder / LOCK).is_file():
        return None
    with (folder / LOCK).open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(lock.read() or 0)
    return None


def _stop(todo: Sequence[Point], out: Path) -> None:
    """Ends the suites of this machine that a launcher left running."""
    for point in todo:
        pid = holder(point.folder(out))
        with suppress(OSError):
            if pid and str(point.folder(out)) in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGTERM)


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("error:", "failed ", "oom ", "timeout "))] or lines or ["silent"]
    return told[-1][:300]


def _is_point(name: str, settings: Any) -> bool:
    return isinstance(settings, list) and all(isinstance(t, str) and is_utf8(t) for t in (name, *settings))


def states(out: Path) -> list[tuple[Point, State]]:
    """Every point of a sweep's folder with its state.

    Raises:
        BadInput: the list of points is damaged, or of an older version.
    """
    file, again = out / grid.GRID, "run the same `ctrbench sweep` again, it keeps what is done"
    try:
        points_of = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: damaged: {error}; {again}") from None
    if not isinstance(points_of, dict):
        raise BadInput(f"{file}: of an older version, which listed settings without names; {again}")
    if not points_of or not all(_is_point(name, settings) for name, settings in points_of.items()):
        raise BadInput(f"{file}: damaged: no points of names and settings; {again}")
    asked = [Point(tuple(settings), name) for name, settings in points_of.items()]
    return [(p, p.state(out)) for p in asked]


def labels(asked: Sequence[Point]) -> list[str]:
    """What each point sets that another does not."""
    usual = set.intersection(*(set(p.settings) for p in asked))
    return [" ".join(s for s in p.settings if s not in usual) for p in asked]


def body_of(found: Sequence[tuple[Point, State]]) -> dict[str, Any]:
    """The body that tells a report of the points."""
    return {"spec": {"kind": grid.KEY}, "extra": {grid.KEY: [asdict(s) for _, s in found]}}


def _close(out: Path) -> int:
    """Draws the report of the points that have numbers, names the others."""
    found = states(out)
    for line in grid.gaps({grid.KEY: body_of(found)}):
        print(line, file=sys.stderr)
    shown = [p for p, _ in found if p.suite(out)]
    drawn = _draw(out) if shown else 1
    done = sum(s.status == "done" for _, s in found)
    print(f"{done} of {len(found)} points are done")
    return 1 if done < len(found) or drawn else 0


def _draw(out: Path) -> int:
    from ctrbench.bench import cli

    return cli.main(["report", str(out), "-o", str(out / "report.html")])

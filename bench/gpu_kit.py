"""`make gpu-kit`: what this project claims of GPUs, checked on the one that is here, offline, in at most 10 minutes.

GPU tests, then every model at a published size: timed by events and wall clock, traced, all in one record file that
`ctrbench score` sets against the predictions. A run that was killed, or ran out of its budget, goes on with the models
that it lacks. `--device cpu` proves the path on small sizes; such a record can never be scored.

Exit 0 done (skipped models are fine), 1 a test or a model failed, 2 the command or the device was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ctrbench.bench import registry
from ctrbench.bench.hardware import this_machine
from ctrbench.bench.kit import record as records
from ctrbench.bench.kit.device import cpu_device, cuda_device, state
from ctrbench.bench.kit.predicted import fingerprints
from ctrbench.bench.kit.processes import gpu_test_files, last_line, run_gpu_tests, run_limited
from ctrbench.bench.kit.traced import trace_figures
from ctrbench.bench.kit.worker import Job
from ctrbench.bench.trace.commands import nsys_commands
from ctrbench.datasets.errors import BadInput, UnknownName, nearest

BUDGET_S = 540.0
TESTS_SHARE = 0.35
"""Most of the budget that the GPU tests may take."""
LEAST_S = 60.0
"""Shortest time in which a process can import, build, time and trace a model: on a fresh machine with an H100 25 s were
enough for tables and small MLPs, not for FAT, OneTrans, LUM and HSTU. What is left out waits for the next call."""
NSYS_SHARE = 0.5
"""Of a model's time, left for its second process where nsys traces it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Of one run of the kit."""

    device: str = "cuda"
    out: Path = Path("runs/gpu-kit")
    budget_s: float = BUDGET_S
    models: tuple[str, ...] = ()
    """Empty takes the registry's."""
    tests: bool = True
    least_s: float = LEAST_S

    @property
    def dry_run(self) -> bool:
        return self.device == "cpu"


Runner = Callable[[Job, Path, float, Path], dict[str, Any]]
"""(job, folder, seconds, log) -> what is known of the model."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m ctrbench.bench.gpu_kit`."""
    parser = argparse.ArgumentParser(prog="python -m ctrbench.bench.gpu_kit", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run on small sizes")
    parser.add_argument("--out", type=Path, default=None, help="folder (default: runs/gpu-kit, runs/gpu-kit-dry)")
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS")
    parser.add_argument("--models", default="", metavar="A,B", help="only these")
    parser.add_argument("--no-tests", action="store_true", help="leave `pytest -m gpu` out; the record says so")
    given = parser.parse_args(argv)
    out = given.out or Path("runs/gpu-kit-dry" if given.device == "cpu" else "runs/gpu-kit")
    options = Options(
        device=given.device, out=out, budget_s=given.budget, tests=not given.no_tests,
        models=tuple(name for name in given.models.split(",") if name),
    )  # fmt: skip
    try:
        return run_kit(options)
    except (BadInput, UnknownName) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run_kit(options: Options, run_model: Runner | None = None, say: Callable[[str], None] = print) -> int:
    """Runs what the record lacks.

    Args:
        options: of the run.
        run_model: stands in for the process of a model.
        say: takes progress lines.

    Returns:
        exit code.

    Raises:
        BadInput: no CUDA device, or the record in the folder is of another device, code or kind of run.
        UnknownName: a model that is not known.
    """
    began = time.monotonic()
    names = _models(options)
    file = options.out / "record.json"
    body = _open(file, options, names)

    def left() -> float:
        return options.budget_s - (time.monotonic() - began)

    if body["tests"]["status"] == "not run" or _again(body["tests"]):
        body["tests"] = _tests(options, say)
        records.save(body, file)
    _run_models(body, file, options, left, run_model or run_process, say)
    body["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    body["device"]["state_after"] = state(options.dry_run)
    records.save(body, file)
    say(f"record: {file}")
    bad = [n for n in names if body["models"][n]["status"] in ("failed", "timeout")]
    return 1 if bad or body["tests"]["status"] in ("failed", "timeout") else 0


def _run_models(
    body: dict[str, Any], file: Path, options: Options, left: Callable[[], float], run_model: Runner,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Every model that waits, each with an equal part of the time that is left; the record is kept after each."""
    todo = [name for name in _models(options) if _again(body["models"][name])]
    for i, name in enumerate(todo):
        remaining = left()
        share = max(options.least_s, remaining / (len(todo) - i))
        if remaining < share:
            reason = f"budget: {options.budget_s:.0f} s were used up; run it again, it goes on from here"
            body["models"][name] = _marked(
                {"status": "skipped", "reason": reason, "phases": {}, "trace": None}, options
            )
            say(f"{name}: skipped, budget")
            continue
        say(f"{name}: {i + 1} of {len(todo)}, {share:.0f} s of {remaining:.0f} left")
        job = Job(
            model=name, device=body["device"]["torch"], dtype=body["dtype"], gpu=body["device"]["catalogue"],
            seconds=share, dry_run=options.dry_run, parent=os.getpid(), out=str(options.out),
        )  # fmt: skip
        start = time.monotonic()
        found = run_model(job, options.out, share, options.out / "logs" / f"{name}.log")
        body["models"][name] = _marked(found | {"seconds": time.monotonic() - start}, options)
        records.save(body, file)
        say(_line(name, body["models"][name]))


def run_process(job: Job, folder: Path, seconds: float, log: Path) -> dict[str, Any]:
    """A model in a process of its own, and in a second one under nsys where that is on PATH."""
    end = time.monotonic() + seconds
    nsys = not job.dry_run and shutil.which("nsys") is not None
    mine = replace(job, part="timed", seconds=seconds * NSYS_SHARE) if nsys else job
    result = folder / "raw" / f"{job.model}.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    code = run_limited(worker_command(mine, result), seconds, log)
    found = _result(result, code, seconds, log)
    if nsys and found["status"] == "ok":
        same = replace(job, memory=found["memory_free"])
        found["trace"] = run_nsys(same, folder, end - time.monotonic(), log)
    return found


def worker_command(job: Job, result: Path) -> list[str]:
    """How a worker is started."""
    return [sys.executable, "-m", "ctrbench.bench.kit.worker", json.dumps(asdict(job)), str(result)]


def _result(result: Path, code: int | None, seconds: float, log: Path) -> dict[str, Any]:
    """What the process left; the parts that it did not reach have its end as the reason."""
    found: dict[str, Any] = {"status": "failed", "phases": {}, "trace": None}
    if result.is_file():
        found = json.loads(result.read_text(encoding="utf-8"))
        result.unlink()
    if code is None:
        return found | {"status": "timeout", "reason": f"not finished after {seconds:.0f} s"}
    if code != 0:
        return found | {"status": "failed", "reason": f"process ended with code {code}: {last_line(log)}"}
    return found


def run_nsys(job: Job, folder: Path, seconds: float, log: Path) -> dict[str, Any]:
    """The traced steps of one model under Nsight Systems: figures of our reader, scrubbed copy."""
    stem, end = folder / "raw" / job.model, time.monotonic() + seconds
    job = replace(job, part="captured")
    for command in nsys_commands(stem, worker_command(job, stem.with_suffix(".unused"))):
        code = run_limited(command, max(1.0, end - time.monotonic()), log.with_suffix(".nsys.log"))
        if code != 0:
            why = "not finished in the model's time" if code is None else last_line(log.with_suffix(".nsys.log"))
            return {"tool": "nsys", "status": "timeout" if code is None else "failed", "reason": f"{command[1]}: {why}"}
    try:
        return trace_figures(stem.with_suffix(".sqlite"), folder / "traces" / f"{job.model}.sqlite.gz", "nsys")
    except (ValueError, OSError) as error:
        return {"tool": "nsys", "status": "failed", "reason": str(error)[:300]}


# --------------------------------------------------------------------- record


def _models(options: Options) -> list[str]:
    known = registry.model_names()
    for name in options.models:
        if name not in known:
            raise UnknownName(f"--models: unknown model {nearest(name, known)}")
    return list(options.models or known)


def _open(file: Path, options: Options, names: Sequence[str]) -> dict[str, Any]:
    """The record to go on with, or a new one."""
    device = cpu_device() if options.dry_run else cuda_device()
    environment = this_machine()
    same = {"dry_run": options.dry_run, "device": device["name"], "commit": environment["commit"],
            "torch": environment["torch"]}  # fmt: skip
    if file.is_file():
        body = records.load(file)
        was = {"dry_run": body["dry_run"], "device": body["device"]["name"], "commit": body["environment"]["commit"],
               "torch": body["environment"]["torch"]}  # fmt: skip
        if was != same:
            what = next(key for key in same if was[key] != same[key])
            raise BadInput(f"{file}: its {what} is {was[what]!r}, here it is {same[what]!r}; give --out another folder")
    else:
        body = {
            "schema": records.SCHEMA, "schema_version": records.SCHEMA_VERSION, "dry_run": options.dry_run,
            "started": datetime.now(UTC).isoformat(timespec="seconds"), "finished": None, "device": device,
            "environment": environment, "dtype": device.pop("dtype"), "budget_s": options.budget_s,
            "predictions": fingerprints(), "tests": {"status": "not run"}, "models": {},
        }  # fmt: skip
    waiting: dict[str, Any] = {"status": "not run", "phases": {}, "trace": None}
    body["models"] = dict.fromkeys(names, waiting) | body["models"]
    return body


def _marked(found: dict[str, Any], options: Options) -> dict[str, Any]:
    """`dry_run` on every row of a model."""
    mark = {"dry_run": options.dry_run}
    phases = {phase: row | mark for phase, row in found["phases"].items()}
    return found | mark | {"phases": phases, "trace": found["trace"] and found["trace"] | mark}


def _again(found: dict[str, Any]) -> bool:
    """Whether a part of the record waits, or was left out for lack of time."""
    return found["status"] in ("not run", "timeout") or str(found.get("reason", "")).startswith("budget:")


def _tests(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    if not options.tests:
        return {"status": "skipped", "reason": "--no-tests", "passed": [], "failed": {}, "skipped": {}}
    files = gpu_test_files()
    say(f"pytest -m gpu: {len(files)} files")
    found = run_gpu_tests(files, options.budget_s * TESTS_SHARE, options.out / "logs")
    say(
        f"pytest -m gpu: {found['status']}; {len(found['passed'])} passed, {len(found['failed'])} failed,"
        f" {len(found['skipped'])} skipped {found['reason']}"
    )
    return found


def _line(name: str, found: dict[str, Any]) -> str:
    parts = [f"{name}: {found['status']}", found.get("reason", "")]
    if "preset" in found:
        parts[0] += f", {found['preset']} at batch {found['batch']}"
    for phase, timing in found["phases"].items():
        clock = timing["event_s"] or timing["wall_s"]
        parts.append(f"{phase} {clock['p50'] * 1e3:.3g} ms ({timing['status']})")
    return "; ".join(part for part in parts if part)


if __name__ == "__main__":
    sys.exit(main())

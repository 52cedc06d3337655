"""`ctrbench profile`: one configuration under a profiler, and what it wrote read back.

A tool that is not there gets its exact command written beside the record, and exit code 1: nothing was recorded.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from ctrbench.bench import registry
from ctrbench.bench.assemble import base_columns, fed, lookup
from ctrbench.bench.config import build_plan
from ctrbench.bench.counts import blocks_of, counted_training
from ctrbench.bench.hardware import this_machine
from ctrbench.bench.pool import run_all
from ctrbench.bench.proc import keep_freed_memory
from ctrbench.bench.profile_tables import left_out_table, split_table
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.specs import suite_specs
from ctrbench.bench.split_rows import component_rows, split_rows
from ctrbench.bench.suite import prepare_jobs
from ctrbench.bench.trace import commands, inject, recorder
from ctrbench.bench.trace.ablation import CannotLeaveOut, compare
from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.kernel_rows import counted_kernels, recorded_kernels
from ctrbench.bench.trace.ncu import read_ncu
from ctrbench.bench.trace.ncu_table import NcuReport
from ctrbench.bench.trace.nsys import read_nsys
from ctrbench.bench.trace.nvtx import OFF_SWITCH
from ctrbench.bench.trace.recording import Recording
from ctrbench.bench.trace.time_split import Split, split_of
from ctrbench.bench.traced import ablated, run_captured
from ctrbench.datasets.errors import BadInput, UnknownName
from ctrbench.datasets.schema import Track
from ctrbench.datasets.spec import sha256_file
from ctrbench.reports import kernel_rows, records
from ctrbench.reports.measures import withheld
from ctrbench.reports.records import Measurement, Origin, RunRecord

COMMANDS = "commands.sh"
NCU_STEM = "ncu-"
"""Before the stage, in the names of Nsight Compute's files."""
SMALL_DATA: dict[Track, tuple[str, ...]] = {
    "sequence": ("data=taobao_synthetic", "data.options.users=100"),
    "tabular": ("data=criteo_synthetic", "data.options.rows=6000", "data.options.cap=1000"),
}
"""Generated data for a model that is profiled without `data=`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to profile, and how."""

    settings: tuple[str, ...]
    """`key=value` as of `ctrbench run`; one model on one data set."""
    tool: str
    """One of `commands.TOOLS`."""
    out: Path | None = None
    """Run directory; a new one below `runs` if not given."""
    steps: int | None = None
    """In the capture window; those of the suite if not given."""
    arch: str | None = None
    """Compute capability for ncu; that of the GPU here if not given."""
    every: int = 1
    """Ranges in every n-th step."""
    operators: bool = False
    """A range for every operator too."""


class NothingRecorded(RuntimeError):
    """Why there is no recording; becomes a withheld row and exit code 1. The message begins with a reason code."""


def run_profile(request: Request, console: Console) -> int:
    """Profiles one configuration; prints where the recording is and what it holds.

    Returns:
        0, or 1 if nothing was recorded: no tool, no permission, or the steps failed.

    Raises:
        BadInput: settings that are not one configuration, or the ranges are switched off.
        UnknownName: no model, or a wrong key or name.
    """
    if request.tool in ("nsys", "ncu", "nvtx") and os.environ.get(OFF_SWITCH) == "0":
        raise BadInput(f"{OFF_SWITCH}=0 switches the ranges off, and --tool {request.tool} lives on them: unset it")
    spec, track = _spec(request, Console(quiet=True) if request.tool == "none" else console)
    if request.tool == "none":
        _ready(spec)
        attached = run_captured(spec, request.every, request.operators)
        console.print(f"{spec.steps} steps on {spec.device}; NVTX tool: {'attached' if attached else 'none'}")
        return 0
    out = request.out or Path("runs") / time.strftime(f"%Y%m%d-%H%M%S-profile-{spec.model}-{request.tool}")
    named = replace(spec, tracer="torch.profiler" if request.tool == "torch" else request.tool)
    folder = out / "records" / named.key
    folder.mkdir(parents=True, exist_ok=True)
    if request.tool == "torch":
        return _torch(named, out, folder, console)
    tool: Callable[[Request, Path, Console], list[Path]] = {"nsys": _nsys, "ncu": _ncu, "nvtx": _nvtx}[request.tool]
    base = base_columns(named, lookup(named).family, track)
    try:
        files = tool(request, folder, console)
        rows, extra = _ingest(base, spec, files, "measured" if request.tool == "nvtx" else "imported", console)
    except NothingRecorded as why:
        console.print(f"[bold red]nothing was recorded[/]: {escape(str(why))}", highlight=False)
        rows, extra = [withheld(base, "split_host", str(why), phase="train")], {}
    extra |= {"cfg": spec.digest, "commands": COMMANDS}
    record = RunRecord(
        key=named.key, spec=named.to_json(), rows=tuple(rows), environment=this_machine(), inputs={}, extra=extra
    )
    records.save(record, out)
    console.print(f"record: {folder}", markup=False, highlight=False)
    return 0 if "files" in extra else 1


# --------------------------------------------------------------- configuration


def _spec(request: Request, console: Console) -> tuple[RunSpec, Track]:
    """The traced process of the one configuration that the settings name, and its track; its data prepared."""
    plan = build_plan([*_small(request.settings), *request.settings])
    ready, _, skipped = prepare_jobs(plan, console)
    if skipped:
        raise BadInput(skipped[0])
    specs, unsupported = suite_specs(plan, ready)
    traced = [s for s in specs if s.kind == "trace"]
    if len(traced) != 1:
        reasons = [f"{r.model}: {r.reason}" for r in unsupported if r.model in plan.models][:1]
        found = ", ".join(f"{s.model} on {s.data}" for s in traced) or "none"
        hint = reasons[0] if reasons and not traced else "name one model=NAME and one data=NAME"
        raise BadInput(f"profile takes one configuration, these settings make {len(traced)} ({found}): {hint}")
    steps = traced[0].steps if request.steps is None else request.steps
    if steps < 1 or request.every < 1:
        raise BadInput(f"--steps {steps} --every {request.every}: must be at least 1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return replace(traced[0], tracer="none", steps=steps, device=device), ready[0].prepared.schema.track


def _small(settings: Sequence[str]) -> list[str]:
    """Settings for what was not given: the sizes of suite=ci, and generated data that suit the model."""
    given = {key.lstrip("+"): value for key, _, value in (s.partition("=") for s in settings)}
    path = given.get("model.path", given.get("model_path", ""))
    name = given.get("model") or (registry.register_path(path) if path else "")
    if not name:
        raise UnknownName(f"profile needs model=NAME, one of {', '.join(registry.model_names())}")
    added = [] if "suite" in given else ["suite=ci"]
    if added and "data" not in given and name in registry.model_names():
        tracks = registry.model_spec(name).tracks
        added += SMALL_DATA["sequence" if "sequence" in tracks else "tabular"]
    return added


def _program(request: Request, start: Sequence[str]) -> list[str]:
    """The command that a tool runs: the same settings, no tool."""
    given = {"--steps": request.steps, "--every": request.every if request.every > 1 else None}
    options = [text for name, value in given.items() if value is not None for text in (name, str(value))]
    return [
        *start, "profile", *request.settings, "--tool", "none", *options, *["--operators"] * request.operators
    ]  # fmt: skip


def _here() -> list[str]:
    return [sys.executable, "-m", "ctrbench.bench.cli"]


def _write_commands(folder: Path, lines: Sequence[Sequence[str]], env: str = "") -> str:
    text = "\n".join(env + shlex.join(line) for line in lines)
    note = "# Run where the project, the tool and the GPU are; then `ctrbench trace` reads what was written."
    records.write_atomic(folder / COMMANDS, f"{note}\n{text}\n".encode())
    return text


# ----------------------------------------------------------------------- tools


def _torch(spec: RunSpec, out: Path, folder: Path, console: Console) -> int:
    """The trace process of the suites, alone."""
    from ctrbench.bench.trace.command import run_trace

    outcome = run_all([spec], out, 1, lambda _: None)[0]
    if outcome.status != "ok":
        console.print(f"[bold red]nothing was recorded[/]: {escape(outcome.reason)}", highlight=False)
        return 1
    trace = folder / "trace.json.gz"
    console.print(f"recording: {trace}", markup=False, highlight=False)
    return run_trace([str(trace)], json=False)


def _nvtx(request: Request, folder: Path, console: Console) -> list[Path]:
    lines, database = folder / "nvtx.jsonl", folder / "nvtx.sqlite"
    portable = f"{inject.ATTACH}=LIBRARY {inject.OUT}={lines.name} "
    _write_commands(folder, [_program(request, ["ctrbench"])], portable)
    try:
        code = inject.record(_program(request, _here()), lines)
    except inject.RecorderUnavailable as why:
        raise NothingRecorded(f"no_tool: {why}") from None
    if code != 0:
        raise NothingRecorded(f"failed: the steps ended with exit code {code}; their output is above")
    done = recorder.convert(lines, database)
    console.print(f"{done.events} events, {done.open_ranges} ranges without an end", highlight=False)
    for problem in done.problems:
        console.print(f"[yellow]note[/]: {escape(problem)}", highlight=False)
    return [database]


def _nsys(request: Request, folder: Path, console: Console) -> list[Path]:
    out = folder / "nsys"
    _need("nsys", commands.nsys_commands(out, _program(request, ["ctrbench"])), folder, console)
    for line in commands.nsys_commands(out, _program(request, _here())):
        code, said = _watch(line, console)
        if code != 0:
            raise NothingRecorded(f"failed: {line[0]} {line[1]} ended with exit code {code}: {_last(said)}")
    found = out.with_suffix(".sqlite")
    if not found.is_file():
        why = "no CUDA device was in use" if not torch.cuda.is_available() else "the capture window never opened"
        raise NothingRecorded(f"failed: nsys wrote no {found.name}: {why}")
    return [found]


def _ncu(request: Request, folder: Path, console: Console) -> list[Path]:
    arch = request.arch or _arch()

    def lines(start: Sequence[str]) -> list[tuple[Path, list[str]]]:
        files = [folder / f"{NCU_STEM}{stage}.csv" for stage in commands.GPU_STAGES]
        program = _program(request, start)
        pairs = zip(files, commands.GPU_STAGES, strict=True)
        return [(f, commands.ncu_command(f, stage, arch, program)) for f, stage in pairs]

    _need("ncu", [line for _, line in lines(["ctrbench"])], folder, console)
    files = []
    for file, line in lines(_here()):
        file.unlink(missing_ok=True)
        code, said = _watch(line, console)
        said += file.read_text(errors="replace") if file.is_file() else ""
        if commands.NO_PERMISSION in said:
            raise NothingRecorded(commands.PERMISSION_HELP)
        if code != 0:
            raise NothingRecorded(f"failed: ncu ended with exit code {code}: {_last(said)}")
        if file.is_file() and _counters(file) is not None:
            files.append(file)
    if not files:
        raise NothingRecorded("no_kernel_table: ncu saw no kernel in any stage; did the steps run on a GPU?")
    return files


def _arch() -> str:
    if not torch.cuda.is_available():
        raise BadInput("--tool ncu: no GPU here to ask for its architecture; give it, e.g. --arch sm_90")
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


def _need(tool: str, lines: Sequence[Sequence[str]], folder: Path, console: Console) -> None:
    """Writes the commands; prints them where the tool is missing.

    Raises:
        NothingRecorded: it is.
    """
    text = _write_commands(folder, lines)
    if shutil.which(tool) is None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        raise NothingRecorded(f"no_tool: {tool} is not on PATH; the commands above are in {folder / COMMANDS}")


def _watch(command: Sequence[str], console: Console) -> tuple[int, str]:
    """Runs a tool, shows what it says, and returns its exit code and all of that."""
    said = []
    with subprocess.Popen(list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            console.print(line.rstrip("\n"), markup=False, highlight=False)
    return process.returncode, "".join(said)


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


# ---------------------------------------------------------------------- ingest


def _counters(file: Path) -> NcuReport | None:
    """What ncu wrote of a stage; None where it profiled no kernel."""
    try:
        report = read_ncu(file)
    except BadRecording:  # no table: ncu says so in the file instead
        return None
    return report if report.launches else None


def _ingest(
    base: Mapping[str, Any], spec: RunSpec, files: Sequence[Path], origin: Origin, console: Console
) -> tuple[list[Measurement], dict[str, Any]]:
    """Rows and facts of the recordings, and their kernels beside them; prints a summary of each."""
    rows: list[Measurement] = []
    extra: dict[str, Any] = {"files": {f.name: sha256_file(f) for f in files}}
    counted: dict[str, NcuReport] = {}
    for file in files:
        console.print(f"recording: {file}", markup=False, highlight=False)
        if (report := _counters(file) if file.suffix == ".csv" else None) is not None:
            for name, value in report.lines():
                console.print(f"  {name}: {value}", markup=False, highlight=False)
            counted[file.stem.removeprefix(NCU_STEM)] = report
            continue
        recording, split = _split(file)
        console.print(split_table(split))
        rows += split_rows(base, split, origin) + _left_out(base, spec, split, origin, console)
        kernels = recorded_kernels(base, recording, split, origin)
        kernel_rows.save(kernels.table, file.parent)
        extra |= {"named_coverage": split.coverage, "steps": split.steps, "tracer_ns": split.tracer_ns}
        extra["kernels"] = kernels.facts
        if len(recording.gpu):
            extra["counted"] = _work(spec)
    if counted:
        kernels = counted_kernels(base, counted, origin)
        kernel_rows.save(kernels.table, files[0].parent)
        extra["kernels"] = kernels.facts
    return rows, extra


def _work(spec: RunSpec) -> dict[str, Any]:
    """FLOPs and bytes of a training step by block, executed on the CPU: what a recording of kernels does not tell."""
    model_spec, config, schema, model, _, batches = fed(replace(spec, device="cpu"))
    train, _, reason = counted_training(model_spec, config, schema, model, next(batches))
    return blocks_of(train, reason)


def _split(file: Path) -> tuple[Recording, Split]:
    """Raises:
    NothingRecorded: the recording holds no step of ours.
    """
    try:
        recording = read_nsys(file)
        return recording, split_of(recording)
    except ValueError as why:
        raise NothingRecorded(f"failed: {why}") from None


def _ready(spec: RunSpec) -> None:
    """This process as one of a suite, before it trains."""
    torch.set_num_threads(spec.threads)
    keep_freed_memory()
    # TorchRec calls a deprecated name of torch; the warning says nothing to the reader of a recording.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def _left_out(
    base: Mapping[str, Any], spec: RunSpec, split: Split, origin: Origin, console: Console
) -> list[Measurement]:
    """The split a second way, without any tool; prints where the two disagree."""
    _ready(spec)
    try:
        found = ablated(spec)
    except CannotLeaveOut as why:
        console.print(f"[yellow]note[/]: not seen a second way: {escape(str(why))}", highlight=False)
        return [withheld(base, "split_component", f"n/a: {why}", phase="train")]
    seen = compare(split, found)
    console.print(left_out_table(seen, found.rounds))
    for d in seen:
        if d.doubt:
            console.print(f"[yellow]note[/]: {escape(d.doubt)}", highlight=False)
    return component_rows(base, split, found, origin)

"""The process of one model: chooses its size, times it, then traces it. Started by the kit; a crash costs one model.

The result file is written after every part, so that a kill loses only what was not reached. No tracer runs, and none
has run, while steps are timed.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctrbench.bench import registry
from ctrbench.bench.hardware import Gpu, catalogue
from ctrbench.bench.kit.cases import Case, NothingFits, choose, dry_case, held_batches
from ctrbench.bench.kit.record import PHASES, save
from ctrbench.bench.kit.timing import Plan, clock_of, time_steps, utilisation
from ctrbench.bench.kit.traced import infer_of, record_kineto, run_captured, trace_figures
from ctrbench.bench.pool import die_with
from ctrbench.bench.step import TrainStep
from ctrbench.bench.train import seed_everything
from ctrbench.datasets.schema import Batch
from ctrbench.models.spec import ModelSpec

HELD = 8
"""Batches held on the device and taken in turn; one of a model that makes its own."""
_SHARES = {"train": 0.35, "infer": 0.15}
"""Of the seconds of a job; what is left is for the choice, the build and the trace."""
_DRY = {"warmup": 2, "most": 3, "least": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the kit asks of a process; travels as JSON."""

    model: str
    device: str
    dtype: str
    """`tf32` or `fp32`: how float32 products are computed."""
    gpu: str | None
    """Catalogue name."""
    seconds: float
    dry_run: bool
    parent: int
    """Process id whose end ends this process."""
    out: str
    """Folder of raw recordings."""
    part: str = "all"
    """`all`: choose, time, trace by Kineto; `timed`: no trace; `captured`: only the steps that nsys records."""
    memory: float | None = None
    """Free bytes to choose by, so that a second process takes the size of the first; None asks the device."""


def main(argv: list[str]) -> int:
    """`python -m ctrbench.bench.kit.worker JOB_JSON RESULT_FILE`; 0 also where the model failed: the result says so."""
    job, result = Job(**json.loads(argv[0])), Path(argv[1])
    die_with(job.parent)
    torch.set_float32_matmul_precision("high" if job.dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = job.dtype == "tf32"
    spec = registry.model_spec(job.model)
    if job.part == "captured":
        captured(spec, job)
        return 0
    run_model(spec, job, lambda body: save(body, result))
    return 0


def run_model(spec: ModelSpec, job: Job, keep: Callable[[dict[str, Any]], None]) -> None:
    """Chooses, times and traces one model; hands its body to `keep` after every part."""
    body: dict[str, Any] = {"status": "ok", "reason": "", "phases": {}, "trace": None}
    try:
        seed_everything(0)
        case = _case(spec, job)
        body |= _describe(case)
        keep(body)
        model, batches = build(spec, case, job)
        for phase in PHASES:
            body["phases"][phase] = _timed(model, batches, phase, case, job)
            keep(body)
        if job.part == "all":
            body["trace"] = traced(model, batches, job)
    except NothingFits as why:
        body |= {"status": "skipped", "reason": str(why)}
    except Exception as error:  # the parent makes a row of it
        body["status"], body["reason"] = failure(error)
    keep(body)


def captured(spec: ModelSpec, job: Job) -> None:
    """The traced steps alone, for a profiler around this process."""
    seed_everything(0)
    model, batches = build(spec, _case(spec, job), job)
    run_captured(model, batches)


def failure(error: BaseException) -> tuple[str, str]:
    """(`oom` or `failed`, last line of the message)."""
    text = traceback.format_exception_only(error)[-1].strip().splitlines()[0][:300]
    oom = isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)
    return ("oom" if oom else "failed"), text


def _case(spec: ModelSpec, job: Job) -> Case:
    if job.dry_run:
        return dry_case(spec)
    return choose(spec, job.memory or float(torch.cuda.mem_get_info(torch.device(job.device))[0]))


def _describe(case: Case) -> dict[str, Any]:
    return {
        "preset": case.preset, "batch": case.batch, "choice": case.why, "memory_estimate": case.memory,
        "memory_free": case.free,
        "flops": {"value": dict(case.flops), "origin": "counted", "reason": case.withheld},
    }  # fmt: skip


def build(spec: ModelSpec, case: Case, job: Job) -> tuple[nn.Module, list[Batch]]:
    """The model and its held batches on the job's device."""
    device = torch.device(job.device)
    with device:
        model: nn.Module = spec.build(case.config, case.schema)
    count = (
        HELD if spec.own_batches is None else 1
    )  # what a batch of its own costs depends on its seed: the counted one
    return model, held_batches(spec, case, next(model.parameters()).device, count)


def _timed(model: nn.Module, batches: list[Batch], phase: str, case: Case, job: Job) -> dict[str, Any]:
    model.train(phase == "train")
    step = TrainStep(model) if phase == "train" else infer_of(model)
    plan = Plan(seconds=job.seconds * _SHARES[phase], **(_DRY if job.dry_run else {}))
    clock = clock_of(batches[0].label_B.device)
    found = time_steps(lambda number: step(batches[number % len(batches)]), clock, plan)
    gpu: Gpu | None = catalogue()[job.gpu] if job.gpu else None
    return found | {"mfu": utilisation(found, case.flops.get(phase), case.withheld, gpu, job.dtype)}


def traced(model: nn.Module, batches: list[Batch], job: Job) -> dict[str, Any]:
    """A trace that fails costs its figures, never the timings."""
    raw = Path(job.out) / "raw" / f"{job.model}.json.gz"
    try:
        record_kineto(model, batches, raw)
        return trace_figures(raw, Path(job.out) / "traces" / raw.name, "kineto")
    except Exception as error:
        status, reason = failure(error)
        return {"tool": "kineto", "status": status, "reason": reason}
    finally:
        raw.unlink(missing_ok=True)  # holds the machine's name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`suite=mfu` and `suite=modes`: what every point owes, one count and some timings, never a training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ctrbench.bench import registry
from ctrbench.bench.assemble import base_columns, built_on_meta
from ctrbench.bench.backends import ATTENTION
from ctrbench.bench.modes import refused
from ctrbench.bench.owed import OWED, PHASE, owed_rows
from ctrbench.bench.plan import Entry, Job, Plan
from ctrbench.bench.presets import table_options
from ctrbench.bench.runspec import Kind, RunSpec, mode_of
from ctrbench.datasets import random_batches
from ctrbench.datasets.errors import BadInput
from ctrbench.reports.cells import SWEEP
from ctrbench.reports.measures import withheld
from ctrbench.reports.records import Measurement

PROCESSES: tuple[Kind, ...] = ("time", "count")


def sweep_specs(plan: Plan) -> tuple[list[RunSpec], list[Measurement]]:
    """Processes of every point of a plan, and the rows of the points that are not run, with the reason.

    Raises:
        BadInput: an option of the command line that the sweep itself sets, or that does not fit the model.
    """
    specs: list[RunSpec] = []
    skipped: list[Measurement] = []
    for job in plan.jobs:
        for entry in job.models if job.data in random_batches.TRACKS and not job.served else ():
            _check_options(plan, entry)
            count = _spec(plan, job, "count", entry, threads=1)
            timed = [_spec(plan, job, "time", entry, repeat=r) for r in range(plan.run.processes)]
            if entry.skip:
                alone = owed_rows(_base(timed[0]), "time", "skipped", entry.skip)
                skipped += alone if entry.uncounted else _skipped(count, entry.skip)
                continue
            if reason := refused(timed[0]):
                skipped += owed_rows(_base(timed[0]), "time", "skipped", reason)
                continue
            _check_build(count)
            specs += timed if entry.uncounted else [count, *timed]
        if job.backends:
            specs.append(backends_spec(plan, job))
    return specs, skipped


def backends_spec(plan: Plan, job: Job) -> RunSpec:
    """The process that times one attention of a model through every back end."""
    made = _spec(plan, job, "backends", Entry(model=job.backends, label=ATTENTION))
    return replace(made, config={}, dtype="float32")


def _check_options(plan: Plan, entry: Entry) -> None:
    both = sorted(set(entry.options) & set(plan.model_options.get(entry.model, {})))
    if both:
        raise BadInput(
            f"{entry.model}.{both[0]}: the sweep sets it at every point; change the points in the suite's yaml"
        )


def _check_build(spec: RunSpec) -> None:
    """Options of the command line fail before any work."""
    try:
        built_on_meta(spec, random_batches.random_schema(spec.data, spec.history_length))
    except (TypeError, ValueError) as error:
        raise BadInput(f"{spec.model} at {spec.variant}: {error}") from None


def _spec(plan: Plan, job: Job, kind: Kind, entry: Entry, **changes: Any) -> RunSpec:
    run = replace(plan.run, **entry.run)
    config = {**entry.options, **plan.model_options.get(entry.model, {})}
    tables = table_options(run)
    if tables:
        config["tables"] = {field: value for field, (_, value) in tables.items()}
    values: dict[str, Any] = {
        "kind": kind, "model": entry.model, "config": config, "variant": entry.label, "preset": SWEEP,
        **registry.own_file(entry.model), "data": job.data, "split": random_batches.SPLIT,
        "fingerprint": random_batches.fingerprint(job.data), "history_length": run.history_length, "batch": run.batch,
        "lr": run.lr, **mode_of(kind, run.dtype, run.compile), "threads": run.threads,
        "warmup": run.warmup, "steps": run.steps,
        "level": plan.level, "timeout_s": run.timeout_s,
    }  # fmt: skip
    return RunSpec(**(values | changes))


def _base(spec: RunSpec) -> dict[str, Any]:
    base = base_columns(spec, registry.model_spec(spec.model).family, random_batches.TRACKS[spec.data])
    return base | {"run": f"skipped-{spec.data}-{spec.model}"}


def _skipped(spec: RunSpec, reason: str) -> list[Measurement]:
    base = _base(spec)
    return [
        withheld(base, metric, reason, phase=PHASE.get(metric, "train")) for kind in PROCESSES for metric in OWED[kind]
    ]

"""Processes of `suite=datapath`: what a data set, its models, and the suite as a whole owe."""

from __future__ import annotations

from ctrbench.bench import registry
from ctrbench.bench.plan import Entry, Plan
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.specs import Ready, skipped_rows, spec_of
from ctrbench.reports.cells import DATAPATH
from ctrbench.reports.records import Measurement

ONCE = ("transforms", "tables", "dedup")
"""Parts that need no data set."""


def datapath_specs(plan: Plan, ready: list[Ready]) -> tuple[list[RunSpec], list[Measurement]]:
    """A loader a data set, a stall a model, the other parts once; rows with the reason of models that do not fit."""
    items = [r for r in ready if r.job.datapath]
    specs: list[RunSpec] = []
    absent: list[Measurement] = []
    for item in items:
        track = item.prepared.schema.track
        fitting = []
        for entry in item.job.models:
            model_spec = registry.model_spec(entry.model)
            if track in model_spec.tracks:
                fitting.append(entry)
                continue
            reason = (model_spec.skip_reason or {}).get(track, f"{entry.model} does not run on {track} data")
            absent += skipped_rows(item.job.data, track, entry.model, model_spec.family, ("datapath",), reason,
                                   item.prepared.split)  # fmt: skip
        owner = Entry(model=fitting[0].model if fitting else item.job.models[0].model)
        specs.append(spec_of(plan, item, "datapath", owner, part="loader", config={}, variant="", preset=DATAPATH))
        specs += [spec_of(plan, item, "datapath", e, part="stall", preset=DATAPATH) for e in fitting]
    if items and not (plan.tune_only or plan.controls):
        owner = items[0].job.models[0]
        specs += [
            RunSpec(kind="datapath", model=owner.model, part=part, preset=DATAPATH, dtype=plan.run.dtype,
                    threads=plan.run.threads, level=plan.level, timeout_s=plan.run.timeout_s)
            for part in ONCE
        ]  # fmt: skip
    return specs, absent

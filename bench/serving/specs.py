"""Processes that serve: what every served model owes, and what a data set owes once."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from ctrbench.bench import registry
from ctrbench.bench.plan import Entry, Job, Plan
from ctrbench.bench.presets import table_options
from ctrbench.bench.runspec import Kind, RunSpec, variant_of
from ctrbench.bench.specs import Ready, skipped_rows, spec_of
from ctrbench.datasets import random_batches
from ctrbench.models.requests import item_dense, item_fields
from ctrbench.models.serving import WHOLE
from ctrbench.reports.records import Measurement

SERVED: tuple[Kind, ...] = ("serve", "serve_count")
"""What a served model owes."""
STREAMS = "onetrans"
"""The model whose states are kept between requests, approximately: its drift is measured."""
TWO_STAGES = "lum"
"""The backbone of retrieval and ranking on one cache (models/two_stages.py)."""
PAIR_ROUNDS_S = 12.0
"""Most wall time of the alternation of a pair."""


def serving_specs(plan: Plan, ready: list[Ready]) -> tuple[list[RunSpec], list[Measurement]]:
    """Processes of all served jobs, and rows with the reason where data has no requests; none where a suite tunes or
    runs controls."""
    if plan.tune_only or plan.controls:
        return [], []
    out: list[RunSpec] = []
    absent: list[Measurement] = []
    for item in ready:
        schema = item.prepared.schema
        if item.job.served and (item_fields(schema) or item_dense(schema)):
            out += _on_data(plan, item)
        elif item.job.served:
            reason = f"{schema.name} has no field of role `item`: nothing tells two candidates of a request apart"
            for model in dict.fromkeys(e.model for e in item.job.models):
                family = registry.model_spec(model).family
                absent += skipped_rows(item.job.data, schema.track, model, family, SERVED, reason, item.prepared.split)
    for job in plan.jobs:
        if job.served and job.data in random_batches.TRACKS:
            out += [_pair(plan, job, entry) for entry in job.models]
    return out, absent


def _on_data(plan: Plan, item: Ready) -> list[RunSpec]:
    """Every model under load and counted; drift, stages and the feature path once."""
    track, options = item.prepared.schema.track, asdict(plan.serve)
    mine = [e for e in item.job.models if track in registry.model_spec(e.model).tracks]
    out = []
    for entry in mine:
        out.append(spec_of(plan, item, "serve_count", entry, threads=1, serving=_counted(options)))
        out.append(spec_of(plan, item, "serve", entry, serving=options))
    names = {e.model for e in mine}
    if track == "sequence" and STREAMS in names:
        out.append(spec_of(plan, item, "drift", Entry(model=STREAMS), threads=1, serving=_counted(options)))
        out.append(spec_of(plan, item, "stages", Entry(model=TWO_STAGES), threads=1, serving=_counted(options)))
    if track == "sequence" and mine:
        out.append(spec_of(plan, item, "features", Entry(model=mine[0].model), serving=_counted(options), config={},
                           variant=""))  # fmt: skip
    return out


def _counted(options: dict[str, Any]) -> dict[str, Any]:
    """What decides a count: the candidates alone."""
    return {"candidates": options["candidates"]}


def _pair(plan: Plan, job: Job, entry: Entry) -> RunSpec:
    """Two forms of one model by turns on random requests with full histories."""
    run = replace(plan.run, **entry.run)
    config = {**entry.options, **plan.model_options.get(entry.model, {})}
    tables = table_options(run)
    if tables:
        config["tables"] = {field: value for field, (_, value) in tables.items()}
    variant = entry.label or variant_of(entry.options.items())
    return RunSpec(
        kind="serve", model=entry.model, config=config, variant=variant, **registry.own_file(entry.model),
        preset="small", data=job.data, split=random_batches.SPLIT, fingerprint=random_batches.fingerprint(job.data),
        history_length=run.history_length, threads=run.threads, level=plan.level,
        timeout_s=run.timeout_s,
        serving={"candidates": (max(plan.serve.candidates),), "pair": entry.form or WHOLE,
                 "rounds_seconds": PAIR_ROUNDS_S},
    )  # fmt: skip

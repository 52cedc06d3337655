"""From a checked plan and prepared data to the processes of a suite: trials, trainings, timings, counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ctrbench.bench import floors, registry, summary, tuning
from ctrbench.bench.config import Entry, Job, Plan
from ctrbench.bench.jobs import lookup, model_config
from ctrbench.bench.presets import preset_options, table_options
from ctrbench.bench.runspec import Kind, RunSpec
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepared import Prepared
from ctrbench.reports import records
from ctrbench.reports.records import Measurement

PROCESSES: tuple[Kind, ...] = ("time", "count", "trace", "quality")
"""What every model of a job owes."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A job whose data is there."""

    job: Job
    prepared: Prepared
    path: Path


def suite_specs(plan: Plan, ready: list[Ready]) -> tuple[list[RunSpec], list[Measurement]]:
    specs: list[RunSpec] = []
    unsupported: list[Measurement] = []
    for item in ready:
        track = item.prepared.schema.track
        for entry in item.job.models:
            model = entry.model
            model_spec = registry.model_spec(model)
            if track not in model_spec.tracks:
                reason = (model_spec.skip_reason or {}).get(track, f"{model} does not run on {track} data")
                unsupported += skipped_rows(
                    item.job.data, track, model, model_spec.family, PROCESSES, reason, item.prepared.split
                )
                continue
            made = _model_specs(plan, item, entry)
            options = (
                bool(entry.options) or model in plan.model_options or item.job.preset != "small" or plan.run.l2 > 0
            )
            # A user's own model that cannot be built is a failed run, not one that the data does not suit.
            wrong = _unbuildable(made[0], item.prepared) if options or not registry.own_file(model) else None
            if wrong is not None and options:  # options of the command line must not cost a suite
                given = " ".join(f"{model}.{k}={v}" for k, v in made[0].config.items())
                raise BadInput(f"{given}: {wrong}")
            if isinstance(wrong, ValueError):
                unsupported += skipped_rows(
                    item.job.data, track, model, model_spec.family, PROCESSES, str(wrong), item.prepared.split
                )
                continue
            specs += made
        # Sampled negatives are judged in every run, wanted or not: a small pool makes wrong results look excellent.
        control = (summary.POOL_CONTROL,) if item.prepared.sampler is not None else ()
        for floor in dict.fromkeys((*item.job.floors, *control)):
            missing = floors.skip_reason(floor, item.prepared.schema)
            if missing is None:
                specs.append(_spec(plan, item, "floor", Entry(model=floor), threads=1))
            else:
                unsupported += skipped_rows(
                    item.job.data, track, floor, "floor", ("floor",), missing, item.prepared.split
                )
    published = [
        RunSpec(kind="published", model=m, level=plan.level, device="meta", dtype="bf16", **registry.own_file(m))
        for m in (*plan.models, *(("lum_step1",) if "lum" in plan.models else ()))
    ]
    return specs + published, unsupported


def trial_specs(plan: Plan, item: Ready, entry: Entry) -> list[RunSpec]:
    """The tuning trials of an entry, the default first; none without `run.trials`."""
    default = _spec(plan, item, "quality", entry)
    probe = _spec(plan, item, "tune", Entry(model=entry.model, options=entry.options, run={"l2": tuning.L2[-1]}))
    penalised = _unbuildable(probe, item.prepared) is None
    made = []
    for trial, draw in enumerate(tuning.draws(plan.run.trials) if plan.run.trials > 1 else []):
        drawn = tuning.trial_entry(entry, draw, plan.run, "", penalised)
        made.append(_spec(plan, item, "tune", drawn, threads=1, trial=trial, variant=default.variant))
    return made


def tuned_specs(plan: Plan, ready: list[Ready], runs_dir: Path) -> tuple[list[RunSpec], list[dict[str, Any]]]:
    """Trainings of every entry whose best trial is not the default, and what tuning chose for each entry."""
    done = records.finished(runs_dir)
    specs: list[RunSpec] = []
    chosen: list[dict[str, Any]] = []
    points = tuning.draws(plan.run.trials)
    for item in ready:
        for entry in item.job.models:
            suits = item.prepared.schema.track in registry.model_spec(entry.model).tracks
            trials = [t for t in trial_specs(plan, item, entry) if t.key in done] if suits else []
            if not trials:
                continue
            runs = [
                summary.Run(t, json.loads((runs_dir / "records" / t.key / "record.json").read_text())) for t in trials
            ]
            best, scores = tuning.best_trial(runs)
            winner = next(t for t in trials if t.trial == best)
            drawn = tuning.trial_entry(
                entry, points[best], plan.run, tuning.tuned_label(entry), "l2" in winner.config.get("tables", {})
            )
            if best:
                specs += [replace(s, tuned=True) for s in _trainings(plan, item, drawn)]
            chosen.append({
                "data": item.job.data, "split": item.prepared.split, "model": entry.model, "variant": trials[0].variant,
                "trials": len(trials), "best": best, "valid_auc_default": scores.get(0), "valid_auc_best": scores[best],
                "options": tuning.changed(drawn) if best else {},
            })  # fmt: skip
    return specs, chosen


def _unbuildable(spec: RunSpec, prepared: Prepared) -> TypeError | ValueError | None:
    """Why the model cannot be built on this schema, found out without memory; None if it can."""
    model_spec = lookup(spec)
    schema = prepared.schema_for(spec.history_length)
    try:
        with torch.device("meta"):
            model_spec.build(model_config(spec, model_spec), schema)
    except (TypeError, ValueError) as error:
        return error
    return None


def skipped_rows(
    data: str, track: str, model: str, family: str, kinds: Iterable[str], reason: str, split: str | None = None
) -> list[Measurement]:
    base = {"run": f"skipped-{data}-{model}", "model": model, "family": family, "data": data, "split": split or "",
            "track": track}  # fmt: skip
    return [row for kind in kinds for row in summary.owed_rows(base, kind, "skipped", reason)]


def _model_specs(plan: Plan, item: Ready, entry: Entry) -> list[RunSpec]:
    run = plan.run
    made = [_spec(plan, item, "count", entry, threads=1)]
    made += trial_specs(plan, item, entry)
    made += _trainings(plan, item, entry)
    made += [_spec(plan, item, "time", entry, repeat=r) for r in range(run.processes)]
    made.append(replace(_spec(plan, item, "trace", entry, tracer="torch.profiler"), steps=min(run.steps, 20)))
    return made


def _trainings(plan: Plan, item: Ready, entry: Entry) -> list[RunSpec]:
    return [_spec(plan, item, "quality", entry, threads=1, seed=s) for s in range(plan.run.seeds)]


def _spec(plan: Plan, item: Ready, kind: Kind, entry: Entry, **changes: Any) -> RunSpec:
    model, run = entry.model, replace(plan.run, **entry.run)
    typed = {**entry.options, **plan.model_options.get(model, {})}
    tables = table_options(run) if kind != "floor" else {}
    config = {**(preset_options(model, item.job.preset) if kind != "floor" else {}), **typed}
    if tables:
        config["tables"] = {field: value for field, (_, value) in tables.items()}
    variant = entry.label or ",".join(f"{k}={v}" for k, v in (*typed.items(), *tables.values()))
    values: dict[str, Any] = {
        "kind": kind, "model": model, "config": config, "variant": variant, **registry.own_file(model),
        "preset": item.job.preset if kind != "floor" else "small",
        "data": item.job.data, "split": item.prepared.split, "fingerprint": item.prepared.fingerprint,
        "prepared": str(item.path.resolve()), "history_length": run.history_length,
        "train_rows": min(run.train_rows, item.prepared.rows("train")), "valid_rows": run.valid_rows,
        "epochs": run.epochs, "evaluations": run.evaluations, "patience": run.patience, "batch": run.batch,
        "eval_batch": run.eval_batch, "lr": run.lr, "plateau": run.plateau, "dtype": run.dtype, "threads": run.threads,
        "warmup": run.warmup, "steps": run.steps, "level": plan.level, "timeout_s": run.timeout_s,
    }  # fmt: skip
    return RunSpec(**(values | changes))

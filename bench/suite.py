"""One suite from plan to report: prepare, run every process, summarise, draw. Resumable after a kill."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ctrbench.bench import control_cache, registry, summary
from ctrbench.bench.assemble import base_columns, lookup, model_config
from ctrbench.bench.bars import published_bands
from ctrbench.bench.controls import CONTROLS, METRICS, view
from ctrbench.bench.datapath.specs import datapath_specs
from ctrbench.bench.hardware import this_machine
from ctrbench.bench.owed import owed_rows
from ctrbench.bench.plan import Job, Plan
from ctrbench.bench.pool import Outcome, run_all
from ctrbench.bench.presets import preset_options
from ctrbench.bench.pretrain import ANSWERS
from ctrbench.bench.priced import price_run
from ctrbench.bench.progress import RunProgress, Stages
from ctrbench.bench.runspec import Kind, RunSpec
from ctrbench.bench.serving.specs import serving_specs
from ctrbench.bench.specs import (
    PROCESSES,
    Ready,
    body_of,
    equal_flops_specs,
    kept_controls,
    skipped_rows,
    suite_specs,
    tuned_specs,
)
from ctrbench.bench.sweep import sweep_specs
from ctrbench.bench.tuning import advice
from ctrbench.datasets import random_batches
from ctrbench.datasets.errors import BadInput, DataUnavailable
from ctrbench.datasets.prepare import known_options, prepare
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.registry import dataset_spec
from ctrbench.datasets.terms import show_once
from ctrbench.reports import bands, records
from ctrbench.reports.cells import RETRIEVAL
from ctrbench.reports.measures import make
from ctrbench.reports.records import Measurement, RunRecord

SIDE_BY_SIDE: tuple[Kind, ...] = (
    "count", "published", "floor", "quality", "tune", "pretrain", "probe", "retrieve", "serve_count", "stages", "drift",
    *CONTROLS,
)  # fmt: skip
"""Kinds that are not timed: they share the cores, one thread each."""
IDENTITY = ("model", "variant", "preset", "data", "split", "metric", "scope", "seed")
"""Columns that tell the rows of one suite apart."""
DERIVED_INPUTS = {
    "mfu_cpu": {"step_time": "measured", "flops": "counted", "ceiling_gemm": "measured"},
    "mbu": {"step_time": "measured", "bytes": "counted", "ceiling_copy": "measured"},
    "auc_delta": {"auc": "measured"},
    **{name: {"auc": "measured"} for name in ("auc_mdd", "auc_pair", "auc_pair_mdd", "option_delta")},
    "joint_gain": {"auc": "measured", "recall_after": "measured"},
    "budget_flops": {"flops": "counted", "rows_seen": "measured"},
    "auc_per_gflop": {"auc": "measured", "flops": "counted"},
    "auc_vs_published": {"auc": "measured", "auc_published": "cited"},
}


def run_suite(plan: Plan, console: Console) -> int:
    """Runs a plan; prints the table and the report's path.

    Returns:
        0, or 1 if some run failed (the suite still finishes and reports) or an AUC is outside its published band.

    Raises:
        BadInput: the data of a job is wrong, or a model cannot be built with its options; nothing was run.
    """
    for job in plan.jobs:  # a model without the preset fails before any work
        for entry in job.models:
            preset_options(entry.model, job.preset)
    ready, rows, skipped = prepare_jobs(plan, console)
    moved, not_moved = datapath_specs(plan, ready)
    ready = [r for r in ready if not r.job.datapath]  # of the others nothing is trained
    specs, unsupported = suite_specs(plan, ready)
    swept, left_out = sweep_specs(plan)
    served, not_served = serving_specs(plan, ready)
    specs, unsupported = specs + swept + served + moved, unsupported + left_out + not_served + not_moved
    runs_dir = _run_dir(plan)
    console.print(f"[bold]suite {plan.suite}[/] into {runs_dir}")
    samplers = {r.job.data: dict(r.prepared.sampler) for r in ready if r.prepared.sampler is not None}
    _write_skips(runs_dir, rows + unsupported, skipped, plan, samplers)
    done = records.finished(runs_dir)
    todo = [s for s in specs if s.key not in done]
    if len(todo) < len(specs):
        console.print(f"resuming: {len(specs) - len(todo)} of {len(specs)} runs are already recorded")
    kept = _kept_controls(plan, ready, specs, runs_dir, console)
    specs += [s for s in kept if s not in specs]
    todo = [s for s in todo if s not in kept]
    asked = {s.pretrained for s in todo} | ({s.pretrained for s in specs} if not plan.controls else set())
    outcomes = _run([s for s in todo if s.kind != "pretrain" or s.key in asked], runs_dir, console)
    if plan.run.cache:
        control_cache.keep([s for s in specs if s.kind in CONTROLS], runs_dir)
    later, chosen, missing = _later(plan, ready, runs_dir, console)
    outcomes += _run([s for s in later if s.key not in done], runs_dir, console)
    specs += later
    failures = [o for o in outcomes if o.status != "ok"]
    for outcome in failures:
        _write_failure(outcome, runs_dir)
        console.print(f"[red]{outcome.status}[/] {outcome.spec.key}: {escape(outcome.reason)}")
    rows = _summarise(specs, plan, runs_dir, chosen, missing)
    judged = [r for r in rows if r.metric == bands.METRIC]
    price_run(runs_dir, plan.cost)
    _draw(runs_dir, console)
    if not any(o.spec.pretrained for o in failures):  # a resumed run would ask for them again
        _drop_answers(specs, runs_dir)
    for line in [advice(c) for c in chosen if plan.tune_only] + bands.lines(judged):
        console.print(line, markup=False)
    for text in _doubts(rows):
        console.print(text)
    for text in skipped:
        console.print(f"[bold yellow]SKIPPED[/] {escape(text)}")
    return 1 if failures or bands.outside(judged) else 0


def _later(
    plan: Plan, ready: list[Ready], runs_dir: Path, console: Console
) -> tuple[list[RunSpec], list[dict[str, Any]], list[Measurement]]:
    """Trainings that finished runs decide: with tuned options, and at equal FLOPs.

    Returns:
        their specs, what tuning chose for each entry, and rows of entries that cannot be trained at equal FLOPs.
    """
    tuned, chosen = tuned_specs(plan, ready, runs_dir) if plan.run.trials > 1 else ([], [])
    whole = not (plan.tune_only or plan.controls)
    equal, missing = equal_flops_specs(plan, ready, runs_dir) if whole else ([], [])
    if tuned:
        console.print(
            f"tuned variants: {len(tuned)} trainings with the options of the best of {plan.run.trials} trials"
        )
    if equal:
        console.print(f"equal FLOPs: {len(equal)} trainings")
    return tuned + equal, chosen, missing


def _run_dir(plan: Plan) -> Path:
    out = Path(plan.run.out)
    asked = replace(plan, run=replace(plan.run, resume=False), cost={})  # other prices are no other run
    body = [asdict(asked), [registry.own_file(m) for m in plan.models]]
    digest = hashlib.sha256(json.dumps(body, default=str, sort_keys=True).encode()).hexdigest()
    if plan.run.resume:
        for folder in sorted((p.parent for p in out.glob("*/plan.sha256")), reverse=True):
            if not folder.is_symlink() and (folder / "plan.sha256").read_text() == digest:  # `latest` is a link
                return folder
    named = out / time.strftime(f"%Y%m%d-%H%M%S-{plan.suite}")
    number, folder = 1, named
    while folder.exists():  # a second run within the second, or a clock that was set back
        number, folder = number + 1, named.with_name(f"{named.name}-{number + 1}")
    folder.mkdir(parents=True)
    records.write_atomic(folder / "plan.sha256", digest.encode())
    return folder


def prepare_jobs(plan: Plan, console: Console) -> tuple[list[Ready], list[Measurement], list[str]]:
    """Prepares every data set first: bad input stops here, before any run."""
    ready, rows, skipped = [], [], []
    for job in plan.jobs:
        if job.data in random_batches.TRACKS:  # made by each process
            continue
        show_once(dataset_spec(job.data))
        console.print(f"preparing {job.data} ...")
        start = time.perf_counter()
        try:
            if job.judged and job.path is None:
                raise DataUnavailable(bands.how_to_get())
            options = known_options(dataset_spec(job.data), job.options)
            with Stages(console) as stages:
                prepared = prepare(job.data, job.path, split=job.split, policy=job.policy, watch=stages, **options)
        except DataUnavailable as error:
            skipped.append(f"{job.data}: {error}")
            rows += _skipped_job(job, str(error), CONTROLS if plan.controls else PROCESSES)
            continue
        base = {
            "run": f"prepare-{job.data}",
            "model": "",
            "data": job.data,
            "split": prepared.split,
            "track": prepared.schema.track,
        }
        samples = sum(prepared.rows(part) for part in ("train", "valid", "test"))
        kept = {"bytes_raw": prepared.bytes_raw, "bytes_shards": prepared.bytes_shards}
        rows += [make(base, metric, size, "measured", phase="prepare", n=samples) for metric, size in kept.items()]
        console.print(
            f"  {job.data}: {prepared.rows('train'):,} train / {prepared.rows('valid'):,} valid /"
            f" {prepared.rows('test'):,} test rows, {time.perf_counter() - start:.1f} s"
        )
        for note, count in prepared.manifest["rows"]["notes"].items():
            console.print(f"  note: {note} ({count:,})", markup=False)
        if prepared.rows("train") < plan.run.batch:
            raise BadInput(
                f"run.batch={plan.run.batch}: {job.data} has {prepared.rows('train')} train rows; use a smaller batch"
            )
        ready.append(Ready(job, prepared, prepared.path))
    return ready, rows, skipped


def _kept_controls(
    plan: Plan, ready: list[Ready], specs: list[RunSpec], runs_dir: Path, console: Console
) -> list[RunSpec]:
    """Controls of earlier runs, now in the run directory: single ones of those to run, else whole sets to show."""
    if not plan.run.cache:
        return []
    groups = [[s] for s in specs if s.kind in CONTROLS] if plan.controls else kept_controls(plan, ready)
    done = records.finished(runs_dir)
    kept = control_cache.fetch(groups, runs_dir)
    if fresh := [s for s in kept if s.key not in done]:
        console.print(f"controls: {len(fresh)} are taken from earlier runs (run.cache=false runs them again)")
    return kept


def _skipped_job(job: Job, reason: str, kinds: tuple[Kind, ...]) -> list[Measurement]:
    track = dataset_spec(job.data).track or ""
    rows = [r for f in job.floors for r in skipped_rows(job.data, track, f, "floor", ("floor",), reason)]
    for model in dict.fromkeys(e.model for e in job.models):
        rows += skipped_rows(job.data, track, model, registry.model_spec(model).family, kinds, reason, job.split)
    for model in dict.fromkeys(e.model for e in job.retrievers):
        family = registry.model_spec(model).family
        found = skipped_rows(job.data, track, model, family, ("retrieve",), reason, job.split)
        rows += [replace(r, preset=RETRIEVAL) for r in found]
    return rows


def _round_robin(specs: Iterable[RunSpec]) -> list[RunSpec]:
    """A B C A B C: every model once before any model twice."""
    return sorted(specs, key=lambda s: (s.kind == "trace", s.repeat))


def _work(spec: RunSpec) -> float:
    """FLOPs of a training, to order the side-by-side runs by; the other kinds are short and come last.

    A pre-training comes first, others wait for it; then retrieval, whose epochs validation decides.
    """
    if spec.kind not in ("quality", "tune", "drift", *CONTROLS):
        return math.inf if spec.kind == "pretrain" else sys.float_info.max if spec.kind == "retrieve" else 0.0
    model = lookup(spec)
    schema = view(spec).schema_for(spec.history_length)
    flops = model.flops(model_config(spec, model), schema, None)
    return flops.live.full * spec.train_rows * spec.epochs  # what is frozen is looked up


def _run(todo: list[RunSpec], runs_dir: Path, console: Console) -> list[Outcome]:
    shared = [s for s in todo if s.kind in SIDE_BY_SIDE]
    alone = _round_robin(s for s in todo if s.kind not in SIDE_BY_SIDE)
    shared.sort(key=_work, reverse=True)  # longest first: the last run must not leave a core idle
    with RunProgress(console, len(todo)) as done:
        return run_all(shared, runs_dir, workers=min(2, os.cpu_count() or 1), done=done) + run_all(
            alone, runs_dir, workers=1, done=done
        )


def _write_skips(
    runs_dir: Path, rows: list[Measurement], skipped: list[str], plan: Plan, samplers: dict[str, dict[str, Any]]
) -> None:
    spec = {
        "kind": "prepare",
        "suite": plan.suite,
        "level": plan.level,
        "skipped": skipped,
        "samplers": samplers,
        "run": asdict(plan.run),
        "tuned": False,
    }
    records.save(RunRecord(key="prepare", spec=spec, rows=tuple(rows), environment=this_machine()), runs_dir)


def _write_failure(outcome: Outcome, runs_dir: Path) -> None:
    """A failed process is a row for every measure that it owed. No record.json: `resume` tries it again."""
    spec = outcome.spec
    family = "floor" if spec.kind == "floor" else registry.model_spec(spec.model).family
    track = (
        Prepared.open(Path(spec.prepared)).schema.track if spec.prepared else random_batches.TRACKS.get(spec.data, "")
    )
    base = base_columns(spec, family, track)
    seed = spec.seed if spec.kind in ("quality", "retrieve", *CONTROLS) else None
    rows = owed_rows(base, spec.kind, outcome.status, outcome.reason, seed)
    body = {
        "spec": spec.to_json(),
        "status": outcome.status,
        "reason": outcome.reason,
        "rows": [asdict(r) for r in rows],
    }
    records.write_json(runs_dir / "records" / spec.key / "failure.json", body)


def _failed_rows(specs: list[RunSpec], runs_dir: Path) -> Iterator[Measurement]:
    """Rows of the failures that stand; of the repeats of one timing only the first is kept."""
    seen = set()
    for spec in specs:
        path = runs_dir / "records" / spec.key / "failure.json"
        if spec.key in records.finished(runs_dir) or not path.is_file():
            continue
        for row in json.loads(path.read_text())["rows"]:
            identity = tuple(row[name] for name in IDENTITY)
            if identity not in seen:
                seen.add(identity)
                yield Measurement(**row)


def _summarise(
    specs: list[RunSpec], plan: Plan, runs_dir: Path, chosen: list[dict[str, Any]], missing: list[Measurement]
) -> list[Measurement]:
    """Writes the summary record; returns its rows."""
    done = records.finished(runs_dir)
    runs = [summary.Run(s, body_of(runs_dir, s.key)) for s in specs if s.key in done]
    rows = summary.summarise([*runs, *summary.standing_for_tuned(runs, chosen)], runs_dir, "summary") + missing
    have = {tuple(getattr(r, name) for name in IDENTITY) for r in rows}
    rows += [r for r in _failed_rows(specs, runs_dir) if tuple(getattr(r, name) for name in IDENTITY) not in have]
    rows += published_bands(plan, runs, rows, "summary")
    spec = {"kind": "summary", "suite": plan.suite, "level": plan.level, "tuned": bool(chosen)}
    records.save(
        RunRecord(
            key="summary",
            spec=spec,
            rows=tuple(rows),
            environment=this_machine(),
            inputs=DERIVED_INPUTS,
            extra={"tuning": chosen},
        ),
        runs_dir,
    )
    return rows


def _drop_answers(specs: list[RunSpec], runs_dir: Path) -> None:
    """Stored answers are half a gigabyte a million rows; whoever needs them again computes the same values."""
    for spec in specs:
        if spec.kind == "pretrain":
            for name in (ANSWERS, f"{ANSWERS}.partial"):
                (runs_dir / "records" / spec.key / name).unlink(missing_ok=True)


def _doubts(rows: Iterable[Measurement]) -> list[str]:
    """What must not be overlooked, as console markup: doubtful negatives, and controls that failed."""
    shaky = [r for r in rows if r.status == "unstable"]
    lines = [f"[bold red]NO AUC CAN BE CLAIMED[/] {r.data}: {r.reason}" for r in shaky if r.metric == "auc"]
    for r in shaky:
        if r.metric in METRICS.values():
            who = f"{r.model} {r.variant}".strip()
            lines.append(f"[bold red]CONTROL FAILED[/] {who} on {r.data}: {escape(r.reason)}")
    return list(dict.fromkeys(lines))


def _draw(runs_dir: Path, console: Console) -> None:
    from ctrbench.reports import controls, kernel_rows, modes_section, retrieval, serving, sweep
    from ctrbench.reports.page import build_report
    from ctrbench.reports.tables import console_tables

    try:
        table, bodies = records.load(runs_dir)
    except records.DamagedRecord as error:
        raise BadInput(str(error)) from None
    with records.whole(runs_dir / "measurements.parquet") as partial:
        table.to_parquet(partial, index=False)
    report = build_report(table, bodies, runs_dir / "report.html", kernel_rows.load([runs_dir]))
    latest = runs_dir.parent / "latest"
    fresh = runs_dir.parent / f".latest-{os.getpid()}"
    fresh.symlink_to(runs_dir.name)
    fresh.replace(latest)
    for part in (
        *console_tables(table, bodies), *controls.console_tables(table, bodies), *sweep.console(table, bodies),
        *modes_section.console(table, bodies),
        *retrieval.console(table, bodies), *serving.console(table, bodies),
    ):  # fmt: skip
        console.print(part)
    console.print(f"report: {runs_dir.parent / 'latest' / report.name}", markup=False, soft_wrap=True)

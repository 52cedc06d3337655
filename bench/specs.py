"""From a checked plan and prepared data to the processes of a suite: trials, trainings, timings, counts."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctrbench.bench import controls, floors, registry, summary, tuning
from ctrbench.bench.assemble import built_on_meta, model_config
from ctrbench.bench.modes import refused
from ctrbench.bench.owed import owed_rows
from ctrbench.bench.plan import Entry, Job, Plan
from ctrbench.bench.presets import preset_options, table_options
from ctrbench.bench.runspec import Kind, RunSpec, mode_of, mode_options, variant_of
from ctrbench.datasets.errors import BadInput, UnknownName
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.registry import dataset_spec
from ctrbench.models.lum_backbone import event_fields
from ctrbench.reports import records
from ctrbench.reports.cells import RETRIEVAL
from ctrbench.reports.records import Measurement

PROCESSES: tuple[Kind, ...] = ("time", "count", "trace", "quality")
"""What every model of a job owes."""
TRAINED: tuple[Kind, ...] = ("quality", "tune", *controls.CONTROLS)
"""Kinds that start from a pre-training where the model has one."""
CAPPED: tuple[Kind, ...] = ("time", "count", "trace", "quality", "tune", "distributed", *controls.CONTROLS)
"""Kinds whose tables may have fewer rows than there are values (`run.table_rows`)."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A job whose data is there."""

    job: Job
    prepared: Prepared
    path: Path


def suite_specs(plan: Plan, ready: list[Ready]) -> tuple[list[RunSpec], list[Measurement]]:
    specs: list[RunSpec] = []
    unsupported: list[Measurement] = []
    known: set[str] = set()
    owed = ("tune",) if plan.tune_only else controls.CONTROLS if plan.controls else PROCESSES
    for item in ready:
        track = item.prepared.schema.track
        for entry in item.job.models:
            model = entry.model
            model_spec = registry.model_spec(model)
            if track not in model_spec.tracks:
                reason = (model_spec.skip_reason or {}).get(track, f"{model} does not run on {track} data")
                unsupported += skipped_rows(
                    item.job.data, track, model, model_spec.family, owed, reason, item.prepared.split
                )
                continue
            made, absent = control_specs(plan, item, entry) if plan.controls else (_model_specs(plan, item, entry), [])
            options = (
                bool(entry.options) or model in plan.model_options or item.job.preset != "small" or plan.run.l2 > 0
            )
            # A user's own model that cannot be built is a failed run, not one that the data does not suit.
            probe = spec_of(plan, item, "count", entry, threads=1)
            wrong = _unbuildable(probe, item.prepared) if options or not registry.own_file(model) else None
            if wrong is not None and options:  # options of the command line must not cost a suite
                given = " ".join(f"{model}.{k}={v}" for k, v in probe.config.items())
                raise BadInput(f"{given}: {wrong}")
            if isinstance(wrong, ValueError):
                unsupported += skipped_rows(
                    item.job.data, track, model, model_spec.family, owed, str(wrong), item.prepared.split
                )
                continue
            if reason := next((r for s in made if (r := refused(s))), ""):  # a mode that this device cannot run
                unsupported += skipped_rows(
                    item.job.data, track, model, model_spec.family, owed, reason, item.prepared.split
                )
                continue
            specs += [s for s in made if s.key not in known]
            known |= {s.key for s in made}  # entries of one model share their pre-training
            unsupported += absent
        if not (plan.tune_only or plan.controls):
            made, absent = retrieve_specs(plan, item)
            specs, unsupported = specs + made, unsupported + absent
        # Sampled negatives are judged in every run, wanted or not: a small pool makes wrong results look excellent.
        control = (summary.POOL_CONTROL,) if item.prepared.sampler is not None and item.job.models else ()
        for floor in dict.fromkeys((*item.job.floors, *control)) if not plan.tune_only else ():
            missing = floors.skip_reason(floor, item.prepared.schema)
            if missing is None:
                specs.append(spec_of(plan, item, "floor", Entry(model=floor), threads=1))
            else:
                unsupported += skipped_rows(
                    item.job.data, track, floor, "floor", ("floor",), missing, item.prepared.split
                )
    traced = dict.fromkeys((*plan.sized, *(("lum_step1",) if "lum" in plan.sized else ())))
    published = [
        RunSpec(kind="published", model=m, level=plan.level, device="meta", dtype="bf16", **registry.own_file(m))
        for m in (traced if not (plan.tune_only or plan.controls) else ())
    ]
    return specs + published, unsupported


def retrieve_specs(plan: Plan, item: Ready) -> tuple[list[RunSpec], list[Measurement]]:
    """One process a retriever and seed; rows with the reason where the data gives it nothing to learn from.

    Raises:
        BadInput: a model that does not retrieve, or an option that it does not have.
    """
    specs: list[RunSpec] = []
    absent: list[Measurement] = []
    # What decides nothing of it is left out of the key.
    apart: dict[str, Any] = {"preset": RETRIEVAL, "threads": 1, "train_rows": 0, "evaluations": 0, "plateau": 1.0,
                             "warmup": 0, "steps": 0}  # fmt: skip
    for entry in item.job.retrievers:
        model_spec = registry.model_spec(entry.model)
        made = [spec_of(plan, item, "retrieve", entry, **apart, seed=s)
                for s in range(int(entry.run.get("seeds", plan.run.seeds)))]  # fmt: skip
        if model_spec.retriever is None:
            raise BadInput(f"retrievers: {entry.model} does not retrieve; leave it out")
        try:
            config = model_config(made[0], model_spec)
        except (TypeError, ValueError) as error:
            given = " ".join(f"{entry.model}.{k}={v}" for k, v in made[0].config.items())
            raise BadInput(f"{given}: {error}") from None
        try:
            event_fields(item.prepared.schema, getattr(config, "cond", ""))
        except ValueError as error:
            rows = skipped_rows(item.job.data, item.prepared.schema.track, entry.model, model_spec.family,
                                ("retrieve",), str(error), item.prepared.split)  # fmt: skip
            absent += [replace(r, variant=made[0].variant, preset=RETRIEVAL) for r in rows]
            continue
        specs += made
    return specs, absent


def control_specs(plan: Plan, item: Ready, entry: Entry) -> tuple[list[RunSpec], list[Measurement]]:
    """The controls of an entry, shuffles first; and rows with the reason where ids alone cannot be trained on.

    What does not decide the number is left out of the key, so that every suite finds the same controls.
    """

    def control(kind: Kind, seed: int, **changes: Any) -> RunSpec:
        return spec_of(plan, item, kind, entry, threads=1, seed=seed, level="", warmup=0, steps=0, **changes)

    # Another start of the weights each time: the spread is that of the whole training.
    shuffled = [control("shuffled", s, shuffle=s) for s in range(controls.SHUFFLES)]
    alone = [control("ids_only", s) for s in range(plan.run.seeds)]
    reason = controls.missing_target(item.prepared.schema)
    if reason is None and (wrong := _unbuildable(alone[0], controls.target_view(item.prepared))) is not None:
        reason = f"not buildable on the target's ids alone: {wrong}"
    first = [p for s in range(controls.SHUFFLES) if (p := pretrain_spec(plan, item, entry, s)) is not None]
    shuffled = first + shuffled
    if reason is None:
        return shuffled + alone, []
    track, family = item.prepared.schema.track, registry.model_spec(entry.model).family
    rows = skipped_rows(item.job.data, track, entry.model, family, ("ids_only",), reason, item.prepared.split)
    return shuffled, [replace(r, variant=alone[0].variant) for r in rows]


def kept_controls(plan: Plan, ready: list[Ready]) -> list[list[RunSpec]]:
    """The controls that a suite shows if they were run before: all of one kind and entry, or none."""
    groups: list[list[RunSpec]] = []
    for item in ready:
        for entry in item.job.models:
            if item.prepared.schema.track in registry.model_spec(entry.model).tracks:
                made, _ = control_specs(plan, item, entry)
                groups += [[s for s in made if s.kind == kind] for kind in controls.CONTROLS]
    return [g for g in groups if g]


def trial_specs(plan: Plan, item: Ready, entry: Entry) -> list[RunSpec]:
    """The tuning trials of an entry, the default first; none without `run.trials` or for an entry left as it is."""
    if plan.run.trials < 2 or not entry.tuned:
        return []
    default, penalised = spec_of(plan, item, "quality", entry), _penalised(plan, item, entry)
    rows = min(plan.run.trial_rows or default.train_rows, default.train_rows)
    made = []
    for trial, draw in enumerate(tuning.draws(plan.run.trials)):
        drawn = tuning.trial_entry(entry, draw, plan.run, "", penalised)
        apart = {"trial": trial, "variant": default.variant, "train_rows": rows}
        made.append(spec_of(plan, item, "tune", drawn, threads=1, **apart))
    return made


def _penalised(plan: Plan, item: Ready, entry: Entry) -> bool:
    """Whether the model can take L2 on the rows of a batch."""
    probe = spec_of(plan, item, "tune", Entry(model=entry.model, options=entry.options, run={"l2": tuning.L2[-1]}))
    return _unbuildable(probe, item.prepared) is None


def pretrain_spec(plan: Plan, item: Ready, entry: Entry, seed: int) -> RunSpec | None:
    """The pre-training that a training of the entry starts from; None for models without one.

    Tuning does not reach it: all hosts, trials and variants of a seed share one step 1, as its store is meant to be.
    """
    wanted = registry.model_spec(entry.model).step_one
    if not wanted:
        return None
    given = {**entry.options, **plan.model_options.get(entry.model, {})}
    options = {k: v for k, v in given.items() if k in wanted}
    bare = replace(plan, model_options={})
    # Nothing in the key but what decides the weights and which rows are answered.
    apart = {"batch": 0, "eval_batch": 0, "lr": 0.0, "epochs": 0, "evaluations": 0, "patience": 0, "plateau": 1.0,
             "steps": 0, "warmup": 0, "level": "", "variant": ""}  # fmt: skip
    return spec_of(bare, item, "pretrain", Entry(model=entry.model, options=options), threads=1, seed=seed, **apart)


def probe_spec(before: RunSpec) -> RunSpec:
    """The probe of a pre-training; its variant names what sets that one apart."""
    variant = variant_of((k, v) for k, v in before.config.items() if k != "tables")
    return replace(before, kind="probe", pretrained=before.key, variant=variant)


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
            runs = [summary.Run(t, body_of(runs_dir, t.key)) for t in trials]
            best, scores = tuning.best_trial(runs)
            label = tuning.group_label(summary.TUNED, entry)
            drawn = tuning.trial_entry(entry, points[best], plan.run, label, _penalised(plan, item, entry))
            if best and not plan.tune_only:
                specs += [replace(s, tuned=True) for s in _trainings(plan, item, drawn)]
            chosen.append({
                "data": item.job.data, "split": item.prepared.split, "model": entry.model, "variant": trials[0].variant,
                "trials": len(trials), "best": best, "valid_auc_default": scores.get(0), "valid_auc_best": scores[best],
                "label": label, "trained": not plan.tune_only,
                "options": tuning.changed(drawn, plan.model_options.get(entry.model, {})) if best else {},
            })  # fmt: skip
    return specs, chosen


def _unbuildable(spec: RunSpec, prepared: Prepared) -> TypeError | ValueError | None:
    """Why the model cannot be built on this schema, found out without memory; None if it can."""
    schema = prepared.schema_for(spec.history_length)
    try:
        built_on_meta(spec, schema)
    except (TypeError, ValueError) as error:
        return error
    except Exception as error:
        if not registry.own_file(spec.model):
            raise
        raise BadInput(
            f"{spec.model}: its build() ended with {type(error).__name__}: {error}; mend the file"
        ) from error
    return None


def skipped_rows(
    data: str, track: str, model: str, family: str, kinds: Iterable[str], reason: str, split: str | None = None
) -> list[Measurement]:
    base = {"run": f"skipped-{data}-{model}", "model": model, "family": family, "data": data, "split": split or "",
            "track": track}  # fmt: skip
    return [row for kind in kinds for row in owed_rows(base, kind, "skipped", reason)]


def equal_flops_specs(plan: Plan, ready: list[Ready], runs_dir: Path) -> tuple[list[RunSpec], list[Measurement]]:
    """Trainings of every entry at the FLOPs that the reference spends on a share of its rows (`Job.equal_flops`).

    A model that is cheap a row sees more rows, after the last one again from the first; a pre-training is paid out of
    the same budget. Rows of entries that cannot spend it say so.
    """
    done = records.finished(runs_dir)
    specs: list[RunSpec] = []
    missing: list[Measurement] = []
    for item in ready:
        if not item.job.equal_flops:
            continue
        track = item.prepared.schema.track
        entries = [e for e in item.job.models if track in registry.model_spec(e.model).tracks]
        budget = _flops_budget(plan, item, entries, runs_dir, done)
        for entry in entries:
            spent = _flops_a_row(plan, item, entry, runs_dir, done)
            label = tuning.group_label(summary.EQUAL_FLOPS, entry)
            made: list[RunSpec] | str = "the FLOPs of a row are not known"
            if budget is None:
                made = f"{summary.REFERENCE[track]}, which sets the budget, has no counted FLOPs in this run"
            elif spent is not None:
                made = _at_budget(plan, item, replace(entry, label=label), budget, spent)
            if not isinstance(made, str):
                specs += made
                continue
            base = {"run": f"skipped-{label}", "model": entry.model, "variant": label, "data": item.job.data,
                    "split": item.prepared.split, "track": track,
                    "family": registry.model_spec(entry.model).family}  # fmt: skip
            missing += owed_rows(base, "quality", "skipped", f"equal FLOPs: {made}")
    return specs, missing


def _flops_budget(
    plan: Plan, item: Ready, entries: Iterable[Entry], runs_dir: Path, done: Collection[str]
) -> float | None:
    """What the reference spends on its share of rows; None where it does not run or was not counted."""
    name = summary.REFERENCE[item.prepared.schema.track]
    reference = next((e for e in entries if e.model == name and not e.options), None)
    a_row = _flops_a_row(plan, item, reference, runs_dir, done) if reference else None
    if reference is None or a_row is None:
        return None
    return item.job.equal_flops * spec_of(plan, item, "quality", reference).train_rows * a_row[0]


def _at_budget(plan: Plan, item: Ready, entry: Entry, budget: float, spent: tuple[float, float]) -> list[RunSpec] | str:
    """The trainings of an entry that spend `budget` FLOPs, or why there are none.

    Args:
        spent: training FLOPs a row, and of the pre-training.
    """
    a_row, before = spent
    if before >= budget:
        return f"its pre-training alone costs {before:.3g} FLOP, the budget is {budget:.3g}"
    wanted, whole = int((budget - before) / a_row), _trainings(plan, item, entry)
    epochs = -(-wanted // whole[0].train_rows)
    if epochs == 0 or wanted // epochs < whole[0].batch:
        return f"the budget of {budget:.3g} FLOP is less than a batch of {whole[0].batch} rows"
    return [replace(s, flops_budget=budget, train_rows=wanted // epochs, epochs=epochs) for s in whole]


def _flops_a_row(
    plan: Plan, item: Ready, entry: Entry, runs_dir: Path, done: Collection[str]
) -> tuple[float, float] | None:
    """Training FLOPs of an entry a row, and of its pre-training; None where they are not known."""
    count, before = spec_of(plan, item, "count", entry, threads=1), pretrain_spec(plan, item, entry, 0)
    if count.key not in done or (before is not None and before.key not in done):
        return None
    extra = body_of(runs_dir, count.key)["extra"]
    first = body_of(runs_dir, before.key)["extra"]["pretraining"]["flops"] if before is not None else 0.0
    return None if extra["withheld"] else (extra["flops_model_train"] / count.batch, float(first))


def body_of(runs_dir: Path, key: str) -> dict[str, Any]:
    """record.json of a finished run.

    Raises:
        BadInput: it is damaged; with the remedy.
    """
    try:
        return records.read(runs_dir / "records" / key)[0]
    except records.DamagedRecord as error:
        raise BadInput(str(error)) from None


def _model_specs(plan: Plan, item: Ready, entry: Entry) -> list[RunSpec]:
    run = plan.run
    seeds = 1 if plan.tune_only else run.seeds
    made = [p for s in range(seeds) if (p := pretrain_spec(plan, item, entry, s)) is not None]
    made += trial_specs(plan, item, entry)
    if plan.tune_only:
        return made
    made += [probe_spec(p) for p in made if p.kind == "pretrain" and item.job.probed]
    made.append(spec_of(plan, item, "count", entry, threads=1))
    made += _trainings(plan, item, entry)
    if item.job.timed and not entry.brief:
        made += [spec_of(plan, item, "time", entry, repeat=r) for r in range(run.processes)]
        if item.job.traced:
            made.append(replace(spec_of(plan, item, "trace", entry, tracer="torch.profiler"), steps=min(run.steps, 20)))
    return made


def _trainings(plan: Plan, item: Ready, entry: Entry) -> list[RunSpec]:
    return [spec_of(plan, item, "quality", entry, threads=1, seed=s) for s in range(plan.run.seeds)]


def spec_of(plan: Plan, item: Ready, kind: Kind, entry: Entry, **changes: Any) -> RunSpec:
    model, run = entry.model, replace(plan.run, **entry.run)
    typed = {**entry.options, **plan.model_options.get(model, {})}
    tables = table_options(run) if kind != "floor" else {}
    preset = preset_options(model, item.job.preset) if kind != "floor" else {}
    config = {**preset, **dataset_spec(item.job.data).fit.get(model, {}), **typed}
    if tables:
        config["tables"] = {field: value for field, (_, value) in tables.items()}
    mode = mode_options(run.dtype, run.compile) if kind != "floor" else []
    if run.table_rows and kind != "floor":
        if kind not in CAPPED or registry.model_spec(model).step_one:
            raise UnknownName(f"run.table_rows={run.table_rows}: not with {model} and {kind} processes; leave it out")
        mode = [("table_rows", str(run.table_rows)), *mode]
    variant = entry.label or variant_of((*typed.items(), *tables.values(), *mode))
    values: dict[str, Any] = {
        "kind": kind, "model": model, "config": config, "variant": variant, **registry.own_file(model),
        "preset": item.job.preset if kind != "floor" else "small",
        "data": item.job.data, "split": item.prepared.split, "fingerprint": item.prepared.fingerprint,
        "prepared": str(item.path.resolve()), "history_length": run.history_length,
        "train_rows": min(run.train_rows, item.prepared.rows("train")), "valid_rows": run.valid_rows,
        "epochs": run.epochs, "evaluations": run.evaluations, "patience": run.patience, "batch": run.batch,
        "eval_batch": run.eval_batch, "lr": run.lr, "plateau": run.plateau, "threads": run.threads,
        **mode_of(kind, run.dtype, run.compile), "table_rows": run.table_rows if kind in CAPPED else 0,
        "warmup": run.warmup, "steps": run.steps, "level": plan.level, "timeout_s": run.timeout_s,
    }  # fmt: skip
    values |= changes
    before = pretrain_spec(plan, item, entry, values.get("seed", 0)) if kind in TRAINED else None
    return RunSpec(**values, pretrained=before.key if before is not None else "")

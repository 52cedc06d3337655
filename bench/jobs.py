"""What one process of a suite does. Every function takes a RunSpec and returns the record it earned.

Timing, counting, tracing and training are separate processes: a number never carries another one's overhead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ctrbench.bench import controls, proc, stability
from ctrbench.bench.assemble import as_record, base_columns, build, fed, lookup, model_config
from ctrbench.bench.backends import run_backends
from ctrbench.bench.ceilings import Ceilings, drift, measure_ceilings
from ctrbench.bench.datapath.process import run_datapath
from ctrbench.bench.joint import retrieve_after
from ctrbench.bench.mode_timing import fresh_cache, mode_facts
from ctrbench.bench.modes import NARROW
from ctrbench.bench.pairs import pair_weights
from ctrbench.bench.pretrain import load_step_one, pretrain, save_step_one
from ctrbench.bench.proofs import with_proofs
from ctrbench.bench.quality import auc, evaluate
from ctrbench.bench.ranking import Retrieval
from ctrbench.bench.retrieval import run_retrieve
from ctrbench.bench.retrieval_rows import seed_rows
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.serving.drift import run_drift
from ctrbench.bench.serving.features import run_features
from ctrbench.bench.serving.process import run_serve, run_serve_count
from ctrbench.bench.serving.stages import run_stages
from ctrbench.bench.step import TrainStep, predict
from ctrbench.bench.traced import run_trace
from ctrbench.bench.train import budget_of, scores, seed_everything, train
from ctrbench.datasets import random_batches
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import Batch
from ctrbench.models.embedding import count_parameters, embedding_tables
from ctrbench.models.lum import LumRanker
from ctrbench.models.lum_answers import UserAnswers
from ctrbench.models.lum_sid import SidUserModel
from ctrbench.models.spec import ModelSpec
from ctrbench.reports import records
from ctrbench.reports.cells import SWEEP
from ctrbench.reports.measures import make
from ctrbench.reports.records import Measurement, RunRecord

SCORES = "scores.npz"
"""Test scores of a training or floor, beside its record."""


def quality_rows(
    base: dict[str, Any], label: np.ndarray, score: np.ndarray, user: np.ndarray, train_rate: float, seed: int | None
) -> list[Measurement]:
    """One row a quality measure of one training."""
    q = evaluate(label, score, user, train_rate)
    rows = [
        make(base, "auc", q.auc, "measured", phase="train", seed=seed),
        make(base, "logloss", q.logloss, "measured", phase="train", seed=seed),
        make(base, "ne", q.ne, "measured", phase="train", seed=seed),
        make(base, "calibration", q.calibration, "measured", phase="train", seed=seed),
    ]
    if q.gauc is not None:
        rows.append(make(base, "gauc", q.gauc, "measured", phase="train", seed=seed))
    return rows


def run_quality(spec: RunSpec, folder: Path) -> RunRecord:
    """Process Q: one training to the budget, scored on the whole test split."""
    model_spec, config, schema, model, prepared = build(spec)
    base = base_columns(spec, model_spec.family, schema.track)
    before, rows = _step_one(model, config, spec, base, folder)
    start = time.perf_counter()
    looks = train(model, prepared, budget_of(spec), spec.seed)
    trained = time.perf_counter()
    score, label, user = scores(model, prepared, "test", budget_of(spec))
    np.savez(folder / SCORES, score=score.astype(np.float32))
    rows += quality_rows(base, label, score, user, prepared.positive_rate("train"), spec.seed)
    if isinstance(model, LumRanker):
        rows += retrieve_after(model.lum, prepared, base, spec.seed, folder)
    extra = (
        before
        | pair_weights(model)
        | {
            "looks": [asdict(look) for look in looks],
            "train_seconds": trained - start,
            "score_seconds": time.perf_counter() - trained,
            "rows": {"train_seen": looks[-1].rows_seen, "test": len(label), "positives": int(label.sum())},
        }
    )
    return as_record(spec, rows, extra)


def run_tune(spec: RunSpec, folder: Path) -> RunRecord:
    """One tuning trial: a training judged by validation rows; the test split is never scored."""
    model_spec, config, schema, model, prepared = build(spec)
    base = base_columns(spec, model_spec.family, schema.track)
    start = time.perf_counter()
    before, _ = _step_one(model, config, spec, base, folder)
    looks = train(model, prepared, budget_of(spec), spec.seed)
    best = max(look.valid_auc for look in looks)
    rows = [make(base, "valid_auc", best, "measured", phase="train", scope=f"trial:{spec.trial}", seed=spec.seed)]
    extra = {"valid_auc": best, "looks": [asdict(look) for look in looks], "seconds": time.perf_counter() - start}
    return as_record(spec, rows, before | extra)


def run_pretrain(spec: RunSpec, folder: Path) -> RunRecord:
    """Step 1 of LUM, once for all trainings that share it: weights, answers for their rows, what it retrieves."""
    seed_everything(spec.seed)
    prepared = Prepared.open(Path(spec.prepared))
    config = model_config(spec, lookup(spec))
    answers = UserAnswers(config, prepared.schema_for(spec.history_length), spec.device)
    done, found = pretrain(answers, prepared, config, spec.train_rows, spec.seed)
    start = time.perf_counter()
    spans = {"train": spec.train_rows, "valid": spec.valid_rows, "test": prepared.rows("test")}
    save_step_one(answers, prepared, spans, spec.history_length, folder)
    extra = {
        "pretraining": asdict(done), "retrieval": asdict(found), "query_seconds": time.perf_counter() - start,
        "semantic_ids": answers.user.codes.facts if isinstance(answers.user, SidUserModel) else None,
    }  # fmt: skip
    return as_record(spec, [], extra)


def run_probe(spec: RunSpec, folder: Path) -> RunRecord:
    """What the embeddings of a finished pre-training tell of their users."""
    from ctrbench.bench.probe import probe_rows

    model_spec, prepared = lookup(spec), Prepared.open(Path(spec.prepared))
    answers = UserAnswers(model_config(spec, model_spec), prepared.schema_for(spec.history_length), spec.device)
    load_step_one(answers, _finished_step_one(spec, folder))
    base = base_columns(spec, model_spec.family, prepared.schema.track)
    rows, extra = probe_rows(base, answers, prepared, spec.train_rows, spec.seed)
    return as_record(spec, rows, extra, {"probe_gain": {"probe_accuracy": "measured", "probe_auc": "measured"}})


def _finished_step_one(spec: RunSpec, folder: Path) -> Path:
    """Folder of the pre-training that a run starts from."""
    shared = folder.parent / spec.pretrained
    if not (shared / "record.json").is_file():
        raise FileNotFoundError(f"step 1 did not finish: {spec.pretrained} has no record")
    return shared


def run_control(spec: RunSpec, folder: Path) -> RunRecord:
    """A training on shuffled labels or on the target's ids alone, scored against the true labels of the test split."""
    model_spec, config, schema, model, prepared = build(spec)
    base = base_columns(spec, model_spec.family, schema.track)
    start = time.perf_counter()
    before, _ = _step_one(model, config, spec, base, folder)
    labels = controls.shuffled_labels(prepared, spec) if spec.kind == "shuffled" else None
    looks = train(model, prepared, budget_of(spec), spec.seed, labels)
    score, label, _ = scores(model, prepared, "test", budget_of(spec))
    found = auc(label, score)
    scope = f"shuffle:{spec.shuffle}" if spec.kind == "shuffled" else ""
    row = make(base, controls.METRICS[spec.kind], found, "measured", phase="train", scope=scope, seed=spec.seed)
    extra = before | {
        "auc": found, "code": controls.code_of(model_spec.build), "family": model_spec.family, "track": schema.track,
        "title": model_spec.title, "control": model_spec.control, "sampled": prepared.sampler is not None,
        "fields": [f.name for f in schema.fields], "looks": [asdict(look) for look in looks],
        "seconds": time.perf_counter() - start,
    }  # fmt: skip
    return as_record(spec, [row], extra)


def _step_one(
    model: nn.Module, config: Any, spec: RunSpec, base: Mapping[str, Any], folder: Path
) -> tuple[dict[str, Any], list[Measurement]]:
    """Loads the pre-training of a model that has any (LUM); what it cost and what it retrieves."""
    if not isinstance(model, LumRanker):
        return {}, []
    shared = _finished_step_one(spec, folder)
    load_step_one(model.lum, shared)
    extra = records.read(shared)[0]["extra"]
    rows = seed_rows(base, Retrieval(**extra["retrieval"]), spec.seed)
    return {"pretraining": extra["pretraining"], "host": config.host}, rows


def run_floor(spec: RunSpec, folder: Path) -> RunRecord:
    """One floor or control of `floors.FLOORS` on the very rows that the models get."""
    from ctrbench.bench import floors

    prepared = Prepared.open(Path(spec.prepared))
    base = base_columns(spec, "floor", prepared.schema.track)
    result = floors.run_floor(
        spec.model,
        prepared,
        train_rows=spec.train_rows,
        history_length=spec.history_length,
        seed=spec.seed,
        threads=spec.threads,
        valid_rows=spec.valid_rows,
    )
    frame = prepared.frame("test", columns=["label", "user_id"])
    label, user = frame["label"].to_numpy(), frame["user_id"].to_numpy()
    np.savez(folder / SCORES, score=np.asarray(result.scores, dtype=np.float32))
    rows = quality_rows(base, label, np.asarray(result.scores), user, prepared.positive_rate("train"), spec.seed)
    judged = floors.judge_pool(label, result) if result.parts and prepared.sampler is not None else {}
    return as_record(spec, rows, {"fit_seconds": result.fit_seconds, "notes": result.notes, **judged})


def _batch_note(spec: RunSpec, model_spec: ModelSpec) -> dict[str, Any]:
    own = model_spec.own_batches
    return random_batches.note(spec.data, own.histories) if own else random_batches.note(spec.data)


def _timed_steps(step: Callable[[Batch], Any], batches: Iterator[Batch], count: int) -> tuple[list[float], list[float]]:
    """(seconds of each step, wait for data included; the wait alone)."""
    total, waits = [], []
    for _ in range(count):
        start = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        step(batch)
        # Let go of before the next one is ordered: freeing tensors lets go of the interpreter, and the loader's thread,
        # just woken, would take it while the wait is timed.
        del batch
        total.append(time.perf_counter() - start)
        waits.append(ready - start)
    return total, waits


def run_time(spec: RunSpec, folder: Path) -> RunRecord:
    """Process T: no tracer, no counter; this machine's ceilings before, between and after the steps."""
    with fresh_cache(spec.compile):
        return _timed(spec)


def _timed(spec: RunSpec) -> RunRecord:
    model_spec, _, schema, model, loader, batches = fed(spec)
    step = TrainStep(model, lr=spec.lr)
    model.train()
    warm, _ = _timed_steps(step, batches, spec.warmup)
    ceilings = [_ceilings(spec)]
    halves = (spec.steps // 2, spec.steps - spec.steps // 2)
    seconds: list[float] = []
    waits: list[float] = []
    cpu = {"data": 0.0, "all": 0.0}
    clocks, began = stability.read_clocks(), time.perf_counter()
    for count in halves:
        data_before, all_before = loader.cpu_seconds, proc.cpu_seconds()
        total, wait = _timed_steps(step, batches, count)
        cpu["data"] += loader.cpu_seconds - data_before
        cpu["all"] += proc.cpu_seconds() - all_before
        seconds += total
        waits += wait
        ceilings.append(_ceilings(spec))
    found = stability.hints(clocks, stability.read_clocks(), time.perf_counter() - began)
    peak = proc.rss_peak()
    mode = mode_facts(spec, step, batches, warm, seconds)
    # A point of suite=modes compiles the training step alone: one program more would cost half a minute.
    infer = [] if mode and spec.preset == SWEEP else _timed_inference(model, batches, spec)
    return as_record(spec, [], {
        "family": model_spec.family, "track": schema.track, "samples": {"step": seconds, "wait": waits, "infer": infer},
        "cpu_seconds": cpu, "rss_peak": peak if mode else proc.rss_peak(), "ceilings": [asdict(c) for c in ceilings],
        "clock_drift": max(drift(a, b) for a, b in pairwise(ceilings)), "hints": found, **mode,
        **_batch_note(spec, model_spec),
    })  # fmt: skip


def _ceilings(spec: RunSpec) -> Ceilings:
    """This machine's ceilings now; their buffers stay out of the model's peak memory."""
    with proc.memory_aside():
        return measure_ceilings(spec.threads, quick=True, narrow=spec.dtype in NARROW)


def _timed_inference(model: nn.Module, batches: Iterator[Batch], spec: RunSpec) -> list[float]:
    model.eval()
    held = [next(batches) for _ in range(8)]
    out = []
    for i in range(spec.warmup + spec.steps):
        start = time.perf_counter()
        predict(model, held[i % len(held)])
        if i >= spec.warmup:
            out.append(time.perf_counter() - start)
    return out


def run_published(spec: RunSpec, folder: Path) -> RunRecord:
    """The published sizes on the meta device: counts and bounds, nothing timed."""
    from ctrbench.bench.at_scale_rows import SCALE_METRICS
    from ctrbench.bench.published import published_rows

    model_spec = lookup(spec)
    rows, extra = published_rows(model_spec, spec)
    inputs = {"flops": "counted", "bytes": "counted", "kernels": "counted", "peaks": "cited"}
    modelled = {"flops": "counted", "bytes": "counted", "peaks": "cited"}
    times = {
        "gpu_time_modelled": {**modelled, "parameters": "modelled"},
        "break_even_host_us": {**modelled, "parameters": "modelled", "kernels": "modelled"},
        "gpu_time_bound": modelled,
        **{metric: {**modelled, "parameters": "modelled", "links": "cited"} for metric in SCALE_METRICS},
    }
    return as_record(spec, rows, extra, {"mfu_bound": inputs, **times})


def run_count(spec: RunSpec, folder: Path) -> RunRecord:
    """Process C: what one step executes, counted operator by operator."""
    from ctrbench.bench.counts import count_rows

    model_spec, config, schema, model, _, batches = fed(spec)
    base = base_columns(spec, model_spec.family, schema.track)
    held = random_batches.HELD if spec.data in random_batches.TRACKS else 1
    rows, extra, inputs = count_rows(base, model_spec, config, schema, model, [next(batches) for _ in range(held)])
    card = model_spec.card(config)
    extra |= {
        "card": with_proofs(card), "title": model_spec.title, "control": model_spec.control,
        "parameters": count_parameters(model), "config": asdict(config),
        "tables": {t: r for m in embedding_tables(model) for t, r in m.rows.items()}, **_batch_note(spec, model_spec),
    }  # fmt: skip
    return as_record(spec, rows, extra, inputs)


JOBS: dict[str, Callable[[RunSpec, Path], RunRecord]] = {
    "time": run_time, "count": run_count, "trace": run_trace, "quality": run_quality, "floor": run_floor,
    "published": run_published, "tune": run_tune, "pretrain": run_pretrain, "probe": run_probe,
    "retrieve": run_retrieve, "shuffled": run_control, "ids_only": run_control, "serve": run_serve,
    "serve_count": run_serve_count, "stages": run_stages, "drift": run_drift, "features": run_features,
    "backends": run_backends, "datapath": run_datapath,
}  # fmt: skip

__all__ = ["JOBS", "SCORES"]

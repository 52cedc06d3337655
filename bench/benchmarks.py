"""One benchmark of pytest: steps timed as a suite's process times them, and the measures of its `extra_info`.

The steps run in pytest's own process; operators and FLOPs are counted in another one. A pytest process runs more than
this model, so its peak memory is nobody's and is withheld.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from rich.console import Console

from ctrbench.bench import registry
from ctrbench.bench.assemble import base_columns, built_on_meta, fed
from ctrbench.bench.ceilings import CLOCK_DRIFT, Ceilings, drift, gemm_ceiling, measure_ceilings, thread_count
from ctrbench.bench.config import build_plan
from ctrbench.bench.counting.counter import count_step
from ctrbench.bench.counts import launch_rows
from ctrbench.bench.hardware import this_machine
from ctrbench.bench.jobs import run_count
from ctrbench.bench.modes import NARROW
from ctrbench.bench.plan import Plan
from ctrbench.bench.pool import context
from ctrbench.bench.presets import table_options
from ctrbench.bench.proc import keep_freed_memory
from ctrbench.bench.runspec import RunSpec, mode_of, mode_options, variant_of
from ctrbench.bench.specs import suite_specs
from ctrbench.bench.statistics import percentiles
from ctrbench.bench.step import TrainStep, predict
from ctrbench.bench.suite import prepare_jobs
from ctrbench.datasets import random_batches
from ctrbench.datasets.errors import BadInput, DataUnavailable, UnknownName, nearest
from ctrbench.datasets.registry import dataset_names
from ctrbench.datasets.schema import Batch
from ctrbench.models.spec import random_batch
from ctrbench.reports.benchmark_json import SCHEMA, entries, sealed_info
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement

PHASES = ("train", "infer")
HELD = 8
"""Batches that a forward is timed on, in turn."""
STORAGE = ("parameters", "bytes_tables", "bytes_checkpoint")
"""Counted measures that a forward has in common with a step."""
INPUTS = {"throughput": {"time": "measured"}, "mfu_cpu": {"time": "measured", "flops": "counted", "peak": "measured"}}
NO_PATHS = {"prepared": "", "model_path": ""}
"""A file that CI keeps says nothing of where its machine has things; fingerprint and digest stay."""
RSS_REASON = "n/a: a pytest process runs more than one benchmark; `ctrbench run` measures it in a process of its own"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a test asks for; see `pytest_plugin.CtrBenchmark`."""

    model: str
    data: str = "random_sequence"
    phase: str = "train"
    batch: int | None = None
    options: Mapping[str, Any] | None = None
    rounds: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """What the counting process found, for a training step and for a forward."""

    train: tuple[Measurement, ...]
    infer: tuple[Measurement, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def of(self, phase: str) -> tuple[Measurement, ...]:
        """Rows of one of `PHASES`."""
        return self.train if phase == "train" else self.infer


def count(spec: RunSpec) -> Counted:
    """Counts one step and one forward of a `count` run; to be called in a process that times nothing."""
    record = run_count(spec, Path())
    model_spec, config, schema, model, _, batches = fed(spec)
    base, batch = base_columns(spec, model_spec.family, schema.track), next(batches)
    forward = count_step(model, batch, train=False)
    with torch.device("meta"):
        twin = model_spec.build(config, schema)
    on_meta = count_step(twin, random_batch(model_spec, config, schema, batch.size, device="meta"), train=False)
    moved, reason = forward.bytes_operands(), record.extra["withheld"]
    rows = [replace(r, phase="infer") for r in launch_rows(base, forward, on_meta, batch.size)]
    rows += [
        make(base, "bytes_operands", moved, "counted", phase="infer"),
        withheld(base, "ai_operands", reason, phase="infer")
        if reason
        else make(base, "ai_operands", forward.flops() / moved, "counted", phase="infer"),
    ]
    shared = [r for r in record.rows if r.phase == "infer" or r.metric in STORAGE]
    wanted = ("withheld", "flops_model_train", "title", "control", "random_batches")
    return Counted(
        train=record.rows, infer=(*shared, *rows), extra={k: record.extra[k] for k in wanted if k in record.extra}
    )


class Counting:
    """A process for counting, started when first needed; asks once for what several tests share."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._known: dict[str, Counted] = {}

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()

    def __call__(self, spec: RunSpec) -> Counted:
        """Counts of a run of kind `count`."""
        if spec.key not in self._known:
            if self._pool is None:
                self._pool = context().Pool(1)
            self._known[spec.key] = self._pool.apply(count, (spec,))
        return self._known[spec.key]


def run_benchmark(
    benchmark: BenchmarkFixture, counting: Callable[[RunSpec], Counted], asked: Request
) -> dict[str, Any]:
    """Times the steps of a request in this process and fills `benchmark.extra_info`; returns its measures.

    Raises:
        UnknownName: no such model, data set, phase or option.
        BadInput: a model that cannot be built as asked or does not run on the data.
        DataUnavailable: the data cannot be had here.
    """
    if asked.phase not in PHASES:
        raise UnknownName(f"unknown phase {nearest(str(asked.phase), PHASES)}")
    timed, counted = specs_of(asked)
    counts = counting(counted)  # before the first step: nothing else runs beside it
    if benchmark.disabled:
        with thread_count(timed.threads):
            benchmark.pedantic(_call(timed, asked.phase))
        return entries(counts.of(asked.phase))
    keep_freed_memory()
    narrow = timed.dtype in NARROW
    with thread_count(timed.threads):
        call = _call(timed, asked.phase)
        for _ in range(timed.warmup):
            call()
        before = measure_ceilings(timed.threads, quick=True, narrow=narrow)
        benchmark.pedantic(call, rounds=timed.steps)
        ceilings = (before, measure_ceilings(timed.threads, quick=True, narrow=narrow))
        machine = this_machine()
    assert benchmark.stats is not None
    rows = _rows(timed, asked.phase, list(benchmark.stats.stats.data), ceilings, counts)
    measures = entries(rows)
    base = {c: getattr(rows[0], c) for c in ("family", "track")}
    body = {
        "schema_version": SCHEMA, "spec": timed.to_json() | NO_PATHS, "environment": machine,
        "inputs": {m: i for m, i in INPUTS.items() if m in measures}, "phase": asked.phase, "measures": list(measures),
        "extra": {**base, "ceilings": [asdict(c) for c in ceilings], "clock_drift": drift(*ceilings), **counts.extra},
    }  # fmt: skip
    benchmark.extra_info |= sealed_info(measures, json.loads(json.dumps(body, default=str)))
    return measures


def _call(spec: RunSpec, phase: str) -> Callable[[], Any]:
    """One step with its wait for data, or one forward over batches held in memory: as `jobs.run_time` times them."""
    _, _, _, model, _, batches = fed(spec)
    if phase == "train":
        model.train()
        step = TrainStep(model, lr=spec.lr)
        return lambda: step(next(batches))
    model.eval()
    turns = _turns([next(batches) for _ in range(HELD)])
    return lambda: predict(model, next(turns))


def _turns(held: list[Batch]) -> Iterator[Batch]:
    while True:
        yield from held


def _rows(
    spec: RunSpec, phase: str, seconds: list[float], ceilings: tuple[Ceilings, Ceilings], counts: Counted
) -> list[Measurement]:
    """Every measure of one benchmark. One process has percentiles and no interval."""
    counted = counts.of(phase)
    first = counted[0]
    base = base_columns(spec, first.family, first.track)
    moved, shaky = drift(*ceilings), dict[str, Any]()
    if moved > CLOCK_DRIFT:
        shaky = {"status": "unstable", "reason": f"clock_unstable: ceilings moved by {moved:.0%} around the steps"}
    p = percentiles(seconds)
    spread: dict[str, Any] = {q: p[q] for q in ("p10", "p50", "p90")}
    metric = "step_time" if phase == "train" else "infer_latency"
    rows = [
        *counted,
        make(base, metric, p["p50"], "measured", phase=phase, n=1, **spread, **shaky),
        make(base, "throughput", spec.batch / p["p50"], "measured", phase=phase, n=1, **shaky),
        withheld(base, "rss_peak", RSS_REASON, phase=phase),
    ]
    gemm = [g for c in ceilings if (g := gemm_ceiling(asdict(c), spec.dtype))]
    if phase == "train" and not counts.extra["withheld"]:
        share = counts.extra["flops_model_train"] / p["p50"] / (sum(gemm) / len(gemm) * 1e9)
        rows.append(make(base, "mfu_cpu", share, "derived", phase=phase, **shaky))
    elif phase == "train":
        rows.append(withheld(base, "mfu_cpu", counts.extra["withheld"], phase=phase))
    return [replace(r, run=spec.key, threads=spec.threads) for r in rows]


# ------------------------------------------------------------------------ specs


def specs_of(asked: Request) -> tuple[RunSpec, RunSpec]:
    """(the timed run, the counting run) of a request, by the rules of `ctrbench run`.

    Raises: as `run_benchmark`.
    """
    known = [*dataset_names(), *random_batches.TRACKS]
    if asked.data not in known:
        raise UnknownName(f"unknown data set {nearest(str(asked.data), known)}")
    random = asked.data in random_batches.TRACKS
    plan = build_plan(_settings(asked, random))
    if asked.model not in registry.model_names():  # several names are no single benchmark
        raise UnknownName(f"unknown model {nearest(asked.model, registry.model_names())}")
    timed, counted = _random(plan, asked) if random else _prepared(plan, asked)
    # One process of a test claims nothing.
    return replace(timed, level="smoke", repeat=0), replace(counted, level="smoke")


def _settings(asked: Request, random: bool) -> list[str]:
    given: dict[str, Any] = {"model": asked.model}
    if not random:
        given["data"] = asked.data
    given |= {
        key: value for key, value in (("run.batch", asked.batch), ("run.steps", asked.rounds)) if value is not None
    }
    for key, value in (asked.options or {}).items():
        if random and key.startswith("data."):
            raise UnknownName(f"{key}: {asked.data} is made by the benchmark and has no options; leave it out")
        given[key if "." in key else f"{asked.model}.{key}"] = value
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]


def _prepared(plan: Plan, asked: Request) -> tuple[RunSpec, RunSpec]:
    ready, _, skipped = prepare_jobs(plan, Console(quiet=True))
    if skipped:
        raise DataUnavailable(skipped[0])
    specs, unsupported = suite_specs(plan, ready)
    timed = next((s for s in specs if s.kind == "time"), None)
    counted = next((s for s in specs if s.kind == "count"), None)
    if timed is None or counted is None:
        why = next((r.reason for r in unsupported if r.model == asked.model), "no run of it is timed")
        raise BadInput(f"{asked.model} on {asked.data}: {why}")
    return timed, counted


def _random(plan: Plan, asked: Request) -> tuple[RunSpec, RunSpec]:
    run, name = plan.run, asked.model
    track, model_spec = random_batches.TRACKS[asked.data], registry.model_spec(name)
    if track not in model_spec.tracks:
        why = (model_spec.skip_reason or {}).get(track, f"it does not run on {track} data")
        raise BadInput(f"{name} on {asked.data}: {why}")
    typed = plan.model_options.get(name, {})
    tables = table_options(run)
    config = {**typed, **({"tables": {f: v for f, (_, v) in tables.items()}} if tables else {})}
    timed = RunSpec(
        kind="time", model=name, config=config, data=asked.data, split=random_batches.SPLIT,
        variant=variant_of((*typed.items(), *tables.values(), *mode_options(run.dtype, run.compile))),
        **registry.own_file(name),
        fingerprint=random_batches.fingerprint(asked.data), history_length=run.history_length, batch=run.batch,
        lr=run.lr, threads=run.threads, warmup=run.warmup, steps=run.steps, timeout_s=run.timeout_s,
        **mode_of("time", run.dtype, run.compile),
    )  # fmt: skip
    try:
        built_on_meta(timed, random_batches.random_schema(timed.data, timed.history_length))
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name} on {asked.data}: {error}") from None
    return timed, replace(timed, kind="count", threads=1, compile="eager")

"""pytest-benchmark: one benchmark a model and phase, with our measures and their origins in `extra_info`.

Run with `pytest bench/suites --benchmark-json=out.json`. The benchmarked process neither counts nor traces:
operators and FLOPs come from a process of their own, forked before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.pool import Pool
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from ctrbench.bench.hardware import this_machine
from ctrbench.bench.pool import context
from ctrbench.bench.registry import model_names, model_spec
from ctrbench.bench.step import TrainStep, predict
from ctrbench.datasets.schema import FeatureSchema, Field, synthetic_batch

BATCH, HISTORY = 256, 50

SEQUENCE = FeatureSchema(
    name="movielens-like", track="sequence",
    fields=(
        Field(name="user", kind="categorical", role="user", cardinality=6043),
        Field(name="item", kind="categorical", role="item", cardinality=3709),
        Field(name="genre", kind="categorical", role="item", cardinality=21),
        Field(name="hist_item", kind="sequence", role="behaviour", max_length=HISTORY, target="item", history="hist"),
        Field(name="hist_genre", kind="sequence", role="behaviour", max_length=HISTORY, target="genre", history="hist"),
        Field(name="hist_action", kind="sequence", role="behaviour", cardinality=5, max_length=HISTORY, history="hist"),
    ),
)  # fmt: skip
TABULAR = FeatureSchema(
    name="criteo-like", track="tabular",
    fields=tuple(Field(name=f"I{i}", kind="dense", role="context") for i in range(1, 14))
    + tuple(Field(name=f"C{i}", kind="categorical", role="context", cardinality=20_000) for i in range(1, 27)),
)  # fmt: skip
SCHEMAS = {"sequence": SEQUENCE, "tabular": TABULAR}
CASES = [(m, t) for m in model_names() for t in SCHEMAS if t in model_spec(m).tracks]


def count(model: str, track: str, train: bool) -> dict[str, float]:
    """Operators and FLOPs of one step or forward, in a process of its own."""
    from ctrbench.bench.counting.counter import count_step

    torch.manual_seed(0)
    spec, schema = model_spec(model), SCHEMAS[track]
    counts = count_step(spec.build(spec.config(), schema), synthetic_batch(schema, BATCH), train=train)
    return {"ops": counts.ops, "flops": counts.flops(), "bytes_operands": counts.bytes_operands()}


@pytest.fixture(scope="session")
def counting() -> Iterator[Pool]:
    with context().Pool(1) as pool:
        yield pool


def _info(benchmark: BenchmarkFixture, counts: dict[str, float], model: str, track: str) -> None:
    def number(value: float, unit: str, origin: str) -> dict[str, Any]:
        return {"value": value, "unit": unit, "origin": origin}

    assert benchmark.stats is not None
    median = benchmark.stats.stats.median
    benchmark.extra_info |= {
        "model": model, "track": track, "batch": BATCH, "dtype": "float32", "threads": torch.get_num_threads(),
        "data": f"{SCHEMAS[track].name}, uniform random ids",
        "ops_per_step": number(counts["ops"], "ops", "counted"),
        "flops_per_sample": number(counts["flops"] / BATCH, "FLOP/sample", "counted"),
        "bytes_operands": number(counts["bytes_operands"], "B", "counted"),
        "throughput": number(BATCH / median, "samples/s", "measured"),
        "machine": this_machine(), "config": asdict(model_spec(model).config()),
    }  # fmt: skip


@pytest.mark.parametrize(("model", "track"), CASES)
def test_train_step(benchmark: BenchmarkFixture, counting: Pool, model: str, track: str) -> None:
    counts = counting.apply(count, (model, track, True))
    torch.manual_seed(0)
    spec, schema = model_spec(model), SCHEMAS[track]
    step = TrainStep(spec.build(spec.config(), schema))
    batches = [synthetic_batch(schema, BATCH, seed=s, full=False) for s in range(8)]
    order = iter(range(10**9))
    benchmark.pedantic(lambda: step(batches[next(order) % 8]), rounds=30, warmup_rounds=10)
    _info(benchmark, counts, model, track)


@pytest.mark.parametrize(("model", "track"), CASES)
def test_inference(benchmark: BenchmarkFixture, counting: Pool, model: str, track: str) -> None:
    counts = counting.apply(count, (model, track, False))
    torch.manual_seed(0)
    spec, schema = model_spec(model), SCHEMAS[track]
    built = spec.build(spec.config(), schema).eval()
    batches = [synthetic_batch(schema, BATCH, seed=s, full=False) for s in range(8)]
    order = iter(range(10**9))
    benchmark.pedantic(lambda: predict(built, batches[next(order) % 8]), rounds=30, warmup_rounds=10)
    _info(benchmark, counts, model, track)

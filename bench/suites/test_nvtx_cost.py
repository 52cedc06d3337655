"""pytest-benchmark: what ranges cost a training step of DIN, by alternating pairs with an interval, and with a tool.

The unit test of the same name bounds the cost of the calls; this is the whole step, hooks and caches included. CPU time
of the training thread, because the wall clock of a shared core says more of its neighbours.
"""

from __future__ import annotations

import sys
import time
from itertools import count, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from ctrbench.bench.hardware import this_machine
from ctrbench.bench.registry import model_spec
from ctrbench.bench.step import TrainStep
from ctrbench.bench.suites.schemas import MOVIELENS_LIKE
from ctrbench.bench.trace import inject
from ctrbench.bench.trace.capture import iterate
from ctrbench.bench.trace.nvtx import OFF_SWITCH, NvtxRanges
from ctrbench.datasets.schema import synthetic_batch

PAIRS, WARMUP, BATCH = 200, 5, 256
RECORDED = """
import nvtx, time
d = nvtx.get_domain("ctrbench"); a = d.get_event_attributes(message="block:tower", category="dense")
best = float("inf")
for _ in range(20):
    start = time.perf_counter_ns()
    for i in range(500):
        a.payload = i; d.end_range(d.start_range(a))
    best = min(best, (time.perf_counter_ns() - start) / 500)
open("pair_ns", "w").write(str(best))
"""


@pytest.mark.parametrize(("switch", "limit"), [("0", 0.002), ("1", 0.01)])
def test_alternating_pairs(
    benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch, switch: str, limit: float
) -> None:
    monkeypatch.setenv(OFF_SWITCH, switch)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = model_spec("din")
    model, batch = spec.build(spec.config(), MOVIELENS_LIKE), synthetic_batch(MOVIELENS_LIKE, BATCH)
    ranges, numbers, stream, device = NvtxRanges(), count(), repeat(batch), torch.device("cpu")
    bare, traced = TrainStep(model), TrainStep(model, ranges=ranges)

    def with_ranges() -> None:
        iterate(ranges, next(numbers), stream, traced, device)

    def seconds(call: object) -> float:
        start = time.thread_time()
        with_ranges() if call is with_ranges else bare(next(stream))
        return time.thread_time() - start

    pairs = []
    with ranges.attach(model):
        for i in range(WARMUP + PAIRS):
            order = (bare, with_ranges) if i % 2 else (with_ranges, bare)
            pair = {call: seconds(call) for call in order}
            pairs.append((pair[bare], pair[with_ranges]))
        benchmark.pedantic(with_ranges, rounds=10, warmup_rounds=1)
    without, with_ = np.asarray(pairs[WARMUP:]).T
    share = (with_ - without) / np.median(without)
    draws = np.random.default_rng(0).choice(share, (2000, PAIRS))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    benchmark.extra_info |= {
        "share": float(np.median(share)), "ci_low": float(low), "ci_high": float(high), "pairs": PAIRS, "limit": limit,
        "step_cpu_s": float(np.median(without)), "machine": this_machine(),
    }  # fmt: skip
    print(f"CTRBENCH_NVTX={switch}: {np.median(share):.3%} of a step [{low:.3%}, {high:.3%}], {PAIRS} pairs")
    assert low < limit, "the whole interval lies above the limit"


def test_a_recorded_pair(benchmark: BenchmarkFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start and end of one range with our recorder attached, ns; a step of DIN has 17 such ranges."""
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", RECORDED]
    assert benchmark.pedantic(inject.record, args=(command, tmp_path / "pair.jsonl"), rounds=1) == 0
    pair_ns = float((tmp_path / "pair_ns").read_text())
    benchmark.extra_info |= {"pair_ns": pair_ns, "machine": this_machine()}
    print(f"a recorded pair: {pair_ns / 1e3:.2f} us")
    assert pair_ns < 50_000

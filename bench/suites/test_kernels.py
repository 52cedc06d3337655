"""pytest-benchmark: every operator of `kernels/`, shape by shape: plain twin, each fast path, and what models call.

    pytest bench/suites/test_kernels.py --benchmark-json=kernels.json
    pytest bench/suites/test_kernels.py -k "cross and fused"

Before each round, untimed by pytest-benchmark, the twin and a square product run once: `twin_over_this` and the
utilisations are medians over rounds of ratios within a round, so they hold on a shared machine where seconds do not.
CTRBENCH_KERNEL_SECONDS is about what the rounds of one benchmark take. CTRBENCH_KERNEL_SHAPES shapes of an operator are
timed, spread over those it names; 0 takes all. Two threads at most, or OMP_NUM_THREADS.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import TimeoutError
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from ctrbench.bench.alternate import ratio
from ctrbench.bench.ceilings import gemm_runs, thread_count
from ctrbench.bench.hardware import this_machine
from ctrbench.bench.operator_calls import PASSES, TWIN, Pass, arguments, call_of, operators, ways
from ctrbench.bench.pool import context
from ctrbench.bench.proc import keep_freed_memory
from ctrbench.bench.suites.kernel_counts import Entry, counts, entry, uncounted

SECONDS = float(os.environ.get("CTRBENCH_KERNEL_SECONDS", "0.25"))
SHAPES = int(os.environ.get("CTRBENCH_KERNEL_SHAPES", "2"))
THREADS = min(2, torch.get_num_threads())
LEAST, LEAST_SLOW, MOST = 5, 3, 40
"""Rounds; fewer of what takes longer than `SLOW_S`."""
SLOW_S = 0.3
GEMM_M = 1024
COUNTED_S = 60.0
"""Most seconds to count a call: a twin that goes sample by sample and step by step has half a million operators."""


def spread(labels: Sequence[str], count: int) -> list[str]:
    """So many of them, first and last among them; all for 0."""
    if not 0 < count < len(labels):
        return list(labels)
    step = (len(labels) - 1) / max(1, count - 1)
    return [labels[round(i * step)] for i in range(count)]


def cases(shapes: int = SHAPES) -> Iterator[Any]:
    """One benchmark each; the ids are stable as long as files, labels and paths keep their names."""
    for name, op in operators().items():
        for label in spread(list(op.shapes), shapes):
            for way in ways(op):
                for passes in PASSES:
                    yield pytest.param(name, label, way, passes, id=f"{name}-{label}-{way}-{passes}")


class Counter:
    """`counts` in a process of its own, which is given up after `COUNTED_S`."""

    def __init__(self) -> None:
        self.pool = context().Pool(1)

    def __call__(self, name: str, label: str, way: str, passes: Pass) -> dict[str, Entry]:
        try:
            return self.pool.apply_async(counts, (name, label, way, passes)).get(COUNTED_S)
        except TimeoutError:
            self.pool.terminate()
            self.pool = context().Pool(1)
            return uncounted(name, label, passes, f"its operators were not counted within {COUNTED_S:g} s")


@pytest.fixture(scope="session")
def counted() -> Iterator[Counter]:
    """One process for all of a session."""
    counter = Counter()
    yield counter
    counter.pool.terminate()


@pytest.fixture(scope="session")
def product() -> Callable[[], object]:
    """A square product by the faster of the libraries that models use."""
    keep_freed_memory()
    with thread_count(THREADS), torch.no_grad():
        return min(gemm_runs(GEMM_M, torch.float32), key=lambda run: min(_seconds(run) for _ in range(4)))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@dataclass(slots=True)
class Beside:
    """What runs before each round, timed by its own clock."""

    twin: Callable[[], object] | None
    product: Callable[[], object]
    slow_twin_s: float = 0.0
    """What one call of the twin takes where that is too long for turns."""
    twin_s: list[float] = field(default_factory=list)
    product_s: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        self.product_s.append(_seconds(self.product))
        if self.twin is not None and not self.slow_twin_s:
            self.twin_s.append(_seconds(self.twin))

    def rounds(self, run: Callable[[], object]) -> int:
        """As many as fit into `SECONDS`, after one untimed call of all."""
        run()
        self()
        if self.twin_s and self.twin_s[0] > SLOW_S:
            self.slow_twin_s = self.twin_s[0]
        each = _seconds(run) + _seconds(self)
        self.twin_s.clear()
        self.product_s.clear()
        return max(LEAST if each < SLOW_S else LEAST_SLOW, min(MOST, int(SECONDS / each)))


@pytest.mark.parametrize(("name", "label", "way", "passes"), cases())
def test_operator(
    benchmark: BenchmarkFixture, counted: Counter, product: Callable[[], object],
    name: str, label: str, way: str, passes: Pass,
) -> None:  # fmt: skip
    op = operators()[name]
    benchmark.name, benchmark.group = f"{name}[{label}-{way}-{passes}]", f"{name}: {op.title}, {label}, {passes}"
    found = counted(name, label, way, passes)
    with thread_count(THREADS):
        args = arguments(op, op.shapes[label])
        run = call_of(ways(op)[way], args, passes)
        beside = Beside(None if way == TWIN else call_of(op.twin, args, passes), product)
        if benchmark.disabled:
            benchmark.pedantic(run)
            return
        benchmark.pedantic(run, setup=beside, rounds=beside.rounds(run))
    assert benchmark.stats is not None
    benchmark.extra_info |= found | clocked(found, list(benchmark.stats.stats.data), beside)
    benchmark.extra_info |= {
        "operator": name, "title": op.title, "shape": dict(op.shapes[label]), "way": way, "pass": passes,
        "dtype": "float32", "threads": THREADS, "machine": this_machine(),
        **({"gpu": op.gpu} if op.gpu else {"no_gpu": op.no_gpu}),
    }  # fmt: skip


def clocked(found: dict[str, Entry], seconds: list[float], beside: Beside) -> dict[str, Entry]:
    """Entries that need the rounds: the ceiling, utilisations, and how many times as long the twin takes."""
    work = 2.0 * GEMM_M**3
    rates = sorted(work / s / 1e9 for s in beside.product_s)
    out = {"ceiling_gemm": entry(rates[len(rates) // 2], "GFLOP/s", "measured", size=GEMM_M)}
    speed = ratio(beside.product_s, seconds)  # product / call
    for metric, flops in (("mfu_cpu", found["flops"]), ("hfu_cpu", found["flops_executed"])):
        if not flops["value"]:
            reason = flops.get("reason") or "no matrix product: bytes bound it, not FLOPs"
            out[metric] = entry(None, "ratio", "abstained", reason=reason)
            continue
        share = flops["value"] / work
        out[metric] = entry(share * speed.value, "ratio", "derived", ci_low=share * speed.low,
                            ci_high=share * speed.high, n=speed.rounds)  # fmt: skip
    if beside.slow_twin_s:
        why = f"one call of the twin takes {beside.slow_twin_s:.1f} s, too long for turns: it has its own benchmark"
        out["twin_over_this"] = entry(None, "ratio", "abstained", reason=why)
    elif beside.twin_s:
        over = ratio(beside.twin_s, seconds)
        out["twin_over_this"] = entry(over.value, "ratio", "measured", ci_low=over.low, ci_high=over.high,
                                      n=over.rounds)  # fmt: skip
    return out

"""pytest-benchmark: every operator of `kernels/`, shape by shape: plain twin, each fast path, and what models call.

    pytest bench/suites/test_kernels.py --benchmark-json=kernels.json
    pytest bench/suites/test_kernels.py -k "cross and fused"

Before each round, untimed by pytest-benchmark, the twin and a square product run once: `twin_over_this` and the
utilisations are medians over rounds of ratios within a round, so they hold on a shared machine where seconds do not.
CTRBENCH_KERNEL_SECONDS is about what the rounds of one benchmark take; two threads at most, or OMP_NUM_THREADS.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
from ctrbench.bench.suites.kernel_counts import Entry, counts, entry

SECONDS = float(os.environ.get("CTRBENCH_KERNEL_SECONDS", "0.4"))
THREADS = min(2, torch.get_num_threads())
LEAST, MOST = 5, 40
"""Rounds."""
GEMM_M = 1024


def cases() -> Iterator[Any]:
    """One benchmark each; the ids are stable as long as files, labels and paths keep their names."""
    for name, op in operators().items():
        for label in op.shapes:
            for way in ways(op):
                for passes in PASSES:
                    yield pytest.param(name, label, way, passes, id=f"{name}-{label}-{way}-{passes}")


@pytest.fixture(scope="session")
def counted() -> Iterator[Callable[..., dict[str, Entry]]]:
    """`counts` in a process of its own."""
    with context().Pool(1) as pool:
        yield lambda *asked: pool.apply(counts, asked)


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
    twin_s: list[float] = field(default_factory=list)
    product_s: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        self.product_s.append(_seconds(self.product))
        if self.twin is not None:
            self.twin_s.append(_seconds(self.twin))

    def rounds(self, run: Callable[[], object]) -> int:
        """As many as fit into `SECONDS`, after one untimed call of all."""
        run()
        self()
        each = _seconds(run) + _seconds(self)
        self.twin_s.clear()
        self.product_s.clear()
        return max(LEAST, min(MOST, int(SECONDS / each)))


@pytest.mark.parametrize(("name", "label", "way", "passes"), cases())
def test_operator(
    benchmark: BenchmarkFixture, counted: Callable[..., dict[str, Entry]], product: Callable[[], object],
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
            out[metric] = entry(None, "ratio", "abstained", reason="no matrix product: bytes bound it, not FLOPs")
            continue
        share = flops["value"] / work
        out[metric] = entry(share * speed.value, "ratio", "derived", ci_low=share * speed.low,
                            ci_high=share * speed.high, n=speed.rounds)  # fmt: skip
    if beside.twin_s:
        over = ratio(beside.twin_s, seconds)
        out["twin_over_this"] = entry(over.value, "ratio", "measured", ci_low=over.low, ci_high=over.high,
                                      n=over.rounds)  # fmt: skip
    return out

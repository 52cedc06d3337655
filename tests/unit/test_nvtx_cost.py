"""What ranges cost a step: CPU time of the tracer's calls alone, against the CPU time of the step they surround.

CPU time of one thread, best of several: a neighbour on the core lengthens the wall clock, not these. The quotient of
the two best is what the machine can do; the calls are those that a real step makes, counted here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count, repeat

import pytest
import torch
from torch import Tensor, nn

from ctrbench.bench.registry import model_spec
from ctrbench.bench.step import TrainStep
from ctrbench.bench.suites.schemas import MOVIELENS_LIKE
from ctrbench.bench.trace.capture import iterate
from ctrbench.bench.trace.nvtx import OFF_SWITCH, NvtxRanges
from ctrbench.datasets.schema import Batch, synthetic_batch

BATCH = 256
LIMITS = {"0": 0.002, "1": 0.01}
"""CTRBENCH_NVTX -> largest share of a step: off, and on without a tool."""


class Calls:
    """Counts what a step asks of its tracer."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def stage(self, name: str, payload: int | None = None) -> AbstractContextManager[None]:
        self.names.append(name)
        return nullcontext()

    def own_backward(self, loss: Tensor) -> None:
        self.names.append("own_backward")


def best_ns(call: Callable[[], object], rounds: int, calls: int) -> float:
    """CPU ns of one call: the best round's mean."""
    best = float("inf")
    for _ in range(rounds):
        start = time.thread_time_ns()
        for _ in range(calls):
            call()
        best = min(best, (time.thread_time_ns() - start) / calls)
    return best


@pytest.fixture(scope="module")
def step() -> tuple[Callable[[], object], list[str], nn.Module, Batch]:
    """A bare training step of DIN, and the tracer calls that it makes."""
    torch.manual_seed(0)
    spec = model_spec("din")
    model, batch, calls = spec.build(spec.config(), MOVIELENS_LIKE), synthetic_batch(MOVIELENS_LIKE, BATCH), Calls()
    TrainStep(model, ranges=calls)(batch)
    bare = TrainStep(model)
    return lambda: bare(batch), calls.names, model, batch


@pytest.mark.parametrize("switch", LIMITS)
def test_ranges_cost_next_to_nothing_without_a_tool(
    switch: str, step: tuple[Callable[[], object], list[str], nn.Module, Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OFF_SWITCH, switch)
    run, names, model, batch = step
    ranges = NvtxRanges()
    assert not ranges.enabled, "this test runs without an NVTX tool attached"

    def traced(_: Batch) -> None:
        for name in names:
            if name == "own_backward":
                ranges.own_backward(batch.label_B)
            else:
                with ranges.stage(name):
                    pass

    stream, numbers, device = repeat(batch), count(), torch.device("cpu")
    with ranges.attach(model):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        cost = best_ns(lambda: iterate(ranges, next(numbers), stream, traced, device), 20, 500)
    whole = best_ns(run, 8, 1)
    print(f"CTRBENCH_NVTX={switch}: {cost / 1e3:.2f} us of a step of {whole / 1e6:.2f} ms, {cost / whole:.4%}")
    assert cost / whole < LIMITS[switch]

"""The steps that a profiler looks at: bare warm-up, then the ones in its capture window, with ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ctrbench.bench.step import Ranges
from ctrbench.bench.trace.nvtx import NvtxRanges
from ctrbench.datasets.schema import Batch


def iterate(
    ranges: NvtxRanges, number: int, stream: Iterator[Batch], step: Callable[[Batch], Any], device: torch.device
) -> None:
    """One iteration: wait for a batch, copy it to the device, train on it.

    Raises:
        ValueError: no batch is left.
    """
    with ranges.iteration(number):
        with ranges.stage("data"):
            batch = next(stream, None)
        if batch is None:
            raise ValueError(f"batches ran out at step {number}; give warmup + steps of them")
        with ranges.stage("h2d"):
            batch = batch.to(device, non_blocking=True)
        step(batch)


def captured_steps(
    model: nn.Module,
    batches: Iterable[Batch],
    step_factory: Callable[[Ranges], Callable[[Batch], Any]],
    *,
    steps: int,
    warmup: int,
    key: str,
    batch: int,
    every: int = 1,
    operators: bool = False,
) -> bool:
    """Trains `warmup` steps without ranges, then `steps` with them between cudaProfilerStart and Stop.

    Args:
        model: names its blocks in `phases`; is trained by the steps.
        batches: at least `warmup + steps` batches.
        step_factory: builds the step around the tracer.
        steps: in the capture window.
        warmup: before it.
        key: of the configuration, for its range.
        batch: samples a step.
        every: ranges in every n-th step of the window only.
        operators: a range for every operator too.

    Returns:
        whether an NVTX tool was attached, so that ranges went somewhere.

    Raises:
        ValueError: the batches run out, or `phases` names no submodule.
    """
    ranges = NvtxRanges(first=warmup, every=every, operators=operators)
    step, stream = step_factory(ranges), iter(batches)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.train()
    with ranges.attach(model):
        for number in range(warmup):
            iterate(ranges, number, stream, step, device)
        with window(device), ranges.config(key, batch):
            for number in range(warmup, warmup + steps):
                iterate(ranges, number, stream, step, device)
    return ranges.enabled


@contextmanager
def window(device: torch.device) -> Iterator[None]:
    """The capture window: what nsys and ncu record; on a CPU there is nothing to switch on."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.profiler.start()
    try:
        yield
        torch.cuda.synchronize(device)
    finally:
        torch.cuda.profiler.stop()

"""Profiles training steps with the ranges mirrored, and splits their time."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, schedule

from ctrbench.bench.step import Ranges
from ctrbench.bench.trace.capture import iterate
from ctrbench.bench.trace.kineto import read_kineto
from ctrbench.bench.trace.nvtx import NvtxRanges
from ctrbench.bench.trace.recording import Recording
from ctrbench.bench.trace.time_split import Split, split_of
from ctrbench.datasets.schema import Batch


def traced_steps(
    model: nn.Module,
    batches: Iterable[Batch],
    step_factory: Callable[[Ranges], Callable[[Batch], Any]],
    *,
    steps: int,
    out: Path,
    warmup: int = 5,
) -> tuple[Split, Recording]:
    """Profiles training steps; the split of their time, and the recording that it was read from.

    Args:
        model: names its blocks in `phases`; is trained by the steps.
        batches: at least `warmup + steps` batches; waiting for one is the `data` stage.
        step_factory: builds the step around the tracer, e.g. `lambda ranges: TrainStep(model, ranges=ranges)`.
        steps: recorded steps.
        out: Kineto file to write, `.json.gz`.
        warmup: steps before the recording, the last one with the profiler already running.

    Raises:
        ValueError: the batches run out, or `phases` names no submodule.
    """
    if steps < 1 or warmup < 1:
        raise ValueError(f"steps={steps}, warmup={warmup}: a recording needs at least one of each")
    ranges = NvtxRanges(profiler=True)
    step, stream = step_factory(ranges), iter(batches)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    out.parent.mkdir(parents=True, exist_ok=True)
    model.train()
    plan = schedule(wait=0, warmup=1, active=steps, repeat=1)
    with ranges.attach(model):
        for number in range(warmup - 1):
            iterate(ranges, number, stream, step, device)
        with profile(activities=activities, schedule=plan, record_shapes=True, acc_events=True) as profiler:
            for number in range(warmup - 1, warmup + steps):
                iterate(ranges, number, stream, step, device)
                if number < warmup + steps - 1:
                    profiler.step()
    profiler.export_chrome_trace(str(out))
    _scrub(out)
    named = {name for names in getattr(model, "phases", {}).values() for name in names}
    recording = read_kineto(out)
    return split_of(recording, tuple(sorted(named - ranges.entered))), recording


def _scrub(path: Path) -> None:
    """Takes the machine out of the file: its path and host name are written into it."""
    with gzip.open(path, "rt", encoding="utf-8") as f:
        body = json.load(f)
    body["traceName"] = path.name
    body.pop("host_name", None)
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=5) as f:
        json.dump(body, f, separators=(",", ":"))

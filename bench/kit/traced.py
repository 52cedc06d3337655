"""Traced steps of the kit: Kineto in the process itself, nsys around a process of its own; read by our readers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, schedule

from ctrbench.bench.kit.record import PHASES
from ctrbench.bench.step import TrainStep, predict
from ctrbench.bench.trace import figures, projection
from ctrbench.bench.trace.capture import iterate, window
from ctrbench.bench.trace.columns import MISSING
from ctrbench.bench.trace.command import read
from ctrbench.bench.trace.nvtx import NvtxRanges
from ctrbench.bench.trace.recording import Recording
from ctrbench.bench.trace.scrub import scrub
from ctrbench.datasets.schema import Batch
from ctrbench.datasets.spec import sha256_file

STEPS = 5
"""Recorded steps of each phase."""
WARMUP = 3
_BLIND = ("no_kernel_table", "graph_trace_only", "unlinked_share", "thinned_recording")
"""Refusals of a reader under which no step gets its kernels."""


class Steps:
    """Training steps, then inference calls, as `iter` ranges of one recording."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch], ranges: NvtxRanges) -> None:
        self.model, self.ranges = model, ranges
        self.device = batches[0].label_B.device
        self._stream: Iterator[Batch] = cycle(batches)
        self._train, self._number = TrainStep(model, ranges=ranges), 0

    def run(self, phase: str, count: int, after: Callable[[], object] = lambda: None) -> None:
        """`count` steps of a phase; `after` is called after each."""
        self.model.train(phase == "train")
        step = self._train if phase == "train" else infer_of(self.model)
        for _ in range(count):
            iterate(self.ranges, self._number, self._stream, step, self.device)
            self._number += 1
            after()


def infer_of(model: nn.Module) -> Callable[[Batch], Any]:
    """One inference call; of a pre-training, which scores nothing, its forward."""
    if getattr(model, "returns_loss", False):
        return torch.no_grad()(lambda batch: model(batch))
    return lambda batch: predict(model, batch)


def record_kineto(model: nn.Module, batches: Sequence[Batch], out: Path) -> None:
    """Writes `STEPS` steps of each phase as Kineto JSON (`.json.gz`)."""
    ranges = NvtxRanges(profiler=True)
    steps = Steps(model, batches, ranges)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if steps.device.type == "cuda" else [])]
    recorded = len(PHASES) * STEPS
    out.parent.mkdir(parents=True, exist_ok=True)
    with ranges.attach(model):
        for phase in reversed(PHASES):
            steps.run(phase, WARMUP)
        with profile(
            activities=activities, schedule=schedule(wait=0, warmup=1, active=recorded, repeat=1), acc_events=True
        ) as profiler:
            steps.run(PHASES[0], 1, profiler.step)
            left = iter(range(recorded - 1, -1, -1))

            def after() -> None:
                if steps.device.type == "cuda":
                    torch.cuda.synchronize(steps.device)
                if next(left):  # the last step stays open until the profiler stops
                    profiler.step()

            for phase in PHASES:
                steps.run(phase, STEPS, after)
    profiler.export_chrome_trace(str(out))


def run_captured(model: nn.Module, batches: Sequence[Batch]) -> bool:
    """The same steps for nsys: bare warm-up, then both phases with ranges inside the capture window.

    Returns:
        whether an NVTX tool was attached.
    """
    ranges = NvtxRanges(first=len(PHASES) * WARMUP)
    steps = Steps(model, batches, ranges)
    with ranges.attach(model):
        for phase in reversed(PHASES):
            steps.run(phase, WARMUP)
        with window(steps.device):
            for phase in PHASES:
                steps.run(phase, STEPS)
    return ranges.enabled


def trace_figures(raw: Path, kept: Path, tool: str) -> dict[str, Any]:
    """Figures of a recording, and its scrubbed copy.

    Args:
        raw: as the tool wrote it.
        kept: where the scrubbed copy goes; replaced if it exists.
        tool: `kineto` or `nsys`.

    Raises:
        BadRecording: the file cannot be read.
    """
    recording = read(raw)
    if not isinstance(recording, Recording):
        raise TypeError(f"{raw}: not a recording of {tool}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.unlink(missing_ok=True)
    scrub(raw, kept)
    return {
        "tool": tool, "origin": "measured", "file": kept.name, "sha256": sha256_file(kept),
        "device": recording.device, **kernels_of(recording),
    }  # fmt: skip


def kernels_of(recording: Recording) -> dict[str, Any]:
    """Kernels and their time by phase, launches of at most 10 us; null with a reason where a reader refuses.

    The recording holds `STEPS` training steps, then as many of inference, each in an `iter` range.
    """
    refused = {code: text for code, text in figures.refusals(recording).items() if code in _BLIND}
    steps = figures.steps(recording)
    steps = steps.take(steps.end != MISSING)
    steps = steps.take(np.argsort(steps.start, kind="stable"))
    wanted = len(PHASES) * STEPS
    if not refused and len(steps) != wanted:
        refused = {"field_missing": f"{len(steps)} step ranges in the recording, {wanted} were run"}
    if refused:
        return {"status": "skipped", "reason": "; ".join(f"{c}: {t}" for c, t in sorted(refused.items()))}
    found, kernels = projection.step_figures(recording, steps), figures.kernel_figures(recording)
    assert found is not None  # there are steps
    phases = {
        phase: {
            name: _each(found[f"{name}_per_step"][i * STEPS : (i + 1) * STEPS]) for name in ("kernels", "kernel_ns")
        }
        for i, phase in enumerate(PHASES)
    }
    return {
        "status": "ok", "reason": "", "steps": STEPS, "phases": phases, "launches": kernels["launches"],
        "kernel_ns": kernels["total_ns"], "share_le_10us": kernels["le_10us"] / kernels["launches"],
        "kernels_in_no_step": found["kernels_in_no_step"],
        "kernels_from_graph_launch": found["kernels_from_graph_launch"],
    }  # fmt: skip


def _each(values: Sequence[int]) -> dict[str, float]:
    return {"median": float(statistics.median(values)), "low": float(min(values)), "high": float(max(values))}

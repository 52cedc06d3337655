"""What the kit runs of a model: one published preset at one batch, chosen by memory and work; small ones in a dry run.

The same candidates are what predictions are made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ctrbench.bench.counting.published import PublishedPoint, published_points
from ctrbench.bench.counting.rows import StepCounts
from ctrbench.bench.counting.traffic import STATE_BYTES
from ctrbench.bench.hardware import Gpu
from ctrbench.datasets.random_batches import random_schema
from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.models.embedding import dense_parameters, embedding_tables
from ctrbench.models.spec import ModelSpec, Preset, random_batch

BATCHES = (16, 64, 256, 1024, 4096)
WORK = 1e13
"""Most model FLOPs of a training step: a T4 at half its fp32 peak takes 2.5 s for them."""
DRY_BATCH, DRY_LENGTH = 32, 8
_SAFETY = 0.8
"""Share of the free memory that an estimate may take."""
_ADAM = 16
"""Bytes a dense weight: itself, its gradient, two moments."""


class NothingFits(ValueError):
    """No published preset, or none at any batch fits; the message is the reason of the row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One configuration with what it is known to execute."""

    preset: str
    batch: int
    config: Any
    schema: FeatureSchema
    flops: Mapping[str, float]
    """Phase -> model FLOPs of a step, counted; empty where they are withheld."""
    withheld: str
    """Why there are no FLOPs, or ''."""
    memory: float
    """Estimated bytes of a training step; 0 in a dry run."""
    free: float | None
    """Bytes that it was chosen by; None in a dry run."""
    why: str
    """How it was chosen."""


def kit_dtype(gpu: Gpu | None, capability: tuple[int, int] | None = None) -> str:
    """Arithmetic of float32 products: `tf32` where the catalogue has a peak for it, else `fp32`.

    Args:
        gpu: catalogue entry; None for a device that it lacks.
        capability: of the device; decides where the catalogue has neither peak (tensor cores take TF32 from 8.0 on).
    """
    known = gpu.peak_tflops if gpu else {}
    if "tf32" in known or "fp32" in known:
        return "tf32" if "tf32" in known else "fp32"
    return "tf32" if capability is not None and capability >= (8, 0) else "fp32"


def candidates(spec: ModelSpec, gpus: Mapping[str, str] | None = None) -> list[PublishedPoint]:
    """Every published preset at every batch of the kit whose training step stays below `WORK`, both phases.

    Args:
        spec: the model.
        gpus: catalogue name -> dtype of the bounds wanted; none wants no bound.
    """
    sizes = spec.own_batches.rows if spec.own_batches else BATCHES
    points = published_points(spec, sizes, gpus=gpus or {}, dtype="fp32")
    small = {(p.preset, p.batch) for p in points if p.phase == "train" and p.flops_per_sample * p.batch <= WORK}
    return [p for p in points if (p.preset, p.batch) in small]


def choose(spec: ModelSpec, memory: float) -> Case:
    """The candidate of most training FLOPs that fits.

    Args:
        spec: the model.
        memory: free bytes of the device.

    Raises:
        NothingFits: no candidate does, or the model has no published size.
    """
    presets = {p.label: p for p in spec.published()}
    if not presets:
        raise NothingFits("field_missing: the model has no published preset")
    points = candidates(spec)
    held = {label: _held(spec, p) for label, p in presets.items()}
    trained = [(p, held[p.preset] + step_bytes(p.counts)) for p in points if p.phase == "train"]
    fits = [(p, need) for p, need in trained if need <= _SAFETY * memory]
    if not fits:
        least = f"{min(need for _, need in trained) / 1e9:.1f} GB" if trained else f"more than {WORK:.0e} FLOPs a step"
        raise NothingFits(f"out of memory: the smallest candidate needs {least}, {memory / 1e9:.1f} GB are free")
    best, need = max(fits, key=lambda pair: (pair[0].flops_per_sample * pair[0].batch, pair[0].batch))
    mine = [p for p in points if (p.preset, p.batch) == (best.preset, best.batch)]
    flops: dict[str, float] = {p.phase: p.flops_per_sample * p.batch for p in mine if not p.withheld}
    why = (
        f"most training FLOPs a step, at most {WORK:.0e}, of {len(fits)} candidates in {_SAFETY:.0%} of "
        f"{memory / 1e9:.1f} GB free; it needs about {need / 1e9:.1f}"
    )
    preset = presets[best.preset]
    return Case(
        preset=best.preset, batch=best.batch, config=preset.config, schema=preset.schema,
        flops=flops, withheld=best.withheld, memory=need, free=memory, why=why,
    )  # fmt: skip


def dry_case(spec: ModelSpec) -> Case:
    """The small preset on a few random rows: proves the path, measures nothing."""
    kind = "random_tabular" if "tabular" in spec.tracks else "random_sequence"
    return Case(
        preset="small", batch=DRY_BATCH, config=spec.config(), schema=random_schema(kind, DRY_LENGTH), flops={},
        withheld="dry run: nothing is counted", memory=0.0, free=None, why="dry run",
    )  # fmt: skip


def step_bytes(counts: StepCounts) -> float:
    """Estimated bytes that one training step allocates: activations kept for backward twice over, for gradients and
    temporaries live at the same time, and eight held batches."""
    return 2.0 * counts.saved.own + 8.0 * counts.inputs.own


def _held(spec: ModelSpec, preset: Preset) -> float:
    """Bytes of weights, gradients and optimizer state."""
    with torch.device("meta"):
        model = spec.build(preset.config, preset.schema)
    tables = sum(
        sum(t.rows.values()) * (4 * t.stored + STATE_BYTES[t.config.optimizer](t.stored))
        for t in embedding_tables(model)
    )
    return float(tables + _ADAM * sum(p.numel() for p in dense_parameters(model)))


def held_batches(spec: ModelSpec, case: Case, device: torch.device, count: int) -> list[Batch]:
    """Batches of uniform random ids on the device, histories full."""
    made = (random_batch(spec, case.config, case.schema, case.batch, seed=seed) for seed in range(count))
    return [batch.to(device) for batch in made]

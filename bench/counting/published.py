"""The published sizes of a model on meta over a batch sweep: counts and `mfu_bound`, nothing trained or timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ctrbench.bench.counting.bound import Bound, mfu_bound
from ctrbench.bench.counting.counter import count_steps
from ctrbench.bench.counting.projection import Projection, projections
from ctrbench.bench.counting.rows import (
    KernelCount,
    StepCounts,
    at_batch,
    backward_ratio_error,
    coverage,
    withhold_reason,
)
from ctrbench.bench.hardware import Gpu, HardwareUnknown, catalogue
from ctrbench.datasets.schema import padding_share, synthetic_batch
from ctrbench.models.spec import Flops, ModelSpec, Preset, flops_per_step, random_batch

BATCHES = (256, 1024, 4096, 16384)
TRACED = (251, 509)
"""Batches that are traced; the others follow from them, see `rows.at_batch`. Primes, so that no width is a multiple."""
Phase = Literal["train", "infer"]
PHASES: tuple[Phase, ...] = ("train", "infer")


def narrow_dtype(gpu: Gpu, dtype: str) -> str:
    """`dtype`, or fp16 on a GPU that has tensor cores or rates for it and no bf16: the bytes are the same.

    Raises:
        HardwareUnknown: `peak_missing_for_dtype`.
    """
    if dtype in gpu.peak_tflops:
        return dtype
    if dtype == "bf16" and "fp16" in gpu.peak_tflops:
        return "fp16"
    text = f"{gpu.name} has no dense {dtype} peak in bench/hardware.toml"
    raise HardwareUnknown("peak_missing_for_dtype", text)


def bounded_gpus(dtype: str) -> dict[str, str]:
    """Catalogued GPU -> dtype of its bound; those without a peak for it are left out."""
    found = {}
    for name, gpu in catalogue().items():
        try:
            found[name] = narrow_dtype(gpu, dtype)
        except HardwareUnknown:
            continue
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedPoint:
    """One preset at one batch in one phase."""

    model: str
    preset: str
    phase: Phase
    batch: int
    flops_fwd_per_sample: float
    """Model FLOPs (masked attention pairs, idle products left out) of one forward, per-step work shared out."""
    flops_per_sample: float
    """Model FLOPs of the phase: forward, or forward and backward."""
    flops_executed: float
    """FLOPs of the step as executed."""
    flops_elementwise: float
    bytes_operands: float
    """Of the step, floats at 2 bytes."""
    ai_operands: float
    """flops_executed / bytes_operands."""
    ops: int
    kernels: KernelCount
    unfusable: int
    coverage: float | None
    """Counted / closed-form forward FLOPs; None where the closed form is 0."""
    withheld: str
    """Why FLOPs and utilisation must not be used, or ''."""
    bounds: Mapping[str, Bound]
    """GPU -> `mfu_bound`; empty when withheld."""
    projections: tuple[Projection, ...]
    """On every catalogued GPU; empty when withheld."""
    counts: StepCounts
    padding: float | None = None
    """Share of padded event cells, where the batch is the model's own."""


def published_points(
    spec: ModelSpec,
    batches: Sequence[int] = (),
    gpus: Sequence[str] | Mapping[str, str] | None = None,
    dtype: str = "bf16",
    mode: str = "eager",
) -> list[PublishedPoint]:
    """Counts every published preset of a model at every batch, training and inference.

    Args:
        spec: the model.
        batches: rows a step; none takes `BATCHES`, or what a model with batches of its own names.
        gpus: catalogue entries to bound, or each with a dtype of its own; none takes all that have a dense peak for
            the dtype.
        dtype: of weights, activations and gradients.
        mode: `eager`, or how torch.compile runs it: then kernels and times are withheld.

    Raises:
        HardwareUnknown: a GPU has no dense peak for `dtype`.
    """
    wanted = batches or (spec.own_batches.rows if spec.own_batches else BATCHES)
    if gpus is None:
        chosen: Mapping[str, str] = bounded_gpus(dtype)
    else:
        chosen = gpus if isinstance(gpus, Mapping) else {g: narrow_dtype(catalogue()[g], dtype) for g in gpus}
    return [p for preset in spec.published() for p in _preset_points(spec, preset, wanted, chosen, dtype, mode)]


def _preset_points(
    spec: ModelSpec, preset: Preset, batches: Sequence[int], gpus: Mapping[str, str], dtype: str, mode: str
) -> Iterator[PublishedPoint]:
    with torch.device("meta"):
        model = spec.build(preset.config, preset.schema)
    if spec.own_batches is not None:  # what they cost is not affine in their rows: every one is traced
        own = [random_batch(spec, preset.config, preset.schema, size, device="meta") for size in batches]
        for phase in PHASES:
            for batch, counts in zip(own, count_steps(model, own, train=phase == "train"), strict=True):
                form = spec.own_batches.flops(preset.config, preset.schema, batch)
                waste = padding_share(preset.schema, batch)
                yield _point(spec, preset, model, counts, form, phase, gpus, dtype, mode, waste)
        return
    form = spec.flops(preset.config, preset.schema, None)
    for phase in PHASES:
        low, high = _traced(model, preset, TRACED, phase)
        for size in batches:
            counts = at_batch(low, high, size) or _traced(model, preset, [size], phase)[0]
            yield _point(spec, preset, model, counts, form * size, phase, gpus, dtype, mode)


def _traced(model: nn.Module, preset: Preset, batches: Sequence[int], phase: Phase) -> list[StepCounts]:
    made = [synthetic_batch(preset.schema, size, device="meta") for size in batches]
    return list(count_steps(model, made, train=phase == "train"))


def _point(
    spec: ModelSpec, preset: Preset, model: nn.Module, counts: StepCounts, form: Flops, phase: Phase,
    gpus: Mapping[str, str], dtype: str, mode: str, padding: float | None = None,
) -> PublishedPoint:  # fmt: skip
    """`form`: closed-form forward FLOPs of the whole batch, without what a step costs once."""
    size = counts.batch
    step = form + flops_per_step(model.train(phase == "train"))
    idle = step.full - step.visible
    # Masked pairs, and zeros of a dense product, are idle in both gradients of their GEMMs alike.
    idle_step = idle + 2 * (step.live.full - step.live.visible) if phase == "train" else idle
    analytic = step.full
    reason = withhold_reason(counts, analytic) or backward_ratio_error(counts)
    bounds = {
        g: mfu_bound(counts, model, catalogue()[g], own, schema=preset.schema, masked_flops=idle_step)
        for g, own in gpus.items()
    }
    must = {g: bound.bytes for g, bound in bounds.items()}
    return PublishedPoint(
        model=spec.name,
        preset=preset.label,
        phase=phase,
        batch=size,
        flops_fwd_per_sample=(counts.flops("forward") - idle) / size,
        flops_per_sample=(counts.flops() - idle_step) / size,
        flops_executed=counts.flops(),
        flops_elementwise=counts.flops_elementwise(),
        bytes_operands=counts.bytes_operands(dtype),
        ai_operands=counts.ai_operands(dtype),
        ops=counts.ops,
        kernels=counts.kernels_in(mode),
        unfusable=counts.unfusable,
        coverage=coverage(counts.flops("forward"), analytic),
        withheld=reason,
        bounds={} if reason else bounds,
        projections=() if reason else projections(counts, gpus, uncachable=must, idle_flops=idle_step, mode=mode),
        counts=counts,
        padding=padding,
    )

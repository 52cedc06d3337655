"""Rows of the published sizes: counts on the meta device and `mfu_bound` per GPU over a batch sweep."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ctrbench.bench.at_scale_rows import scale_rows
from ctrbench.bench.counting.kernel_time import parameter_sets
from ctrbench.bench.counting.published import PublishedPoint, bounded_gpus, narrow_dtype, published_points
from ctrbench.bench.hardware import catalogue
from ctrbench.bench.projection_rows import projection_rows
from ctrbench.bench.runspec import RunSpec
from ctrbench.models.spec import ModelSpec
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement


def published_rows(model_spec: ModelSpec, spec: RunSpec) -> tuple[list[Measurement], dict[str, Any]]:
    """(rows, extra): every published preset of a model, at every batch, in training and inference."""
    rows: list[Measurement] = []
    assumptions: dict[str, list[str]] = {}
    costliest: list[dict[str, Any]] = []
    points = published_points(model_spec, dtype=spec.dtype, mode=spec.compile)
    for point in points:
        base = {
            "run": spec.key, "model": spec.model, "preset": f"published:{point.preset}", "family": model_spec.family,
            "device": "meta", "dtype": spec.dtype, "batch": point.batch, "phase": point.phase,
        }  # fmt: skip
        rows += _counted(base, point)
        for gpu, bound in point.bounds.items():
            dtype = narrow_dtype(catalogue()[gpu], spec.dtype)
            rows.append(make(base, "mfu_bound", bound.value, "derived", scope=gpu, dtype=dtype))
            assumptions.setdefault(f"{point.preset} {point.phase} {gpu}", list(bound.assumptions))
        if point.withheld:
            rows += [withheld(base, m, point.withheld) for m in ("mfu_bound", "gpu_time_modelled", "gpu_time_bound")]
        rows += projection_rows(base, point.projections)
        costliest += _costliest(base, point)
    of_run = {"run": spec.key, "model": spec.model, "family": model_spec.family, "device": "meta", "dtype": spec.dtype}
    rows += scale_rows(of_run, model_spec, points)
    rows += _without_peak(model_spec, spec)
    presets = [
        {
            "label": p.label,
            "note": p.note,
            "config": asdict(p.config),
            "schema": p.schema.name,
            "fields": len(p.schema.fields),
        }
        for p in model_spec.published()
    ]
    sets = {p.gpu: {"id": p.id, "recordings": p.recordings, "note": p.note} for p in parameter_sets().values()}
    extra = {
        "presets": presets,
        "assumptions": assumptions,
        "kernel_time_parameters": sets,
        "costliest": costliest,
        "title": model_spec.title,
        "control": model_spec.control,
    }
    return rows, extra


def _costliest(base: dict[str, Any], point: PublishedPoint) -> list[dict[str, Any]]:
    """What most of the modelled time of a step goes to on each GPU whose time may be published."""
    at = {name: base[name] for name in ("preset", "batch", "phase")}
    return [
        {**at, "gpu": p.gpu, "block": p.blocks[0].name, "share": p.blocks[0].share, "term": p.blocks[0].term}
        for p in point.projections if p.time_s is not None and p.blocks
    ]  # fmt: skip


def _without_peak(model_spec: ModelSpec, spec: RunSpec) -> list[Measurement]:
    """One row a catalogued GPU whose peak at the dtype nobody knows; of no preset, for it is the same for all."""
    base = {"run": spec.key, "model": spec.model, "family": model_spec.family, "device": "meta", "dtype": spec.dtype,
            "phase": "train", "preset": "catalogue"}  # fmt: skip
    reason = f"peak_missing_for_dtype: no dense {spec.dtype} peak in bench/hardware.toml"
    known = bounded_gpus(spec.dtype)
    return [withheld(base, "mfu_bound", reason, scope=gpu) for gpu in catalogue() if gpu not in known]


def _counted(base: dict[str, Any], point: PublishedPoint) -> list[Measurement]:
    metric = "flops_train_per_sample" if point.phase == "train" else "flops_fwd_per_sample"
    if point.withheld:
        return [withheld(base, m, point.withheld) for m in (metric, "ai_operands", "flops_per_kernel")]
    rows = [
        make(base, metric, point.flops_per_sample, "counted"),
        make(base, "bytes_operands", point.bytes_operands, "counted"),
        make(base, "ai_operands", point.ai_operands, "counted"),
        make(base, "ops_per_step", point.ops, "counted"),
    ]
    if point.padding is not None:
        rows.append(make(base, "padding_waste", point.padding, "counted"))
    k = point.kernels
    if k.value is None or k.low is None or k.high is None:
        return rows + [
            withheld(base, m, k.reason) for m in ("kernels_per_step", "kernels_per_sample", "flops_per_kernel")
        ]
    total = point.flops_per_sample * point.batch
    return [
        *rows,
        make(base, "kernels_per_step", k.value, "modelled", ci_low=k.low, ci_high=k.high),
        make(
            base,
            "kernels_per_sample",
            k.value / point.batch,
            "modelled",
            ci_low=k.low / point.batch,
            ci_high=k.high / point.batch,
        ),
        make(base, "flops_per_kernel", total / k.value, "modelled", ci_low=total / k.high, ci_high=total / k.low),
    ]

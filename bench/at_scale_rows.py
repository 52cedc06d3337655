"""Rows of the published sizes on many accelerators, on paper; what one step of them sends, from its operator counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ctrbench.bench.at_scale import PLANS, WORLDS, Band, Fabric, Table, Work, fabrics, least_seconds, step
from ctrbench.bench.counting.published import PublishedPoint
from ctrbench.bench.counting.rows import OpRow, StepCounts
from ctrbench.bench.hardware import catalogue, peak
from ctrbench.datasets.schema import Batch, synthetic_batch
from ctrbench.models.embedding import EmbeddingTables, dense_parameters
from ctrbench.models.spec import ModelSpec, Preset
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement

SCALE_METRICS = (
    "communication_bytes", "communication_time", "communication_wait_share", "step_time_at_scale", "mfu_bound_at_scale",
)  # fmt: skip
UNKNOWN: Band = (0.0, math.inf)
"""Compute of a step that nobody has modelled."""


def scale_rows(base: Mapping[str, Any], spec: ModelSpec, points: Sequence[PublishedPoint]) -> list[Measurement]:
    """Rows of the training step of every published size of a ranker at its largest batch, an accelerator's share.

    `scope` is `GPU:accelerators:plan`. A size whose counts are withheld has withheld rows; a model whose batches are
    its own has none, for a row of it is a user.
    """
    if spec.own_batches is not None:
        return []
    train = [p for p in points if p.phase == "train"]
    largest = {p.preset: p for p in sorted(train, key=lambda p: p.batch)}
    rows: list[Measurement] = []
    for preset in spec.published():
        point = largest[preset.label]
        at = {**base, "preset": f"published:{preset.label}", "batch": point.batch, "phase": "train"}
        if point.withheld:
            rows += [withheld(at, metric, point.withheld) for metric in ("communication_bytes", "step_time_at_scale")]
            continue
        work = work_of(spec, preset, point)
        for fabric in fabrics().values():
            rows += _rows(at, point, work, fabric)
    return rows


def work_of(spec: ModelSpec, preset: Preset, point: PublishedPoint) -> Work:
    """One step of one accelerator as counted; its compute is not known here.

    Ids are those of the lookups that were counted, dealt to tables as the batch has them: a model may look up more than
    its batch holds, or leave a table alone.
    """
    with torch.device("meta"):
        model: nn.Module = spec.build(preset.config, preset.schema)
    batch = synthetic_batch(preset.schema, point.batch, device="meta")
    modules = {path: m for path, m in model.named_modules() if isinstance(m, EmbeddingTables)}
    read = {path: list(_tables(m, path, batch, point.counts)) for path, m in modules.items()}
    return Work(
        samples=point.batch,
        tables=tuple(table for tables in read.values() for table in tables),
        modules=sum(bool(tables) for tables in read.values()),
        dense=float(sum(p.numel() for p in dense_parameters(model) if p.requires_grad)),
        seconds=UNKNOWN,
    )


def _tables(module: EmbeddingTables, path: str, batch: Batch, counts: StepCounts) -> Iterator[Table]:
    own = [r for r in counts.rows if r.op.startswith("ctrbench.tbe") and r.module in (path, f"{path}.lookup")]
    looked_up = sum(ids_of(r, module.stored) for r in own if r.part == "forward")
    if not looked_up:
        return
    trained = any(r.part == "backward" for r in own)
    per_key = dict(zip(batch.ids.keys(), batch.ids.length_per_key(), strict=True))
    held = sum(per_key[f] for f in module.table_of)
    for name in module.rows:
        features = [f for f, table in module.table_of.items() if table == name]
        ids = sum(per_key[f] for f in features) * looked_up / held
        yield Table(
            rows=module.rows[name], ids=ids / batch.size, features=float(len(features)), width=module.stored,
            trained=trained,
        )  # fmt: skip


def ids_of(lookup: OpRow, width: int) -> float:
    """Ids of counted lookups: each moves its id, its offset, its row in and its row out, each call one offset more."""
    return (lookup.bytes_own - 8 * lookup.calls) / (8 + 8 + 2 * 4 * width)


def compute_of(point: PublishedPoint, gpu: str) -> tuple[Band, str]:
    """(seconds of the step's compute on a GPU, why there is no upper end or '')."""
    found = next((p for p in point.projections if p.gpu == gpu), None)
    if found is None:
        return UNKNOWN, f"peak_missing_for_dtype: no projection for {gpu}"
    if found.time_s is None:
        return (found.bound_s, math.inf), found.reason
    return (max(found.time_s.low, found.bound_s), max(found.time_s.high, found.bound_s)), ""


def with_compute(work: Work, seconds: Band) -> Work:
    """The same step with its compute."""
    return Work(samples=work.samples, tables=work.tables, modules=work.modules, dense=work.dense, seconds=seconds)


def mfu_at_scale(point: PublishedPoint, work: Work, world: int, fabric: Fabric) -> float | None:
    """Upper bound of MFU: the one of one accelerator, or FLOPs over what communication alone takes at least."""
    bound = point.bounds.get(fabric.gpu)
    if bound is None:
        return None
    gpu = catalogue()[fabric.gpu]
    dtype = "bf16" if "bf16" in gpu.peak_tflops else "fp16"
    least = least_seconds(work, world, fabric)
    return min(bound.value, bound.flops / (least * peak(gpu, dtype))) if least else bound.value


def _rows(base: Mapping[str, Any], point: PublishedPoint, work: Work, fabric: Fabric) -> Iterator[Measurement]:
    seconds, reason = compute_of(point, fabric.gpu)
    full = with_compute(work, seconds)
    for world in WORLDS:
        if (bound := mfu_at_scale(point, work, world, fabric)) is not None:
            yield make(base, "mfu_bound_at_scale", bound, "modelled", scope=f"{fabric.gpu}:{world}")
        for plan in PLANS:
            scope, found = f"{fabric.gpu}:{world}:{plan}", step(full, world, fabric, plan)
            yield make(base, "communication_bytes", found.traffic.total, "modelled", scope=scope)
            yield _band(base, "communication_time", found.communication, scope)
            yield _band(base, "communication_wait_share", found.share, scope)
            if reason:
                yield withheld(base, "step_time_at_scale", reason, scope=scope)
            else:
                yield _band(base, "step_time_at_scale", found.seconds, scope)


def _band(base: Mapping[str, Any], metric: str, band: Band, scope: str) -> Measurement:
    return make(base, metric, sum(band) / 2, "modelled", scope=scope, ci_low=band[0], ci_high=band[1])

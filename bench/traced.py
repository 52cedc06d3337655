"""Processes that are looked into: the traced steps of a suite, and those that another program records."""

from __future__ import annotations

from pathlib import Path

from ctrbench.bench.assemble import as_record, base_columns, build, stream
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.split_rows import component_rows, split_rows
from ctrbench.bench.step import TrainStep
from ctrbench.bench.trace.ablation import ROUNDS, Ablation, CannotLeaveOut, ablate
from ctrbench.bench.trace.capture import captured_steps
from ctrbench.bench.trace.kernel_rows import recorded_kernels
from ctrbench.bench.trace.split import traced_steps
from ctrbench.reports import kernel_rows
from ctrbench.reports.measures import withheld
from ctrbench.reports.records import RunRecord


def run_trace(spec: RunSpec, folder: Path) -> RunRecord:
    """Process N: NVTX ranges and torch.profiler, joined into the split of a step."""
    model_spec, _, schema, model, prepared = build(spec)
    base = base_columns(spec, model_spec.family, schema.track)
    _, batches = stream(spec, prepared)
    split, recording = traced_steps(
        model, batches, lambda ranges: TrainStep(model, lr=spec.lr, ranges=ranges), steps=spec.steps,
        warmup=spec.warmup, out=folder / "trace.json.gz",
    )  # fmt: skip
    rows = split_rows(base, split, "measured")
    try:
        rows += component_rows(base, split, ablated(spec))
    except CannotLeaveOut as why:
        rows.append(withheld(base, "split_component", f"n/a: {why}", phase="train"))
    kernels = recorded_kernels(base, recording, split, "measured")
    kernel_rows.save(kernels.table, folder)
    extra = {
        "operators": split.operators(), "named_coverage": split.coverage, "silent_blocks": split.silent_blocks,
        "kernels": kernels.facts,
    }  # fmt: skip
    return as_record(spec, rows, extra)


def ablated(spec: RunSpec) -> Ablation:
    """Time of each component of a step by leaving it out.

    Raises:
        CannotLeaveOut: the model's tables do not allow it.
    """
    _, _, _, model, prepared = build(spec)
    return ablate(model, stream(spec, prepared)[1], spec.lr, rounds=min(spec.steps, ROUNDS))


def run_captured(spec: RunSpec, every: int = 1, operators: bool = False) -> bool:
    """The steps that another program records, with NVTX ranges in their capture window; keeps nothing itself.

    Returns:
        whether an NVTX tool was attached.
    """
    _, _, _, model, prepared = build(spec)
    return captured_steps(
        model, stream(spec, prepared)[1], lambda ranges: TrainStep(model, lr=spec.lr, ranges=ranges),
        steps=spec.steps, warmup=spec.warmup, key=spec.digest, batch=spec.batch, every=every, operators=operators,
    )  # fmt: skip

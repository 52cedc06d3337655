"""`mfu_bound`: the highest model-FLOP utilisation that a catalogued GPU can reach on a counted step.

    min(1, F / (b * ridge), F / (K * t_min * P))         measures.md section 4

F is model FLOPs of the step, b the bytes that cannot stay in L2, K the kernels that no fusion removes, P the dense
peak. Every choice errs towards a higher bound; what could break that is returned with the number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ctrbench.bench.counting.rows import StepCounts
from ctrbench.bench.counting.traffic import STATE_BYTES, Bytes
from ctrbench.bench.hardware import Gpu, peak
from ctrbench.datasets.schema import FeatureSchema, Field
from ctrbench.models.embedding import embedding_tables

T_MIN_S = 1.1e-6
"""Shortest kernel seen in any recording (measures.md section 6: 1.1-2 us); taken for every family."""
_WIDTH = {"bf16": 2, "fp16": 2, "bfloat16": 2, "float16": 2, "fp32": 4, "tf32": 4, "float32": 4, "fp8": 1}


@dataclass(frozen=True, slots=True)
class Bound:
    """Upper bound of MFU, the terms it is the minimum of, and what it rests on."""

    value: float
    terms: Mapping[str, float]
    """`bytes` and `launch`, each may exceed 1."""
    flops: float
    """F, model FLOPs of the step."""
    bytes: float
    """b."""
    kernels: int
    """K."""
    assumptions: tuple[str, ...]

    @property
    def limit(self) -> str:
        """Which term is the smallest: `bytes`, `launch` or `compute`."""
        name = min(self.terms, key=lambda k: self.terms[k])
        return name if self.terms[name] < 1 else "compute"


def bound_of(
    flops: float, nbytes: float, kernels: int, gpu: Gpu, dtype: str, assumptions: tuple[str, ...] = ()
) -> Bound:
    """The formula itself.

    Raises:
        HardwareUnknown: `peak_missing_for_dtype`.
    """
    top = peak(gpu, dtype)
    terms = {
        "bytes": flops / (nbytes * gpu.ridge(dtype)) if nbytes else float("inf"),
        "launch": flops / (kernels * T_MIN_S * top) if kernels else float("inf"),
    }
    return Bound(min(1.0, *terms.values()), terms, flops, nbytes, kernels, assumptions)


def mfu_bound(
    counts: StepCounts,
    model: nn.Module,
    gpu: Gpu,
    dtype: str = "bf16",
    *,
    schema: FeatureSchema | None = None,
    masked_flops: float = 0.0,
) -> Bound:
    """Bound of one counted step.

    Args:
        counts: the step, training or inference.
        model: the one counted; for the rows of its tables.
        gpu: catalogue entry.
        dtype: of weights, activations and gradients.
        schema: carries known lower bounds of distinct rows (`Field.unique_rows`); none means no row is counted.
        masked_flops: FLOPs of the step on masked attention pairs and other idle products, which are no model FLOPs.

    Raises:
        HardwareUnknown: `peak_missing_for_dtype`.
    """
    width = _WIDTH[dtype]
    notes = [
        f"one stream, no overlap between dependent kernels, none shorter than {T_MIN_S * 1e6:.1f} us",
        f"{dtype} weights, activations and gradients",
    ]
    rows = _row_bytes(model, counts, schema, width, notes)
    dense = _at_width(counts.parameters, width)
    kept = dense + rows
    if counts.train:
        kept += dense + _at_width(counts.saved, width)
        notes.append(
            "activations are kept as autograd keeps them, none recomputed; gradients of all dense weights exist at once"
        )
    l2 = gpu.l2_mb * 1e6
    excess = max(0.0, kept - l2)
    what = "parameters, table rows, gradients and activations" if counts.train else "parameters and table rows"
    notes.append(f"of {kept / 1e6:.1f} MB {what}, {excess / 1e6:.1f} MB exceed L2, each byte counted once")
    # Rows of one batch may wait in L2 for the next: only what exceeds it must be written back.
    written = max(0.0, rows - l2) if counts.train else 0.0
    notes.append("batch inputs cross once as the loader stores them; only those that some operator reads")
    has_optimizer = any(r.part == "optimizer" for r in counts.rows)
    notes.append(
        "GEMMs, attention, table operators, sorts and batch reductions are not merged with each other; "
        "bias gradients ride on GEMMs"
    )
    flops = counts.flops() - masked_flops
    nbytes = counts.inputs.own + excess + written
    return bound_of(flops, nbytes, counts.unfusable + int(has_optimizer), gpu, dtype, tuple(notes))


def _at_width(moved: Bytes, width: int) -> float:
    """Bytes with fp32 floats at another width; `half` has them at 2 bytes, so there are (own - half) / 2 of them."""
    return moved.half + (moved.own - moved.half) / 2 * (width - 2)


def _row_bytes(
    model: nn.Module, counts: StepCounts, schema: FeatureSchema | None, width: int, notes: list[str]
) -> float:
    """Distinct table rows of a batch, in training with their optimizer state; each byte once."""
    tables = embedding_tables(model)
    if not tables:
        return 0.0
    unique = unique_rows(schema, counts.batch) if schema else 0.0
    if not unique:
        notes.append("distinct table rows unknown for this data: none counted")
        return 0.0
    columns, optimizer = tables[0].width, tables[0].config.optimizer
    notes.append(
        f"at least {unique:.0f} distinct table rows of {columns} columns ({optimizer}), "
        "from the data's recorded lower bounds"
    )
    row = columns * width
    return float(unique * (row + (STATE_BYTES[optimizer](columns) if counts.train else 0)))


def unique_rows(schema: FeatureSchema, batch: int) -> float:
    """Lower bound of the distinct rows that a batch touches, over all tables; fields that share a table count once."""
    best: dict[str, float] = {}
    for f in schema.of_kind("categorical", "sequence"):
        best[f.table] = max(best.get(f.table, 0.0), _field_rows(f, batch))
    return sum(best.values())


def _field_rows(field: Field, batch: int) -> float:
    """Distinct rows grow with the batch while their share of the lookups falls: both give a lower bound."""
    lookups = max(field.max_length, 1)
    smaller = [ratio * b * lookups for b, ratio in field.unique_rows if b <= batch]
    larger = [ratio * batch * lookups for b, ratio in field.unique_rows if b >= batch]
    return max([0.0, *smaller, *larger])

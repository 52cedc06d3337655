"""The result of a count: rows by operator, module and part, and the sums that measures are made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ctrbench.bench.counting.launches import BAND, MIN_COVERED
from ctrbench.bench.counting.ops import OpClass
from ctrbench.bench.counting.traffic import Bytes

Part = Literal["forward", "loss", "backward", "optimizer"]
COVERAGE = (0.98, 1.02)
"""Where counted / analytic forward FLOPs must lie (measures.md section 2)."""
COMPILED = "coverage_low: no method here tells which kernels torch.compile leaves of these operators"


@dataclass(frozen=True, kw_only=True, slots=True)
class OpRow:
    """All calls of one operator from one module in one part of the step."""

    op: str
    module: str
    """Dotted path of the innermost module; of the module that built the autograd node, in backward."""
    block: str
    """The module of `model.phases` that holds it, empty outside."""
    stage: str
    """Stage of the block; `loss`, `optimizer`, or `other`."""
    part: Part
    kind: OpClass
    calls: int
    flops: float
    flops_elementwise: float
    bytes_own: float
    """Operand bytes at the tensors' own width."""
    bytes_half: float
    """Operand bytes with every float at 2 bytes."""
    kernels: float
    """Modelled CUDA kernels of all calls."""
    covered_calls: int
    """Calls whose operator is in the kernel table."""
    unfusable: int
    """Kernels of these calls that no fusion removes."""


@dataclass(frozen=True, slots=True)
class KernelCount:
    """Modelled kernels of a step; None with the reason when too few calls are in the table."""

    value: float | None
    low: float | None
    high: float | None
    covered: float
    """Share of operator calls that the table covers."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ModuleCounts:
    """Sums of one module or block, all parts."""

    module: str
    calls: int
    flops: float
    bytes_own: float
    bytes_half: float
    kernels: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCounts:
    """One counted step."""

    rows: tuple[OpRow, ...]
    train: bool
    batch: int
    """Rows of the batch."""
    device: str
    """Where it was traced: cpu or meta."""
    frozen_parts: bool
    """Whether some parameter takes no gradient."""
    saved: Bytes
    """Activations kept for backward: distinct storages, parameters and inputs left out."""
    inputs: Bytes
    """Bytes of the batch that some operator reads."""
    parameters: Bytes
    """Parameters that some operator reads whole; tables that are only looked up in are not among them."""

    def _sum(self, name: str, part: Part | None) -> float:
        return float(sum(getattr(r, name) for r in self.rows if part in (None, r.part)))

    def flops(self, part: Part | None = None) -> float:
        """Model FLOPs of the whole attention rectangle, of one part or all."""
        return self._sum("flops", part)

    def flops_elementwise(self, part: Part | None = None) -> float:
        """One per element and operation; never part of model FLOPs."""
        return self._sum("flops_elementwise", part)

    def bytes_operands(self, dtype: str = "", part: Part | None = None) -> float:
        """Operand bytes at the tensors' own width, or with floats at 2 bytes for `bfloat16` and `float16`."""
        return self._sum("bytes_half" if dtype in ("bf16", "fp16", "bfloat16", "float16") else "bytes_own", part)

    def ai_operands(self, dtype: str = "") -> float:
        """FLOP per operand byte of the whole step."""
        return self.flops() / self.bytes_operands(dtype)

    @property
    def ops(self) -> int:
        """Non-view operators dispatched."""
        return sum(r.calls for r in self.rows)

    @property
    def kernels(self) -> KernelCount:
        """Modelled CUDA kernels in eager mode, with band."""
        return self.kernels_in("eager")

    def kernels_in(self, mode: str) -> KernelCount:
        """Modelled CUDA kernels with band; none in a mode other than `eager`, where they cannot be told."""
        covered = sum(r.covered_calls for r in self.rows) / max(self.ops, 1)
        if mode != "eager":
            return KernelCount(None, None, None, covered, COMPILED)
        if covered < MIN_COVERED:
            return KernelCount(
                None, None, None, covered, f"coverage_low: {covered:.2f} of the operator calls are in the kernel table"
            )
        value = sum(r.kernels for r in self.rows)
        return KernelCount(value, value * (1 - BAND), value * (1 + BAND), covered)

    @property
    def unfusable(self) -> int:
        """Kernels that no fusion removes, without the optimizer."""
        return sum(r.unfusable for r in self.rows)

    @property
    def unknown(self) -> dict[str, int]:
        """Operators of class U and their calls."""
        found: dict[str, int] = defaultdict(int)
        for r in self.rows:
            if r.kind == "U":
                found[r.op] += r.calls
        return dict(found)

    def by_module(self, level: Literal["module", "block", "stage"] = "module") -> tuple[ModuleCounts, ...]:
        """Sums by innermost module, block or stage, most FLOPs first."""
        groups: dict[str, list[OpRow]] = defaultdict(list)
        for r in self.rows:
            groups[getattr(r, level)].append(r)
        out = [_module(name, rows) for name, rows in groups.items()]
        return tuple(sorted(out, key=lambda m: (-m.flops, -m.bytes_own)))


def _module(name: str, rows: Iterable[OpRow]) -> ModuleCounts:
    rows = tuple(rows)
    return ModuleCounts(
        name, sum(r.calls for r in rows), sum(r.flops for r in rows), sum(r.bytes_own for r in rows),
        sum(r.bytes_half for r in rows), sum(r.kernels for r in rows),
    )  # fmt: skip


def at_batch(low: StepCounts, high: StepCounts, batch: int) -> StepCounts | None:
    """The counts at another batch, from two traces of the same model at different batches.

    Operators do not depend on the batch and every shape is affine in it, so FLOPs and bytes are too. Returns None where
    the two traces differ in anything else (a model that takes another path for large batches): trace it then.
    """
    if [_identity(r) for r in low.rows] != [_identity(r) for r in high.rows] or low.batch == high.batch:
        return None
    share = (batch - low.batch) / (high.batch - low.batch)

    def line(a: float, b: float) -> float:
        return float(round(a + (b - a) * share))

    def moved(a: Bytes, b: Bytes) -> Bytes:
        return Bytes(line(a.own, b.own), line(a.half, b.half))

    rows = tuple(
        replace(
            a,
            flops=line(a.flops, b.flops),
            flops_elementwise=line(a.flops_elementwise, b.flops_elementwise),
            bytes_own=line(a.bytes_own, b.bytes_own),
            bytes_half=line(a.bytes_half, b.bytes_half),
        )
        for a, b in zip(low.rows, high.rows, strict=True)
    )
    return replace(
        low,
        rows=rows,
        batch=batch,
        saved=moved(low.saved, high.saved),
        inputs=moved(low.inputs, high.inputs),
        parameters=moved(low.parameters, high.parameters),
    )


def _identity(row: OpRow) -> tuple[object, ...]:
    return row.op, row.module, row.part, row.calls, row.kernels, row.covered_calls, row.unfusable


def coverage(counted: float, analytic: float) -> float | None:
    """Counted / closed-form forward FLOPs; None where the closed form is 0 (LR, FM)."""
    return counted / analytic if analytic else None


def withhold_reason(counts: StepCounts, analytic: float) -> str:
    """Why utilisation must be withheld, or ''.

    Args:
        counts: of one step.
        analytic: closed-form forward FLOPs of the same step (the whole batch, attention rectangle in full).
    """
    if counts.unknown:
        return "uncounted_op: " + ", ".join(f"{op} x{n}" for op, n in sorted(counts.unknown.items()))
    share = coverage(counts.flops("forward"), analytic)
    if share is not None and not COVERAGE[0] <= share <= COVERAGE[1]:
        return f"coverage_low: {share:.2f}" if share < 1 else f"coverage_high: {share:.2f}"
    if share is None and counts.flops("forward"):
        return f"coverage_low: {counts.flops('forward'):.0f} FLOP counted where the closed form has none"
    return ""


def backward_ratio_error(counts: StepCounts) -> str:
    """Text if (forward + backward) / forward is outside [2, 3]; '' if fine, not trained, or with frozen parts."""
    forward = counts.flops("forward") + counts.flops("loss")
    if not counts.train or counts.frozen_parts or not forward:
        return ""
    ratio = (forward + counts.flops("backward")) / forward
    if 2.0 - 1e-9 <= ratio <= 3.0 + 1e-9:
        return ""
    return (
        f"(forward + backward) / forward FLOPs is {ratio:.3f}, must lie in [2, 3]: an operator's backward is miscounted"
    )

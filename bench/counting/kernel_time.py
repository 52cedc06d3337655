"""Time of the kernels of one operator call on a given GPU: measures.md section 6.

    t = max(F / (e_c P), B / (e_m W)) + c

F and B are FLOPs and operand bytes of the call, P the dense peak, W the DRAM bandwidth; e_c, e_m and c are parameters
of a device, a dtype and an operator family, in `kernel_time.toml`. The unit is the operator call: a split-K GEMM is one
call of two kernels, and c holds what both cost beyond their work.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ctrbench.bench.counting.ops import classify_name
from ctrbench.bench.hardware import Gpu, peak

_FILE = Path(__file__).resolve().parents[1] / "kernel_time.toml"
MIN_GROUPS = 8
"""Distinct kinds of shapes below which a family's parameters describe those shapes and no others."""
MIN_WITHIN_2X = 0.85
"""Least share of held-out shapes within a factor 2."""
Origin = Literal["fitted", "cited"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyFit:
    """Parameters of one operator family, and what they rest on."""

    e_c: float | None
    """Share of the compute peak reached; None where the family has no FLOPs."""
    e_m: float
    """Share of the DRAM bandwidth reached."""
    c_us: float
    """Fixed time of a call, us."""
    shapes: int
    """Distinct (operator, shapes, types) behind them."""
    groups: int
    """Distinct kinds of shapes: a size that differs by a few percent from step to step is no second observation."""
    within_2x: float | None = None
    """Share of held-out shapes predicted within a factor 2, mean over the splits."""
    mape: float | None = None
    """Mean absolute error of held-out shapes, as a ratio."""

    @property
    def usable(self) -> bool:
        """Whether a projection may rest on it."""
        return self.groups >= MIN_GROUPS and (self.within_2x or 0.0) >= MIN_WITHIN_2X


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterSet:
    """Parameters of one device at one dtype."""

    gpu: str
    """Name in hardware.toml."""
    dtype: str
    """Of the GEMMs behind them."""
    origin: Origin
    source: str
    recordings: int | None
    """Recordings behind the set; None where the source does not say."""
    families: Mapping[str, FamilyFit]
    note: str = ""

    @property
    def id(self) -> str:
        """How records name it."""
        return f"{self.gpu} {self.dtype}, {self.origin}: {self.source}"


GENERIC = FamilyFit(e_c=0.5, e_m=0.5, c_us=3.0, shapes=0, groups=0)
"""Stands in for families without parameters, to tell how much of a step they hold; nothing is published from it.
e_m and c: what measures.md section 6 gives where shapes are too few; e_c: between the fitted ones."""


@cache
def parameter_sets() -> dict[str, ParameterSet]:
    """The sets of `kernel_time.toml` by GPU."""
    table: dict[str, dict[str, Any]] = tomllib.loads(_FILE.read_text(encoding="utf-8"))["set"]
    return {gpu: _set(gpu, row) for gpu, row in table.items()}


def _set(gpu: str, row: Mapping[str, Any]) -> ParameterSet:
    families = {name: FamilyFit(**{"e_c": None, **fit}) for name, fit in row["family"].items()}
    return ParameterSet(
        gpu=gpu, dtype=row["dtype"], origin=row["origin"], source=row["source"], recordings=row.get("recordings"),
        families=families, note=row.get("note", ""),
    )  # fmt: skip


@cache
def time_family(op: str) -> str:
    """Family of the kernel-time model: that of `ops`, except that concatenation is a copy and that the backward of a
    norm, two kernels or three, is a family of its own."""
    family = classify_name(op)[1]
    if op.replace(".", "::").rstrip("_") in ("aten::cat", "aten::stack"):
        return "copy"
    return "norm_backward" if family == "norm" and "backward" in op else family


def call_seconds(fit: FamilyFit, flops: float, nbytes: float, gpu: Gpu, dtype: str) -> float:
    """Modelled time of one operator call.

    Args:
        fit: of the call's family.
        flops: executed by the call.
        nbytes: operand bytes of the call.
        gpu: catalogue entry.
        dtype: whose peak its FLOPs run against.

    Raises:
        HardwareUnknown: `peak_missing_for_dtype`.
    """
    return max(compute_seconds(fit, flops, gpu, dtype), memory_seconds(fit, nbytes, gpu)) + fit.c_us * 1e-6


def compute_seconds(fit: FamilyFit, flops: float, gpu: Gpu, dtype: str) -> float:
    """Time of the arithmetic alone; 0 for a family without FLOPs.

    Raises:
        HardwareUnknown: `peak_missing_for_dtype`.
    """
    return flops / (fit.e_c * peak(gpu, dtype)) if flops and fit.e_c else 0.0


def memory_seconds(fit: FamilyFit, nbytes: float, gpu: Gpu) -> float:
    """Time of the traffic alone."""
    return nbytes / (fit.e_m * gpu.bandwidth_gbs * 1e9)

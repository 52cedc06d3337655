"""What one call of a kernel costs; every kernel file states it as a formula."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Forward cost of one sample."""

    flops: float
    """2 per multiply-add of matrix products; what a FLOP counter sees and MFU uses."""
    elementwise: float
    """1 per element and operation; reported apart, never in MFU (measures.md section 4)."""

    def __mul__(self, calls: float) -> Cost:
        """Cost of that many samples."""
        return Cost(flops=self.flops * calls, elementwise=self.elementwise * calls)

    def __add__(self, other: Cost) -> Cost:
        return Cost(flops=self.flops + other.flops, elementwise=self.elementwise + other.elementwise)

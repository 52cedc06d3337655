"""What a gate on timed processes can find: its power at a scatter, the smallest slowdown it detects.

Dims: T trials, B processes of a side, D draws
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev

import numpy as np

from ctrbench.bench.significance import ALPHA, critical_u

THRESHOLD = 0.03
"""Relative change that a gate on times and memory does not care about (measures.md, section 7)."""
WANTED = 0.95
"""Power at which a slowdown is called detectable: above the 90 % that is asked for, so that a count of trials at that
size does not fall below it by chance."""
LARGEST = 16.0
"""No slowdown above this factor is looked for."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """A comparison of process values before any is measured."""

    processes: int
    """A side."""
    cv: float
    """Standard deviation of one process's value over its mean."""
    tests: int = 3
    """Of the gate; Holm's first step must be passed."""
    alpha: float = ALPHA
    threshold: float = THRESHOLD
    trials: int = 1000
    draws: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        if self.processes < 2 or self.cv <= 0:
            raise ValueError(f"{self.processes} processes with a scatter of {self.cv}: at least 2, and above 0")

    @cached_property
    def _simulated(self) -> tuple[np.ndarray, ...]:
        """(base [T, B], new [T, B] at ratio 1, lower end of the interval of the ratio [T])."""
        rng = np.random.default_rng(self.seed)
        spread = np.sqrt(np.log1p(self.cv**2))
        base_TB, new_TB = np.exp(spread * rng.standard_normal((2, self.trials, self.processes)))
        low_T = np.empty(self.trials)
        for i in range(self.trials):
            pick_DB = rng.integers(0, self.processes, (2, self.draws, self.processes))
            ratio_D = np.median(new_TB[i][pick_DB[0]], axis=1) / np.median(base_TB[i][pick_DB[1]], axis=1)
            low_T[i] = np.percentile(ratio_D, 2.5)
        return base_TB, new_TB, low_T

    def power(self, ratio: float) -> float:
        """Share of trials in which a slowdown by `ratio` is called: exact p at most alpha / tests, and an interval of
        the ratio above 1 + threshold."""
        base_TB, new_TB, low_T = self._simulated
        u_T = (base_TB[:, :, None] > ratio * new_TB[:, None, :]).sum(axis=(1, 2))
        critical = critical_u(self.processes, self.processes, self.alpha / self.tests)
        return float(np.mean((u_T <= critical) & (ratio * low_T > 1 + self.threshold)))

    def detectable(self, wanted: float = WANTED) -> float | None:
        """Smallest ratio that is found with the wanted power, to a thousandth; None where none up to `LARGEST` is."""
        low, high = 1.0, LARGEST
        if self.power(high) < wanted:
            return None
        while high - low > 1e-3:
            middle = (low + high) / 2
            low, high = (low, middle) if self.power(middle) >= wanted else (middle, high)
        return high


def scatter(values_per_group: Sequence[Sequence[float]]) -> float | None:
    """Coefficient of variation of process values: root mean square over groups (models) of two processes or more."""
    found = [(stdev(g) / fmean(g)) ** 2 for g in values_per_group if len(g) > 1]
    return float(np.sqrt(fmean(found))) if found else None

"""Two or more ways of doing a thing, timed by turns in one process: A B C, A B C, ...

On a shared machine seconds mean nothing and ratios within a round nearly everything: what slows a neighbour slows the
whole round. So the ratio is the median over rounds of the ratio inside each round, with a bootstrap interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEAST_ROUNDS, DRAWS = 7, 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """Median over rounds and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def alternate(
    sides: Mapping[str, Callable[[], object]], *, rounds: int = 15, limit_s: float = 60.0, warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of every call, by side; the order of a round turns round each time.

    Args:
        sides: what is timed; one call each a round.
        rounds: at most.
        limit_s: no round starts after it, once there are `LEAST_ROUNDS`.
        warmup: untimed calls of each side before.
        clock: wall clock, or `time.process_time`.
    """
    for run in sides.values():
        for _ in range(warmup):
            run()
    samples: dict[str, list[float]] = {name: [] for name in sides}
    end = time.perf_counter() + limit_s
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        names = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in names:
            start = clock()
            sides[name]()
            samples[name].append(clock() - start)
    return samples


def ratio(above: Sequence[float], below: Sequence[float], seed: int = 0) -> Ratio:
    """Median of above/below round by round: how many times as long the first takes as the second.

    Raises:
        ValueError: the two have different numbers of rounds, or none.
    """
    if len(above) != len(below) or not above:
        raise ValueError(f"{len(above)} and {len(below)} rounds do not pair")
    each = np.asarray(above) / np.asarray(below)
    draws = np.random.default_rng(seed).integers(0, len(each), (DRAWS, len(each)))
    low, high = np.percentile(np.median(each[draws], axis=1), [2.5, 97.5])
    return Ratio(value=float(np.median(each)), low=float(low), high=float(high), rounds=len(each))

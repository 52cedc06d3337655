"""May a difference of two sets of processes be called one? Exact ranks, Holm, and how many processes that takes.

One value a process: steps inside a process are correlated and are no samples (measures.md, section 7).

Dims: A, B processes of the two sides, M tests
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu, rankdata

Floats = npt.NDArray[np.float64]

ALPHA = 0.05
MOST_PROCESSES = 64
"""No gate asks for more a side."""


def mann_whitney(a_A: Sequence[float], b_B: Sequence[float]) -> float:
    """Exact two-sided p of Mann and Whitney's U; with ties, of the permutations of the midranks.

    Raises:
        ValueError: if a side is empty.
    """
    if not len(a_A) or not len(b_B):
        raise ValueError("a side has no process")
    values = np.concatenate([np.asarray(a_A, dtype=np.float64), np.asarray(b_B, dtype=np.float64)])
    if len(np.unique(values)) == len(values):
        return float(mannwhitneyu(a_A, b_B, alternative="two-sided", method="exact").pvalue)
    return _permuted_midranks(values, len(a_A))


def _permuted_midranks(values: Floats, first: int) -> float:
    """Twice the smaller tail, at most 1: every choice of `first` ranks counted by its sum, doubled to be whole."""
    rank = np.rint(2 * rankdata(values)).astype(np.int64)
    chance, seen = _rank_sums(rank, first), int(rank[:first].sum())
    return float(min(1.0, 2 * min(chance[: seen + 1].sum(), chance[seen:].sum())))


def _rank_sums(rank: npt.NDArray[np.int64], first: int) -> Floats:
    """Chance of every sum of `first` of the ranks, drawn without replacement; index is the sum."""
    ways = np.zeros((first + 1, int(rank.sum()) + 1))
    ways[0, 0] = 1
    for r in rank.tolist():
        for chosen in range(first, 0, -1):
            ways[chosen, r:] += ways[chosen - 1, : ways.shape[1] - r]
    return np.asarray(ways[first] / ways[first].sum())


def critical_u(a: int, b: int, alpha: float) -> int:
    """Largest U (of the side with the smaller one) whose exact two-sided p is at most alpha; -1 if none is."""
    below = np.cumsum(_rank_sums(np.arange(1, a + b + 1), a))[a * (a + 1) // 2 :]
    return int(np.sum(2 * below <= alpha)) - 1


def smallest_p(a: int, b: int) -> float:
    """Smallest two-sided p that `a` against `b` processes can reach: one order of all, and its mirror.

    >>> round(smallest_p(5, 5), 4), round(smallest_p(6, 6), 4), round(smallest_p(7, 7), 4)
    (0.0079, 0.0022, 0.0006)
    """
    return min(1.0, 2 / comb(a + b, a))


def holm(p_M: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979): the i-th smallest times the tests not yet rejected, never falling."""
    order = np.argsort(p_M, kind="stable")
    adjusted, highest = [0.0] * len(p_M), 0.0
    for step, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_M) - step) * float(p_M[index])))
        adjusted[index] = highest
    return adjusted


def processes_needed(tests: int, alpha: float = ALPHA) -> int:
    """Processes a side at which even the first step of Holm over `tests` can be passed.

    >>> [processes_needed(m) for m in (1, 3, 24)]
    [4, 5, 7]

    Raises:
        ValueError: no test, or an alpha that `MOST_PROCESSES` cannot reach.
    """
    if tests < 1 or not 0 < alpha < 1:
        raise ValueError(f"{tests} tests at alpha {alpha}: at least one, and alpha inside (0, 1)")
    for n in range(1, MOST_PROCESSES + 1):
        if smallest_p(n, n) <= alpha / tests:
            return n
    raise ValueError(f"alpha {alpha} over {tests} tests asks for more than {MOST_PROCESSES} processes a side")


def decidable(smallest_M: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """Which tests can be decided together: the largest family whose every member can pass Holm's first step.

    It looks at the numbers of processes only, before any value: a test that could never be called costs the others
    nothing. Tests with equal numbers are in or out together.
    """
    bounds = sorted({p for p in smallest_M if p <= alpha / sum(q <= p for q in smallest_M)})
    return [bool(bounds) and p <= bounds[-1] for p in smallest_M]


def ratio_interval(
    base: Sequence[float], new: Sequence[float], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of median(new) / median(base); processes of each side are drawn with replacement.

    A process's value holds what its own steps add, so resampling whole processes is enough.

    Raises:
        ValueError: if a side has fewer than two processes.
    """
    if min(len(base), len(new)) < 2:
        raise ValueError("an interval needs two processes a side; one says nothing of the next")
    rng = np.random.default_rng(seed)
    drawn: Any = [
        np.median(np.asarray(side, dtype=np.float64)[rng.integers(0, len(side), (draws, len(side)))], axis=1)
        for side in (base, new)
    ]
    low, high = np.percentile(drawn[1] / drawn[0], [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)

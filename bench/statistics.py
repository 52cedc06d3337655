"""Intervals and paired differences for AUC and for step times (measures.md, section 7; data.md, section 7).

Resampled users are the same for every model that is given the same rows and seed, so that any pair's difference is
the difference of two arrays of `auc_draws`, taken on the same resampled rows.

Dims: N rows, S seeds, D draws, U resampling units (users, or rows without a user)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrbench.bench.quality import checked_labels

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

Z_95, POWER_80 = 1.959964, 0.841621
"""Normal quantiles: two-sided 5 % error, and 80 % power for the minimum detectable difference."""
P99_STEPS = 1000
"""A P99 of fewer steps than this is not given (measures.md, section 7)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """AUC of one model minus that of another, on the same rows, seed by seed."""

    delta: float
    ci_low: float
    ci_high: float
    se: float
    mdd: float
    """Smallest true difference that this design finds with 80 % power at 5 % two-sided error: 2.80 s.e."""
    tied: bool
    """The interval includes 0."""


def units_of(user_N: Array) -> tuple[npt.NDArray[np.intp], int]:
    """Resampling unit of each row: the user, or the row itself where the user is -1; and how many there are."""
    user_N = np.asarray(user_N)
    known_N = user_N >= 0
    _, unit_N = np.unique(user_N, return_inverse=True)
    if known_N.all():
        return unit_N, int(unit_N.max()) + 1
    _, known = np.unique(user_N[known_N], return_inverse=True)
    users = int(known.max()) + 1 if known.size else 0
    unit_N = np.empty(len(user_N), dtype=np.intp)
    unit_N[known_N] = known
    unit_N[~known_N] = users + np.arange(len(user_N) - known.size)
    return unit_N, users + len(user_N) - known.size


def _weights(unit_N: npt.NDArray[np.intp], units: int, positive_N: Array, draws: int, seed: int) -> Iterator[Floats]:
    """Times that each unit is drawn, one array [U] a draw. Depends on rows and seed only, never on scores.

    A draw that misses one class has no AUC and is drawn again.
    """
    positives_U = np.bincount(unit_N, weights=positive_N, minlength=units)
    negatives_U = np.bincount(unit_N, minlength=units) - positives_U
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        while True:
            weight_U = np.bincount(rng.integers(0, units, units), minlength=units).astype(np.float64)
            if weight_U @ positives_U > 0 and weight_U @ negatives_U > 0:
                break
        yield weight_U


def auc_draws(label_N: Array, score_N: Array, user_N: Array, *, draws: int = 400, seed: int = 0) -> Floats:
    """AUC of `draws` resamplings of users with replacement (of rows where the user is -1).

    Every model given the same labels, users and seed sees the same resampled users. One sort, then O(N) a draw: a
    positive wins the resampled weight of the negatives below it and half of that of its ties.

    Returns:
        float64 [draws].

    Raises:
        ValueError: as `quality.auc`.
    """
    positive_N = checked_labels(label_N, score_N)
    score_N = np.asarray(score_N)
    unit_N, units = units_of(user_N)
    order_N = np.argsort(score_N, kind="stable")
    up = order_N[positive_N[order_N]]
    down = order_N[~positive_N[order_N]]
    below = np.searchsorted(score_N[down], score_N[up], side="left")
    not_above = np.searchsorted(score_N[down], score_N[up], side="right")
    ties = bool((below != not_above).any())
    unit_up, unit_down = unit_N[up], unit_N[down]
    out = np.empty(draws)
    passed = np.zeros(len(down) + 1)
    for d, weight_U in enumerate(_weights(unit_N, units, positive_N, draws, seed)):
        np.cumsum(weight_U[unit_down], out=passed[1:])
        weight_up = weight_U[unit_up]
        won = passed[below] if not ties else (passed[below] + passed[not_above]) / 2
        out[d] = (weight_up @ won) / (weight_up.sum() * passed[-1])
    return out


def _mean_draws(draws_SD: Array, seed: int) -> Floats:
    """Mean over resampled seeds, draw by draw.

    Resampling S seeds shrinks their variance by (S-1)/S, which is a third for three seeds; deviations from the mean
    are scaled by sqrt(S/(S-1)) to undo it (Rao and Wu 1988, "Resampling inference with complex survey data").
    Noise of single (user, seed) cells enters with the users and again with the seeds, so intervals are on the wide side
    where it dominates (Owen 2007, "The pigeonhole bootstrap").
    """
    draws_SD = np.atleast_2d(np.asarray(draws_SD, dtype=np.float64))
    seeds, draws = draws_SD.shape
    mean_D: Floats = draws_SD.mean(axis=0)
    if seeds == 1:
        return mean_D
    pick_SD = np.random.default_rng([seed, seeds]).integers(0, seeds, (seeds, draws))
    resampled_D = np.take_along_axis(draws_SD, pick_SD, axis=0).mean(axis=0)
    mean_D += (resampled_D - mean_D) * np.sqrt(seeds / (seeds - 1))
    return mean_D


def _interval(values_D: Floats) -> tuple[float, float]:
    low, high = np.percentile(values_D, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(draws_SD: Array, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean over seeds; users and seeds vary together.

    Args:
        draws_SD: `auc_draws` of each seed. With one seed the interval holds users only.
        seed: of the resampling of seeds.
    """
    return _interval(_mean_draws(draws_SD, seed))


def _difference(a_SD: Array, b_SD: Array) -> Floats:
    a_SD, b_SD = np.atleast_2d(np.asarray(a_SD)), np.atleast_2d(np.asarray(b_SD))
    if a_SD.shape[1] != b_SD.shape[1]:
        raise ValueError(f"{a_SD.shape[1]} draws against {b_SD.shape[1]}: give both models the same number")
    if a_SD.shape[0] != b_SD.shape[0] and 1 not in (a_SD.shape[0], b_SD.shape[0]):
        raise ValueError(f"{a_SD.shape[0]} seeds against {b_SD.shape[0]}: pair equal seeds, or give one side one run")
    return np.asarray(a_SD - b_SD, dtype=np.float64)


def paired_from_draws(delta: float, a_SD: Array, b_SD: Array, *, seed: int = 0) -> PairedDifference:
    """95 % percentile interval of the mean over seeds of a - b, minimum detectable difference and the verdict.

    Args:
        delta: mean over seeds of the difference on the rows as they are.
        a_SD: `auc_draws` of each seed of the one model.
        b_SD: the same of the other, on the same rows with the same draws; row s of both is the same seed. One row
            beside several of `a_SD` is a model that was trained once: the interval then holds no seed noise of its own.
        seed: of the resampling of seeds.

    Raises:
        ValueError: if draws or seeds do not pair.
    """
    values_D = _mean_draws(_difference(a_SD, b_SD), seed)
    low, high = _interval(values_D)
    se = float(values_D.std(ddof=1))
    return PairedDifference(
        delta=delta, ci_low=low, ci_high=high, se=se, mdd=(Z_95 + POWER_80) * se, tied=low <= 0 <= high
    )


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """p10, p50, p90 by linear interpolation; p99 only from `P99_STEPS` steps on, else the key is absent.

    Raises:
        ValueError: if there is no sample.
    """
    if not len(samples):
        raise ValueError("no steps were timed")
    ranks = [10, 50, 90] + ([99] if len(samples) >= P99_STEPS else [])
    return {f"p{q}": float(v) for q, v in zip(ranks, np.percentile(samples, ranks), strict=True)}


def two_level_bootstrap(
    samples_per_process: Sequence[Sequence[float]], *, block: int = 10, draws: int = 2000, seed: int = 0
) -> tuple[float, float] | tuple[None, None]:
    """95 % percentile interval of the median over processes of the per-process P50.

    Processes are drawn with replacement, then steps inside each in overlapping blocks of `block` neighbours (steps of
    one process are correlated).

    Returns:
        (low, high); (None, None) for one process, whose steps say nothing of the next process.

    Raises:
        ValueError: if there is no process or an empty one.
    """
    processes = [np.asarray(s, dtype=np.float64) for s in samples_per_process]
    if not processes or any(not len(p) for p in processes):
        raise ValueError("every process needs at least one timed step")
    if len(processes) == 1:
        return None, None
    rng = np.random.default_rng(seed)
    pick = rng.integers(0, len(processes), (draws, len(processes)))
    p50 = np.empty(pick.shape)
    for i, steps in enumerate(processes):
        chosen = pick == i
        p50[chosen] = np.median(_blocks(steps, min(block, len(steps)), int(chosen.sum()), rng), axis=1)
    return _interval(np.median(p50, axis=1))


def _blocks(steps: Floats, block: int, count: int, rng: np.random.Generator) -> Floats:
    """`count` resamplings of one process, each as long as it, of blocks that start anywhere."""
    blocks = -(-len(steps) // block)
    start = rng.integers(0, len(steps) - block + 1, (count, blocks, 1))
    index = (start + np.arange(block)).reshape(count, -1)[:, : len(steps)]
    return np.asarray(steps[index])


def auc_standard_error(auc: float, positives: int, negatives: int) -> float:
    """Standard error of one AUC over independent rows (Hanley and McNeil 1982, equation 2)."""
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc * auc) + (negatives - 1) * (q2 - auc * auc)
    return float(np.sqrt(variance / (positives * negatives)))

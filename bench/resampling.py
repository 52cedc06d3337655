"""BCa intervals (Efron 1987), for a statistic of independent values and for draws of users, pairs or clusters.

A percentile interval is shifted where the draws lie off the estimate and skewed where its error grows with it: BCa
moves the two percentiles by both. It needs a smooth statistic: medians of five values keep percentile intervals.

Dims: D draws, U resampling units
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap, norm

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def bca_interval(
    samples: Sequence[Array], statistic: Callable[..., Any], *, paired: bool = False, level: float = 0.95,
    draws: int = 2000, seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """BCa interval of a statistic of independent values; SciPy's.

    Args:
        samples: one array a group; `statistic` takes them with `axis`.
        statistic: e.g. `numpy.mean`.
        paired: groups have equal length and are resampled together.
        level: of confidence.
        draws: bootstrap resamplings.
        seed: of the draws.

    Returns:
        (low, high); the value twice where all resamplings are equal.

    Raises:
        ValueError: if a group has fewer than two values.
    """
    if any(len(s) < 2 for s in samples):
        raise ValueError("a bootstrap needs at least two values a group")
    value = float(statistic(*samples, axis=-1))
    if all(np.ptp(s) == 0 for s in samples):
        return value, value
    found = bootstrap(
        samples, statistic, paired=paired, confidence_level=level, n_resamples=draws, method="BCa", vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def bca_from_draws(value: float, draws_D: Array, influence_U: Array, level: float = 0.95) -> tuple[float, float]:
    """BCa interval from draws that were made elsewhere, of whatever units (users, pairs, clusters).

    Args:
        value: the statistic of the data as they are.
        draws_D: the statistic of each resampling, e.g. `statistics.auc_draws`.
        influence_U: what each unit adds to the statistic's deviation (infinitesimal jackknife), e.g. of
            `delong.auc_covariance`.
        level: of confidence.
    """
    draws_D = np.asarray(draws_D, dtype=np.float64)
    below = (np.sum(draws_D < value) + np.sum(draws_D == value) / 2) / len(draws_D)
    if not 0 < below < 1 or not np.any(influence_U):  # nothing to correct by
        low, high = np.percentile(draws_D, [50 * (1 - level), 50 * (1 + level)])
        return float(low), float(high)
    influence_U = np.asarray(influence_U, dtype=np.float64)
    shift = norm.ppf(below)
    skew = float(np.sum(influence_U**3) / (6 * np.sum(influence_U**2) ** 1.5))
    ends = shift + norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.percentile(draws_D, 100 * norm.cdf(shift + ends / (1 - skew * ends)))
    return float(low), float(high)

"""Covariance of AUCs on the same rows without resampling, and the paired test of two models (measures.md, section 7).

An AUC is a mean of placements: what share of the negatives a positive outranks, and of the positives a negative stays
below (DeLong, DeLong and Clarke-Pearson 1988). Placements come from ranks in O(N log N) (Sun and Xu 2014). Rows of one
user are not independent: their placements are summed before the variance is taken (Obuchowski 1997).

Dims: N rows, K scorings, P positives, Q negatives, U users, S seeds
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata, t

from ctrbench.bench.quality import checked_labels
from ctrbench.bench.statistics import units_of

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


ROUNDING = 1e-13
"""Share of its terms under which a sum that should cancel has cancelled."""


@dataclass(frozen=True, slots=True)
class AucCovariance:
    """AUCs of several scorings of the same rows."""

    auc_K: Floats
    covariance_KK: Floats
    influence_KU: Floats
    """What each user (each row without one) adds to the deviation of the AUC; sums to 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AucTest:
    """AUC of one side minus that of the other, seed by seed on the same rows."""

    delta: float
    se: float
    """Users, or rows, and seeds together."""
    df: float
    """Degrees of freedom of `se`: infinite where rows decide it, seeds - 1 where seeds do."""
    p: float
    """Two-sided."""
    ci_low: float
    ci_high: float


def placements(positive_N: npt.NDArray[np.bool_], score_N: Array) -> tuple[Floats, Floats]:
    """(share of negatives below each positive [P], share of positives above each negative [Q]), ties half."""
    up, down = score_N[positive_N], score_N[~positive_N]
    rank_N = np.empty(len(score_N))
    both = rankdata(np.concatenate([up, down]))  # midranks
    rank_N[: len(up)] = both[: len(up)] - rankdata(up)
    rank_N[len(up) :] = both[len(up) :] - rankdata(down)
    return rank_N[: len(up)] / len(down), 1 - rank_N[len(up) :] / len(up)


def auc_covariance(label_N: Array, score_KN: Array, user_N: Array | None = None) -> AucCovariance:
    """AUCs and their covariance.

    Args:
        label_N: 0 or 1.
        score_KN: one row a scoring.
        user_N: rows of one user are resampled together; -1, or None, is a row of its own.

    Raises:
        ValueError: as `quality.auc`, or if a class comes from a single user.
    """
    score_KN = np.atleast_2d(score_KN)
    positive_N = checked_labels(label_N, score_KN[0])
    unit_N, units = units_of(np.full(len(positive_N), -1) if user_N is None else user_N)
    ups = np.bincount(unit_N, weights=positive_N, minlength=units)
    downs = np.bincount(unit_N, minlength=units) - ups
    auc_K = np.empty(len(score_KN))
    up_KU, down_KU = np.empty((2, len(score_KN), units))
    for k, score_N in enumerate(score_KN):
        checked_labels(label_N, score_N)
        wins_P, kept_Q = placements(positive_N, score_N)
        auc_K[k] = wins_P.mean()
        up_KU[k] = np.bincount(unit_N[positive_N], weights=wins_P - auc_K[k], minlength=units) / len(wins_P)
        down_KU[k] = np.bincount(unit_N[~positive_N], weights=kept_Q - auc_K[k], minlength=units) / len(kept_Q)
    with_up, with_down = int((ups > 0).sum()), int((downs > 0).sum())
    if min(with_up, with_down) < 2:
        raise ValueError("all rows of one class are of one user: its AUC has no variance to speak of")
    both = up_KU @ down_KU.T  # users with rows of both classes tie the two parts together
    covariance_KK = (
        with_up / (with_up - 1) * up_KU @ up_KU.T
        + with_down / (with_down - 1) * down_KU @ down_KU.T
        + units / (units - 1) * (both + both.T)
    )
    return AucCovariance(auc_K, covariance_KK, up_KU + down_KU)


def paired_auc_test(label_N: Array, a_SN: Array, b_SN: Array, user_N: Array | None = None) -> AucTest:
    """AUC of `a_SN` minus that of `b_SN`; row s of both is the same seed.

    Two things may differ next time: the users and the seeds. The variance is the sum of the mean difference's variance
    over users (DeLong) and of its variance over seeds, with the degrees of freedom of that sum (Satterthwaite 1946):
    three seeds alone are no ground for a normal interval. Noise of single (user, seed) cells is in both parts, so the
    test is on the careful side where it dominates. One seed holds the users' part alone.

    Raises:
        ValueError: if the seeds do not pair, or as `auc_covariance`.
    """
    a_SN, b_SN = np.atleast_2d(a_SN), np.atleast_2d(b_SN)
    if a_SN.shape != b_SN.shape:
        raise ValueError(f"{a_SN.shape} scores against {b_SN.shape}: give both sides the same seeds and rows")
    found = auc_covariance(label_N, np.concatenate([a_SN, b_SN]), user_N)
    seeds = len(a_SN)
    delta_S = found.auc_K[:seeds] - found.auc_K[seeds:]
    contrast_K = np.repeat([1.0, -1.0], seeds) / seeds
    of_users = float(contrast_K @ found.covariance_KK @ contrast_K)
    if of_users < ROUNDING * float(np.abs(contrast_K) @ np.abs(found.covariance_KK) @ np.abs(contrast_K)):
        of_users = 0.0  # what is left of equal terms that cancel
    of_seeds = float(delta_S.var(ddof=1)) / seeds if seeds > 1 else 0.0
    variance, delta = of_users + of_seeds, float(delta_S.mean())
    df = variance**2 / (of_seeds**2 / (seeds - 1)) if of_seeds > 0 else math.inf
    if variance == 0:  # equal scores, or two rankings that leave nothing to chance
        return AucTest(delta=delta, se=0.0, df=df, p=float(delta == 0), ci_low=delta, ci_high=delta)
    se = math.sqrt(variance)
    law = t(df) if df < 1e6 else norm
    reach = float(law.ppf(0.975)) * se
    p = float(2 * law.sf(abs(delta) / se))
    return AucTest(delta=delta, se=se, df=df, p=p, ci_low=delta - reach, ci_high=delta + reach)

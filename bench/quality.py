"""Quality of a split's scores: AUC, GAUC, log loss, normalised entropy, calibration (measures.md, section 4).

Dims: N rows, U users, P pairs (user, score) that differ
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

EPSILON = 1e-7
"""Probabilities are kept this far from 0 and 1 in the log loss: the spacing of float32 just below 1 is 6e-8."""
BINS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationBin:
    """Rows of one score bin; bins hold equal numbers of rows unless equal scores forbid it."""

    score_low: float
    score_high: float
    rows: int
    predicted: float
    """Mean score."""
    observed: float
    """Share of positives."""
    ratio: float | None
    """predicted / observed; None where the bin has no positive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Every quality measure of one scoring of one split."""

    auc: float
    gauc: float | None
    """Mean of the users' AUCs weighted by their rows; None where it does not exist (`gauc` says why)."""
    logloss: float
    """Nats a row."""
    ne: float
    """Log loss over that of the constant train positive rate on the same rows; below 1 is better than the constant."""
    calibration: float
    """Mean score over share of positives."""


def auc(label_N: Array, score_N: Array) -> float:
    """Probability that a random positive scores above a random negative, ties half; exact.

    Raises:
        ValueError: if the lengths differ, a score is not finite, or only one class is present.
    """
    positive_N = checked_labels(label_N, score_N)
    n_positive = int(positive_N.sum())
    rank_N = rankdata(score_N)
    below = float(rank_N[positive_N].sum()) - n_positive * (n_positive + 1) / 2
    return below / (n_positive * (len(positive_N) - n_positive))


def checked_labels(label_N: Array, score_N: Array) -> npt.NDArray[np.bool_]:
    """Labels as booleans, after the checks that every AUC needs.

    Raises:
        ValueError: as `auc`.
    """
    label_N, score_N = np.asarray(label_N), np.asarray(score_N)
    if label_N.ndim != 1 or label_N.shape != score_N.shape:
        raise ValueError(f"labels {label_N.shape} and scores {score_N.shape}: give one score a row")
    if not np.isfinite(score_N).all():
        count = int((~np.isfinite(score_N)).sum())
        raise ValueError(f"{count} of {len(score_N)} scores are not finite; look for a diverged training")
    positive_N: npt.NDArray[np.bool_] = label_N == 1
    if not (positive_N | (label_N == 0)).all():
        raise ValueError("labels must be 0 or 1")
    if positive_N.all() or not positive_N.any():
        raise ValueError(
            f"all {len(label_N)} rows have one label: AUC does not exist; check the label rule and the split"
        )
    return positive_N


def gauc(label_N: Array, score_N: Array, user_N: Array) -> tuple[float | None, float | None, str]:
    """(GAUC, share of users dropped, reason for no GAUC). Rows of user -1 have no user and are left out.

    A user's AUC is weighted by the user's rows; users whose rows have one label have none and are dropped.
    """
    known_N = np.asarray(user_N) >= 0
    if not known_N.any():
        return None, None, "field_missing: the data has no user"
    label_N, score_N, user_N = np.asarray(label_N)[known_N], np.asarray(score_N)[known_N], np.asarray(user_N)[known_N]
    order_N = np.lexsort((score_N, user_N))
    label_N, score_N, user_N = label_N[order_N].astype(np.float64), score_N[order_N], user_N[order_N]
    new_user_N = np.r_[True, user_N[1:] != user_N[:-1]]
    start_U = np.flatnonzero(new_user_N)
    rows_U = np.diff(np.r_[start_U, len(user_N)])
    rank_N = _tied_positions(new_user_N | np.r_[True, score_N[1:] != score_N[:-1]]) - np.repeat(start_U, rows_U)
    positives_U = np.add.reduceat(label_N, start_U)
    pairs_U = positives_U * (rows_U - positives_U)
    wins_U = np.add.reduceat(label_N * rank_N, start_U) - positives_U * (positives_U + 1) / 2
    kept_U = pairs_U > 0
    dropped = 1 - float(kept_U.mean())
    if not kept_U.any():
        return None, dropped, "every user's rows have one label"
    return float(np.average(wins_U[kept_U] / pairs_U[kept_U], weights=rows_U[kept_U])), dropped, ""


def _tied_positions(first_N: npt.NDArray[np.bool_]) -> Floats:
    """1-based positions in sorted rows, averaged over runs of equal rows; `first_N` marks where a run begins."""
    start_P = np.flatnonzero(first_N)
    rows_P = np.diff(np.r_[start_P, len(first_N)])
    return np.repeat(start_P + (rows_P + 1) / 2, rows_P)


def cross_entropy(label_N: Array, probability_N: Array | float) -> float:
    """Mean of -log(probability of the label that came), in nats; probabilities are clipped by `EPSILON`."""
    p_N = np.clip(np.asarray(probability_N, dtype=np.float64), EPSILON, 1 - EPSILON)
    return float(-np.mean(np.where(np.asarray(label_N) == 1, np.log(p_N), np.log1p(-p_N))))


def calibration_bins(label_N: Array, score_N: Array, bins: int = BINS) -> tuple[CalibrationBin, ...]:
    """Predicted against observed rate in bins of equally many rows; equal scores never fall in two bins."""
    score_N, label_N = np.asarray(score_N, dtype=np.float64), np.asarray(label_N, dtype=np.float64)
    edges = np.quantile(score_N, np.linspace(0, 1, bins + 1)[1:-1])
    _, bin_N = np.unique(np.searchsorted(edges, score_N, side="left"), return_inverse=True)
    rows = np.bincount(bin_N)
    predicted, observed = np.bincount(bin_N, weights=score_N) / rows, np.bincount(bin_N, weights=label_N) / rows
    low, high = np.full(len(rows), np.inf), np.full(len(rows), -np.inf)
    np.minimum.at(low, bin_N, score_N)
    np.maximum.at(high, bin_N, score_N)
    return tuple(
        CalibrationBin(
            score_low=float(low[b]), score_high=float(high[b]), rows=int(rows[b]), predicted=float(predicted[b]),
            observed=float(observed[b]), ratio=float(predicted[b] / observed[b]) if observed[b] > 0 else None,
        )
        for b in range(len(rows))
    )  # fmt: skip


def evaluate(label_N: Array, score_N: Array, user_N: Array, train_rate: float) -> Quality:
    """All quality measures of one split.

    Args:
        label_N: 0 or 1.
        score_N: probabilities.
        user_N: user of each row, -1 where there is none.
        train_rate: share of positives among the training rows.

    Raises:
        ValueError: if one class is missing, a score is no probability, or `train_rate` is not inside (0, 1).
    """
    positive_N = checked_labels(label_N, score_N)
    score_N = np.asarray(score_N, dtype=np.float64)
    if score_N.min() < 0 or score_N.max() > 1:
        raise ValueError(f"scores span {score_N.min():.4g}..{score_N.max():.4g}: give probabilities, not logits")
    if not 0 < train_rate < 1:
        raise ValueError(f"train positive rate {train_rate}: must lie strictly between 0 and 1")
    logloss = cross_entropy(positive_N, score_N)
    return Quality(
        auc=auc(positive_N, score_N), gauc=gauc(positive_N, score_N, user_N)[0], logloss=logloss,
        ne=logloss / cross_entropy(positive_N, train_rate), calibration=float(score_N.mean() / positive_N.mean()),
    )  # fmt: skip

"""Quality measures against hand-computed values and scikit-learn."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from ctrbench.bench.quality import auc, calibration_bins, cross_entropy, evaluate, gauc

NOBODY = -1


def test_auc_by_hand() -> None:
    # Negatives .1 .4, positives .35 .8: pairs won .35>.1, .8>.1, .8>.4, lost .35<.4 -> 3/4.
    assert auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])) == 0.75


def test_auc_ties_count_half_by_hand() -> None:
    # Positives .5 .9, negatives .5 .1: .5=.5 half, .5>.1, .9>.5, .9>.1 -> 3.5/4.
    assert auc(np.array([1, 1, 0, 0]), np.array([0.5, 0.9, 0.5, 0.1])) == 0.875
    assert auc(np.array([1, 0, 0]), np.full(3, 0.3)) == 0.5  # all tied: every pair half


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_an_error_not_a_half(label: int) -> None:
    with pytest.raises(ValueError, match="all 3 rows have one label"):
        auc(np.full(3, label), np.array([0.1, 0.2, 0.3]))


def test_bad_input_names_the_fault() -> None:
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        auc(np.array([0, 1]), np.array([0.1, np.nan]))
    with pytest.raises(ValueError, match="one score a row"):
        auc(np.array([0, 1]), np.array([0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match="0 or 1"):
        auc(np.array([0, 2]), np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="not logits"):
        evaluate(np.array([0, 1]), np.array([-2.0, 3.0]), np.array([0, 1]), 0.5)
    with pytest.raises(ValueError, match="positive rate"):
        evaluate(np.array([0, 1]), np.array([0.2, 0.3]), np.array([0, 1]), 1.0)


def test_gauc_by_hand() -> None:
    # User 7: 3 rows, negatives .2 .6, positive .5 -> 1/2. User 9: 2 rows, .3 < .4 -> 1.
    # User 2: positives only, dropped. (3 * .5 + 2 * 1) / 5 = .7; one of three users dropped.
    label = np.array([0, 1, 1, 0, 1, 0, 1])
    score = np.array([0.2, 0.9, 0.5, 0.3, 0.4, 0.6, 0.1])
    user = np.array([7, 2, 7, 9, 9, 7, 2])
    value, dropped, reason = gauc(label, score, user)
    assert value == pytest.approx(0.7, abs=1e-15)
    assert dropped == pytest.approx(1 / 3, abs=1e-15)
    assert reason == ""


def test_gauc_matches_a_loop_over_users_with_ties() -> None:
    rng = np.random.default_rng(3)
    label, user = rng.integers(0, 2, 3000), rng.integers(0, 400, 3000)
    score = rng.integers(0, 6, 3000) / 5  # six values: many ties inside a user
    total, rows = 0.0, 0
    for u in np.unique(user):
        mine = user == u
        if 0 < label[mine].sum() < mine.sum():
            total += float(roc_auc_score(label[mine], score[mine])) * mine.sum()
            rows += int(mine.sum())
    assert gauc(label, score, user)[0] == pytest.approx(total / rows, abs=1e-12)


def test_gauc_without_users_has_a_reason() -> None:
    label, score = np.array([0, 1, 1]), np.array([0.1, 0.2, 0.3])
    assert gauc(label, score, np.full(3, NOBODY)) == (None, None, "field_missing: the data has no user")
    value, dropped, reason = gauc(label, score, np.array([1, 2, 3]))
    assert value is None
    assert dropped == 1.0
    assert "one label" in reason


def test_gauc_leaves_rows_without_a_user_out() -> None:
    label, score, user = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.9, 0.8]), np.array([5, 5, NOBODY, NOBODY])
    assert gauc(label, score, user) == (1.0, 0.0, "")


def test_logloss_ne_calibration_by_hand() -> None:
    # -(ln .8 + ln .6) / 2 = .36698459; against the constant .25: -(ln .25 + ln .75) / 2 = .83698822;
    # mean score .6 over rate .5 = 1.2.
    q = evaluate(np.array([1, 0]), np.array([0.8, 0.4]), np.array([0, 1]), 0.25)
    assert q.logloss == pytest.approx(0.36698459, abs=1e-8)
    assert q.ne == pytest.approx(0.36698459 / 0.83698822, abs=1e-7)
    assert q.calibration == pytest.approx(1.2, abs=1e-12)


def test_constant_train_rate_has_ne_one() -> None:
    label = (np.arange(100) % 4 == 0).astype(float)
    score = np.full(100, 0.3)
    assert evaluate(label, score, np.arange(100), 0.3).ne == pytest.approx(1.0, abs=1e-12)


def test_certain_and_wrong_is_finite() -> None:
    assert cross_entropy(np.array([1, 0]), np.array([0.0, 1.0])) == pytest.approx(-math.log(1e-7), rel=1e-6)


def test_logloss_matches_sklearn_on_float32() -> None:
    rng = np.random.default_rng(0)
    label, score = rng.integers(0, 2, 1000), rng.random(1000).astype(np.float32)
    assert cross_entropy(label, score) == pytest.approx(log_loss(label, score.astype(np.float64)), rel=1e-6)


def test_calibration_bins_hold_all_rows_and_equal_scores_stay_together() -> None:
    rng = np.random.default_rng(1)
    score = rng.random(5000)
    label = (rng.random(5000) < score).astype(int)
    bins = calibration_bins(label, score)
    assert [b.rows for b in bins] == [500] * 10
    assert sum(b.predicted * b.rows for b in bins) == pytest.approx(score.sum(), rel=1e-12)
    assert sum(b.observed * b.rows for b in bins) == pytest.approx(label.sum(), rel=1e-12)
    assert all(a.score_high < b.score_low for a, b in itertools.pairwise(bins))
    tied = calibration_bins(np.array([0, 0, 1, 0]), np.array([0.2, 0.2, 0.7, 0.2]))
    assert [(b.rows, b.ratio) for b in tied] == [(3, None), (1, 0.7)]  # .7 predicted over 1.0 observed


def test_fast_enough_for_a_test_split() -> None:
    rng = np.random.default_rng(0)
    label, score, user = rng.integers(0, 2, 200_000), rng.random(200_000), rng.integers(0, 6000, 200_000)
    start = time.perf_counter()
    evaluate(label, score, user, 0.5)
    assert time.perf_counter() - start < 3  # about .15 s here; a loop over users takes longer than 3

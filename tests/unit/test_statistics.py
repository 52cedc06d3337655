"""Bootstrap intervals against brute force and against their promised coverage; timing statistics by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ctrbench.bench import statistics
from ctrbench.bench.quality import auc
from ctrbench.bench.statistics import (
    PairedDifference,
    auc_draws,
    mean_interval,
    paired_from_draws,
    percentiles,
    two_level_bootstrap,
)


def clustered(rng: np.random.Generator, users: int, effect: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(label, user, true logit) of users with their own base rate and 3..12 rows each."""
    user = np.repeat(np.arange(users), rng.integers(3, 13, users))
    logit = effect * rng.normal(size=users)[user] + 0.5 * rng.normal(size=len(user))
    return (rng.random(len(user)) < 1 / (1 + np.exp(-logit))).astype(int), user, logit


def draws_of(label: np.ndarray, scores_SN: np.ndarray, user: np.ndarray, draws: int) -> np.ndarray:
    return np.stack([auc_draws(label, s, user, draws=draws) for s in scores_SN])


def mean_auc(label: np.ndarray, scores_SN: np.ndarray) -> float:
    return float(np.mean([auc(label, s) for s in scores_SN]))


def paired(label: np.ndarray, a_SN: np.ndarray, b_SN: np.ndarray, user: np.ndarray, *, draws: int) -> PairedDifference:
    """The verdict on two models from their scores, as the summary of a suite makes it."""
    delta = mean_auc(label, a_SN) - mean_auc(label, b_SN)
    return paired_from_draws(delta, *(draws_of(label, side, user, draws) for side in (a_SN, b_SN)))


@pytest.mark.parametrize("levels", [0, 7])
@pytest.mark.parametrize("kind", ["users", "no users", "both"])
def test_draws_equal_row_replication(levels: int, kind: str) -> None:
    """Each draw equals scikit-learn's AUC of the rows really repeated; with and without ties."""
    rng = np.random.default_rng(5)
    label, user, logit = clustered(rng, 40)
    user = {"users": user, "no users": np.full(len(user), -1), "both": np.where(user % 3 == 0, -1, user)}[kind]
    score = np.round(logit * levels) if levels else logit
    unit, units = statistics.units_of(user)
    assert units == (np.unique(user[user >= 0]).size + int((user < 0).sum())) == np.unique(unit).size
    got = auc_draws(label, score, user, draws=25, seed=11)
    for value, weight_U in zip(got, statistics._weights(unit, units, label == 1, 25, 11), strict=True):
        again = np.repeat(np.arange(len(label)), weight_U[unit].astype(int))
        assert weight_U.sum() == units
        assert value == pytest.approx(roc_auc_score(label[again], score[again]), abs=1e-12)


def test_same_seed_gives_every_model_the_same_users() -> None:
    rng = np.random.default_rng(0)
    label, user, logit = clustered(rng, 50)
    np.testing.assert_array_equal(auc_draws(label, logit, user, seed=4), auc_draws(label, np.tanh(logit), user, seed=4))
    assert (auc_draws(label, logit, user, seed=4) != auc_draws(label, logit, user, seed=5)).any()
    worst = auc_draws(label, -logit, user, seed=4)  # another order of rows, the same users
    np.testing.assert_allclose(worst, 1 - auc_draws(label, logit, user, seed=4), atol=1e-12)


def test_draws_with_one_class_are_redrawn() -> None:
    label, user = np.array([1, 0, 0, 0]), np.arange(4)  # a third of the resamplings miss the positive
    assert np.isfinite(auc_draws(label, np.array([0.5, 0.1, 0.9, 0.2]), user, draws=200)).all()


def test_rows_of_a_user_move_together() -> None:
    """With all noise between users the clustered error is several times the naive one (data.md section 7)."""
    rng = np.random.default_rng(2)
    user = np.repeat(np.arange(100), 20)
    score = rng.normal(size=100)[user]
    label = (rng.random(100)[user] < 1 / (1 + np.exp(-score))).astype(int)  # one label a user
    by_user = auc_draws(label, score, user, draws=200).std()
    by_row = auc_draws(label, score, np.full(len(user), -1), draws=200).std()
    assert by_user / by_row > 3  # sqrt(20) = 4.5 in theory


def test_seed_noise_enters_the_interval() -> None:
    draws_SD = np.array([[0.70], [0.72], [0.74]]) + np.zeros((3, 4000))  # users give no noise at all
    low, high = mean_interval(draws_SD)
    values = statistics._mean_draws(draws_SD, 0)
    # Variance of the mean of three seeds: sd^2 / 3 with sd = .02 (n - 1 in the denominator).
    assert values.std() == pytest.approx(0.02 / np.sqrt(3), rel=0.05)
    assert low < 0.72 < high
    assert mean_interval(draws_SD[:1]) == (0.70, 0.70)


def test_intervals_leave_out_two_and_a_half_percent_on_either_side() -> None:
    even_D = np.linspace(0.0, 1.0, 1001)
    assert mean_interval(even_D[None]) == pytest.approx((0.025, 0.975))
    pair = paired_from_draws(0.0, even_D[None], np.full((1, 1001), 0.5))
    assert (pair.ci_low, pair.ci_high) == pytest.approx((-0.475, 0.475))


def test_seeds_that_both_models_share_leave_no_noise() -> None:
    """Both gain and lose alike with the seed: resampled together the difference never moves."""
    a_SD = np.array([[0.70], [0.72], [0.74]]) + np.zeros((3, 500))
    pair = paired_from_draws(0.01, a_SD, a_SD - 0.01)
    assert (pair.ci_low, pair.ci_high, pair.se) == pytest.approx((0.01, 0.01, 0.0), abs=1e-12)
    assert not pair.tied


def test_paired_difference_cancels_what_models_share() -> None:
    rng = np.random.default_rng(1)
    label, user, logit = clustered(rng, 300)
    a_SN = np.stack([logit + 0.1 * rng.normal(size=len(logit)) for _ in range(3)])
    b_SN = a_SN + 0.6 * rng.normal(size=a_SN.shape)
    pair = paired(label, a_SN, b_SN, user, draws=300)
    assert pair.ci_low < pair.delta < pair.ci_high
    assert not pair.tied
    assert pair.mdd == pytest.approx(2.8016 * pair.se, rel=1e-4)  # z(.975) + z(.8)
    low, high = mean_interval(draws_of(label, a_SN, user, 300))
    assert low < mean_auc(label, a_SN) < high
    assert pair.ci_high - pair.ci_low < high - low


def test_a_model_is_tied_with_itself() -> None:
    rng = np.random.default_rng(1)
    label, user, logit = clustered(rng, 30)
    pair = paired(label, logit[None], logit[None], user, draws=50)
    assert (pair.delta, pair.se, pair.tied) == (0.0, 0.0, True)


def test_unequal_seeds_do_not_pair() -> None:
    with pytest.raises(ValueError, match="3 seeds against 2"):
        paired_from_draws(0.0, np.zeros((3, 10)), np.zeros((2, 10)))
    with pytest.raises(ValueError, match="10 draws against 9"):
        paired_from_draws(0.0, np.zeros((3, 10)), np.zeros((3, 9)))
    once = paired_from_draws(0.2, np.full((3, 10), 0.7), np.full((1, 10), 0.5))
    assert (once.ci_low, once.ci_high) == pytest.approx((0.2, 0.2))


def test_coverage_of_the_joint_interval() -> None:
    """Over fresh users and fresh seeds, 95 % intervals must hold the true mean AUC in 88-100 % of 120 studies.

    Three seeds estimate their own spread poorly, so the band's lower edge is what a 93 % interval passes with
    probability .99 (binomial, 120 studies).
    """
    rng = np.random.default_rng(17)

    def study(users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        label, user, logit = clustered(rng, users)
        bias_S = 0.5 * rng.normal(size=(3, 1)) ** 2  # seeds differ in how noisy their scores are
        return label, logit + bias_S * rng.normal(size=(3, len(logit))), user

    truth = np.mean([np.mean([auc(label, s) for s in scores]) for label, scores, _ in (study(2000) for _ in range(60))])
    hits = []
    for _ in range(120):
        label, scores, user = study(60)
        low, high = mean_interval(draws_of(label, scores, user, 200))
        hits.append(low <= truth <= high)
    assert 0.88 <= np.mean(hits) <= 1.0


def test_false_alarm_rate_of_the_paired_verdict() -> None:
    """Two models that are equally good are called tied in at least 88 % of 120 studies (5 % alarms promised)."""
    rng = np.random.default_rng(23)
    tied = []
    for _ in range(120):
        label, user, logit = clustered(rng, 60)
        sides = [logit + 0.5 * rng.normal(size=(3, len(logit))) for _ in range(2)]
        tied.append(paired(label, sides[0], sides[1], user, draws=200).tied)
    assert np.mean(tied) >= 0.88


def test_fast_enough_for_a_pair() -> None:
    rng = np.random.default_rng(0)
    label, user = rng.integers(0, 2, 200_000), rng.integers(0, 6000, 200_000)
    start = time.perf_counter()
    auc_draws(label, rng.random(200_000), user, draws=100)
    assert time.perf_counter() - start < 3  # .2-.5 s here; a pair of 3 seeds x 400 draws is 24 times this


def test_percentiles_interpolate_and_abstain_from_p99() -> None:
    # 1..5 by linear interpolation: rank .1 * 4 = .4 -> 1.4; .9 * 4 = 3.6 -> 4.6.
    assert percentiles([3, 1, 2, 5, 4]) == pytest.approx({"p10": 1.4, "p50": 3.0, "p90": 4.6})
    assert "p99" not in percentiles(range(999))
    assert percentiles(range(1000))["p99"] == pytest.approx(989.01)  # .99 * 999
    with pytest.raises(ValueError, match="no steps"):
        percentiles([])


def test_two_level_bootstrap_covers_the_drift_between_processes() -> None:
    rng = np.random.default_rng(0)
    steps = [list(base + 0.001 * rng.random(60)) for base in (1.0, 1.1, 1.2)]
    low, high = two_level_bootstrap(steps)
    assert low is not None
    assert high is not None
    assert 1.0 <= low < 1.002  # a resampling of three processes is all of one with probability 1/27 > 2.5 %
    assert 1.2 <= high < 1.202
    assert (low, high) == two_level_bootstrap(steps)
    assert two_level_bootstrap(steps[:1]) == (None, None)
    with pytest.raises(ValueError, match="at least one timed step"):
        two_level_bootstrap([[1.0], []])


def test_two_level_bootstrap_of_equal_processes_is_narrow_and_right() -> None:
    rng = np.random.default_rng(4)
    steps = [list(rng.normal(10, 1, 100)) for _ in range(5)]
    low, high = two_level_bootstrap(steps)
    assert low is not None
    assert high is not None
    assert low < 10 < high
    assert high - low < 1  # one process has a P50 of s.e. .125; the median of five spans far less than 1


def test_blocks_are_neighbours() -> None:
    blocks = statistics._blocks(np.arange(55.0), 10, 30, np.random.default_rng(0))
    assert blocks.shape == (30, 55)
    assert (np.diff(blocks[:, :50].reshape(30, 5, 10), axis=2) == 1).all()
    many = statistics._blocks(np.arange(20.0), 10, 400, np.random.default_rng(0))
    assert (many.min(), many.max()) == (0, 19)  # every step may be drawn


def test_standard_error_of_an_auc_is_hanley_and_mcneils() -> None:
    # A = .8: Q1 = .8 / 1.2 = 2/3, Q2 = 1.28 / 1.8 = .71111, A^2 = .64; their example has A = .893 of 51 and 58.
    assert statistics.auc_standard_error(0.8, 1, 1) == pytest.approx(0.16**0.5)
    assert statistics.auc_standard_error(0.8, 2, 1) == pytest.approx(((0.16 + 2 / 3 - 0.64) / 2) ** 0.5)
    assert statistics.auc_standard_error(0.8, 1, 2) == pytest.approx(((0.16 + 1.28 / 1.8 - 0.64) / 2) ** 0.5)
    assert statistics.auc_standard_error(0.893, 51, 58) == pytest.approx(0.0325, abs=1e-4)

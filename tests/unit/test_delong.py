"""DeLong's covariance against loops over pairs, intervals against their coverage, the paired test of equal models."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import binom, norm, t
from sklearn.metrics import roc_auc_score

from ctrbench.bench.delong import AucCovariance, auc_covariance, paired_auc_test
from ctrbench.bench.resampling import bca_from_draws, bca_interval
from ctrbench.bench.statistics import auc_draws, mean_interval

MU = 1.0
TRUE_AUC = float(norm.cdf(MU / np.sqrt(2)))


def slow_covariance(label: np.ndarray, scores: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Obuchowski's sums, pair by pair; every row a user of its own is DeLong's."""
    pos, neg = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    psi = np.array([[[np.sign(s[i] - s[j]) / 2 + 0.5 for j in neg] for i in pos] for s in scores])
    area, users = psi.mean(axis=(1, 2)), np.unique(user)
    v10, v01 = psi.mean(axis=2), psi.mean(axis=1)
    x = np.array([[(v10[k, user[pos] == u] - area[k]).sum() for u in users] for k in range(len(scores))])
    y = np.array([[(v01[k, user[neg] == u] - area[k]).sum() for u in users] for k in range(len(scores))])
    i10, i01, i = len(np.unique(user[pos])), len(np.unique(user[neg])), len(users)
    s10, s01 = i10 / (i10 - 1) * x @ x.T, i01 / (i01 - 1) * y @ y.T
    return s10 / len(pos) ** 2 + s01 / len(neg) ** 2 + i / (i - 1) * (x @ y.T + y @ x.T) / (len(pos) * len(neg))


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_covariance_equals_loops_over_pairs(clustered: bool, ties: bool) -> None:
    rng = np.random.default_rng(3)
    label = (rng.random(60) < 0.4).astype(int)
    user = rng.integers(0, 15, 60) if clustered else np.arange(60)
    scores = rng.normal(size=(3, 60)) + label * np.array([[0.5], [1.0], [0.0]])
    scores = np.round(scores, 1) if ties else scores
    found = auc_covariance(label, scores, user if clustered else None)
    np.testing.assert_allclose(found.auc_K, [roc_auc_score(label, s) for s in scores], atol=1e-12)
    np.testing.assert_allclose(found.covariance_KK, slow_covariance(label, scores, user), atol=1e-14)
    np.testing.assert_allclose(found.influence_KU.sum(axis=1), 0, atol=1e-12)
    if not clustered:  # rows without a user are users of one row
        np.testing.assert_allclose(found.covariance_KK, auc_covariance(label, scores, user).covariance_KK)


def test_a_class_of_one_user_has_no_variance() -> None:
    with pytest.raises(ValueError, match="one user"):
        auc_covariance(np.array([1, 1, 0, 0]), np.arange(4.0), np.array([5, 5, 1, 2]))


def rows(rng: np.random.Generator, users: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(label, score, user) of two bells `MU` apart: independent rows, or four a user with a mood and a rate."""
    if not users:
        label = np.repeat([1, 0], 120)
        return label, rng.normal(size=240) + MU * label, np.full(240, -1)
    user = np.repeat(np.arange(users), 4)
    label = (rng.random(4 * users) < rng.beta(0.5, 0.5, users)[user]).astype(int)
    mood = rng.normal(size=users)[user]
    return label, np.sqrt(0.5) * mood + np.sqrt(0.5) * rng.normal(size=4 * users) + MU * label, user


def holds(found: AucCovariance) -> bool:
    """Whether the 95 % interval on the logit scale, where an AUC is closer to normal, holds the true AUC."""
    auc, variance = found.auc_K[0], found.covariance_KK[0, 0]
    reach = norm.ppf(0.975) * np.sqrt(variance) / (auc * (1 - auc))
    return bool(abs(logit(TRUE_AUC) - logit(auc)) <= reach)


@pytest.mark.parametrize("users", [0, 150])
def test_delong_and_bootstrap_cover_the_true_auc(users: int) -> None:
    """95 % intervals of simulated bells with a known AUC hold it in 93 to 97 % of data sets."""
    rng, sets = np.random.default_rng(1), 400
    hit = {"delong": 0, "bootstrap": 0, "bca": 0, "rows alone": 0}
    for seed in range(sets):
        label, score, user = rows(rng, users)
        drawn, found = auc_draws(label, score, user, draws=300, seed=seed), auc_covariance(label, score, user)
        hit["delong"] += holds(found)
        hit["rows alone"] += holds(auc_covariance(label, score))
        low, high = mean_interval(drawn)
        hit["bootstrap"] += low <= TRUE_AUC <= high
        low, high = bca_from_draws(found.auc_K[0], drawn, found.influence_KU[0])
        hit["bca"] += low <= TRUE_AUC <= high
    share = {name: n / sets for name, n in hit.items()}
    for name in ("delong", "bootstrap", "bca"):
        assert 0.93 <= share[name] <= 0.97, share
    if users:
        assert share["rows alone"] < 0.90, share  # what clustering is for


@pytest.mark.parametrize(("of_seed", "of_row"), [(0.5, 0.0), (0.0, 0.7), (0.15, 0.5)])
def test_paired_test_keeps_its_error_whatever_the_noise_comes_from(of_seed: float, of_row: float) -> None:
    """Equal models: three seeds that differ as wholes, by row, or both; at most 5 % are called."""
    rng, sets, called = np.random.default_rng(2), 400, 0
    for _ in range(sets):
        label = np.repeat([1, 0], 80)
        signal = rng.normal(size=160) + MU * label
        noise = of_row * rng.normal(size=(2, 3, 160)) if of_row else 0.0
        slope = 1 + of_seed * rng.normal(size=(2, 3, 1))  # the training's luck: how much of the signal it found
        a, b = slope * signal + noise + 0.3 * rng.normal(size=160)
        called += paired_auc_test(label, a, b).p < 0.05
    assert binom.sf(called - 1, sets, 0.05) > 0.01, called


def test_paired_test_by_hand() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(300) < 0.5).astype(int)
    a, b = (rng.normal(size=(3, 300)) + label * m for m in (1.2, 0.9))
    both = auc_covariance(label, np.concatenate([a, b]))
    c = np.repeat([1, -1], 3) / 3
    delta = both.auc_K[:3] - both.auc_K[3:]
    v_u, v_s = c @ both.covariance_KK @ c, delta.var(ddof=1) / 3
    found = paired_auc_test(label, a, b)
    assert found.delta == pytest.approx(delta.mean())
    assert found.se == pytest.approx(np.sqrt(v_u + v_s))
    assert found.df == pytest.approx(2 * (v_u + v_s) ** 2 / v_s**2)
    law = t(found.df)  # few degrees of freedom: a normal law would call too much
    assert found.p == pytest.approx(law.cdf(-found.delta / found.se) + law.sf(found.delta / found.se))
    assert (law.cdf((found.ci_high - found.delta) / found.se), found.ci_low + found.ci_high) == pytest.approx(
        (0.975, 2 * found.delta)
    )
    swapped = paired_auc_test(label, b, a)
    assert (swapped.delta, swapped.p) == pytest.approx((-found.delta, found.p))
    one = paired_auc_test(label, a[0], b[0])
    assert one.df == np.inf
    same = paired_auc_test(label, a, a)
    assert (same.delta, same.p, same.ci_low, same.ci_high) == (0, 1, 0, 0)
    with pytest.raises(ValueError, match="same seeds"):
        paired_auc_test(label, a, b[:2])


def test_bca_follows_skew_as_scipy_does() -> None:
    """Draws and influences of a mean of skewed values, through our BCa and through SciPy's."""
    rng = np.random.default_rng(4)
    values = rng.exponential(size=40)
    theirs = bca_interval([values], np.mean, draws=20_000)
    drawn = values[rng.integers(0, 40, (20_000, 40))].mean(axis=1)
    ours = bca_from_draws(values.mean(), drawn, (values - values.mean()) / 40)
    assert ours == pytest.approx(theirs, rel=0.02)
    plain = np.percentile(drawn, [2.5, 97.5])
    assert ours[0] > plain[0]
    assert ours[1] > plain[1] + 0.01  # the long tail is on the right
    assert bca_interval([np.ones(5)], np.mean) == (1, 1)
    with pytest.raises(ValueError, match="two values"):
        bca_interval([np.ones(1)], np.mean)
    assert bca_from_draws(0.0, np.zeros(9), np.zeros(4)) == (0, 0)

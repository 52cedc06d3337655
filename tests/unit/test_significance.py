"""Exact ranks, Holm, the number of processes, power and planned looks: by hand, by enumeration, by simulation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom, rankdata

from ctrbench.bench.power import Design, scatter
from ctrbench.bench.significance import (
    critical_u,
    decidable,
    holm,
    mann_whitney,
    processes_needed,
    ratio_interval,
    smallest_p,
)
from ctrbench.bench.stopping import StoppingRule, look, planned


@pytest.mark.parametrize(("n", "p"), [(5, 0.0079), (6, 0.0022), (7, 0.0006)])  # measures.md, section 7
def test_exact_p_of_complete_separation(n: int, p: float) -> None:
    assert round(smallest_p(n, n), 4) == p
    assert mann_whitney(range(n), range(n, 2 * n)) == pytest.approx(smallest_p(n, n), rel=1e-12)


def test_processes_that_alpha_needs() -> None:
    assert processes_needed(1, 0.01) == 5  # measures.md, section 7
    assert processes_needed(1, 0.002) == 7
    assert [processes_needed(m) for m in (1, 2, 3, 6, 7, 24)] == [4, 5, 5, 5, 6, 7]
    for tests, alpha in ((0, 0.05), (1, 0.0), (1, 1e-60)):
        with pytest.raises(ValueError, match="alpha"):
            processes_needed(tests, alpha)


def enumerated(a: list[float], b: list[float]) -> float:
    """Every choice of ranks for the first side: share with a sum as far on the same side, doubled."""
    rank = rankdata(a + b)
    sums = np.array([sum(c) for c in combinations(rank, len(a))])
    seen = rank[: len(a)].sum()
    return min(1.0, 2 * min(np.mean(sums <= seen + 1e-9), np.mean(sums >= seen - 1e-9)))


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_exact_p_equals_enumeration_with_and_without_ties(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(20):
        a, b = rng.integers(0, levels, 4).tolist(), rng.integers(0, levels, 5).tolist()
        assert mann_whitney(a, b) == pytest.approx(enumerated(a, b), abs=1e-12)
    with pytest.raises(ValueError, match="no process"):
        mann_whitney([], [1.0])


def test_critical_u_is_where_p_passes_alpha() -> None:
    base = np.arange(5.0)
    for alpha in (0.05 / 3, 0.05, 0.001):
        u = critical_u(5, 5, alpha)
        passed = [k for k in range(6) if mann_whitney(base, np.r_[4.5 - k, 5:9]) <= alpha]  # one value passes k others
        assert max(passed, default=-1) == u


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.0, 0.05]) == [0.0, 0.05]


def test_tests_that_cannot_be_called_cost_the_others_nothing() -> None:
    p3, p5 = smallest_p(3, 3), smallest_p(5, 5)
    assert decidable([0.0, p5, p5]) == [True, True, True]
    assert decidable([0.0, p3, p3]) == [True, False, False]
    assert decidable([p3]) == [False]
    assert decidable([p5] * 7) == [False] * 7  # 0.05 / 7 is below 0.0079
    assert decidable([p5] * 6) == [True] * 6
    assert decidable([p5] * 6 + [0.0] * 2) == [False] * 6 + [True] * 2  # all eight together ask for six processes


def test_ratio_interval() -> None:
    assert ratio_interval([2.0, 2.0], [3.0, 3.0]) == (1.5, 1.5)
    low, high = ratio_interval([1.0, 1.1, 0.9, 1.0, 1.05], [1.0, 1.1, 0.9, 1.0, 1.05])
    assert low < 1 < high
    assert low == pytest.approx(1 / high, rel=0.1)
    with pytest.raises(ValueError, match="two processes"):
        ratio_interval([1.0], [1.0, 2.0])


def test_power_equals_trials_of_the_real_tests() -> None:
    design, ratio, rng = Design(processes=5, cv=0.02, trials=400), 1.08, np.random.default_rng(9)
    found = 0
    for _ in range(150):
        base, new = np.exp(0.02 * rng.standard_normal((2, 5)))
        found += mann_whitney(base, ratio * new) <= 0.05 / 3 and ratio_interval(base, ratio * new, draws=400)[0] > 1.03
    assert found / 150 == pytest.approx(design.power(ratio), abs=0.12)
    size = design.detectable()
    assert size is not None
    assert design.power(size) >= 0.95 > design.power(size - 0.002)
    assert design.power(1.0) == 0
    assert Design(processes=4, cv=0.02, trials=50).detectable() is None  # exact p, 2 / 70, cannot reach 0.05 / 3
    assert Design(processes=4, cv=0.02, trials=50, tests=1).detectable() is not None
    with pytest.raises(ValueError, match="scatter"):
        Design(processes=5, cv=0.0)


def test_scatter_pools_groups_by_their_squares() -> None:
    assert scatter([[9, 11], [90, 110]]) == pytest.approx(np.sqrt(2) / 10)
    assert scatter([[1.0, 1.0], [0.8, 1.2], [5.0]]) == pytest.approx(np.sqrt(0.08 / 2))
    assert scatter([[5.0]]) is None


def test_looks_are_planned_and_share_alpha() -> None:
    rule = planned(most=12, looks=3, width=0.02)
    assert rule.looks == (5, 8, 12)
    assert rule.share == pytest.approx(0.05 / 3)
    with pytest.raises(ValueError, match="need 5"):
        planned(most=4, looks=3)
    with pytest.raises(ValueError, match="needs 5"):
        StoppingRule(looks=(3, 12), width=0.02)
    with pytest.raises(ValueError, match="rising"):
        StoppingRule(looks=(6, 5), width=0.02)


def test_looking_stops_for_width_or_at_the_maximum_alone() -> None:
    rule = StoppingRule(looks=(5, 7), width=0.02)
    steady, shaky = [1.0, 1.001, 0.999, 1.002, 0.998], [1.0, 1.3, 0.7, 1.2, 0.9]
    assert look(rule, steady[:4], steady[:4]) is None
    first = look(rule, steady, [2 * v for v in steady])
    assert first is not None
    assert (first.stop, first.p) == (True, pytest.approx(smallest_p(5, 5)))
    assert "within" in first.reason
    wide = look(rule, shaky, [9 * v for v in shaky])  # a clear difference is no reason to stop
    assert wide is not None
    assert not wide.stop
    last = look(rule, [*shaky, 1, 1.1], [*shaky, 1, 1.1])
    assert last is not None
    assert (last.stop, last.reason) == (True, "planned maximum")
    with pytest.raises(ValueError, match="at most 7"):
        look(rule, range(8), range(8))


def test_planned_looks_keep_the_error_of_equal_sides() -> None:
    """Stop at the first look whose interval is narrow; what is called there stays within alpha."""
    rule, rng, trials, called = StoppingRule(looks=(5, 8, 12), width=0.03), np.random.default_rng(5), 150, 0
    for _ in range(trials):
        base, new = np.exp(0.03 * rng.standard_normal((2, 12)))
        for n in rule.looks:
            found = look(rule, base[:n], new[:n])
            if found is not None and found.stop:
                called += found.p <= rule.share
                break
    assert binom.sf(called - 1, trials, 0.05) > 0.01, called

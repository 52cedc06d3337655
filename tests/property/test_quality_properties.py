"""What must hold of AUC and GAUC whatever the scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ctrbench.bench.quality import auc, gauc

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    """Labels of both classes, integer scores with many ties, few users."""
    n = draw(st.integers(2, 60))
    label = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    label[0], label[1] = 0, 1
    score = np.array(draw(st.lists(st.integers(-8, 8), min_size=n, max_size=n)), dtype=np.float64)
    user = np.array(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)))
    return label, score, user


@given(rows())
@settings(deadline=None)
def test_auc_equals_sklearn(data: Rows) -> None:
    label, score, _ = data
    assert auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


@given(rows())
@settings(deadline=None)
def test_monotone_transforms_change_nothing(data: Rows) -> None:
    label, score, user = data
    for changed in (np.tanh(score / 4), 3 * score - 7, np.exp(score)):
        assert auc(label, changed) == auc(label, score)
        assert gauc(label, changed, user) == gauc(label, score, user)


@given(rows())
@settings(deadline=None)
def test_negation_and_label_swap_give_one_minus(data: Rows) -> None:
    label, score, user = data
    assert auc(label, -score) == pytest.approx(1 - auc(label, score), abs=1e-12)
    assert auc(1 - label, score) == pytest.approx(1 - auc(label, score), abs=1e-12)
    value, flipped = gauc(label, score, user)[0], gauc(label, -score, user)[0]
    assert (value is None) == (flipped is None)
    if value is not None and flipped is not None:
        assert flipped == pytest.approx(1 - value, abs=1e-12)


@given(rows(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_row_order_changes_nothing(data: Rows, random: object) -> None:
    label, score, user = data
    order = np.arange(len(label))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert auc(label[order], score[order]) == auc(label, score)
    value, shuffled = gauc(label, score, user)[0], gauc(label[order], score[order], user[order])[0]
    assert shuffled == (value if value is None else pytest.approx(value, abs=1e-12))


@given(rows())
@settings(deadline=None)
def test_one_user_has_gauc_equal_to_auc(data: Rows) -> None:
    label, score, _ = data
    assert gauc(label, score, np.zeros(len(label), dtype=np.int64))[0] == pytest.approx(auc(label, score), abs=1e-12)

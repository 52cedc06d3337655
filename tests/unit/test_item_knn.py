"""Item-kNN against loops."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.bench.item_knn import ItemKnn
from ctrbench.bench.ranking import paired

HISTORIES = st.lists(st.lists(st.integers(0, 7), max_size=6), min_size=1, max_size=6)


def by_loops(histories: list[list[int]], items: int, neighbours: int) -> list[list[float]]:
    users = [{u for u, h in enumerate(histories) if i in h} for i in range(items)]

    def similarity(i: int, j: int) -> float:
        both = len(users[i] & users[j])
        return both / (len(users[i]) * len(users[j])) ** 0.5 if both and i != j else 0.0

    near = []
    for i in range(items):
        ranked = sorted((j for j in range(items) if similarity(i, j)), key=lambda j: (-similarity(i, j), j))
        near.append({j: similarity(i, j) for j in ranked[:neighbours]})
    return [[sum(near[i].get(j, 0.0) for j in set(h)) for i in range(items)] for h in histories]


@settings(max_examples=60, deadline=None)
@given(histories=HISTORIES, neighbours=st.integers(1, 8))
def test_scores_are_sums_of_cosines(histories: list[list[int]], neighbours: int) -> None:
    given_ = [np.array(h, np.int64) for h in histories]
    found = ItemKnn(given_, 8, neighbours).scores(given_)
    np.testing.assert_allclose(found, by_loops(histories, 8, neighbours), rtol=1e-6)


def test_paired_interval() -> None:
    """Mean .5, standard error sqrt(1/12): Student's t of three degrees of freedom is 3.1824."""
    mean, low, high = paired(np.array([1.0, 0.0, 1.0, 0.0]))
    assert mean == 0.5
    np.testing.assert_allclose([low, high], [0.5 - 3.182446 / 12**0.5, 0.5 + 3.182446 / 12**0.5], rtol=1e-6)
    assert paired(np.array([1.0]))[1] == -np.inf

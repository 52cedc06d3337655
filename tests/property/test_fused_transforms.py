"""Transforms over all columns at once against their plain twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.datasets import fused_transforms
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.fused_transforms import Columns

HARD = np.array([0.0, -0.0, 1.0, -1.0, 1e-30, 3e38, -3e38, np.nan, 0.5, 2.0], np.float32)


def _numbers(rng: np.random.Generator, columns: int, rows: int) -> np.ndarray:
    values = rng.normal(0, 10.0 ** rng.integers(-4, 6), (columns, rows)).astype(np.float32)
    hard = rng.random((columns, rows)) < 0.3
    values[hard] = rng.choice(HARD, hard.sum())
    return values


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 40), st.integers(0, 6),
       st.integers(0, 2**32 - 1), st.sampled_from([1, 64, 16_384]))  # fmt: skip
def test_fused_and_looped_are_the_plain_twin(
    hashed: int, bucketised: int, logged: int, rows: int, edges: int, seed: int, block: int
) -> None:
    rng = np.random.default_rng(seed)
    edges_UE = np.sort(np.cumsum(rng.random((bucketised, edges)) + 1e-3, axis=1) - 1, axis=1)
    columns = Columns(rng.integers(1, 2**31 - 1, hashed), edges_UE, logged)
    ids = rng.integers(-(2**63), 2**63 - 1, (hashed, rows))
    numbers, log = _numbers(rng, bucketised, rows), _numbers(rng, logged, rows)
    if bucketised and edges and rows:
        numbers[0, 0] = columns.edges_UE[0, 0]  # on an edge
    wanted = columns.plain(ids, numbers, log)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_transforms, "BLOCK_VALUES", block)
        found = columns.fused(ids, numbers, log), columns.looped(ids, numbers, log)
    for made in found:
        np.testing.assert_array_equal(made.rows_FB, wanted.rows_FB)
        np.testing.assert_allclose(made.dense_LB, wanted.dense_LB, rtol=1e-6, atol=1e-6)
        assert (np.isnan(made.dense_LB) == np.isnan(log)).all()
    assert wanted.rows_FB.size == 0 or (wanted.rows_FB.min() >= 0 and wanted.rows_FB.max() < columns.table_rows)


def test_every_column_has_rows_of_its_own_and_fills_them() -> None:
    columns = Columns(np.array([7, 11]), np.array([[0.0, 1.0]]), 0)
    ids = np.tile(np.arange(2_000, dtype=np.int64), (2, 1))
    numbers = np.resize(np.array([-1.0, 0.0, 0.5, 1.0, np.nan], np.float32), (1, 2_000))
    rows = columns.fused(ids, numbers, np.empty((0, 2_000), np.float32)).rows_FB
    assert [set(r) for r in rows] == [set(range(7)), set(range(7, 18)), set(range(18, 22))]
    assert rows[2, :5].tolist() == [18, 19, 19, 20, 21]
    counts = np.bincount(rows[1] - 7)
    assert counts.min() > 2_000 / 11 * 0.7  # a hash, not a remainder of sorted ids: near even all the same


def test_what_cannot_be_a_table_is_refused() -> None:
    with pytest.raises(BadInput, match="table rows"):
        Columns(np.array([0]), np.empty((0, 1)), 0)
    with pytest.raises(BadInput, match="must ascend"):
        Columns(np.array([4]), np.array([[1.0, 1.0]]), 0)

"""The pool of negatives counts events by item and category as a `Counter` does, for ids of any width."""

from __future__ import annotations

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrbench.datasets import negatives
from ctrbench.datasets.negatives import Pool

EDGE = 1 << negatives.NARROW
IDS = st.one_of(st.integers(0, 3), st.integers(EDGE - 2, EDGE + 2), st.integers(2**63 - 2, 2**63 - 1))
CHUNKS = st.lists(st.lists(st.tuples(IDS, IDS), max_size=12), max_size=6)


@given(chunks=CHUNKS, together=st.integers(1, 20))
def test_counts_are_those_of_a_counter(chunks: list[list[tuple[int, int]]], together: int) -> None:
    pool = Pool()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(negatives, "SORTED", together)
        for chunk in chunks:
            pool.add(pl.DataFrame(chunk, schema={"item": pl.Int64, "category": pl.Int64}, orient="row"))
        pool.close()
    plain = Counter(pair for chunk in chunks for pair in chunk)
    assert list(pool.table.iter_rows()) == [(*pair, n) for pair, n in sorted(plain.items())]
    assert pool.events == plain.total()
    assert pool.items == len({item for item, _ in plain})


def test_a_stored_pool_is_the_same_pool() -> None:
    pool = Pool()
    pool.add(pl.DataFrame({"item": [7, 7, EDGE], "category": [1, 1, 2]}))
    pool.close()
    again = Pool(pool.table)
    assert again.table.equals(pool.table)
    assert (again.events, again.items) == (3, 2)

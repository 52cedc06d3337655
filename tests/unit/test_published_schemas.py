"""Published feature sets: sizes, and that their lower bounds of distinct rows are below what draws and samples show."""

from __future__ import annotations

import numpy as np
import pytest

from ctrbench.bench.counting.bound import unique_rows
from ctrbench.datasets.criteo_law import categories
from ctrbench.datasets.published_schemas import FEW, criteo_x1, taobao_ad_x1, taobao_like
from ctrbench.datasets.schema import FIRST_ID

LAWS = categories()


def test_sizes_are_the_published_ones() -> None:
    criteo, taobao = criteo_x1(), taobao_ad_x1()
    assert (len(criteo.dense), len(criteo.categorical)) == (13, 26)
    assert sum(criteo.tables.values()) == 2_086_303  # BARS Criteo_x1 log
    assert len(taobao.fields) == 20
    assert sum(taobao.tables.values()) + 1 == 1_295_076  # BARS TaobaoAd_x1 DNN: 41,934,977 parameters, one price vector
    assert {f.max_length for f in taobao.sequences} == {50}
    assert {f.max_length for f in taobao_like(700).sequences} == {700}


def test_no_column_has_more_rows_than_values() -> None:
    for field in criteo_x1().categorical:
        assert FIRST_ID < field.cardinality <= LAWS[field.name].size + FIRST_ID
        # one cut for all: columns of up to C10's 93,145 values are whole, those of C26's 142,572 and more are not
        assert (LAWS[field.name].size < 100_000) == (field.cardinality == LAWS[field.name].size + FIRST_ID)


def test_bounds_stay_below_the_distinct_values_of_the_sample() -> None:
    """Counted on 4,584 real rows (data.md section 3.1): a smaller batch has no more."""
    for field in criteo_x1().categorical:
        law, bounds = LAWS[field.name], [batch * share for batch, share in field.unique_rows]
        assert bool(bounds) == (law.distinct >= FEW)
        assert bounds == sorted(bounds)
        assert all(rows < law.distinct for rows in bounds)
        assert all(b <= 4584 for b, _ in field.unique_rows)


@pytest.mark.parametrize("name", ["C2", "C7", "C13", "C24", "C26"])
def test_bounds_stay_below_draws_of_the_law(name: str) -> None:
    law, field = LAWS[name], criteo_x1()[name]
    rng = np.random.default_rng(0)
    for batch, share in field.unique_rows:
        seen = []
        for _ in range(20):
            rank = law.rank(rng.random(batch))[rng.random(batch) >= law.missing]
            seen.append(len(np.unique(rank[rank < field.cardinality - FIRST_ID])))
        assert min(seen) >= batch * share
        assert np.mean(seen) < 2 * batch * share  # and they are worth having


def test_a_larger_batch_counts_no_more_than_the_largest_checked() -> None:
    schema = criteo_x1()
    assert unique_rows(schema, 16384) == unique_rows(schema, 4096) > unique_rows(schema, 1024) > 5 * 1024

"""Row caps, quotient-remainder and 10 TB of tables in bytes, accelerators and USD."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrbench.bench import table_costs
from ctrbench.bench.at_scale import fabrics
from ctrbench.bench.cost_prices import Prices, load_prices
from ctrbench.datasets.criteo_law_1tb import LARGEST, SIZES

sizes = st.lists(st.integers(3, 10**9), min_size=1, max_size=30)


def test_columns_of_the_whole_data() -> None:
    """882,774,559 rows, as HugeCTR and OneFlow state them; the five largest columns are those that the cap cuts."""
    found = table_costs.uncapped()
    assert sum(found) == 882_774_559
    assert [min(n, LARGEST) for n in found] == list(SIZES)
    assert all(n > LARGEST for n in table_costs.UNCAPPED)


def test_mlperfs_cap_by_hand() -> None:
    """204,184,588 rows x 128 x 4 B = 104.5 GB, with 4 B of state a row 105.4 GB: two accelerators of 80 GB at 70 %."""
    found = table_costs.capped(table_costs.uncapped(), LARGEST)
    assert (found.rows, found.weights, found.bytes) == (204_184_588, 104_542_509_056, 105_359_247_408)
    assert table_costs.accelerators(found, "H100 SXM") == 2
    assert table_costs.accelerators(found, "H100 SXM", machine=8) == 8
    assert table_costs.accelerators(found, "B200 SXM") == 1


def test_quotient_remainder_by_hand() -> None:
    """1,000 rows at 4 ids a row: 250 of the remainder and 4 of the quotient; 10 rows stay."""
    found = table_costs.quotient_remainder((1000, 10), 4, above=100)
    assert found.each == (250, 4, 10)


@given(st.integers(3, 3000), st.integers(2, 60))
def test_every_id_keeps_a_pair_of_rows_of_its_own(size: int, collisions: int) -> None:
    """The trick itself: id mod m and id div m, with m remainder rows; no more rows are needed than were counted."""
    rows = table_costs.quotient_remainder((size,), collisions, above=1).rows
    remainders = -(-size // collisions)
    ids = np.arange(size)
    pairs = {(int(r), int(q)) for r, q in zip(ids % remainders, ids // remainders, strict=True)}
    assert len(pairs) == size
    assert remainders + int((ids // remainders).max()) + 1 <= rows


@given(sizes, st.integers(10, 10**8), st.integers(10, 10**8))
def test_a_lower_cap_holds_fewer_bytes(found: list[int], a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert table_costs.capped(found, low).bytes <= table_costs.capped(found, high).bytes
    assert len(table_costs.capped(found, low).each) == len(found)


def test_quotient_remainder_saves_memory_and_sends_more() -> None:
    fabric = fabrics()["h100_ndr"]
    plain, *_, trick, _ = table_costs.ways()
    assert trick.bytes < plain.bytes / 3
    assert (len(plain.each), len(trick.each)) == (26, 32)
    (sent, _), (more, _) = (table_costs.exchange(t, 4096, 64, fabric) for t in (plain, trick))
    assert sent < more < sent * 32 / 20


def test_ten_terabytes_by_hand() -> None:
    """10e12 / 512 B = 19.53e9 rows, 78 GB of state; 10.078e12 / 56e9 = 180, in machines of eight 184; a checkpoint in
    object storage at 0.015 to 0.0255 USD a GB-month."""
    found, prices = table_costs.of_bytes(10e12, 128), load_prices()
    assert (len(found.each), found.rows, found.weights) == (26, 26 * 751_201_923, 26 * 751_201_923 * 512)
    assert found.bytes == pytest.approx(10.078125e12)
    assert table_costs.accelerators(found, "H100 SXM", 8) == 184
    assert table_costs.checkpoint_usd_per_month(found, prices) == pytest.approx(
        (0.015 * 10_078.125, 0.0255 * 10_078.125)
    )
    hour = prices.by_name["gpu.H100 SXM"]
    assert table_costs.usd_per_hour(184, "H100 SXM", prices) == pytest.approx((184 * hour.low, 184 * hour.high))


def test_without_a_price_nothing_is_said() -> None:
    found = table_costs.of_bytes(1e12, 16)
    assert table_costs.usd_per_hour(8, "MI300X", load_prices()) is None
    assert table_costs.checkpoint_usd_per_month(found, Prices({})) is None

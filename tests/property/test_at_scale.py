"""Steps on many accelerators, on paper: bytes against a simulation of who holds what and TorchRec's own tensors, times
against arithmetic, bands against what must hold for any work."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.distributed.embedding_sharding import bucketize_kjt_before_all2all
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.bench.at_scale import (
    ID_BYTES,
    LENGTH_BYTES,
    PLANS,
    VALUE_BYTES,
    WORLDS,
    Fabric,
    Plan,
    Table,
    Work,
    accelerators_for,
    fabrics,
    least_seconds,
    step,
    traffic,
)
from ctrbench.bench.hardware import catalogue

FABRIC = Fabric(
    name="test", gpu="none", machine=8, inside_gbs=100.0, between_gbs=10.0, efficiency=(0.5, 0.9), start_us=(5.0, 10.0),
    inside_us=(1.0, 2.0), between_us=(3.0, 20.0), source="made up",
)  # fmt: skip
tables = st.lists(
    st.builds(Table, rows=st.integers(1, 10**9), ids=st.floats(0.1, 500), features=st.integers(1, 5),
              width=st.sampled_from([4, 16, 128]), trained=st.booleans()),
    min_size=1, max_size=30,
).map(tuple)  # fmt: skip
works = st.builds(
    lambda samples, found, dense, low, more: Work(
        samples=samples, tables=found, modules=1, dense=dense, seconds=(low, low * more)
    ),
    st.integers(1, 65_536), tables, st.floats(1e3, 1e10), st.floats(1e-4, 10.0), st.floats(1.0, 4.0),
)  # fmt: skip
plans, names = st.sampled_from(PLANS), st.sampled_from(sorted(fabrics()))


def one(ids: float = 1.0, width: int = 16, samples: int = 1, dense: float = 0.0, features: float = 1.0) -> Work:
    """One table of 8 M rows, a second of compute."""
    table = Table(rows=8_000_000, ids=ids, features=features, width=width)
    return Work(samples=samples, tables=(table,), modules=1, dense=dense, seconds=(1.0, 1.0))


@pytest.mark.parametrize("world", [2, 4, 8])
def test_bytes_by_row_are_those_of_torchrec(world: int) -> None:
    """TorchRec cuts the ids of a batch into the blocks of a table; what is not my own block is sent, as it holds it."""
    generator, samples, features, most, rows, width = torch.Generator().manual_seed(0), 512, 3, 8, 8_000, 16
    lengths = torch.randint(0, most + 1, (features * samples,), generator=generator, dtype=torch.int32)
    values = torch.randint(0, rows, (int(lengths.sum()),), generator=generator)
    ids = KeyedJaggedTensor(keys=list("abc"), values=values, lengths=lengths)
    cut, _ = bucketize_kjt_before_all2all(ids, world, torch.full((features,), -(-rows // world)))
    per_block = cut.lengths().view(world, features * samples).sum(1)
    sent = [int(n) for rank, n in enumerate(per_block) if rank != 0]
    found = traffic(one(len(values) / samples, width, samples, features=features), world, "row_wise")
    others = cut.lengths().element_size() * cut.lengths().numel() * (world - 1) // world
    assert found.lengths == others == LENGTH_BYTES * features * samples * (world - 1)
    assert values.element_size() == ID_BYTES
    assert found.ids == pytest.approx(sum(sent) * ID_BYTES, rel=0.06), "random ids meet blocks unevenly"
    assert found.rows == found.gradients == pytest.approx(sum(sent) * width * VALUE_BYTES, rel=0.06)


@pytest.mark.parametrize(("world", "plan"), [(2, "row_wise"), (4, "row_wise"), (2, "table_wise"), (4, "table_wise")])
def test_bytes_are_those_of_a_simulated_exchange(world: int, plan: Plan) -> None:
    """Every process counts what it sends to the others; the one that sends most rows is the busiest."""
    rng, samples, width = np.random.default_rng(0), 256, 16
    per_table = [7, 5, 2, 1, 1, 1]
    # Largest first to the emptiest: of 2 processes 7 + 2 and 5 + 1 + 1 + 1, of 4 7, 5, 2 + 1 and 1 + 1.
    holder = {2: [0, 1, 0, 1, 1, 1], 4: [0, 1, 2, 3, 3, 2]}[world]
    sent = np.zeros((world, world))
    for me in range(world):
        for table, ids in enumerate(per_table):
            for _ in range(samples * ids):
                owner = int(rng.integers(world)) if plan == "row_wise" else holder[table]
                sent[owner, me] += width * VALUE_BYTES
    np.fill_diagonal(sent, 0)
    read = tuple(Table(rows=10**6, ids=n, features=1, width=width) for n in per_table)
    found = traffic(replace(one(samples=samples), tables=read), world, plan)
    assert found.rows == pytest.approx(sent.sum(1).max(), rel=0.05 if plan == "row_wise" else 1e-9)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_dense_bytes_are_those_of_a_ring(world: int) -> None:
    """Scatter-reduce and all-gather step by step: in each of 2 (W - 1) steps everyone sends one W-th."""
    dense = 1200.0
    ring = sum(dense * VALUE_BYTES / world for _ in range(2 * (world - 1)))
    assert traffic(one(dense=dense), world, "row_wise").dense == pytest.approx(ring)


def test_summing_inside_machines_first_sends_as_much_as_a_ring() -> None:
    """W = 64: inside 2 x 7/8 x 4 P, between 2 x 7/8 x 4 P / 8, together 2 x 63/64 x 4 P; links take 1/rate of each."""
    dense, world = 1e6, 64
    inside, between = 2 * 7 / 8 * 4e6, 2 * 7 / 8 * 4e6 / 8
    assert inside + between == pytest.approx(traffic(one(dense=dense), world, "row_wise").dense)
    exact = replace(FABRIC, efficiency=(1.0, 1.0), start_us=(0.0, 0.0), inside_us=(0.0, 0.0), between_us=(0.0, 0.0))
    found = step(one(ids=0.0, dense=dense), world, exact, "row_wise").reduce
    assert found[1] == pytest.approx(inside / 100e9 + between / 10e9)
    assert found[0] == pytest.approx(max(inside / 100e9, between / 10e9))


@given(works, plans)
def test_one_accelerator_sends_nothing(work: Work, plan: Plan) -> None:
    assert traffic(work, 1, plan).total == 0
    alone = step(work, 1, FABRIC, plan)
    assert alone.seconds == work.seconds
    assert alone.share == (0.0, 0.0)
    assert least_seconds(work, 1, FABRIC) == 0


@settings(max_examples=40)
@given(works, names, plans)
def test_bands_are_in_order_and_grow_with_the_machines(work: Work, name: str, plan: Plan) -> None:
    steps = [step(work, world, fabrics()[name], plan) for world in WORLDS]
    for world, found in zip(WORLDS, steps, strict=True):
        for low, high in (found.exchange, found.reduce, found.communication, found.seconds, found.share):
            assert 0 <= low <= high
        assert found.share[1] < 1
        assert found.seconds[0] >= work.seconds[0]
        assert found.communication[0] >= least_seconds(work, world, fabrics()[name])
    for smaller, larger in (
        pairwise(steps) if plan != "small_replicated" else ()
    ):  # more machines replicate other tables
        assert larger.traffic.total >= smaller.traffic.total * 0.999
        assert larger.seconds[1] >= smaller.seconds[1] * 0.999


@settings(max_examples=40)
@given(works, names, st.sampled_from(["row_wise", "table_wise"]), st.sampled_from(WORLDS))
def test_more_work_takes_no_less(work: Work, name: str, plan: Plan, world: int) -> None:
    fabric = fabrics()[name]
    base = step(work, world, fabric, plan)
    wider = replace(work, tables=tuple(replace(t, width=2 * t.width) for t in work.tables))
    for more in (wider, replace(work, samples=2 * work.samples), replace(work, dense=2 * work.dense)):
        found = step(more, world, fabric, plan)
        assert found.traffic.total > base.traffic.total
        assert all(a > b for a, b in zip(found.communication, base.communication, strict=True))
        assert least_seconds(more, world, fabric) >= least_seconds(work, world, fabric)


@settings(max_examples=40)
@given(works, names, plans, st.sampled_from(WORLDS))
def test_faster_links_take_less(work: Work, name: str, plan: Plan, world: int) -> None:
    fabric = fabrics()[name]
    faster = replace(fabric, inside_gbs=2 * fabric.inside_gbs, between_gbs=2 * fabric.between_gbs)
    slow, fast = (step(work, world, f, plan) for f in (fabric, faster))
    assert fast.communication[1] < slow.communication[1]
    assert fast.share[1] < slow.share[1]


def test_a_step_by_row_by_hand() -> None:
    """10 features of 100 ids, rows of 16 values, 100 samples, 1 M dense weights, 16 accelerators in two machines."""
    work = Work(
        samples=100,
        tables=(Table(rows=1600, ids=1000, features=10, width=16),),
        modules=1,
        dense=1e6,
        seconds=(0.01, 0.02),
    )
    found = step(work, 16, FABRIC, "row_wise")
    # lengths 100 x 10 x 4 x 15 = 60,000; ids 1e5 x 8 x 15/16 = 750,000; rows and gradients 1e5 x 64 x 15/16 = 6e6 each
    assert found.traffic.exchanged == pytest.approx(60_000 + 750_000 + 2 * 6_000_000)
    # 12.81 MB: 7/15 inside at 50 GB/s are 119.56 us, 8/15 between at 5 GB/s are 1366.4 us
    # latency 5 x (10 + 7 x 2 + 1 x 20) us = 220 us
    assert found.exchange[1] == pytest.approx(119.56e-6 + 1366.4e-6 + 220e-6)
    # the larger of 12.81 MB x 7/15 / 90 GB/s and 12.81 MB x 8/15 / 9 GB/s = 759.11 us; 5 x (5 + 3) us = 40 us
    assert found.exchange[0] == pytest.approx(759.111e-6 + 40e-6, rel=1e-5)
    # inside 2 x 7/8 x 4 MB / 50 GB/s = 140 us, between 2 x 1/2 x 4 MB / 8 / 5 GB/s = 100 us
    # latency 10 us + 2 x (7 x 2 + 1 x 20) us = 78 us
    assert found.reduce[1] == pytest.approx(140e-6 + 100e-6 + 78e-6)
    assert found.seconds[1] == pytest.approx(0.02 + 1705.96e-6 + 318e-6)
    assert found.seconds[0] == 0.01, "communication is shorter and hidden"
    assert found.share == pytest.approx((0.0, 2023.96e-6 / (0.01 + 2023.96e-6)))


def test_a_step_by_table_waits_for_the_fullest() -> None:
    """Tables of 8, 4 and 2 ids on 8 accelerators, 10 samples: one holds the first and sends 7 x 10 x 8 rows of 64 B."""
    work = replace(
        one(samples=10), tables=tuple(Table(rows=100, ids=n, features=1, width=16, trained=n != 8) for n in (4, 8, 2))
    )  # fmt: skip
    found = traffic(work, 8, "table_wise")
    assert (found.rows, found.gradients) == (7 * 10 * 8 * 64, 0), "the first table is not trained"
    assert (found.ids, found.lengths) == (7 * 10 * 8 * 8, 7 * 10 * 4)


def test_few_rows_lie_on_few_accelerators() -> None:
    """3 rows on 8 accelerators: the first has one of them and sends a third of 10 samples' ids to each of 7 others.
    Copied to all they cost 2 x 7/8 x 3 x 16 values; 8 M rows are never copied."""
    small, large = Table(rows=3, ids=1, features=1, width=16), Table(rows=8_000_000, ids=1, features=1, width=16)
    work = replace(one(samples=10), tables=(small, large))
    by_row, copied = (traffic(work, 8, plan) for plan in ("row_wise", "small_replicated"))
    assert by_row.rows == pytest.approx(7 * 10 * 64 * (1 / 3 + 1 / 8))
    assert (copied.rows, copied.lengths) == (pytest.approx(7 * 10 * 64 / 8), 7 * 10 * 4)
    assert copied.dense == pytest.approx(2 * 7 / 8 * 3 * 16 * 4)
    frozen = traffic(replace(work, tables=(replace(small, trained=False), large)), 8, "small_replicated")
    assert (frozen.rows, frozen.dense) == (copied.rows, 0), "copies that nobody trains send nothing"


@given(works, st.sampled_from(WORLDS))
def test_copying_small_tables_never_sends_more(work: Work, world: int) -> None:
    assert traffic(work, world, "small_replicated").total <= traffic(work, world, "row_wise").total * 1.000001


def test_what_waits_at_best_is_what_compute_cannot_hide() -> None:
    """40 ms of communication at its fastest beside 10 ms of compute at its slowest: 3/4 of the step waits."""
    found = step(replace(one(ids=1e6, samples=3), seconds=(0.005, 0.01)), 8, FABRIC, "row_wise")
    fast = found.communication[0]
    assert fast > 0.003
    slow_compute = replace(found, compute=(0.0, fast / 4))
    assert slow_compute.share[0] == pytest.approx(0.75)
    unknown = replace(found, compute=(fast, math.inf))
    assert unknown.share[0] == 0
    assert unknown.seconds == (fast, math.inf)


def test_parts_of_machines_are_refused() -> None:
    with pytest.raises(ValueError, match="world=12: not a multiple of the 8"):
        step(one(), 12, FABRIC, "row_wise")


def test_links_are_of_catalogued_gpus_and_half_of_both_directions() -> None:
    """600, 900 and 1800 GB/s of NVLink are of both directions; 200 and 400 Gb/s of one are 25 and 50 GB/s."""
    found = {f.gpu: (f.inside_gbs, f.between_gbs) for f in fabrics().values()}
    assert found == {"A100-40 SXM": (300, 200 / 8), "H100 SXM": (450, 400 / 8), "B200 SXM": (900, 400 / 8)}
    assert set(found) <= set(catalogue())
    assert all(f.source and "read 20" in f.source for f in fabrics().values())


@pytest.mark.parametrize(
    ("nbytes", "gb", "machine", "count"),
    [
        (10.625e12, 80.0, 1, 190),  # 10.625e12 / 56e9 = 189.7
        (10.625e12, 80.0, 8, 192),
        (56e9, 80.0, 1, 1),
        (56e9 + 1, 80.0, 1, 2),
        (0.0, 80.0, 8, 8),
    ],
)
def test_accelerators_by_memory(nbytes: float, gb: float, machine: int, count: int) -> None:
    assert accelerators_for(nbytes, gb, machine) == count

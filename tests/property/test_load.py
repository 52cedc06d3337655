"""Whatever arrives, whenever: every request has one fate, batches keep their limits, requests stay themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from tests.data.virtual_server import VirtualServer
from torch.utils._python_dispatch import TorchDispatchMode

from ctrbench.bench.serving.intake import NO_CANDIDATES, NOT_FINITE, Intake, combine, with_events
from ctrbench.bench.serving.load import QUEUE_FULL, TOO_LATE, Limits, server
from ctrbench.bench.serving.popularity import hit_rate, user_stream, zipf_shares, zipf_stream
from ctrbench.bench.serving.traffic import Traffic, data_traffic, random_traffic, stretched
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.random_batches import random_schema
from ctrbench.datasets.schema import OOV, Batch, FeatureSchema, Field, synthetic_batch
from ctrbench.models.requests import Requests, full_rows, requests_of, take_users

SCHEMA = random_schema("random_sequence", 12)
DENSE = FeatureSchema(
    name="with_dense", track="sequence",
    fields=(
        *SCHEMA.fields, Field(name="age", kind="dense", role="user"), Field(name="cost", kind="dense", role="item"),
    ),
)  # fmt: skip
ODD = "odd number"


def quick(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, database=None)


def asked(schema: FeatureSchema, users: int, count: int, seed: int) -> Requests:
    return requests_of(
        schema, synthetic_batch(schema, users, seed=seed, full=False),
        synthetic_batch(schema, users * count, seed=seed + 1, full=False),
    )  # fmt: skip


def same_rows(one: Batch, other: Batch) -> None:
    assert one.ids.keys() == other.ids.keys()
    assert one.host == other.host
    for a, b in zip(one.tensors(), other.tensors(), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------- server


@quick(150)
@given(
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=60), seconds=st.lists(st.floats(0.01, 5), min_size=1),
    batch=st.integers(1, 5), places=st.integers(5, 12), wait=st.floats(0, 2), budget=st.floats(2.5, 12),
    refuse=st.booleans(), picky=st.booleans(),
)  # fmt: skip
def test_every_request_has_one_fate(
    gaps: list[float], seconds: list[float], batch: int, places: int, wait: float, budget: float, refuse: bool,
    picky: bool,
) -> None:  # fmt: skip
    virtual = VirtualServer(lambda b: seconds[b[0] % len(seconds)])
    due = np.cumsum(gaps)
    limits = Limits(budget_s=budget, max_batch=batch, max_wait_s=wait, max_queue=places, refuse_late=refuse)
    admit = (lambda i: (i, ODD if i % 2 else "")) if picky else None
    run = server(virtual, due, range(len(due)), limits, clock=virtual.clock, admit=admit)
    served = [i for _, _, b in virtual.begun for i in b]
    assert run.answered == len(served) == len(set(served))
    assert served == sorted(served), "first come, first served"
    assert run.answered + sum(run.refused.values()) == run.sent == len(due)
    assert run.longest_queue <= places
    assert set(run.refused) <= {QUEUE_FULL} | ({TOO_LATE} if refuse else set()) | ({ODD} if picky else set())
    assert not (picky and any(i % 2 for i in served))
    assert run.latency_N.tolist() == pytest.approx([end - due[i] for _, end, b in virtual.begun for i in b])
    free = 0.0
    for begin, end, numbers in virtual.begun:
        assert 1 <= len(numbers) <= batch
        full = due[numbers[-1]] if len(numbers) == batch else np.inf
        assert begin <= max(free, min(due[numbers[0]] + wait, full)), "an idle server kept someone waiting"
        assert begin >= max(free, due[numbers[-1]])
        if refuse:
            assert begin - due[numbers[0]] <= budget + 1e-9
        free = end


@quick(40)
@given(seed=st.integers(0, 10**6), allowed=st.integers(0, 5))
def test_a_lost_run_ends_early(seed: int, allowed: int) -> None:
    virtual = VirtualServer(lambda b: 2.0)
    due = np.cumsum(np.random.default_rng(seed).random(200))
    limits = Limits(budget_s=10.0, max_queue=200, refuse_late=False)
    run = server(virtual, due, range(200), limits, clock=virtual.clock, late_allowed=allowed)
    assert run.stopped
    assert run.late == allowed + 1
    assert run.sent == run.answered == len(virtual.begun) < 200


# ---------------------------------------------------------------- requests


@quick(40)
@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=5), count=st.integers(0, 4), seed=st.integers(0, 10**6))
def test_combined_requests_are_their_rows_one_after_another(sizes: list[int], count: int, seed: int) -> None:
    parts = [asked(DENSE, n, max(count, 1), seed + i) for i, n in enumerate(sizes)]
    if not count:
        parts = [p.candidates(0, 0) for p in parts]
    whole = combine(parts)
    assert (whole.size, whole.count) == (sum(sizes), count)
    want = [(p.users, r) for p in parts for r in range(p.size)]
    for r, (users, own) in enumerate(want):
        same_rows(take_users(DENSE, whole.users, r), take_users(DENSE, users, own))
    if count:
        rows, alone = full_rows(DENSE, whole), [full_rows(DENSE, p) for p in parts]
        ends = [(b, n) for b in alone for n in range(b.size)]
        for n, (batch, own) in enumerate(ends):
            same_rows(take_users(DENSE, rows, n), take_users(DENSE, batch, own))


def test_what_cannot_be_combined() -> None:
    with pytest.raises(ValueError, match=r"requests of \[2, 3\] candidates"):
        combine([asked(SCHEMA, 1, 2, 0), asked(SCHEMA, 1, 3, 0)])
    with pytest.raises(ValueError, match="nothing to combine"):
        combine([])


@quick(60)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_unknown_ids_become_out_of_vocabulary_and_nothing_else_changes(seed: int, data: st.DataObject) -> None:
    request = asked(DENSE, 1, 3, seed)
    values, items = request.users.ids.values(), request.ids_JN
    item_keys = [f.name for f in DENSE.categorical if f.role == "item"]
    owner = [
        k for k, n in zip(request.users.ids.keys(), request.users.ids.length_per_key(), strict=True) for _ in range(n)
    ]
    bad = [-1, -(10**12), DENSE["item_id"].cardinality, 2**62]
    spots = data.draw(st.lists(st.integers(0, len(values) - 1), unique=True))
    shelf = data.draw(st.lists(st.integers(0, items.numel() - 1), unique=True))
    want_values, want_items = values.clone(), items.clone()
    for i in spots:
        values[i] = data.draw(st.sampled_from(bad))
        want_values[i] = values[i] if owner[i] in item_keys else OOV
    for i in shelf:
        items.view(-1)[i] = data.draw(st.sampled_from(bad))
        want_items.view(-1)[i] = OOV
    got = Intake(DENSE, 3).check(request)
    assert (got.reason, got.cut) == ("", 0)
    assert got.oov == len(shelf) + sum(owner[i] not in item_keys for i in spots)
    assert torch.equal(got.request.users.ids.values(), want_values)
    assert torch.equal(got.request.ids_JN, want_items)
    assert torch.equal(got.request.users.ids.lengths(), request.users.ids.lengths())


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operator wrote."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given:
            self.elements = max(self.elements, out.numel())
        return out


def long_request(schema: FeatureSchema, length: int) -> Requests:
    fields = tuple(replace(f, max_length=length) if f.kind == "sequence" else f for f in schema.fields)
    longer = replace(schema, fields=fields)
    return requests_of(schema, synthetic_batch(longer, 1), synthetic_batch(schema, 4))


def test_a_million_events_cost_a_slice() -> None:
    request, intake = long_request(SCHEMA, 10**6), Intake(SCHEMA, 4)
    with Largest() as seen:
        got = intake.check(request)
    assert got.cut == 10**6 - 12
    assert 0 < seen.elements < 100
    for name in ("hist_item", "hist_category", "hist_action"):
        assert torch.equal(got.request.users.ids[name].values(), request.users.ids[name].values()[-12:])
    assert torch.equal(got.request.users.event_times["hist"], request.users.event_times["hist"][-12:])
    assert got.request.users.host == {"lengths": {"hist": [12]}}
    assert full_rows(SCHEMA, got.request).size == 4


def test_what_is_served_and_what_refused() -> None:
    intake, good = Intake(DENSE, 3), asked(DENSE, 1, 3, 1)
    empty = replace(good, users=with_events(DENSE, good.users, {"hist": slice(0, 0)}))
    assert intake(empty)[1] == ""
    assert len(intake(empty)[0].users.event_times["hist"]) == 0
    assert intake(good.candidates(0, 0))[1] == NO_CANDIDATES
    assert intake(asked(DENSE, 1, 4, 1))[1] == "more than 3 candidates"
    for value in (float("nan"), float("inf")):
        assert intake(replace(good, dense_NI=torch.full_like(good.dense_NI, value)))[1] == NOT_FINITE
        user = replace(good.users, dense_BI=torch.tensor([[value, 0.0]]))
        assert intake(replace(good, users=user))[1] == NOT_FINITE
        unread = replace(good.users, dense_BI=torch.tensor([[0.0, value]]))
        assert intake(replace(good, users=unread))[1] == "", "an item's place of a user is not read"
    assert (intake.oov, intake.cut) == (0, 0)
    intake(replace(good, ids_JN=good.ids_JN * 0 - 1))
    assert (intake.oov, intake.cut) == (good.ids_JN.numel(), 0)
    plain = Intake(SCHEMA, 4)
    plain(long_request(SCHEMA, 20))
    assert (plain.oov, plain.cut) == (0, 8)
    with pytest.raises(ValueError, match="a request of 2 users"):
        intake(asked(DENSE, 2, 1, 0))


# ---------------------------------------------------------------- traffic


@cache
def movielens() -> Prepared:
    return prepare("movielens_1m", None)


@cache
def drawn() -> Traffic:
    return data_traffic(movielens(), 100, pool=200, seed=5)


def test_requests_are_those_of_the_data() -> None:
    """Users and histories are rows of the test split; candidates are items of train, none twice."""
    rows = movielens().frame("test", columns=["user_id", "time", "hist_item", "hist_time"])
    when = pl.DataFrame([(int(r.users.user_B), int(r.users.time_B)) for r in drawn().requests], ["user_id", "time"],
                        orient="row")  # fmt: skip
    found = rows.join(when, on=["user_id", "time"], how="semi")
    known = {(r["user_id"], r["time"]): r for r in found.iter_rows(named=True)}
    shown = set(movielens().frame("train", columns=["item", "genre", "year"]).unique().iter_rows())
    for request in drawn().requests:
        users = request.users
        row = known[int(users.user_B), int(users.time_B)]
        assert users.event_times["hist"].tolist() == row["hist_time"]
        assert users.ids["hist_item"].values().tolist() == row["hist_item"]
        assert (request.size, request.count) == (1, 100)
        items = list(map(tuple, request.ids_JN.T.tolist()))
        assert len(set(items)) == 100
        assert set(items) <= shown


def test_users_and_candidates_are_as_popular_as_in_the_data() -> None:
    """The mean popularity of what was drawn: test rows of the user, train rows of a request's first candidate."""
    traffic = data_traffic(movielens(), 1, pool=2000, seed=1)
    for column, split, got in (
        ("user_id", "test", [int(r.users.user_B) for r in traffic.requests]),
        ("item", "train", [int(r.ids_JN[0, 0]) for r in traffic.requests]),
    ):
        ids_N = movielens().frame(split, columns=[column])[column].to_numpy()
        count_V = np.bincount(ids_N)
        want, spread = count_V[ids_N].mean(), count_V[ids_N].std() / np.sqrt(2000)
        assert abs(count_V[got].mean() - want) < 4 * spread
        assert count_V[np.unique(ids_N)].mean() < want - 8 * spread, "drawing names uniformly would show"


def test_traffic_repeats_with_its_seed() -> None:
    again, other = data_traffic(movielens(), 100, pool=200, seed=5), data_traffic(movielens(), 100, pool=200, seed=6)
    for a, b in zip(drawn().requests, again.requests, strict=True):
        same_rows(a.users, b.users)
        assert torch.equal(a.ids_JN, b.ids_JN)
    assert any(not torch.equal(a.ids_JN, b.ids_JN) for a, b in zip(drawn().requests, other.requests, strict=True))
    number = {id(r): i for i, r in enumerate(drawn().requests)}
    stream = [number[id(r)] for r in drawn().stream(500)]
    assert sorted(stream[:200]) == sorted(stream[200:400]) == list(range(200))
    assert stream[:200] != stream[200:400]
    assert [number[id(r)] for r in drawn().stream(300)] == stream[:300]
    assert drawn().stream(0) == []


def test_long_histories_repeat_the_users_own_events() -> None:
    traffic = data_traffic(movielens(), 4, pool=50, history=300, seed=2)
    assert {f.max_length for f in traffic.schema.sequences} == {300}
    for request in traffic.requests:
        rows, times = request.users.ids, request.users.event_times["hist"]
        assert rows.lengths().tolist()[-3:] == [300, 300, 300]
        assert request.users.host == {"lengths": {"hist": [300]}}
        assert bool((times.diff() >= 0).all())
        assert full_rows(traffic.schema, request).size == 4


@quick(60)
@given(own=st.integers(1, 12), length=st.integers(1, 40), seed=st.integers(0, 1000))
def test_stretching_is_cyclic_and_keeps_the_newest(own: int, length: int, seed: int) -> None:
    users = with_events(SCHEMA, synthetic_batch(SCHEMA, 1, seed=seed), {"hist": slice(-own, None)})
    long, kept = stretched(SCHEMA, users, length), min(own, length)
    for name in ("hist_item", "hist_category", "hist_action"):
        was, now = users.ids[name].values().tolist(), long.ids[name].values().tolist()
        assert now == (was * (length // own + 1))[-length:]
    old, new = users.event_times["hist"], long.event_times["hist"]
    assert torch.equal(new[-kept:], old[-kept:])
    assert bool((new.diff() >= 0).all())
    for k in range(own, length, own):
        assert new[-k - 1] == new[-k] - 1, "a second between the copies"


def test_more_candidates_than_items_and_unfit_traffic() -> None:
    items = len(movielens().frame("train", columns=["item", "genre", "year"]).unique())
    request = data_traffic(movielens(), items + 5, pool=1).requests[0]
    assert request.count == items + 5
    every = data_traffic(movielens(), items, pool=1).requests[0]
    assert len(set(map(tuple, every.ids_JN.T.tolist()))) == items
    with pytest.raises(BadInput, match="candidates=0 pool=256 history=None must each be at least 1"):
        data_traffic(movielens(), 0)


def test_random_traffic() -> None:
    traffic = random_traffic(random_schema("random_sequence", 1024), 8, pool=3, seed=4)
    assert [r.count for r in traffic.requests] == [8, 8, 8]
    assert {int(r.users.ids["hist_item"].lengths()) for r in traffic.requests} == {1024}
    assert not torch.equal(traffic.requests[0].ids_JN, traffic.requests[1].ids_JN)


# ---------------------------------------------------------------- cache of users


def naive_hits(stream: Sequence[int], users: int, warm: int) -> float:
    """By the definition: found if fewer than `users` others came since."""
    hits = []
    for i, user in enumerate(stream):
        before = [j for j in range(i) if stream[j] == user]
        hits.append(bool(before) and len(set(stream[before[-1] + 1 : i])) < users)
    return float(np.mean(hits[warm:]))


@quick(100)
@given(stream=st.lists(st.integers(0, 9), min_size=3, max_size=60), users=st.integers(0, 12), warm=st.integers(0, 2))
def test_hits_are_those_of_the_definition(stream: list[int], users: int, warm: int) -> None:
    assert hit_rate(stream, users, warm=warm) == pytest.approx(naive_hits(stream, users, warm))


@pytest.mark.parametrize(("exponent", "held"), [(0.6, 100), (0.8, 50), (1.0, 100), (1.2, 200)])
def test_hits_of_a_zipf_stream(exponent: float, held: int) -> None:
    """Che's approximation: user u is found with 1 - exp(-share_u t), t so that `held` users came within t requests."""
    share_U = zipf_shares(1000, exponent)
    t = brentq(lambda t: (1 - np.exp(-share_U * t)).sum() - held, 0, 1e6)
    want = float((share_U * (1 - np.exp(-share_U * t))).sum())
    assert hit_rate(zipf_stream(1000, exponent, 120_000, seed=1).tolist(), held, warm=20_000) == pytest.approx(
        want, abs=0.01
    )


def test_streams_of_users() -> None:
    stream = zipf_stream(50, 1.0, 50_000, seed=3)
    assert np.bincount(stream, minlength=50) / 50_000 == pytest.approx(zipf_shares(50, 1.0), abs=0.01)
    ids_N = movielens().frame("test", columns=["user_id"])["user_id"].to_numpy()
    users = user_stream(movielens(), 20_000, seed=1)
    assert set(users) <= set(ids_N)
    top = np.bincount(ids_N).argmax()
    assert (users == top).mean() == pytest.approx((ids_N == top).mean(), abs=0.005)
    assert np.array_equal(users, user_stream(movielens(), 20_000, seed=1))
    with pytest.raises(ValueError, match="users=0 must be at least 1"):
        zipf_stream(0, 1.0, 1)
    with pytest.raises(ValueError, match="no request after the first 9"):
        hit_rate([1, 2], 1, warm=9)
    with pytest.raises(ValueError, match="users=-1"):
        hit_rate([1], -1)

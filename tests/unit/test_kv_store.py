"""The store of users' states: budget, order of eviction, counts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrbench.models.kv_store import KVStore, StoreCounts


@dataclass(frozen=True)
class Thing:
    nbytes: int
    name: str = ""


def test_the_one_asked_for_longest_ago_goes_first():
    store: KVStore[Thing] = KVStore(100)
    for name in "abc":
        assert store.put(name, Thing(30, name))
    assert store.get("a") == Thing(30, "a")
    store.put("d", Thing(40))  # 130 bytes: b has not been asked for since c came
    assert [k in store for k in "abcd"] == [True, False, True, True]
    assert (store.nbytes, len(store), store.bytes_per_user) == (100, 3, 100 / 3)
    assert store.get("b") is None
    assert store.counts == StoreCounts(hits=1, misses=1, evictions=1, refused=0)


def test_a_successor_takes_the_place_of_what_was_there():
    store: KVStore[Thing] = KVStore(100)
    store.put("a", Thing(60))
    held = store.get("a")
    store.put("a", Thing(90))
    assert held == Thing(60)
    assert (store.nbytes, store.counts.evictions) == (90, 0)
    store.drop("a")
    store.drop("a")
    assert (store.nbytes, len(store), store.bytes_per_user) == (0, 0, 0.0)


def test_what_is_larger_than_the_budget_is_refused_and_leaves_nothing_stale():
    store: KVStore[Thing] = KVStore(100)
    store.put("a", Thing(50))
    store.put("b", Thing(50))
    assert not store.put("a", Thing(101))
    assert store.get("a") is None
    assert store.get("b") == Thing(50)
    assert store.counts == StoreCounts(hits=1, misses=1, evictions=0, refused=1)
    with pytest.raises(ValueError, match="budget=0"):
        KVStore(0)


@given(st.integers(1, 60), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.booleans()), max_size=40))
def test_it_holds_what_a_plain_list_would(budget, steps):
    store: KVStore[Thing] = KVStore(budget)
    kept: list[tuple[int, Thing]] = []  # least recently used first
    for key, size, reads in steps:
        found = next((v for k, v in kept if k == key), None)
        rest = [(k, v) for k, v in kept if k != key]
        if reads:
            assert store.get(key) == found
            kept = rest if found is None else [*rest, (key, found)]
        else:
            thing = Thing(size)
            assert store.put(key, thing) == (size <= budget)
            kept = rest
            if size <= budget:
                while sum(v.nbytes for _, v in kept) + size > budget:
                    kept.pop(0)
                kept.append((key, thing))
        assert store.nbytes == sum(v.nbytes for _, v in kept) <= budget
        assert all((k in store) == any(k == x for x, _ in kept) for k in range(6))

"""Legacy features against a brute-force twin, against the future, and the request path against the batch path."""

from __future__ import annotations

from dataclasses import replace
from math import floor, log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.feature_store import CounterStore, HistoryStore
from ctrbench.datasets.legacy_features import (
    ALWAYS,
    CLOCK,
    HASH_ROWS,
    RATES,
    SMOOTHING,
    ImpressionLog,
    Recipe,
    batch_features,
    recipe,
)  # fmt: skip
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema, Field

SCHEMA = FeatureSchema(
    name="shop", track="sequence",
    fields=(
        Field(name="user", kind="categorical", role="user", cardinality=7),
        Field(name="age", kind="categorical", role="user", cardinality=5),
        Field(name="item", kind="categorical", role="item", cardinality=9),
        Field(name="category", kind="categorical", role="item", cardinality=5),
    ),
)  # fmt: skip
START = 3 * 86_400
STEPS = (0, 1, 59, 3_599, 3_600, 3_601, 40_000, 86_400, 700_000)
"""Seconds from one impression to the next: ties, and the edges of windows."""


@st.composite
def logs(draw: Any, most: int = 40) -> ImpressionLog:
    """Few values and many ties."""
    size = draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    time_N = START + np.cumsum(rng.choice(STEPS, size))
    ids = {f.name: rng.integers(0, f.cardinality, size) for f in SCHEMA.fields}
    return ImpressionLog(time_N, rng.integers(0, 2, size), ids)


def statistics_twin(log: ImpressionLog, made: Recipe, row: int) -> list[int]:
    out = []
    for key, windows in made.statistics.items():
        seen = []
        for window in windows:
            now = log.time_N[row]
            same = [
                n for n in range(log.size)
                if now - window <= log.time_N[n] < now and all(log.parts[k][n] == log.parts[k][row] for k in key)
            ]  # fmt: skip
            seen.append((len(same), sum(int(log.label_N[n]) for n in same)))
        out += [FIRST_ID + min(15, floor(log2(1 + count))) for count, _ in seen]
        out += [FIRST_ID + floor(RATES * ((c + SMOOTHING * made.prior) / (n + SMOOTHING))) for n, c in seen]
    return out


@given(log=logs(), columns=st.sampled_from([1, 7, 40, 90]), prior=st.sampled_from([0.03, 0.5]))
@settings(deadline=None, max_examples=40, database=None)
def test_batch_path_is_its_twin(log: ImpressionLog, columns: int, prior: float) -> None:
    made = recipe(SCHEMA, columns, prior)
    out_FN = batch_features(log, made)
    assert out_FN.shape == (columns, log.size) == (len(made.names), log.size)
    assert len(set(made.names)) == columns
    assert (out_FN >= FIRST_ID).all() and (out_FN.max(axis=1) < made.cardinalities).all()  # noqa: PT018
    for row in range(log.size):
        assert out_FN[len(made.crosses) :, row].tolist() == statistics_twin(log, made, row)
    for x, key in enumerate(made.crosses):
        value_of = {}
        for row in range(log.size):
            parts = tuple(int(log.parts[k][row]) for k in key)
            assert value_of.setdefault(parts, out_FN[x, row]) == out_FN[x, row]


@given(before=logs(), after=logs(), flips=st.integers(0, 2**32))
@settings(deadline=None, max_examples=40, database=None)
def test_the_future_changes_nothing(before: ImpressionLog, after: ImpressionLog, flips: int) -> None:
    """Whatever labels the last second has and whatever follows, features up to it stay as they are."""
    made, size, last = recipe(SCHEMA, 60, 0.4), before.size, before.time_N[-1]
    label_N = np.where(before.time_N == last, np.random.default_rng(flips).integers(0, 2, size), before.label_N)
    later = after.time_N - after.time_N[0] + last
    changed = ImpressionLog(
        np.concatenate([before.time_N, later]), np.concatenate([label_N, after.label_N]),
        {k: np.concatenate([v, after.ids[k]]) for k, v in before.ids.items()},
    )  # fmt: skip
    assert np.array_equal(batch_features(changed, made)[:, :size], batch_features(before, made))


@given(log=logs(), columns=st.sampled_from([1, 40, 90]), chunk=st.integers(1, 12), ahead=st.integers(0, 12))
@settings(deadline=None, max_examples=40, database=None)
def test_request_path_is_the_batch_path(log: ImpressionLog, columns: int, chunk: int, ahead: int) -> None:
    """Whatever the interleaving: rows come in chunks, requests are answered when all rows before them are there."""
    made = recipe(SCHEMA, columns, 0.3)
    want_FN, store = batch_features(log, made), CounterStore(made)
    known = 0
    for row in range(log.size):
        needed = int(np.searchsorted(log.time_N, log.time_N[row]))
        while known < min(log.size, needed + ahead):
            store.update(log.take(known, known + chunk))
            known = min(log.size, known + chunk)
        others = np.arange(log.size)[log.time_N == log.time_N[row]]
        user = {k: int(log.ids[k][row]) for k in ("user", "age")}
        mine = others[(log.ids["user"][others] == user["user"]) & (log.ids["age"][others] == user["age"])]
        candidates = {k: log.ids[k][mine] for k in ("item", "category")}
        got_FC = store.features(user, candidates, int(log.time_N[row])).full(made)
        assert np.array_equal(got_FC, want_FN[:, mine])


def test_a_cross_keeps_most_values_apart() -> None:
    made = replace(recipe(SCHEMA, 2, 0.5), crosses=(("user", "item"),), statistics={}, sizes={"user": 300, "item": 300})
    user_N, item_N = (v.ravel() for v in np.meshgrid(np.arange(300), np.arange(300)))
    log = ImpressionLog(np.zeros(90_000, np.int64), np.zeros(90_000, np.int64), {"user": user_N, "item": item_N})
    distinct = len(np.unique(batch_features(log, made)[0]))
    expected = HASH_ROWS * (1 - (1 - 1 / HASH_ROWS) ** 90_000)
    assert abs(distinct - expected) < 5 * expected**0.5


def test_recipes_name_what_they_cannot_make() -> None:
    most = recipe(SCHEMA, 1, 0.5)
    assert most.columns == 1
    with pytest.raises(BadInput, match="shop: 9999 legacy columns; its fields and windows give 1 to"):
        recipe(SCHEMA, 9999, 0.5)
    with pytest.raises(BadInput, match=r"prior=1\.0 must lie between 0 and 1"):
        recipe(SCHEMA, 40, 1.0)
    with pytest.raises(BadInput, match="need a categorical field of role user and one of role item"):
        recipe(FeatureSchema(name="clicks", track="tabular", fields=SCHEMA.fields[:2]), 40, 0.5)
    with pytest.raises(BadInput, match="more values than 62 bits"):
        replace(most, sizes={"user": 2**40, "item": 2**30}).code(("user", "item"), {})
    with pytest.raises(BadInput, match="sorted by time"):
        ImpressionLog(np.array([2, 1]), np.array([0, 1]), {})


def test_the_first_forty_are_the_usual_ones() -> None:
    made = recipe(SCHEMA, 40, 0.5)
    assert list(made.statistics) == [("user",), ("item",), ("category",), ("user", "category"), ("user", "hour")]
    assert set(made.statistics.values()) == {(3_600, 86_400, 7 * 86_400)}
    assert len(made.crosses) == 10
    widest = recipe(SCHEMA, 200, 0.5)
    assert ALWAYS in widest.statistics["user",]
    assert set(CLOCK) <= set(widest.sizes)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=60), st.integers(1, 20))
@settings(deadline=None, max_examples=40, database=None)
def test_histories_hold_the_last_strictly_earlier_events(steps: list[tuple[int, int]], length: int) -> None:
    store, events, now = HistoryStore(["item"]), [], 0
    for number, (user, step) in enumerate(steps):
        now += step
        for asked in range(3):
            want = [(i, t) for u, i, t in events if u == asked and t < now][-length:]
            assert list(map(tuple, store.last(asked, length, now).T.tolist())) == want
        store.append(user, (number, now))
        events.append((user, number, now))

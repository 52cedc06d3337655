"""A raw request becomes the ids that preparing the same values gives, and what no vocabulary holds becomes OOV."""

from __future__ import annotations

import runpy
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.movielens_1m import CATEGORICAL, events, fetch
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.schema import MISSING, OOV, FeatureSchema, Field
from ctrbench.models.raw_requests import RawRequest, RequestForm, Vocabularies, encode
from ctrbench.models.requests import Requests, full_rows, take_users

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))


@cache
def prepared_and_raw() -> tuple[Any, Any, list[dict[str, Any]], Any]:
    """Test rows as batch and as raw values; some values are rare, so that they are out of vocabulary."""
    with TemporaryDirectory() as folder:
        path = _tiny["movielens_folder"](Path(folder) / "raw", _tiny["random_events"](7))
        prepared = prepare("movielens_1m", path, Path(folder) / "out", history=6, min_count=11)
        text = events(fetch(path, {}), Account(path)).sort("time", "position").tail(prepared.rows("test"))
        batch = next(iter(Loader(prepared, "test", prepared.rows("test"))))
        return prepared.schema, Vocabularies(prepared), text.to_dicts(), batch


def raw_of(rows: list[dict[str, Any]], one: Any, user: dict[str, Any]) -> RawRequest:
    """A request of the user of one prepared row with the items of some text rows."""
    hist = {n: one.ids[n].values().numpy() for n in ("hist_item", "hist_genre", "hist_action")}
    return RawRequest(
        user={n: user[n] for n, role in CATEGORICAL.items() if role == "user"},
        candidates={n: [r[n] for r in rows] for n, role in CATEGORICAL.items() if role == "item"},
        time=user["time"], user_id=user["user_id"],
        events={"hist": {**hist, "time": one.event_times["hist"].numpy()}},
    )  # fmt: skip


def request_of(schema: FeatureSchema, vocabularies: Vocabularies, raw: RawRequest) -> Requests:
    return RequestForm(schema).built(encode(schema, vocabularies, raw), raw)


@given(st.lists(st.integers(0, 79), min_size=1, max_size=9), st.integers(0, 79))
@settings(deadline=None, max_examples=40, database=None)
def test_raw_values_become_the_prepared_ids(chosen: list[int], user: int) -> None:
    schema, vocabularies, text, batch = prepared_and_raw()
    assert OOV in batch.ids["item"].values().tolist()
    one = take_users(schema, batch, user)
    found = request_of(schema, vocabularies, raw_of([text[i] for i in chosen], one, text[user]))
    rows = full_rows(schema, found)
    for place, n in enumerate(chosen):
        got, item = take_users(schema, rows, place), take_users(schema, batch, n)
        for f in schema.of_kind("categorical", "sequence"):
            want = item if f.role == "item" else one
            assert torch.equal(got.ids[f.name].values(), want.ids[f.name].values()), f.name
        assert torch.equal(got.event_times["hist"], one.event_times["hist"])
        assert (got.time_B, got.user_B, got.host) == (one.time_B, one.user_B, one.host)


def test_unseen_missing_and_wrong_values() -> None:
    schema, vocabularies, text, batch = prepared_and_raw()
    raw = raw_of(text[:2], take_users(schema, batch, 0), text[0])
    odd = replace(raw, user={**raw.user, "user": "1m_999999", "age": None}, events={})
    found = request_of(schema, vocabularies, odd)
    assert found.users.ids["user"].values().tolist() == [OOV]
    assert found.users.ids["age"].values().tolist() == [MISSING]
    assert found.users.ids["hist_item"].values().numel() == found.users.event_times["hist"].numel() == 0
    with pytest.raises(BadInput, match="no value for field 'gender' of movielens_1m"):
        request_of(schema, vocabularies, replace(raw, user={k: v for k, v in raw.user.items() if k != "gender"}))
    with pytest.raises(BadInput, match="one value each of every field"):
        request_of(schema, vocabularies, replace(raw, candidates={**raw.candidates, "item": ["a"]}))
    with pytest.raises(BadInput, match="history 'hist' differ in length"):
        request_of(schema, vocabularies, replace(raw, events={"hist": {"time": np.array([1, 2])}}))


def test_histories_are_cut_and_dense_values_kept() -> None:
    schema, vocabularies, text, batch = prepared_and_raw()
    longest = max(range(80), key=lambda n: batch.host["lengths"]["hist"][n])
    raw = raw_of(text[:3], take_users(schema, batch, longest), text[longest])
    fields = tuple(replace(f, max_length=2) if f.kind == "sequence" else f for f in schema.fields)
    dense = (Field(name="score", kind="dense", role="user"), Field(name="price", kind="dense", role="item"))
    found = request_of(
        replace(schema, fields=(*fields, *dense)), vocabularies,
        replace(raw, dense_user={"score": 1.5}, dense_candidates={"price": [2.0, float("nan"), 4.0]}),
    )  # fmt: skip
    assert found.users.event_times["hist"].tolist() == raw.events["hist"]["time"][-2:].tolist()
    assert found.users.dense_BI.tolist() == [[1.5, 0.0]]
    assert found.users.missing_BI.tolist() == [[0.0, 1.0]]
    assert found.dense_NI.tolist() == [[2.0], [0.0], [4.0]]
    assert found.missing_NI.tolist() == [[0.0], [1.0], [0.0]]

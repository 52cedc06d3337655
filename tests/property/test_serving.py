"""Serving is exact: every form of every ranker gives the logits of its own forward on the same rows.

Whatever the users, their histories, the events that were appended since, and the candidates.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.bench import registry
from ctrbench.datasets.random_batches import random_schema
from ctrbench.datasets.schema import synthetic_batch
from ctrbench.models.embedding import embedding_tables
from ctrbench.models.requests import Requests, full_rows, requests_of, take_users
from ctrbench.models.serving import WHOLE, serve, serving_forms

TOLERANCE = 1e-5
LENGTH = 12
SCHEMA = random_schema("random_sequence", LENGTH)
RANKERS = [n for n in registry.model_names() if "sequence" in registry.model_spec(n).tracks
           and registry.model_spec(n).own_batches is None]  # fmt: skip


@cache
def model_of(name: str) -> Any:
    """A ranker whose tables are far from zero, so that a wrong row shows."""
    torch.manual_seed(0)
    spec = registry.model_spec(name)
    with torch.no_grad():
        model = spec.build(spec.config(), SCHEMA).eval()
        for tables in embedding_tables(model):
            for weight in tables.weights().values():
                weight.copy_(0.3 * torch.randn_like(weight))
    return model


def requests(users: int, count: int, seed: int, full: bool = False) -> Requests:
    return requests_of(
        SCHEMA, synthetic_batch(SCHEMA, users, seed=seed, full=full),
        synthetic_batch(SCHEMA, users * count, seed=seed + 1, full=False),
    )  # fmt: skip


@pytest.mark.parametrize("name", RANKERS)
@settings(max_examples=12, deadline=None, database=None)
@given(users=st.integers(1, 3), count=st.integers(1, 6), seed=st.integers(0, 10**6), full=st.booleans())
def test_every_form_is_exact(name: str, users: int, count: int, seed: int, full: bool) -> None:
    model = model_of(name)
    asked = requests(users, count, seed, full)
    forms = serving_forms(registry.model_spec(name).serving, model, SCHEMA)
    want = serve(forms[WHOLE], asked)
    assert want.numel() == 1 or float(want.std()) > 0
    for form, made in forms.items():
        torch.testing.assert_close(serve(made, asked), want, atol=TOLERANCE, rtol=0, msg=lambda m, f=form: f"{f}: {m}")


def test_full_rows_are_the_users_rows_with_the_candidates_items() -> None:
    asked = requests(2, 3, seed=5)
    rows = full_rows(SCHEMA, asked)
    assert rows.size == 6
    for n in range(6):
        one, user = take_users(SCHEMA, rows, n), take_users(SCHEMA, asked.users, n // 3)
        for f in SCHEMA.of_kind("categorical", "sequence"):
            if f.role != "item":
                assert torch.equal(one.ids[f.name].values(), user.ids[f.name].values()), f.name
        assert torch.equal(one.event_times["hist"], user.event_times["hist"])
        item = [one.ids[f.name].values().item() for f in SCHEMA.categorical if f.role == "item"]
        assert item == asked.ids_JN[:, n].tolist()


def test_users_and_candidates_that_do_not_fit() -> None:
    users, items = synthetic_batch(SCHEMA, 2), synthetic_batch(SCHEMA, 3)
    with pytest.raises(ValueError, match="3 candidates cannot be shared out evenly over 2 requests"):
        requests_of(SCHEMA, users, items)
    tabular = random_schema("random_tabular", 1)
    with pytest.raises(ValueError, match="no field of role `item`"):
        requests_of(tabular, synthetic_batch(tabular, 1), synthetic_batch(tabular, 2))

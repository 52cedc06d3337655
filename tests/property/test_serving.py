"""Serving is exact: every form of every ranker gives the logits of its own forward on the same rows.

Whatever the users, their histories, the events that were appended since, and the candidates.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.bench import registry
from ctrbench.datasets.random_batches import random_schema
from ctrbench.datasets.schema import synthetic_batch
from ctrbench.models.embedding import embedding_tables
from ctrbench.models.requests import Requests, full_rows, requests_of, take_users, without_newest
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


class Visit(NamedTuple):
    """A request of a known user, whose history has grown by some events since the one before."""

    user: int
    appended: int
    candidates: int


VISITS = st.lists(st.builds(Visit, st.integers(0, 2), st.integers(0, 3), st.integers(1, 4)), min_size=2, max_size=6)


def visited(name: str, visits: list[Visit], seed: int) -> None:
    """Serves the visits in order through forms that live on, each held to the model's own forward."""
    model = model_of(name)
    own = registry.model_spec(name).serving
    forms = serving_forms(own, model, SCHEMA)
    whole = synthetic_batch(SCHEMA, 3, seed=seed)
    seen = [0, 0, 0]
    for number, visit in enumerate(visits):
        seen[visit.user] = min(seen[visit.user] + visit.appended, LENGTH)
        row = take_users(SCHEMA, whole, visit.user)
        user = without_newest(SCHEMA, row, LENGTH - seen[visit.user])
        asked = requests_of(SCHEMA, user, synthetic_batch(SCHEMA, visit.candidates, seed=seed + number, full=False))
        want = serve(forms[WHOLE], asked)
        for form, made in forms.items():
            torch.testing.assert_close(
                serve(made, asked), want, atol=TOLERANCE, rtol=0, msg=lambda m, f=form: f"{f}: {m}"
            )


SIX = ("deepfm", "dcn_v2", "din", "fat", "lum", "onetrans")


@pytest.mark.parametrize("name", SIX)
@settings(max_examples=6, deadline=None, database=None)
@given(visits=VISITS, seed=st.integers(0, 10**6))
def test_any_order_of_users_and_appended_events_is_exact(name: str, visits: list[Visit], seed: int) -> None:
    visited(name, visits, seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SIX)
@settings(max_examples=170, deadline=None, database=None)  # 1,020 in all
@given(visits=VISITS, seed=st.integers(0, 10**6))
def test_a_thousand_orders_of_users_and_appended_events(name: str, visits: list[Visit], seed: int) -> None:
    visited(name, visits, seed)


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

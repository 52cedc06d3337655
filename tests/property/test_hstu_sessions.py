"""HSTU across requests: what is kept of a user gives the scores of a cold computation whatever happens in between."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.onetrans_cases import drawn_events, rows_with, schema_with

from ctrbench.datasets.schema import synthetic_batch
from ctrbench.models import hstu_sessions
from ctrbench.models.embedding import TableConfig
from ctrbench.models.hstu import Hstu, HstuConfig
from ctrbench.models.hstu_sessions import HstuSessions
from ctrbench.models.kv_store import KVStore
from ctrbench.models.requests import requests_of, take_users
from ctrbench.models.serving import serve

WINDOW = 6
SCHEMAS = [schema_with("hist", length=WINDOW), schema_with("buys", "clicks", length=WINDOW)]
KINDS = list(product(range(2), ["research", "production"], [1, 2, 3, 4], [torch.float64, torch.float32]))
SMALL = HstuConfig(dim=4, width=8, heads=2, qk=3, v=4, tables=TableConfig(impl="per_table", optimizer="adagrad"))


@cache
def model_of(schema: int, flavour: str, layers: int, dtype: torch.dtype) -> Hstu:
    torch.manual_seed(0)
    model = Hstu(replace(SMALL, flavour=flavour, layers=layers), SCHEMAS[schema]).to(dtype).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def check(kind: int, steps: list[tuple[int, str, int, int]], budget: int) -> HstuSessions:
    schema, model = SCHEMAS[KINDS[kind][0]], model_of(*KINDS[kind])
    sessions, now, held = HstuSessions(model, schema, KVStore(budget)), 10**6, []
    users = [{h: drawn_events(schema, h, 3) for h in schema.histories} for _ in range(3)]
    for user, what, history, count in steps:
        name = list(users[user])[history % len(users[user])]
        own, newest = users[user][name], max((e[0] for es in users[user].values() for e in es), default=0)
        if what in ("append", "late"):
            own += drawn_events(
                schema, name, count, newest if what == "append" else max((e[0] for e in own), default=0)
            )
        elif what == "rewrite" and own:
            own[count % len(own)] = (own[count % len(own)][0], *drawn_events(schema, name, 1)[0][1:])
        elif what == "forget" and own:
            del own[count % len(own)]
        now += count  # the newest event is as far from the request as the request is late
        rows = rows_with(schema, [{h: [] for h in schema.histories}] * user + [users[user]], now)
        asked = requests_of(schema, take_users(schema, rows, user), synthetic_batch(schema, 2))
        held.append((sessions.context(user % 2, asked.users), asked, serve(sessions.form, asked)))
        assert sessions.store.nbytes <= budget
    for context, asked, want in held:
        tolerance = 1e-9 if KINDS[kind][-1] == torch.float64 else 1e-5
        torch.testing.assert_close(sessions.score(context, asked), want, rtol=0, atol=tolerance)
    return sessions


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2), st.sampled_from(["append"] * 5 + ["read", "late", "rewrite", "forget"]), st.integers(0, 1),
        st.sampled_from([1, 1, 1, 2, 3, 8]),
    ),
    min_size=3, max_size=8,
)  # fmt: skip
CASES = given(st.integers(0, len(KINDS) - 1), STEPS, st.sampled_from([500, 3000, 1 << 30]))
QUIET = [HealthCheck.too_slow]


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=QUIET)
@CASES
def test_any_interleaving_gives_the_scores_of_cold_runs(kind, steps, budget):
    """Users 0 and 2 share a name: other fields, other events, never each other's states."""
    check(kind, steps, budget)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, database=None, suppress_health_check=QUIET)
@CASES
def test_a_thousand_interleavings_give_the_scores_of_cold_runs(kind, steps, budget):
    check(kind, steps, budget)


@pytest.mark.parametrize("layers", [2, 4])
def test_old_events_are_reused_and_a_stale_read_would_be_found(layers, monkeypatch):
    kind = KINDS.index((0, "research", layers, torch.float64))
    steps = [(0, "read", 0, 1), (0, "append", 0, 2), (0, "read", 0, 1), (0, "rewrite", 0, 1), (0, "append", 0, 1)]
    assert check(kind, steps[:3], 1 << 30).reused == {"cold": 1, "grown": 2}
    monkeypatch.setattr(hstu_sessions, "common", lambda old, new: min(len(old), len(new)))
    with pytest.raises(AssertionError):
        check(kind, steps, 1 << 30)


def test_the_newest_event_and_the_user_are_not_kept(monkeypatch):
    """Keeping the newest event's row too gives other scores once its successor has come."""
    kind = KINDS.index((0, "research", 2, torch.float64))
    true = hstu_sessions.common
    monkeypatch.setattr(hstu_sessions, "common", lambda old, new: true(old, new) + 1)
    with pytest.raises(AssertionError):
        check(kind, [(0, "read", 0, 1), (0, "append", 0, 1), (0, "append", 0, 1)], 1 << 30)

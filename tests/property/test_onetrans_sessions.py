"""OneTrans across requests: kept states give the scores of a cold computation whatever happens between two requests.

In `exact` mode; `streaming` is an approximation and must differ where states are not what a cold run computes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.onetrans_cases import SMALL, drawn_events, looked_up, rows_with, schema_with

from ctrbench.datasets.schema import synthetic_batch
from ctrbench.models import onetrans_sessions
from ctrbench.models.kv_store import KVStore
from ctrbench.models.onetrans import OneTrans
from ctrbench.models.onetrans_sessions import OneTransSessions, drift, shift
from ctrbench.models.onetrans_timeline import common
from ctrbench.models.requests import Requests, requests_of, take_users, without_newest
from ctrbench.models.serving import serve

WINDOW = 6
SCHEMAS = [schema_with("hist", length=WINDOW), schema_with("buys", "clicks", length=WINDOW)]
POSITIONS = ["learned_from_start", "time_bucket", "none"]
KINDS = list(product(
    range(2), ["full_first", "shrink_first", "none"], POSITIONS, ["time", "intent"], [2, 3, 5],
    [torch.float64, torch.float32],
))  # fmt: skip


@cache
def model_of(schema: int, pyramid: str, pos: str, fusion: str, layers: int, dtype: torch.dtype) -> OneTrans:
    torch.manual_seed(0)
    config = replace(SMALL, pyramid=pyramid, pos=pos, fusion=fusion, layers=layers, l_ns=2)
    return looked_up(config, SCHEMAS[schema], dtype)


class World:
    """Users whose events come, change and go."""

    def __init__(self, schema: int) -> None:
        self.schema = SCHEMAS[schema]
        self.users = [{h: drawn_events(self.schema, h, 2) for h in self.schema.histories} for _ in range(3)]

    def change(self, user: int, what: str, history: int, count: int) -> None:
        """`append` at the end of all events, `late` behind those of the history alone, `rewrite` or `forget` one."""
        events = self.users[user]
        name = list(events)[history % len(events)]
        own, newest = events[name], max((e[0] for es in events.values() for e in es), default=0)
        if what in ("append", "late"):
            start = newest if what == "append" else max((e[0] for e in own), default=0)
            own += drawn_events(self.schema, name, count, start)
        elif own and what == "rewrite":
            at = count % len(own)
            own[at] = (own[at][0], *drawn_events(self.schema, name, 1)[0][1:])
        elif own and what == "forget":
            del own[count % len(own)]

    def asked(self, user: int) -> Requests:
        return requests_of(self.schema, rows_with(self.schema, [self.users[user]]), synthetic_batch(self.schema, 2))


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2), st.sampled_from(["append"] * 5 + ["read", "late", "rewrite", "forget"]), st.integers(0, 1),
        st.sampled_from([1, 1, 1, 2, 3, 8]),
    ),
    min_size=3, max_size=9,
)  # fmt: skip


def check(kind: int, steps: list[tuple[int, str, int, int]], users_that_fit: float) -> None:
    model, world = model_of(*KINDS[kind]), World(KINDS[kind][0])
    double = KINDS[kind][-1] == torch.float64
    size = WINDOW * 8 * 2 * (8 if double else 4) * KINDS[kind][4] * len(world.schema.histories)
    sessions = OneTransSessions(model, world.schema, "exact", KVStore(int(size * users_that_fit)))
    held = []
    for user, what, history, count in steps:
        world.change(user, what, history, count)
        asked = world.asked(user)
        context, want = sessions.context(user, asked.users), serve(sessions.form, asked)
        held.append((context, asked, want))
        assert sessions.store.nbytes <= sessions.store.budget
    for context, asked, want in held:  # read late: what was appended since must not show in a context handed out
        tolerance = 1e-9 if double else 1e-5
        torch.testing.assert_close(sessions.score(context, asked), want, rtol=0, atol=tolerance)


CASES = given(st.integers(0, len(KINDS) - 1), STEPS, st.sampled_from([0.3, 1.2, 2.5, 100.0]))
QUIET = [HealthCheck.too_slow]


@settings(max_examples=80, deadline=None, database=None, suppress_health_check=QUIET)
@CASES
def test_any_interleaving_gives_the_scores_of_cold_runs(kind, steps, users_that_fit):
    check(kind, steps, users_that_fit)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, database=None, suppress_health_check=QUIET)
@CASES
def test_a_thousand_interleavings_give_the_scores_of_cold_runs(kind, steps, users_that_fit):
    check(kind, steps, users_that_fit)


def test_a_stale_read_would_be_found(monkeypatch):
    """The check of the events skipped: the same test fails."""
    monkeypatch.setattr(onetrans_sessions, "common", lambda old, new: min(len(old), len(new)))
    kind = KINDS.index((0, "none", "none", "time", 3, torch.float64))
    with pytest.raises(AssertionError):
        check(kind, [(0, "read", 0, 1), (0, "rewrite", 0, 0), (0, "append", 0, 1)], 100.0)


@pytest.mark.parametrize(
    ("options", "first", "then"),
    [
        # a window of twelve: what became of states when one event arrived at a time, from `first` events to fourteen
        ({"pyramid": "none"}, 8, ["grown"] * 4 + ["cold"] * 2),
        ({"pyramid": "none", "pos": "time_bucket"}, 8, ["grown"] * 4 + ["slid"] * 2),
        ({"pyramid": "none", "pos": "none"}, 8, ["grown"] * 4 + ["slid"] * 2),
        # layers keep 9, 5, 2: from ten events on the first one drops some, so old events ask the second one again
        ({"pyramid": "shrink_first"}, 8, ["grown", "slid", "grown", "grown", "cold", "cold"]),
        # layers keep 12, 7, 2: the last one has what the second left, all of it as it was
        ({}, 3, ["grown"] * 9 + ["cold"] * 2),
        # weak events behind the separators are appended too; of a window that moved only the separators stay
        ({"pyramid": "none", "fusion": "intent"}, 8, ["grown"] * 6),
    ],
    ids=str,
)  # fmt: skip
def test_exact_reuses_what_it_may(options, first, then):
    schema = schema_with("hist", length=12)
    sessions = OneTransSessions(looked_up(replace(SMALL, l_ns=2, **options), schema), schema, "exact", KVStore(1 << 30))
    events = [(t, 5, 3) for t in range(1, 15)]  # always the weakest action
    seen = []
    for n in range(first, 15):
        before = sessions.reused.copy()
        asked = requests_of(schema, rows_with(schema, [{"hist": events[:n]}]), synthetic_batch(schema, 2))
        context = sessions.context("ann", asked.users)
        torch.testing.assert_close(sessions.score(context, asked), serve(sessions.form, asked), rtol=0, atol=1e-9)
        seen += (sessions.reused - before).elements()
    assert seen == ["cold", *then]
    asked_again = sessions.context("ann", asked.users)
    assert sessions.reused["same"] == 1
    assert asked_again.states[0] is context.states[0]


def test_only_new_events_go_through_the_layers():
    schema = schema_with("hist", length=12)
    sessions = OneTransSessions(looked_up(schema=schema), schema, "exact", KVStore(1 << 30))
    for n in (5, 6, 6, 9):
        sessions.context("ann", rows_with(schema, [{"hist": [(t, 5, 3) for t in range(1, n + 1)]}]))
    assert (sessions.present, sessions.computed) == (5 + 6 + 6 + 9, 5 + 1 + 0 + 3)
    off = OneTransSessions(looked_up(schema=schema), schema, "off", KVStore(1 << 30))
    for _ in range(2):
        off.context("ann", rows_with(schema, [{"hist": [(1, 5, 3)]}]))
    assert off.reused["cold"] == 2
    assert len(off.store) == 0


@pytest.mark.parametrize(
    ("options", "first_that_differs"), [({"pyramid": "none"}, 13), ({"pyramid": "shrink_first"}, 8)]
)
def test_streaming_is_exact_until_something_leaves_a_window_and_then_differs(options, first_that_differs):
    """Layers of shrink_first keep 10, 7, 5, 2: of eight events the second drops one, and the fourth notices."""
    schema = schema_with("hist", length=12)
    model = looked_up(replace(SMALL, layers=4, l_ns=2, **options), schema)
    sessions = OneTransSessions(model, schema, "streaming", KVStore(1 << 30))
    events = drawn_events(schema, "hist", 20)
    for n in range(3, 21):
        asked = requests_of(schema, rows_with(schema, [{"hist": events[:n]}]), synthetic_batch(schema, 3))
        context = sessions.context("ann", asked.users)
        apart = (sessions.score(context, asked) - serve(sessions.form, asked)).abs().max()
        assert (apart < 1e-9) == (n < first_that_differs), n
        assert context.states[0].appended == n - 3
        assert [k.shape[2] for k, _ in context.states[0].pasts] == [k.shape[2] for k, _ in
                sessions.form.context(asked.users).states[0].pasts]  # fmt: skip
    assert sessions.reused == {"cold": 1, "grown": 17}
    asked = requests_of(schema, rows_with(schema, [{"hist": events[:4]}]), synthetic_batch(schema, 3))
    torch.testing.assert_close(sessions.score(sessions.context("ann", asked.users), asked), serve(sessions.form, asked))


def test_drift_is_that_of_events_that_came_one_by_one():
    schema = schema_with("hist", length=6)
    model = looked_up(replace(SMALL, l_ns=2), schema)
    histories = [drawn_events(schema, "hist", n) for n in (9, 2, 12)]
    users = rows_with(schema, [{"hist": h} for h in histories])
    found = drift(model, schema, users, users, steps=(1, 4, 30))
    whole = model(users)
    torch.testing.assert_close(found.cold_N, whole.detach(), rtol=0, atol=1e-9)
    assert {k: rows.tolist() for k, (rows, _) in found.kept.items()} == {1: [0, 1, 2], 4: [0, 2]}
    sessions = OneTransSessions(model, schema, "streaming", KVStore(1 << 30))
    for n in range(8, 13):
        then = rows_with(schema, [*({"hist": h} for h in histories[:2]), {"hist": histories[2][:n]}])
        asked = requests_of(schema, take_users(schema, then, 2), take_users(schema, users, 2))
        context = sessions.context("bob", asked.users)
    torch.testing.assert_close(sessions.score(context, asked)[0], found.kept[4][1][1])
    assert (found.kept[4][1][1] - whole[2]).abs() > 1e-6


def test_several_users_in_one_call():
    world = World(1)
    model = model_of(1, "full_first", "time_bucket", "time", 3, torch.float64)
    sessions = OneTransSessions(model, world.schema, "exact", KVStore(1 << 30))
    asked = requests_of(world.schema, rows_with(world.schema, world.users), synthetic_batch(world.schema, 6))
    contexts = [sessions.context(i, take_users(world.schema, asked.users, i)) for i in range(3)]
    torch.testing.assert_close(sessions.score(sessions.together(contexts), asked), serve(sessions.form, asked))


def test_what_cannot_be_a_session_is_refused():
    with pytest.raises(ValueError, match="mask=full"):
        OneTransSessions(looked_up(replace(SMALL, mask="full")), SCHEMAS[0], "exact", KVStore(1))
    sessions = OneTransSessions(looked_up(schema=SCHEMAS[0]), SCHEMAS[0], "exact", KVStore(1))
    with pytest.raises(ValueError, match="2 rows"):
        sessions.context("ann", rows_with(SCHEMAS[0], World(0).users[:2]))


def test_events_that_two_histories_share():
    old, new = torch.tensor([[1, 1], [2, 2], [3, 3]]), torch.tensor([[2, 2], [3, 3], [4, 4]])
    assert (common(old, old), common(old, new), common(old, torch.cat([old[:2], new]))) == (3, 0, 2)
    assert (shift(old, new), shift(old, old), shift(old, new[2:]), shift(new, old), shift(old, old[:0])) == (
        1, 0, None, None, None,
    )  # fmt: skip


def test_a_row_without_its_newest_events():
    events = {"buys": [(1, 5, 3), (4, 6, 3)], "clicks": [(2, 7, 4), (4, 8, 4), (5, 9, 5)]}
    one = rows_with(SCHEMAS[1], [events])
    for count, left in ((0, (2, 3)), (1, (2, 2)), (2, (2, 1)), (3, (1, 1)), (9, (0, 0))):
        want = rows_with(SCHEMAS[1], [{h: e[:n] for (h, e), n in zip(events.items(), left, strict=True)}])
        got = without_newest(SCHEMAS[1], one, count)
        for f in SCHEMAS[1].of_kind("categorical", "sequence"):
            assert torch.equal(got.ids[f.name].values(), want.ids[f.name].values()), f.name
        assert [t.tolist() for t in got.event_times.values()] == [t.tolist() for t in want.event_times.values()]
        assert got.host == want.host

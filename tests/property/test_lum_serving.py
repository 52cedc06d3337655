"""LUM as it is served: group query, one by one, stored answers; what is kept of a history; what a request costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.bench.counting.counter import Recorder
from ctrbench.bench.registry import model_spec
from ctrbench.datasets.random_batches import random_schema
from ctrbench.datasets.schema import Batch, synthetic_batch
from ctrbench.models.embedding import dense_parameters, embedding_tables
from ctrbench.models.kv_store import KVStore
from ctrbench.models.lum import LumConfig, LumRanker
from ctrbench.models.lum_request import request_flops
from ctrbench.models.lum_serving import GroupQuery, KeptHistories, Stored, different
from ctrbench.models.lum_sid import SidUserModel
from ctrbench.models.lum_store import Answers
from ctrbench.models.requests import Requests, requests_of, take_users
from ctrbench.models.serving import WHOLE, WholeRows, serve, serving_forms

LENGTH = 8
SCHEMA = random_schema("random_sequence", LENGTH)
SPEC = model_spec("lum")
CLOSE = {"atol": 1e-5, "rtol": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "direct": {"use": "direct"},
    "match": {"use": "match", "similarity": "dot"},
    "no_condition": {"condition": False, "queries": 1},
    "pair": {"positions": "pair", "layers": 3},
    "one_query": {"queries": 1},
    "trained_on": {"frozen": False},
    "sid": {"target": "sid", "sid_method": "random"},
    "sid_holes": {"target": "sid", "sid_method": "random"},
    "sid_direct": {"target": "sid", "sid_method": "random", "use": "direct"},
    "fat": {"host": "fat"},
    "dcn_v2": {"host": "dcn_v2"},
    "deepfm": {"host": "deepfm"},
    "hstu": {"host": "hstu"},
}


@cache
def ranker(variant: str, length: int = LENGTH) -> LumRanker:
    """Weights far from zero, so that a wrong answer shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        model = SPEC.build(LumConfig(**VARIANTS.get(variant, {})), random_schema("random_sequence", length)).eval()
        loud = LumConfig(**VARIANTS.get(variant, {})).host in (
            "din",
            "hstu",
        )  # the others' logits are large as they are
        for tables in embedding_tables(model):
            for weight in tables.weights().values():
                weight.copy_((0.4 if loud else 0.05) * torch.randn_like(weight))
        for weight in dense_parameters(model):
            weight.mul_(1.5 if loud else 1.0)
        if isinstance(model.user_model, SidUserModel):
            for table in (model.user_model.cond, model.user_model.code, *model.user_model.side.values()):
                table.weight.normal_(std=0.5)
            model.user_model.codes.known_V[::3] &= variant != "sid_holes"
    return model


def requests(users: int, count: int, seed: int, full: bool = False) -> Requests:
    return requests_of(
        SCHEMA, synthetic_batch(SCHEMA, users, seed=seed, full=full),
        synthetic_batch(SCHEMA, users * count, seed=seed + 1, full=False),
    )  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=5, deadline=None, database=None)
@given(users=st.integers(1, 3), count=st.integers(1, 5), seed=st.integers(0, 10**6), full=st.booleans())
def test_every_form_of_every_variant_is_exact(variant: str, users: int, count: int, seed: int, full: bool) -> None:
    asked, model = requests(users, count, seed, full), ranker(variant)
    forms = serving_forms(SPEC.serving, model, SCHEMA)
    want = serve(forms[WHOLE], asked)
    for name in set(forms) - {WHOLE, "alone"}:
        torch.testing.assert_close(serve(forms[name], asked), want, **CLOSE, msg=lambda m, f=name: f"{f}: {m}")


def test_different_conditions_of_requests() -> None:
    cond_RK = torch.tensor([[5, 2, 5, 3], [7, 7, 7, 7]])
    cond_RU, at_RK = different(cond_RK)
    assert cond_RU.tolist() == [[2, 3, 5], [7, 7, 7]]
    assert torch.equal(cond_RU.flatten()[at_RK], cond_RK)
    assert at_RK.tolist() == [[2, 0, 2, 1], [3, 3, 3, 3]]


def flops(model: LumRanker, run: Callable[[], Any], batch: Batch) -> float:
    run()  # what a host keeps between calls is there
    recorder = Recorder(model, batch, batch.size)
    with torch.no_grad(), recorder.active():
        run()
    return recorder.result(train=False, blocks={}).flops()


@pytest.mark.parametrize("variant", ["small", "direct", "no_condition", "pair", "sid", "fat"])
@pytest.mark.parametrize("events", [0, 5, None])
def test_flops_of_a_request_are_those_that_are_counted(variant: str, events: int | None) -> None:
    model, count = ranker(variant), 12
    users = synthetic_batch(SCHEMA, 1, seed=3)
    asked = requests_of(SCHEMA, users if events is None else shortened(users, events),
                        synthetic_batch(SCHEMA, count, seed=4))  # fmt: skip
    form = GroupQuery(model, SCHEMA)
    with torch.no_grad():
        context = form.context(asked.users)
    questions = form.questions(asked)
    user, host = flops(model, lambda: form.context(asked.users), users), form.host
    host_user = flops(model, lambda: host.context(asked.users), users)
    score = flops(model, lambda: form.score(context, asked), users)
    host_score = flops(model, lambda: host.form.score(context.host, told(form, asked)), users)
    want = request_flops(model.lum.config, SCHEMA, None if events is None else {"hist": events}, count,
                         questions.cond_RU.shape[1], host_dim=model.host.embedder.inner.dim)  # fmt: skip
    assert user - host_user == pytest.approx(want.user, rel=0.02)
    assert score - host_score == pytest.approx(want.questions + want.candidate * count, rel=0.02)
    assert want.total == pytest.approx(user - host_user + score - host_score, rel=0.02)


def told(form: GroupQuery, asked: Requests) -> Requests:
    """The request with room for what the user model says."""
    more = form.host.matches + form.host.directs
    wide = {n: torch.nn.functional.pad(getattr(asked, n), (0, more)) for n in ("dense_NI", "missing_NI")}
    users = {n: torch.nn.functional.pad(getattr(asked.users, n), (0, more)) for n in ("dense_BI", "missing_BI")}
    return replace(asked, users=replace(asked.users, **users), **wide)


def shortened(users: Batch, events: int) -> Batch:
    """One user's oldest events alone."""
    keys, parts, lengths = users.ids.keys(), [], []
    for key in keys:
        values = users.ids[key].values()
        parts.append(values[:events] if len(values) > 1 else values)
        lengths.append(len(parts[-1]))
    ids = KeyedJaggedTensor(keys=keys, values=torch.cat(parts), lengths=torch.tensor(lengths), length_per_key=lengths)
    times = {h: t[:events] for h, t in users.event_times.items()}
    return replace(users, ids=ids, event_times=times, host={})


def test_a_stored_answer_is_the_fresh_one_and_costs_no_pass() -> None:
    model, asked = ranker("small"), requests(3, 4, seed=11, full=True)
    asked = replace(asked, users=replace(asked.users, user_B=torch.arange(3)))
    form, fresh = Stored(model, SCHEMA), GroupQuery(model, SCHEMA)
    first = serve(form, asked)
    assert (len(form.store), form.store.counts.hits, form.store.counts.misses) == (3, 0, 3)
    assert torch.equal(serve(form, asked), first)
    assert (form.store.counts.hits, form.stale) == (3, 0)
    with torch.no_grad():
        for user in range(3):
            kept = form.store.get(user)
            assert kept is not None
            one = model.lum.sequences(asked.users).take(torch.tensor([user]))
            want = fresh.reader.answers(fresh.reader.history(one), kept.cond_K.unsqueeze(0))[0]
            torch.testing.assert_close(kept.answer_KD, want, **CLOSE)
    stored = flops(model, lambda: form.score(form.context(asked.users), asked), asked.users)
    again = flops(model, lambda: fresh.score(fresh.context(asked.users), asked), asked.users)
    assert again - stored > 3 * request_flops(model.lum.config, SCHEMA, None, 4, 4, host_dim=16).user * 0.98


@pytest.mark.parametrize("variant", ["small", "no_condition", "sid_holes"])
@settings(max_examples=6, deadline=None, database=None)
@given(seed=st.integers(0, 10**6), budget=st.sampled_from([1, 2000, 1 << 20]),
       steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=6))  # fmt: skip
def test_nothing_stale_is_served_whatever_is_appended_and_evicted(
    variant: str, seed: int, budget: int, steps: list[tuple[int, int]]
) -> None:
    """All events have one time, which alone would not tell; from 8 events on the oldest ones leave the window of 7."""
    model = ranker(variant)
    form: Stored | KeptHistories = (Stored if variant == "small" else KeptHistories)(model, SCHEMA, KVStore(budget))
    forms, plain = [form], WholeRows(model, SCHEMA)
    if variant == "small":
        forms.append(KeptHistories(model, SCHEMA, KVStore(budget)))
    whole = {u: take_users(SCHEMA, synthetic_batch(SCHEMA, 3, seed=seed), u) for u in range(3)}
    whole = {u: replace(b, user_B=torch.tensor([u]), event_times={"hist": torch.full((LENGTH,), 9)})
             for u, b in whole.items()}  # fmt: skip
    events = dict.fromkeys(range(3), 4)
    for number, (user, more) in enumerate(steps):
        events[user] = min(LENGTH, events[user] + more)
        items = synthetic_batch(SCHEMA, 3, seed=seed + number)
        asked = requests_of(SCHEMA, shortened(whole[user], events[user]), items)
        for each in forms:
            torch.testing.assert_close(serve(each, asked), serve(plain, asked), **CLOSE)
            assert each.store.nbytes <= budget


def test_of_a_history_that_grew_only_the_new_events_are_run() -> None:
    model, users = ranker("pair"), synthetic_batch(SCHEMA, 1, seed=7)
    form, fresh = KeptHistories(model, SCHEMA), GroupQuery(model, SCHEMA)

    def cost(events: int) -> float:
        recorder = Recorder(model, users, 1)
        with torch.no_grad(), recorder.active():
            form.context(shortened(users, events))
        return recorder.result(train=False, blocks={}).flops()

    host = flops(model, lambda: fresh.host.context(shortened(users, 6)), users)
    cost(5)
    d, layers, side = 32, 3, 2 * 16 * 32 * 3  # token maps of one event: condition, item, action
    grown = side + (layers - 1) * (24 * d * d * 2 + 4 * d * 2 * 12) + 4 * d * d * 2
    assert cost(6) - host == pytest.approx(grown, rel=0.02)
    assert cost(6) == host
    with torch.no_grad():
        kept, want = (f.context(shortened(users, 6)).kept for f in (form, fresh))
    assert kept is not None
    assert want is not None
    for mine, its in zip((*kept.keys, *kept.values), (*want.keys, *want.values), strict=True):
        torch.testing.assert_close(mine, its, **CLOSE)
    assert cost(8) - host > 2 * grown  # the oldest event left the window: all is run anew


def test_an_appended_event_and_other_weights_make_answers_stale() -> None:
    model, users = ranker("small"), synthetic_batch(SCHEMA, 1, seed=7)
    store: KVStore[Answers] = KVStore(1 << 20)
    old, new = (requests_of(SCHEMA, shortened(users, n), synthetic_batch(SCHEMA, 3, seed=8)) for n in (4, 5))
    serve(Stored(model, SCHEMA, store), old)
    form = Stored(model, SCHEMA, store)
    serve(form, new)
    assert (form.stale, len(store)) == (1, 1)
    same = Stored(ranker("trained_on"), SCHEMA, store)  # its user model has the same weights
    serve(same, new)
    assert (same.version, same.stale) == (form.version, 0)
    other = Stored(ranker("one_query"), SCHEMA, store)
    serve(other, new)
    assert (other.version != form.version, other.stale) == (True, 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_history_and_the_conditions_reach_the_score(variant: str) -> None:
    """Else exactness would show nothing."""
    model, asked = ranker(variant), requests(1, 6, seed=2, full=True)
    form = GroupQuery(model, SCHEMA)
    with torch.no_grad():
        context, want = form.context(asked.users), serve(form, asked)
        other = replace(context, kept=form.context(shortened(asked.users, 3)).kept)
        assert float((form.score(other, asked) - want).abs().max()) > 100 * CLOSE["atol"]
        if model.lum.config.queries > 1:
            at = [f.name for f in SCHEMA.categorical if f.role == "item"].index("category_id")
            form.questions = lambda r: GroupQuery.questions(form, replace(r, ids_JN=swapped(r.ids_JN, at)))  # type: ignore[method-assign]
            assert float((form.score(context, asked) - want).abs().max()) > 100 * CLOSE["atol"]


def swapped(ids_JN: torch.Tensor, at: int) -> torch.Tensor:
    """One field's ids moved on by one candidate."""
    ids_JN = ids_JN.clone()
    ids_JN[at] = ids_JN[at].roll(1)
    return ids_JN

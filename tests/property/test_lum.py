"""LUM (models.md section 4): token order, loss positions, packing, group query, frozen use in any host."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.bench.last_rows import LastRows, windows
from ctrbench.bench.pretrain import (
    epoch_flops,
    packed_rows,
    retrieve,
    train_user_model,
)
from ctrbench.bench.registry import model_spec
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema, synthetic_batch
from ctrbench.models.embedding import embedding_tables
from ctrbench.models.lum import LumConfig, LumRanker, with_answers
from ctrbench.models.lum_backbone import UserModel, event_fields
from ctrbench.models.lum_rows import Sequences, loss_flops, pack
from ctrbench.models.lum_step1 import LumStep1, LumStep1Config, batch_flops, make_batch

SPEC = model_spec("lum")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # table rows are float32
LENGTH = 6


def ranker(schema: FeatureSchema, **options: object) -> LumRanker:
    model = SPEC.build(LumConfig(**options), schema)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
        for tables in embedding_tables(model):
            for w in tables.weights().values():
                w[1:].normal_(std=0.5)
    return model.eval()


def user_model(schema: FeatureSchema, **options: object) -> UserModel:
    return ranker(schema, **options).user_model


def sequences(user: UserModel, lengths: list[list[int]], seed: int = 0) -> Sequences:
    """Rows of users of the given lengths, one after another, padding at the right end."""
    g = torch.Generator().manual_seed(seed)
    segment = torch.zeros(len(lengths), LENGTH, dtype=torch.long)
    place = torch.zeros_like(segment)
    for r, row in enumerate(lengths):
        at = 0
        for number, n in enumerate(row, start=1):
            segment[r, at : at + n] = number
            place[r, at : at + n] = torch.arange(n)
            at += n
    tables = user.tables
    ids = {
        n: torch.randint(FIRST_ID, tables.rows[tables.table_of[n]], segment.shape, generator=g) * (segment > 0)
        for n in user.names
    }
    return Sequences(ids, segment, place)


def states(user: UserModel, given_sequences: Sequences) -> Tensor:
    return user.states(user.rows({n: v.flatten() for n, v in given_sequences.ids.items()}), given_sequences)


def test_roles_of_the_event_fields(sequence_schema: FeatureSchema) -> None:
    roles = event_fields(sequence_schema)
    assert (roles.item, roles.cond, roles.side) == ("hist_item", "hist_genre", ("hist_action",))
    with pytest.raises(ValueError, match="choose one of hist_genre"):
        event_fields(sequence_schema, "hist_action")


def test_packed_equals_per_user(sequence_schema: FeatureSchema) -> None:
    user = user_model(sequence_schema)
    packed = sequences(user, [[2, 3, 1]])
    whole = states(user, packed)
    for number, (begin, end) in enumerate([(0, 2), (2, 5), (5, 6)], start=1):
        alone = Sequences(
            {n: v[:, begin:end] for n, v in packed.ids.items()},
            torch.ones(1, end - begin, dtype=torch.long),
            packed.place_RL[:, begin:end],
        )
        assert int(packed.segment_RL[0, begin]) == number
        torch.testing.assert_close(whole[:, 2 * begin : 2 * end], states(user, alone), **CLOSE)


@pytest.mark.parametrize("field", ["hist_item", "hist_action", "hist_genre"])
def test_condition_output_does_not_know_its_item(sequence_schema: FeatureSchema, field: str) -> None:
    user = user_model(sequence_schema)
    before = sequences(user, [[LENGTH]])
    place = 3
    ids = {n: v.clone() for n, v in before.ids.items()}
    ids[field][0, place:] = torch.where(ids[field][0, place:] == FIRST_ID, FIRST_ID + 1, FIRST_ID)
    a, b = states(user, before), states(user, replace(before, ids=ids))
    known = 2 * place + (0 if field == "hist_genre" else 1)  # tokens before the first one that changed
    torch.testing.assert_close(a[:, :known], b[:, :known], rtol=0, atol=0)
    assert not torch.allclose(a[:, known:], b[:, known:])


def test_only_condition_positions_predict(sequence_schema: FeatureSchema) -> None:
    user = user_model(sequence_schema)
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: object, out: Tensor) -> None:
        out.retain_grad()
        kept.append(out)

    for p in user.parameters():
        p.requires_grad_(True)
    hook = user.norm.register_forward_hook(keep)
    user.loss(sequences(user, [[4], [2, 3]])).backward()
    hook.remove()
    grad = kept[0].grad
    assert grad is not None
    assert float(grad[:, 1::2].abs().max()) == 0.0
    assert float(grad[0, 0:8:2].abs().min(dim=1).values.max()) > 0.0
    assert float(grad[0, 8:].abs().max()) == 0.0  # padding predicts nothing


def test_loss_is_the_formula_by_loops(sequence_schema: FeatureSchema) -> None:
    user = user_model(sequence_schema)
    rows = sequences(user, [[4], [2, 3]])
    out = states(user, rows)[:, 0::2].detach()
    items = rows.ids["hist_item"]
    catalogue = torch.arange(user.tables.rows["item"])
    flat = {n: torch.zeros(0, dtype=torch.long) for n in user.names} | {"hist_item": catalogue}
    tokens = nn.functional.normalize(user.item_map(user.rows(flat)["hist_item"]), dim=-1).detach()
    real = [(r, t) for r, t in np.argwhere(rows.segment_RL.numpy() > 0)]
    different = sorted({int(items[r, t]) for r, t in real})
    total = 0.0
    for r, t in real:
        o = nn.functional.normalize(out[r, t], dim=-1)
        scores = [float(o @ tokens[i]) / user.tau for i in different]
        total -= scores[different.index(int(items[r, t]))] - float(torch.tensor(scores).logsumexp(0))
    assert float(user.loss(rows)) == pytest.approx(total / len(real), rel=1e-5)


def test_group_query_is_one_by_one(sequence_schema: FeatureSchema) -> None:
    user = user_model(sequence_schema)
    one = sequences(user, [[5], [LENGTH], [1]])
    left = Sequences(  # padding on the left, as a ranker's batch has it
        {n: v.flip(1) for n, v in one.ids.items()}, one.segment_RL.flip(1).clamp(max=1),
        (one.segment_RL.flip(1) > 0).long().cumsum(1).sub(1).clamp(min=0),
    )  # fmt: skip
    cond = torch.tensor([[3, 4, 5, 6]] * 3)
    together, _ = user.answers(left, cond)
    for q in range(4):
        torch.testing.assert_close(together[:, q], user.answers(left, cond[:, q : q + 1])[0][:, 0], **CLOSE)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(together[:, order], user.answers(left, cond[:, order])[0], **CLOSE)


def test_padding_never_reaches_an_answer(sequence_schema: FeatureSchema) -> None:
    """Neither what stands on padding nor how much of it there is."""
    user = user_model(sequence_schema)
    whole = sequences(user, [[3], [3]])
    short = Sequences({n: v[:, :3] for n, v in whole.ids.items()}, whole.segment_RL[:, :3], whole.place_RL[:, :3])
    cond = torch.tensor([[3, 4], [5, 6]])
    answers, _ = user.answers(short, cond)
    for filler in (0, 4):
        padded = Sequences(
            {n: torch.nn.functional.pad(v, (2, 0), value=filler) for n, v in short.ids.items()},
            *(torch.nn.functional.pad(t, (2, 0)) for t in (short.segment_RL, short.place_RL)),
        )
        torch.testing.assert_close(user.answers(padded, cond)[0], answers, **CLOSE)


def test_a_query_is_the_next_condition_token(sequence_schema: FeatureSchema) -> None:
    """What step 2 asks is what step 1 trained: the output at the condition of one more event."""
    user = user_model(sequence_schema)
    whole = sequences(user, [[5]])
    history = Sequences({n: v[:, :4] for n, v in whole.ids.items()}, whole.segment_RL[:, :4], whole.place_RL[:, :4])
    answer, _ = user.answers(history, whole.ids["hist_genre"][:, 4:5])
    torch.testing.assert_close(answer[:, 0], states(user, whole)[:, 8], **CLOSE)


def other_conditions(given_sequences: Sequences) -> Sequences:
    cond = given_sequences.ids["hist_genre"]
    return replace(given_sequences, ids={**given_sequences.ids, "hist_genre": torch.where(cond > 3, 3, 4)})


def test_without_the_token_no_condition_influences_anything(sequence_schema: FeatureSchema) -> None:
    model = ranker(sequence_schema, queries=1, condition=False)
    user, batch = model.user_model, synthetic_batch(sequence_schema, 8, full=False)
    rows, cond = sequences(user, [[4], [2, 3]]), torch.tensor([[3], [4]])
    rows.ids["hist_genre"] = torch.randint(FIRST_ID, 6, rows.segment_RL.shape)  # type: ignore[index]
    assert torch.equal(user.loss(rows), user.loss(other_conditions(rows)))
    one = rows.take(torch.tensor([0, 0]))
    assert torch.equal(user.answers(one, cond)[0], user.answers(other_conditions(one), 7 - cond)[0])
    moved = {k: torch.full_like(batch.ids[k].values(), 3) for k in ("genre", "hist_genre")}
    changed = replace(batch, ids=KeyedJaggedTensor(
        keys=batch.ids.keys(), lengths=batch.ids.lengths(),
        values=torch.cat([moved.get(k, batch.ids[k].values()) for k in batch.ids.keys()]),
    ))  # fmt: skip
    for before, after in zip(model.lum(batch), model.lum(changed), strict=True):
        assert torch.equal(before, after)
    asked = ranker(sequence_schema, queries=1)  # with the token both change
    with_cond = replace(rows, ids={**rows.ids, "hist_genre": torch.full_like(rows.segment_RL, 3)})
    assert not torch.equal(asked.user_model.loss(with_cond), asked.user_model.loss(other_conditions(with_cond)))
    assert not torch.equal(asked.lum(batch)[0], asked.lum(changed)[0])


def test_without_the_token_an_answer_is_what_predicts_one_more_event(sequence_schema: FeatureSchema) -> None:
    user = user_model(sequence_schema, queries=1, condition=False)
    whole = sequences(user, [[5], [1]])
    history = Sequences({n: v[:, :4] for n, v in whole.ids.items()}, whole.segment_RL[:, :4], whole.place_RL[:, :4])
    cond = torch.zeros(2, 1, dtype=torch.long)
    first = torch.tensor([[1], [0]])  # of the second user nothing is known before the first event
    ids = {n: v * first for n, v in history.ids.items()}
    before = Sequences(ids, history.segment_RL * first, history.place_RL)
    found, _ = user.answers(before, cond)
    torch.testing.assert_close(found[:, 0], states(user, whole)[[0, 1], [4, 0]], **CLOSE)
    for n in user.names:  # and no place knows its own event, but the next one does
        ids = {**whole.ids, n: whole.ids[n].clone()}
        ids[n][:, 3] = torch.where(ids[n][:, 3] == 3, 4, 3)
        a, b = states(user, whole)[0], states(user, replace(whole, ids=ids))[0]
        assert torch.equal(a[:4], b[:4])
        assert not torch.equal(a[4], b[4])


def test_without_the_token_flops_are_those_counted(sequence_schema: FeatureSchema) -> None:
    config = LumConfig(queries=1, condition=False)
    batch = synthetic_batch(sequence_schema, 256)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        SPEC.build(config, sequence_schema).eval()(batch)
    # The host, DIN on real events, sums them weighted without a product: 576 FLOP that its formula has in every form.
    assert counter.get_total_flops() / 256 == pytest.approx(SPEC.flops(config, sequence_schema, None).full - 576)
    step = LumStep1Config(condition=False)
    rows = make_batch(step, sequence_schema, 5)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        LumStep1(step, sequence_schema).eval()(rows)
    assert counter.get_total_flops() == pytest.approx(batch_flops(step, sequence_schema, rows).full, rel=0.02)


def test_without_the_token_there_is_one_answer() -> None:
    with pytest.raises(ValueError, match="add queries=1"):
        LumConfig(condition=False)


@pytest.mark.parametrize("host", ["din", "composite", "fat", "deepfm"])
@pytest.mark.parametrize("use", ["both", "direct", "match"])
def test_every_host_learns_and_the_frozen_base_does_not(sequence_schema: FeatureSchema, host: str, use: str) -> None:
    model = ranker(sequence_schema, host=host, use=use)
    batch = synthetic_batch(sequence_schema, 8, full=False)
    tables = {n: w.clone() for n, w in model.user_model.tables.weights().items()}
    model.train()(batch).sum().backward()
    assert all(p.grad is None for p in model.lum.parameters())
    assert all(torch.equal(w, tables[n]) for n, w in model.user_model.tables.weights().items())
    if use != "match":
        for p in (*model.host.embedder.answer_map.parameters(), *model.host.embedder.item_map.parameters()):
            assert p.grad is not None
            assert float(p.grad.abs().sum()) > 0
    if use != "direct":
        n = len(sequence_schema.dense)
        assert float(model.host.embedder.inner.numeric_ID.grad[n : n + 4].abs().sum()) > 0


def test_post_training_reaches_the_base(sequence_schema: FeatureSchema) -> None:
    model = ranker(sequence_schema, frozen=False)
    tables = {n: w.clone() for n, w in model.user_model.tables.weights().items()}
    model.train()(synthetic_batch(sequence_schema, 8)).sum().backward()
    assert all(p.grad is not None for n, p in model.lum.named_parameters() if "tables" not in n)
    assert any(not torch.equal(w, tables[n]) for n, w in model.user_model.tables.weights().items())


def test_without_its_columns_the_host_is_alone(sequence_schema: FeatureSchema) -> None:
    """DIN's tower with zero weights for the answers gives DIN's logit."""
    model = ranker(sequence_schema, host="din")
    batch = synthetic_batch(sequence_schema, 16, full=False)
    dim, config = 16, LumConfig()
    alone_spec = model_spec("din")
    alone = alone_spec.build(alone_spec.config(), sequence_schema).eval()
    added = len(with_answers(sequence_schema, config).dense) - len(sequence_schema.dense)
    first = len(sequence_schema.categorical) + len(sequence_schema.dense)
    columns = slice(first * dim, (first + added) * dim)
    state, ours = alone.state_dict(), model.host.state_dict()
    with torch.no_grad():
        model.host.tower[0].weight[:, columns] = 0.0
        for name in state:
            if name.startswith("embedder."):
                ours_value = ours[name.replace("embedder.", "embedder.inner.", 1)]
                state[name] = ours_value[: len(state[name])] if name.endswith("_ID") else ours_value
            elif name == "tower.0.weight":
                weight = model.host.tower[0].weight
                state[name] = torch.cat([weight[:, : columns.start], weight[:, columns.stop :]], dim=1)
            else:
                state[name] = ours[name]
        alone.load_state_dict(state)
        torch.testing.assert_close(model(batch), alone(batch), **CLOSE)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=60))
def test_packing_keeps_every_sequence_once_and_overfills_no_row(lengths: list[int]) -> None:
    groups = pack(lengths, 9)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in g) <= 9 for g in groups)
    if lengths:  # first fit: no two rows could have shared one
        loads = sorted(sum(lengths[i] for i in g) for g in groups)
        assert len(loads) == 1 or loads[0] + loads[1] > 9


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"sequence 1 has 10 events, a row holds 1\.\.9"):
        pack([1, 10], 9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 7))
def test_windows_cut_every_event_once(sizes: list[int], length: int) -> None:
    ends = np.cumsum(sizes)
    spans = np.stack([ends - sizes, ends], axis=1)
    log = {"item": np.arange(100, 100 + ends[-1])}
    rows = packed_rows(log, windows(spans, length), length)
    seen = rows.ids["item"][rows.segment_RL > 0]
    assert sorted(seen.tolist()) == log["item"].tolist()
    assert bool((rows.ids["item"][rows.segment_RL == 0] == 0).all())


def chain_log(users: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Users who walk a ring of 40 items, ten of each of 4 genres: the next item follows from the last."""
    g = np.random.default_rng(seed)
    sizes = g.integers(5, 30, users)
    ends = np.cumsum(sizes)
    item = np.concatenate([(s + np.arange(n)) % 40 for s, n in zip(g.integers(0, 40, users), sizes, strict=True)])
    log = {"hist_item": item + FIRST_ID, "hist_genre": item // 10 + FIRST_ID, "hist_action": item % 2 + FIRST_ID}
    return log, np.stack([ends - sizes, ends], axis=1)


@pytest.mark.parametrize("condition", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_pre_training_learns_what_popularity_cannot(sequence_schema: FeatureSchema, condition: bool) -> None:
    log, spans = chain_log(400, 0)
    torch.manual_seed(0)
    config = LumConfig(pretrain_epochs=40, pretrain_batch=32, pretrain_lr=3e-3, condition=condition, queries=1)
    user = SPEC.build(config, sequence_schema).user_model
    kept = np.stack([spans[:, 0], spans[:, 1] - 1], axis=1)  # every user's last event is held out
    nobody = np.zeros(len(kept), np.int64)
    last = LastRows(kept, log["hist_item"][kept[:, 1]], log["hist_genre"][kept[:, 1]], nobody, nobody)
    rows = packed_rows(log, windows(kept, LENGTH), LENGTH)
    done = train_user_model(user, rows, config, seed=0)
    assert done.losses[-1] < 0.6 * done.losses[0]
    events = int((rows.segment_RL > 0).sum())  # 40 epochs in which a batch holds nearly all of some 40 items
    against = loss_flops(user.tables.width, user.norm.normalized_shape[0], 40, events)
    assert done.flops == pytest.approx(3 * 40 * (epoch_flops(user, rows) + against), rel=0.05)
    found = retrieve(user, log, last, LENGTH, k=1)
    assert found.users == 400
    assert found.recall["model"] > 2 * max(found.recall["popularity"], found.recall["popularity_in_condition"])
    assert all(not p.requires_grad for p in user.parameters() if p.dtype.is_floating_point and p.dim() > 1)


@pytest.mark.parametrize("target", ["item", "sid"])
@pytest.mark.parametrize("positions", ["token", "pair"])
def test_a_question_stands_at_a_place_that_training_has(
    sequence_schema: FeatureSchema, target: str, positions: str
) -> None:
    """Training rows of as many events as fit move the place of a question behind as many events as are shown."""
    model = ranker(sequence_schema, target=target, positions=positions, sid_codes=4)
    user, batch = model.user_model, synthetic_batch(sequence_schema, 4)
    real = torch.ones(3, LENGTH, dtype=torch.bool)
    full = user.sequences({n: torch.randint(FIRST_ID, 5, real.shape) for n in user.names}, real)
    for p in user.parameters():
        p.requires_grad_(True)
    user.loss(full).backward()
    shown = model.lum.sequences(batch)
    assert int((shown.segment_RL > 0).sum(dim=1).max()) == LENGTH - 1, (
        "histories are full, the oldest event is left out"
    )
    assert user.place.weight.grad is not None
    place = (LENGTH - 1) * (user.per_event if positions == "token" else 1)
    assert user.place.weight.grad[place].any()
    assert not user.place.weight.grad[place + (user.per_event if positions == "token" else 1) :].any()

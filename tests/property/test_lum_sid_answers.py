"""LUM on semantic IDs under a ranker (models.md section 4.1): questions, how well items fit, checkpoint, FLOPs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ctrbench.bench.checkpoint import load_checkpoint, save_checkpoint
from ctrbench.bench.counts import counted_training
from ctrbench.bench.last_rows import LastRows, windows
from ctrbench.bench.pretrain import packed_rows, retrieve, train_user_model
from ctrbench.bench.registry import model_spec
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema, synthetic_batch
from ctrbench.models.lum import LumConfig, LumRanker
from ctrbench.models.lum_rows import Sequences
from ctrbench.models.lum_sid import SidUserModel
from ctrbench.models.retriever import Catalogue

SPEC = model_spec("lum")
LENGTH = 6  # the longest history of the small schema
REAL = [0, 1, 3, 6]
UNKNOWN = 9  # an item without content


def catalogue(items: int, every: bool = False) -> Catalogue:
    content = torch.randn(items, 5, generator=torch.Generator().manual_seed(0))
    content[:FIRST_ID] = 0.0
    if not every:
        content[UNKNOWN] = 0.0
    return Catalogue(items, torch.zeros(items, dtype=torch.long), content, "random vectors")


def ranker(schema: FeatureSchema, **options: object) -> LumRanker:
    torch.manual_seed(0)
    given = {"target": "sid", "sid_codes": 4, "width": 8, "heads": 2, "queries": 3, **options}
    model = SPEC.build(LumConfig(**given), schema)  # type: ignore[arg-type]
    assert isinstance(model, LumRanker)
    with torch.no_grad():
        for p in model.user_model.parameters():
            p.normal_(std=0.5)
    user = user_of(model)
    user.codes.take(catalogue(user.catalogue))
    return model.eval()


def user_of(model: LumRanker) -> SidUserModel:
    assert isinstance(model.user_model, SidUserModel)
    return model.user_model


def shown(user: SidUserModel) -> Sequences:
    g = torch.Generator().manual_seed(1)
    real = torch.arange(LENGTH) >= LENGTH - torch.tensor(REAL)[:, None]
    tops = {"hist_item": UNKNOWN, "hist_genre": 6, "hist_action": 5}
    return user.sequences(
        {n: torch.randint(FIRST_ID, top, real.shape, generator=g) * real for n, top in tops.items()}, real
    )


def alone(user: SidUserModel, rows: Sequences, b: int, cond: int, item: int) -> Tensor:
    """[m, d]: outputs at c, s_1 .. s_(m-1) of one question behind one history, through plain causal layers."""
    real = rows.segment_RL[b] > 0
    ids = {n: v[b][real].unsqueeze(0) for n, v in rows.ids.items()}
    n = int(real.sum())
    x, _ = user.tokens(Sequences(ids, torch.ones(1, n, dtype=torch.long), torch.arange(n)[None]))
    at = torch.tensor([[n]])
    own = [user.cond(torch.tensor([[cond]])) + user.at(at, 0)]
    for place in range(user.places - 1):
        code = user.codes.codes_VL[item, place] + user.starts[place]
        own.append(user.code(code)[None, None] + user.at(at, place + 1))
    x = torch.cat([x, *own], dim=1)
    for layer in user.layers:
        x = layer(x)
    return user.norm(x)[0, -user.places :]


@pytest.mark.parametrize("positions", ["token", "pair"])
def test_questions_one_by_one_without_padding_or_mask(sequence_schema: FeatureSchema, positions: str) -> None:
    user = user_of(ranker(sequence_schema, positions=positions)).double()
    rows, items = shown(user), torch.tensor([3, 4, UNKNOWN, 7])
    cond = torch.tensor([[3, 4, 5], [4, 3, 5], [5, 3, 4], [4, 4, 3]])
    read = user.read(rows, cond, items)
    for b, item in enumerate(items.tolist()):
        for q in range(3):
            out = alone(user, rows, b, int(cond[b, q]), item)
            torch.testing.assert_close(read.answers_BQd[b, q], out[0])
            fits = 0.0
            for place, size in enumerate(user.codes.vocabulary):
                code = user.starts[place] + user.codes.codes_VL[item, place]
                fits += float((user.head(out[place]).log_softmax(0)[code] + math.log(size)).detach()) / user.places
            assert float(read.match_BQ[b, q]) == pytest.approx(0.0 if item == UNKNOWN else fits)
    vectors = [
        sum(user.code.weight[s + c] for s, c in zip(user.starts, user.codes.codes_VL[i], strict=True)) for i in (3, 4)
    ]
    torch.testing.assert_close(read.item_Bd[:2], torch.stack(vectors))
    assert not read.item_Bd[2].any()


def test_an_answer_knows_nothing_of_the_item_in_question(sequence_schema: FeatureSchema) -> None:
    user = user_of(ranker(sequence_schema))
    rows, cond = shown(user), torch.full((len(REAL), 2), 4)
    one, other = (user.read(rows, cond, torch.full((len(REAL),), item)) for item in (3, 7))
    torch.testing.assert_close(one.answers_BQd, other.answers_BQd)
    assert not torch.allclose(one.match_BQ, other.match_BQ)


def test_events_of_items_without_an_id_are_left_out(sequence_schema: FeatureSchema) -> None:
    user = user_of(ranker(sequence_schema))
    real = torch.ones(1, LENGTH, dtype=torch.bool)
    ids = {n: torch.full((1, LENGTH), 4) for n in user.names}
    ids["hist_item"] = torch.tensor([[3, UNKNOWN, 5, UNKNOWN, 6, 7]])
    fewer = {n: v[:, [0, 0, 0, 2, 4, 5]] for n, v in ids.items()}
    short = torch.tensor([[False, False, True, True, True, True]])
    asked = torch.tensor([[4]]), torch.tensor([8])
    found, expected = user.read(user.sequences(ids, real), *asked), user.read(user.sequences(fewer, short), *asked)
    torch.testing.assert_close(found.answers_BQd, expected.answers_BQd)
    torch.testing.assert_close(found.match_BQ, expected.match_BQ)


@pytest.mark.parametrize("use", ["both", "direct", "match"])
def test_the_host_learns_and_the_frozen_base_does_not(sequence_schema: FeatureSchema, use: str) -> None:
    model = ranker(sequence_schema, use=use)
    model.train()(synthetic_batch(sequence_schema, 8, full=False)).sum().backward()
    assert all(p.grad is None for p in model.lum.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.host.parameters())


def test_post_training_reaches_the_base(sequence_schema: FeatureSchema) -> None:
    model = ranker(sequence_schema, frozen=False)
    with torch.no_grad():
        for p in model.host.parameters():
            p.normal_(std=0.3)
    model.train()(synthetic_batch(sequence_schema, 32, full=False)).square().sum().backward()
    assert [n for n, p in model.lum.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_checkpoint_brings_the_codes_and_the_search_follows(sequence_schema: FeatureSchema, tmp_path: Path) -> None:
    saved, fresh = (user_of(ranker(sequence_schema)) for _ in range(2))
    known = fresh.codes.known_V
    fresh.codes.codes_VL[known] = fresh.codes.codes_VL[known].flip(0)
    with torch.no_grad():
        fresh.head.weight.normal_()
    rows, cond = shown(saved), torch.full((len(REAL),), 4)
    before, other = saved.scores(rows, cond), fresh.scores(rows, cond)
    assert not torch.allclose(before, other)
    named = {"model": "twin", "config": {}, "schema": sequence_schema}
    save_checkpoint(saved, tmp_path, **named)  # type: ignore[arg-type]
    load_checkpoint(fresh, tmp_path, **named)  # type: ignore[arg-type]
    torch.testing.assert_close(fresh.scores(rows, cond), before)
    assert not torch.isfinite(before[:, UNKNOWN]).any()


def test_more_equal_items_than_codes_of_the_appended_place_are_refused(sequence_schema: FeatureSchema) -> None:
    user = user_of(ranker(sequence_schema))
    alike = catalogue(user.catalogue)
    alike.content_VC[20:26] = alike.content_VC[20]
    with pytest.raises(ValueError, match="share all codes of their levels, an appended place has 4; raise sid_codes"):
        user.codes.take(alike)


@pytest.mark.parametrize("frozen", [True, False])
def test_counted_flops_are_the_closed_form(sequence_schema: FeatureSchema, frozen: bool) -> None:
    config = LumConfig(target="sid", sid_codes=4, frozen=frozen)
    model, batch = SPEC.build(config, sequence_schema), synthetic_batch(sequence_schema, 8)
    counts, _, reason = counted_training(SPEC, config, sequence_schema, model, batch)
    assert reason == ""
    assert counts.flops("forward") / 8 == pytest.approx(SPEC.flops(config, sequence_schema).full, rel=0.02)


def test_pre_training_finds_what_follows_what(sequence_schema: FeatureSchema) -> None:
    """Users walk a ring of items: the next one is known from the last, and popularity knows nothing."""
    config = LumConfig(target="sid", sid_codes=4, pretrain_epochs=30, pretrain_batch=32, pretrain_lr=1e-2)
    model = SPEC.build(config, sequence_schema)
    user, ring = user_of(model), np.arange(FIRST_ID, FIRST_ID + 12)
    user.codes.take(catalogue(user.catalogue, every=True))
    start = np.random.default_rng(0).integers(0, 12, 200)
    item = ring[(start[:, None] + np.arange(LENGTH + 1)) % 12].flatten()
    log = {"hist_item": item, "hist_genre": np.full_like(item, 4), "hist_action": np.full_like(item, 3)}
    begin = np.arange(200) * (LENGTH + 1)
    kept, nobody = np.stack([begin, begin + LENGTH], axis=1), np.zeros(200, np.int64)
    done = train_user_model(user, packed_rows(log, windows(kept, LENGTH), LENGTH), config, seed=0)
    assert done.losses[-1] < 0.5 * done.losses[0]
    last = LastRows(kept, item[kept[:, 1]], log["hist_genre"][kept[:, 1]], nobody, nobody)
    found = retrieve(user, log, last, LENGTH, k=1)
    assert found.recall["model"] > 0.9
    assert found.recall["popularity"] < 0.5

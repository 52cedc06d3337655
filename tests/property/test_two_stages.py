"""Retrieval and ranking on one user's keys and values: the scores of each head alone, for less (claim S14)."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from ctrbench.bench.registry import model_spec
from ctrbench.bench.serving.stages import StagesFacts, stages_facts, stages_rows
from ctrbench.datasets.random_batches import random_schema
from ctrbench.datasets.schema import FIRST_ID, synthetic_batch
from ctrbench.models.embedding import dense_parameters, embedding_tables
from ctrbench.models.lum import LumConfig, LumRanker
from ctrbench.models.requests import item_fields, take_users
from ctrbench.models.two_stages import Shelf, TwoStages

LENGTH, ITEMS, K = 8, 40, 6
SCHEMA = random_schema("random_sequence", LENGTH)
SPEC = model_spec("lum")
CLOSE = {"atol": 1e-5, "rtol": 0.0}
BASE = {"run": "r", "model": "lum", "variant": "", "preset": "small", "family": "transformer", "data": "d",
        "split": "s", "track": "sequence", "device": "cpu", "dtype": "float32", "threads": 1}  # fmt: skip


@cache
def ranker(**options: object) -> LumRanker:
    torch.manual_seed(0)
    with torch.no_grad():
        model = SPEC.build(LumConfig(**options), SCHEMA).eval()  # type: ignore[arg-type]
        for tables in embedding_tables(model):
            for weight in tables.weights().values():
                weight.copy_(0.4 * torch.randn_like(weight))
        for weight in dense_parameters(model):
            weight.mul_(1.5)
    return model


def shelf() -> Shelf:
    g = torch.Generator().manual_seed(1)
    ids_JV = torch.stack([torch.randint(FIRST_ID, f.cardinality, (ITEMS,), generator=g) for f in item_fields(SCHEMA)])
    return Shelf(ids_JV, torch.zeros(ITEMS, 0), torch.zeros(ITEMS, 0))


@pytest.mark.parametrize("options", [{}, {"similarity": "dot", "use": "match"}, {"condition": False, "queries": 1}])
@pytest.mark.parametrize("full", [True, False])
def test_shared_scores_are_those_of_each_head_alone(options: dict[str, object], full: bool) -> None:
    stages = TwoStages(ranker(**options), SCHEMA, shelf())
    users = synthetic_batch(SCHEMA, 3, seed=2, full=full)
    shared, apart = stages.shared(users, K), stages.apart(users, K)
    assert torch.equal(shared.found.at_RK, apart.found.at_RK)
    every = torch.arange(ITEMS).expand(3, -1)
    score_RV, _ = stages.alone(users, every)
    torch.testing.assert_close(shared.found.score_RK, score_RV.topk(K, dim=1).values, **CLOSE)
    _, logit_RK = stages.alone(users, shared.found.at_RK)
    torch.testing.assert_close(shared.logit_RK, logit_RK, **CLOSE)
    assert float(shared.logit_RK.std()) > 1e-3


def test_another_window_breaks_equality() -> None:
    model, users = ranker(), synthetic_batch(SCHEMA, 2, seed=5)
    whole, short = TwoStages(model, SCHEMA, shelf()), TwoStages(model, SCHEMA, shelf(), window=4)
    with torch.no_grad():
        at_RK = torch.arange(K).expand(2, -1)
        ranked = [whole.rank(stages.cache(users), users, at_RK) for stages in (whole, short)]
        assert float((ranked[0] - ranked[1]).abs().max()) > 1e-3
        events = whole.cache(users).kept.keys[0].shape[2]
        newest = [stages.cache(users).kept.keys[0][:, :, -8:] for stages in (whole, short)]
    assert events == 2 * (LENGTH - 1)
    assert float((newest[0] - newest[1]).abs().max()) > 1e-3  # the same events at other places


def test_facts_and_rows() -> None:
    users = synthetic_batch(SCHEMA, 2, seed=3)
    stages = TwoStages(ranker(), SCHEMA, shelf())
    facts = stages_facts(stages, [take_users(SCHEMA, users, row) for row in range(2)], K)
    assert max(facts.retrieve_diff, facts.rank_diff) <= 1e-5
    assert (facts.requests, facts.catalogue, facts.candidates, facts.same_items) == (2, ITEMS, K, True)
    # two layers of width 32 over 14 tokens: maps, one whole layer, keys and values of the last
    history = 2 * 16 * 32 * 7 * 3 + 24 * 32**2 * 14 + 4 * 32 * 14**2 + 4 * 32**2 * 14
    assert facts.flops_apart - facts.flops_shared == 2 * history
    assert facts.cache_bytes == 2 * 2 * 14 * 32 * 4
    assert 0 < facts.bytes_saved < 1
    rows = {(r.metric, r.scope): r for r in stages_rows(BASE, facts)}
    assert rows["stages_saved", "flops"].value == pytest.approx(2 * history / facts.flops_apart)
    assert rows["stages_diff", "rank"].value == facts.rank_diff
    assert rows["stages_diff", "retrieve"].batch == K


def test_nothing_is_saved_by_ways_that_retrieve_different_items() -> None:
    facts = StagesFacts(1, ITEMS, K, 0.0, 0.0, 1.0, 1.0, False, 1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 1.0)
    saved = [r for r in stages_rows(BASE, facts) if r.metric == "stages_saved"]
    assert [r.value for r in saved] == [None, None]
    assert "different items" in saved[0].reason


def test_semantic_ids_have_no_tokens_to_compare() -> None:
    model = SPEC.build(LumConfig(target="sid", sid_method="random"), SCHEMA).eval()
    with pytest.raises(ValueError, match=r"use lum\.target=item"):
        TwoStages(model, SCHEMA, shelf())

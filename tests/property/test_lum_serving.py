"""LUM as it is served: group query, one by one, stored answers; what is kept of a history; what a request costs."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.bench.registry import model_spec
from ctrbench.datasets.random_batches import random_schema
from ctrbench.datasets.schema import synthetic_batch
from ctrbench.models.embedding import embedding_tables
from ctrbench.models.lum import LumConfig, LumRanker
from ctrbench.models.requests import Requests, requests_of
from ctrbench.models.serving import REUSE, WHOLE, serve, serving_forms

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
        for tables in embedding_tables(model):
            for weight in tables.weights().values():
                weight.copy_(0.3 * torch.randn_like(weight))
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

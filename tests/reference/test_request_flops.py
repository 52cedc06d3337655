"""FLOPs of a request, closed form against what is dispatched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor, nn

from ctrbench.bench.counting.counter import count_step
from ctrbench.datasets.random_batches import random_schema
from ctrbench.datasets.schema import Batch, FeatureSchema, synthetic_batch
from ctrbench.models import hstu, hstu_serving, onetrans
from ctrbench.models.requests import Requests, requests_of, take_users
from ctrbench.models.serving import REUSE, ServingForm, serve, serving_forms

LENGTH, COUNT = 40, 30
SCHEMA = random_schema("random_sequence", LENGTH)
ONETRANS = onetrans.OneTransConfig(layers=4, width=16, dim=4)
HSTU = hstu.HstuConfig(layers=3)


class Served(nn.Module):
    """One request as a model of the user's row, or its context alone."""

    def __init__(self, model: nn.Module, form: ServingForm, asked: Requests, whole: bool) -> None:
        super().__init__()
        self.model, self.form, self.asked, self.whole = model, form, asked, whole

    def forward(self, users: Batch) -> Tensor:
        if self.whole:
            return serve(self.form, self.asked)
        self.form.context(users)
        return users.label_B


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize(
    ("module", "request_flops", "config"),
    [
        *((onetrans, onetrans.request_flops, replace(ONETRANS, **switch)) for switch in (
            {}, {"ns": "group"}, {"pyramid": "none", "head": "mean"}, {"pyramid": "shrink_first", "out_proj": "none"},
        )),
        *((hstu, hstu_serving.request_flops, replace(HSTU, **switch)) for switch in ({}, {"flavour": "production"})),
    ],
    ids=lambda v: getattr(v, "__name__", "").split(".")[-1] or None,
)  # fmt: skip
def test_counted_request_is_the_formula(module: Any, request_flops: Any, config: Any, row: int) -> None:
    model = module.SPEC.build(config, SCHEMA).eval()
    users = take_users(SCHEMA, synthetic_batch(SCHEMA, 3, full=False), row)  # row 0 has no history
    lengths: Mapping[str, int] = {h: len(t) for h, t in users.event_times.items()}
    asked = requests_of(SCHEMA, users, synthetic_batch(SCHEMA, COUNT, seed=1))
    form = serving_forms(module.SPEC.serving, model, SCHEMA)[REUSE]
    whole, context = (count_step(Served(model, form, asked, w), users, train=False) for w in (True, False))
    assert not whole.unknown
    user, candidate = request_flops(config, SCHEMA, lengths)
    assert context.flops() == pytest.approx(user, rel=0.02)
    assert (whole.flops() - context.flops()) / COUNT == pytest.approx(candidate, rel=0.02)


def test_a_longer_history_than_the_window_costs_the_window() -> None:
    def of(config: Any, request_flops: Any, schema: FeatureSchema, n: int) -> Any:
        return request_flops(config, schema, dict.fromkeys(schema.histories, n))

    for config, flops in ((ONETRANS, onetrans.request_flops), (HSTU, hstu_serving.request_flops)):
        assert of(config, flops, SCHEMA, 10**6) == flops(config, SCHEMA) == of(config, flops, SCHEMA, LENGTH)
        assert of(config, flops, SCHEMA, 3) < flops(config, SCHEMA)

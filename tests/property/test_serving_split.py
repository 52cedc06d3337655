"""The models' own serving forms under every option that changes the layers they take apart.

Exact within 1e-5, FLOPs as their closed form says, and the user's side really shared.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from ctrbench.bench import registry
from ctrbench.bench.counting.counter import Recorder
from ctrbench.datasets.random_batches import random_schema
from ctrbench.datasets.schema import FeatureSchema, synthetic_batch
from ctrbench.kernels.shared_pair_attention import Impl, shared_pair_attention
from ctrbench.legacy_baselines import composite_serving, dcn_serving, dcn_v2_serving, din_serving, serving_split
from ctrbench.legacy_baselines.interest import Dice
from ctrbench.models import fat_serving
from ctrbench.models.embedding import TableConfig, dense_parameters, embedding_tables
from ctrbench.models.fat import composition_flops
from ctrbench.models.requests import Requests, requests_of, take_users
from ctrbench.models.serving import ALONE, REUSE, WHOLE, ServingForm, serve, serving_forms

TOLERANCE = 1e-5
PER_TABLE = TableConfig(impl="per_table", optimizer="sgd")
FLOPS = {
    "dnn": serving_split.request_flops, "wide_deep": serving_split.request_flops,
    "deepfm": serving_split.request_flops, "dcn": dcn_serving.request_flops, "dcn_v2": dcn_v2_serving.request_flops,
    "din": din_serving.request_flops, "composite": composite_serving.request_flops, "fat": fat_serving.request_flops,
}  # fmt: skip
WELL_UNDER = {"dnn": 0.6, "wide_deep": 0.6, "deepfm": 0.6, "dcn": 0.6, "din": 0.85, "fat": 0.9}
"""Share of the unshared FLOPs, as much as the columns, events or projections of the user leave to a candidate."""
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("dnn", {"bn": True, "dropout": 0.3}),
    ("dnn", {"mlp": ()}),
    ("wide_deep", {"bn": True, "missing_vector": False}),
    ("deepfm", {"bn": True, "dropout": 0.3}),
    ("deepfm", {"fm_impl": "pairs", "tables": PER_TABLE}),
    ("dcn", {"bn": True, "dropout": 0.3}),
    ("dcn", {"structure": "stacked"}),
    ("dcn", {"structure": "cross_only", "cross_impl": "plain"}),
    ("dcn", {"mlp": ()}),
    ("dcn_v2", {"structure": "stacked", "bn": True}),
    ("dcn_v2", {"structure": "stacked_parallel", "dropout": 0.3}),
    ("dcn_v2", {"structure": "cross_only", "cross_layers": 1}),
    ("dcn_v2", {"structure": "parallel", "mlp": (), "cross_layers": 4}),
    ("dcn_v2", {"form": "mixture", "experts": 3, "rank": 5}),
    ("dcn_v2", {"form": "mixture", "structure": "stacked", "gate_scope": "layer", "expert_act": "identity"}),
    ("dcn_v2", {"tables": PER_TABLE, "cross_impl": "plain"}),
    ("composite", {"histories": ("all", "recent"), "recent": 5, "act": "relu", "head": (16, 8), "tasks": 2}),
    ("composite", {"histories": ("liked", "disliked", "recent"), "softmax": True, "towers": (), "cross_layers": 1}),
    ("composite", {"histories": ("all",), "towers": ((16,), (24, 8)), "dropout": 0.2, "head": (16,)}),
    ("din", {"softmax": True, "unit": "concat"}),
    ("din", {"act": "relu", "unit": "split", "attention_dropout": 0.4, "dropout": 0.4}),
    ("din", {"dice_stats": "all", "attention": (24,), "mlp": ()}),
    ("din", {"tables": PER_TABLE, "missing_vector": False}),
    ("fat", {"residual": "pre2", "pair_scope": "head", "out_proj": "field"}),
    ("fat", {"residual": "post2", "out_proj": "shared", "bias_site": "layer"}),
    ("fat", {"prenorm": False, "width": 48, "pair_scope": "model", "basis_scope": "model"}),
    ("fat", {"layers": 1, "qkv": "shared", "pairs": False}),
    ("fat", {"hypernetwork": False, "out_proj": "field", "layers": 3}),
    ("fat", {"weights": "on_the_fly", "tables": PER_TABLE}),
]  # fmt: skip
IDS = [f"{name}-{','.join(options)}" for name, options in OPTIONS]


def small_schema() -> FeatureSchema:
    """Few rows, and dense fields of both sides between the others."""
    schema = random_schema("random_sequence", 12)
    first, cut = schema.categorical[0], [replace(f, cardinality=min(f.cardinality, 200)) for f in schema.fields]
    dense = [replace(first, name=f"dense_{role}", kind="dense", role=role, cardinality=0) for role in ("user", "item")]
    return replace(schema, fields=(*dense, *cut))


SCHEMA = small_schema()


@torch.no_grad()
def build(name: str, options: dict[str, Any]) -> tuple[Any, nn.Module, dict[str, ServingForm]]:
    """(config, model, forms); no weight, statistic or bias is where it starts, so that a forgotten one shows."""
    torch.manual_seed(0)
    spec = registry.model_spec(name)
    config = spec.config(**options)
    model = spec.build(config, SCHEMA).eval()
    tables = embedding_tables(model)
    for weight in (w for t in tables for w in t.weights().values()):
        weight.copy_(0.3 * torch.randn_like(weight))
    for p in dense_parameters(model):
        p.add_(0.05 * torch.randn_like(p))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, Dice):
            module.mean_O.normal_(0.0, 0.1)
            module.var_O.uniform_(0.05, 0.5)
    return config, model, serving_forms(spec.serving, model, SCHEMA)


def requests(users: int, count: int, full: bool = False) -> Requests:
    """Histories of different lengths, the first one empty, unless they are full."""
    return requests_of(
        SCHEMA, synthetic_batch(SCHEMA, users, seed=3, full=full),
        synthetic_batch(SCHEMA, users * count, seed=4, full=False),
    )  # fmt: skip


def executed(form: ServingForm, model: nn.Module, asked: Requests) -> float:
    recorder = Recorder(model, asked.users, asked.size)
    with recorder.active():
        serve(form, asked)
    return recorder.result(train=False, blocks={}).flops()


def view_lengths(form: ServingForm, asked: Requests) -> dict[str, int]:
    """Events that each view of the composite ranker shows of one user; nothing for the others."""
    if not isinstance(form, composite_serving.CompositeForm):
        return {}
    events = form.sides.user(asked.users).events
    return {v.name: int(v.select(events[v.history]).mask_BT.sum()) for v in form.attention.views}


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=IDS)
def test_every_option_is_exact_and_costs_what_its_formula_says(name: str, options: dict[str, Any]) -> None:
    config, model, forms = build(name, options)
    for users, count in ((3, 1), (2, 5), (1, 7), (2, 90)):
        asked = requests(users, count)
        want = serve(forms[WHOLE], asked)
        assert float(want.std()) > 1e-3
        for form in set(forms) - ({ALONE} if count > 1 else set()):
            got = serve(forms[form], asked)
            assert float((got - want).abs().max()) <= TOLERANCE, form
    for count in (5, 90):
        asked = requests(1, count, full=True)
        once, each = FLOPS[name](config, SCHEMA, view_lengths(forms[REUSE], asked), count)
        found = executed(forms[REUSE], model, asked)
        assert found == pytest.approx(once + count * each, rel=0.02)


@pytest.mark.parametrize("name", [n for n in FLOPS if n in WELL_UNDER])
def test_the_users_side_runs_once_a_request(name: str) -> None:
    config, model, forms = build(name, {})
    once, each = FLOPS[name](config, SCHEMA, None, 64)
    assert once > 0
    one, two = (executed(forms[REUSE], model, requests(1, n, full=True)) for n in (64, 128))
    assert two - one == pytest.approx(64 * each, rel=0.02)  # another candidate pays nothing of the user's side
    whole = executed(forms[WHOLE], model, requests(1, 64, full=True))
    assert one < WELL_UNDER[name] * whole


def test_dcn_v2_folds_the_users_columns_from_the_count_at_which_that_is_cheaper() -> None:
    _, model, forms = build("dcn_v2", {})
    form = forms[REUSE]
    assert isinstance(form, dcn_v2_serving.CrossForm)
    turn = math.ceil(form.cross.fold_from)
    flops = {n: executed(form, model, requests(1, n, full=True)) for n in (turn - 1, turn, 2 * turn)}
    whole = {n: executed(forms[WHOLE], model, requests(1, n, full=True)) for n in flops}
    before, after = flops[turn - 1] / (turn - 1), (flops[2 * turn] - flops[turn]) / turn
    assert after < 0.5 * before  # a candidate more, before and after
    assert flops[turn] < whole[turn]
    assert flops[2 * turn] < 0.5 * whole[2 * turn]
    asked = requests(1, 2 * turn)
    kept = form.context(asked.users)
    with torch.no_grad():  # one context serves both a short and a long request
        first, last = form.score(kept, asked.candidates(0, 3)), form.score(kept, asked)
    torch.testing.assert_close(first, last[:3], atol=TOLERANCE, rtol=0)


def test_din_computes_real_events_only() -> None:
    config, model, forms = build("din", {})
    asked = requests(4, 64)
    for row, n in enumerate(asked.users.ids["hist_item"].lengths().tolist()):
        users = take_users(SCHEMA, asked.users, row)
        once, each = din_serving.request_flops(config, SCHEMA, {"hist": n}, 64)
        found = executed(forms[REUSE], model, asked.candidates(row * 64, (row + 1) * 64, users))
        assert found == pytest.approx(once + 64 * each, rel=0.02)


def test_fat_written_anew_for_a_request_costs_the_composition_more() -> None:
    config, model, forms = build("fat", {})
    asked = requests(1, 16, full=True)
    kept, anew, mixed = (executed(forms[form], model, asked) for form in (REUSE, "on_the_fly", "mixture"))
    assert anew - kept == pytest.approx(composition_flops(config, SCHEMA).full, rel=0.02)
    assert mixed > 1.5 * kept


@pytest.mark.parametrize("heads_of_pairs", [0, 2])
def test_shared_pair_attention_is_its_twin_forward_and_backward(heads_of_pairs: int) -> None:
    torch.manual_seed(0)
    q_u, k_u, v_u = (torch.randn(2, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))  # R, H, U, d
    q_i, k_i, v_i = (torch.randn(2, 2, 4, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    pair_FF = torch.randn(*([2] if heads_of_pairs else []), 8, 8, dtype=torch.float64, requires_grad=True)
    found: dict[str, list[torch.Tensor]] = {}
    impls: tuple[Impl, ...] = ("fused", "plain")
    for impl in impls:
        out = shared_pair_attention((q_u, k_u, v_u), (q_i, k_i, v_i), pair_FF, impl)
        loss = torch.cat([(o.flatten() * torch.arange(1, o.numel() + 1)) for o in out]).sum()
        found[impl] = [*out, *torch.autograd.grad(loss, (q_u, k_u, v_u, q_i, k_i, v_i, pair_FF))]
    for fused, plain in zip(found["fused"], found["plain"], strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-8, rtol=1e-9)

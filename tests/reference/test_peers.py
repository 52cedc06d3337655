"""Legacy models against deepctr-torch 0.3.0: its weights copied across, its logits compared.

The arrays come from `tests/data/peers/make_golden.py`, run in an environment of the peer's, which is not needed here.
"""

from __future__ import annotations

import pytest
import torch
from tests.reference.peers import (
    HIDDEN,
    HISTORY,
    TOLERANCE,
    WIDTH,
    Arrays,
    Build,
    batch_of,
    fill,
    linears,
    load,
    not_read,
    schema_of,
    weight,
)
from torch import nn

from ctrbench.datasets.schema import FeatureSchema
from ctrbench.legacy_baselines.dcn import DCN, DCNConfig
from ctrbench.legacy_baselines.dcn_v2 import DCNv2, DCNv2Config
from ctrbench.legacy_baselines.deepfm import DeepFM, DeepFMConfig
from ctrbench.legacy_baselines.dien import DIEN, DIENConfig
from ctrbench.legacy_baselines.din import DIN, DINConfig
from ctrbench.legacy_baselines.interest import ActivationUnit, Dice
from ctrbench.legacy_baselines.wide_deep import WideDeep, WideDeepConfig
from ctrbench.models.embedding import embedding_tables

TABLE = "embedding_dict.{}.weight"


def fill_tables(model: nn.Module, arrays: Arrays, linear: bool) -> None:
    """Rows of the peer's embeddings, the first-order weight behind them."""
    (tables,) = embedding_tables(model)
    for name, rows in tables.weights().items():
        rows.zero_()
        rows[:, :WIDTH] = weight(arrays, f"embedding_dict.{name}.weight")
        if linear:
            rows[:, WIDTH] = weight(arrays, f"linear_model.embedding_dict.{name}.weight").squeeze(1)


def fill_all(module: nn.Module, arrays: Arrays, names: list[str]) -> None:
    """The linear layers of a module in their order; the peer's output layer has its bias elsewhere."""
    layers = linears(module)
    assert len(layers) == len(names)
    for layer, name in zip(layers, names, strict=True):
        fill(layer, arrays, name, "out.bias" if name in ("dnn_linear", "linear") else None)


TOWER = ["dnn.linears.0", "dnn.linears.1", "dnn_linear"]


def deepfm(arrays: Arrays, schema: FeatureSchema) -> nn.Module:
    model = DeepFM(DeepFMConfig(dim=WIDTH, mlp=HIDDEN), schema)
    fill_tables(model, arrays, linear=True)
    fill_all(model.tower, arrays, TOWER)
    return model


def wide_deep(arrays: Arrays, schema: FeatureSchema) -> nn.Module:
    model = WideDeep(WideDeepConfig(dim=WIDTH, mlp=HIDDEN), schema)
    fill_tables(model, arrays, linear=True)
    fill_all(model.tower, arrays, TOWER)
    return model


def dcn(arrays: Arrays, schema: FeatureSchema) -> nn.Module:
    model = DCN(DCNConfig(dim=WIDTH, mlp=HIDDEN, cross_layers=2, structure="parallel"), schema)
    fill_tables(model, arrays, linear=False)
    model.cross.weight_LN.data.copy_(weight(arrays, "crossnet.kernels").squeeze(2))
    model.cross.bias_LN.data.copy_(weight(arrays, "crossnet.bias").squeeze(2))
    fill_all(model.mlp, arrays, TOWER[:2])
    fill(model.head, arrays, "dnn_linear", "out.bias")
    return model


def dcn_v2(arrays: Arrays, schema: FeatureSchema) -> nn.Module:
    model = DCNv2(DCNv2Config(dim=WIDTH, mlp=HIDDEN, cross_layers=2, structure="parallel"), schema)
    fill_tables(model, arrays, linear=False)
    for i, layer in enumerate(linears(model.cross)):
        layer.weight.data.copy_(weight(arrays, "crossnet.kernels")[i])
        layer.bias.data.copy_(weight(arrays, "crossnet.bias")[i].squeeze(1))
    fill_all(model.mlps, arrays, TOWER[:2])
    fill(model.head, arrays, "dnn_linear", "out.bias")
    return model


def fill_unit(unit: ActivationUnit, arrays: Arrays, at: str) -> None:
    fill_all(unit, arrays, [f"{at}.dnn.linears.0", f"{at}.dnn.linears.1", f"{at}.dense"])
    for i, dice in enumerate(m for m in unit.modules() if isinstance(m, Dice)):
        dice.alpha_O.data.copy_(weight(arrays, f"{at}.dnn.activation_layers.{i}.alpha").squeeze(1))


def din(arrays: Arrays, schema: FeatureSchema) -> nn.Module:
    sizes = {"dim": WIDTH, "mlp": HIDDEN, "attention": HIDDEN}
    model = DIN(DINConfig(**sizes), schema)
    model.tower = DIN(DINConfig(act="relu", **sizes), schema).tower  # the peer's tower fails with Dice
    fill_tables(model, arrays, linear=False)
    (unit,) = model.attention.units
    fill_unit(unit, arrays, "attention.local_att")
    fill_all(model.tower, arrays, TOWER)
    return model


def dien(arrays: Arrays, schema: FeatureSchema) -> nn.Module:
    config = DIENConfig(dim=WIDTH, mlp=HIDDEN, attention=HIDDEN, act="relu", tower_act="relu")
    model = DIEN(config, schema)
    fill_tables(model, arrays, linear=False)
    (interest,) = model.interests.units
    for name, value in interest.extraction.named_parameters():
        value.data.copy_(weight(arrays, f"interest_extractor.gru.{name}"))
    second = "interest_evolution.interest_evolution.rnn"
    for ours, theirs in (("w_ih", "weight_ih"), ("w_hh", "weight_hh"), ("b_ih", "bias_ih")):
        getattr(interest, ours).data.copy_(weight(arrays, f"{second}.{theirs}"))
    interest.b_hh.data.copy_(interest.b_ih.data)  # the peer registers both biases under one name: they are one tensor
    fill_unit(interest.unit, arrays, "interest_evolution.attention.local_att")
    fill_all(model.tower, arrays, [*TOWER[:2], "linear"])
    first, events = linears(model.tower)[0], len(HISTORY) * WIDTH
    first.weight.data.copy_(first.weight.data.roll(-events, dims=1))  # the peer's interest comes before the fields
    return model


MODELS: dict[str, Build] = {
    "deepfm": deepfm, "wide_deep": wide_deep, "dcn": dcn, "dcn_v2": dcn_v2, "din": din, "dien": dien,
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_the_peer(name: str) -> None:
    arrays = load(name)
    schema = schema_of(arrays, TABLE)
    model = MODELS[name](arrays, schema).eval()
    expected = torch.from_numpy(arrays["logit"]).float()
    assert expected.std() > 0.05, "rows differ"
    torch.testing.assert_close(model(batch_of(arrays, schema)), expected, **TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_every_array_of_the_peer_is_used(name: str) -> None:
    arrays = load(name)
    left = {k for k in not_read(arrays, MODELS[name], schema_of(arrays, TABLE)) if ".bn." not in k}
    assert all(k.startswith("w/linear_model.") for k in left), left
    assert not any(arrays[k].any() for k in left), "what is left out is zero in the peer"

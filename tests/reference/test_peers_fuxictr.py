"""Legacy models against FuxiCTR 2.3.9: its weights copied across, its logits compared.

The arrays come from `tests/data/peers/make_golden_fuxictr.py`, run in an environment of the peer's, which is not needed
here. Its wheel packages DCNv2, DIN and DIEN; LR, FM, DCN and DLRM are put together of its layers; FFM, Wide & Deep and
DeepFM it lacks. Not compared: training (its Dice normalises over padding too, `dice_stats=all`).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.reference.peers import (
    HIDDEN,
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
from torch import Tensor, nn

from ctrbench.datasets.schema import FeatureSchema
from ctrbench.legacy_baselines.dcn import DCN, DCNConfig
from ctrbench.legacy_baselines.dcn_v2 import DCNv2, DCNv2Config
from ctrbench.legacy_baselines.dien import DIEN, DIENConfig
from ctrbench.legacy_baselines.din import DIN, DINConfig
from ctrbench.legacy_baselines.dlrm import DLRM, DLRMConfig
from ctrbench.legacy_baselines.fm import FM, FMConfig
from ctrbench.legacy_baselines.interest import Dice
from ctrbench.legacy_baselines.lr import LR, LRConfig
from ctrbench.models.embedding import embedding_tables

_ROWS = "embedding_layer.embedding_layer.embedding_layers.{}.weight"


def table_of(arrays: Arrays) -> str:
    """Name of a field's table; LR alone has them in its layer."""
    return _ROWS if f"w/{_ROWS.format('user')}" in arrays else f"lr_layer.{_ROWS}"


def fill_vectors(model: Any, arrays: Arrays, first_order: str = "") -> None:
    """Rows of the categorical fields, vectors of the dense ones, each with its first-order weight behind it."""
    table, (tables,) = table_of(arrays), embedding_tables(model)

    def joined(field: str) -> Tensor:
        """[rows, width], of a dense field [1, width]."""
        parts = [weight(arrays, table.format(field))] + (
            [weight(arrays, first_order.format(field))] if first_order else []
        )
        return torch.cat([x.t() if field.startswith("I") else x for x in parts], dim=1)

    for name, rows in tables.weights().items():
        rows.zero_()
        found = joined(name)
        rows[:, : found.shape[1]] = found
    numeric = model.embedder.numeric_ID
    for i, name in enumerate(f for f in ("I0", "I1") if numeric is not None):
        numeric.data[i] = joined(name)[0]


def fill_stack(module: nn.Module, arrays: Arrays, name: str) -> None:
    """An MLP of the peer's, layer by layer: linear layers, and Dice with its running statistics."""
    stack = [m for m in module.modules() if isinstance(m, nn.Linear | Dice | nn.ReLU)]
    for at, layer in enumerate(stack):
        if isinstance(layer, nn.Linear):
            fill(layer, arrays, f"{name}.mlp.{at}")
        elif isinstance(layer, Dice):
            layer.alpha_O.data.copy_(weight(arrays, f"{name}.mlp.{at}.alpha"))
            layer.mean_O.copy_(weight(arrays, f"{name}.mlp.{at}.bn.running_mean"))
            layer.var_O.copy_(weight(arrays, f"{name}.mlp.{at}.bn.running_var"))


def lr(arrays: Arrays, schema: FeatureSchema) -> nn.Module:
    model = LR(LRConfig(missing_vector=False), schema)
    fill_vectors(model, arrays)
    model.bias.data.copy_(weight(arrays, "lr_layer.bias")[0])
    return model


def fm(arrays: Arrays, schema: FeatureSchema) -> nn.Module:
    model = FM(FMConfig(dim=WIDTH, missing_vector=False), schema)
    fill_vectors(model, arrays, first_order=f"fm.lr_layer.{_ROWS}")
    model.bias.data.copy_(weight(arrays, "fm.lr_layer.bias")[0])
    return model


def dlrm(arrays: Arrays, schema: FeatureSchema) -> nn.Module:
    model = DLRM(DLRMConfig(dim=WIDTH, bottom=(8,), top=HIDDEN, missing_vector=False), schema)
    fill_vectors(model, arrays)
    fill_stack(model.bottom, arrays, "bottom_mlp")
    fill_stack(model.top, arrays, "top_mlp")
    return model


def dcn(arrays: Arrays, schema: FeatureSchema) -> nn.Module:
    model = DCN(DCNConfig(dim=WIDTH, cross_layers=2, structure="cross_only", missing_vector=False), schema)
    fill_vectors(model, arrays)
    for i in range(2):
        model.cross.weight_LN.data[i] = weight(arrays, f"crossnet.cross_net.{i}.weight.weight")[0]
        model.cross.bias_LN.data[i] = weight(arrays, f"crossnet.cross_net.{i}.bias")
    fill(model.head, arrays, "fc")
    return model


def dcn_v2(arrays: Arrays, schema: FeatureSchema, **options: Any) -> nn.Module:
    model = DCNv2(DCNv2Config(dim=WIDTH, mlp=HIDDEN, cross_layers=2, **options), schema)
    fill_vectors(model, arrays)
    cross: Any = model.cross
    if options.get("form") == "mixture":
        for i in range(2):
            cross.u_NKR[i].data.copy_(weight(arrays, f"crossnet.U_list.{i}").transpose(0, 1))
            cross.c_KRR[i].data.copy_(weight(arrays, f"crossnet.C_list.{i}"))
            cross.v_KRN[i].data.copy_(weight(arrays, f"crossnet.V_list.{i}").transpose(1, 2))
            cross.b_N[i].data.copy_(weight(arrays, f"crossnet.bias.{i}").squeeze(1))
        cross.gates[0].weight.data.copy_(torch.cat([weight(arrays, f"crossnet.gating.{k}.weight") for k in range(2)]))
    else:
        for i, layer in enumerate(linears(cross)):
            fill(layer, arrays, f"crossnet.cross_layers.{i}")
    for name, mlp in model.mlps.items():
        fill_stack(mlp, arrays, f"{name}_dnn")
    fill(model.head, arrays, "fc")
    return model


def din(arrays: Arrays, schema: FeatureSchema, **options: Any) -> nn.Module:
    model = DIN(DINConfig(dim=WIDTH, mlp=HIDDEN, attention=HIDDEN, **options), schema)
    fill_vectors(model, arrays)
    fill_stack(model.attention.units, arrays, "attention_layers.attention_layer")
    fill_stack(model.tower, arrays, "dnn")
    return model


def dien(arrays: Arrays, schema: FeatureSchema, **options: Any) -> nn.Module:
    """The peer's second GRU has its gates in the order update, reset, new."""
    config = DIENConfig(dim=WIDTH, mlp=HIDDEN, attention=HIDDEN, act="relu", tower_act="relu", **options)
    model = DIEN(config, schema)
    fill_vectors(model, arrays)
    (interest,) = model.interests.units
    for name, value in interest.extraction.named_parameters():
        value.data.copy_(weight(arrays, f"extraction_modules.0.{name}"))
    for ours, theirs in (("w_ih", "x2h.weight"), ("w_hh", "h2h.weight"), ("b_ih", "x2h.bias"), ("b_hh", "h2h.bias")):
        update, reset, new = weight(arrays, f"evolving_modules.0.gru_cell.{theirs}").chunk(3)
        getattr(interest, ours).data.copy_(torch.cat([reset, update, new]))
    if interest.unit is not None:
        fill_stack(interest.unit, arrays, "attention_modules.0.attn_mlp")
    elif interest.meet_CC is not None:
        interest.meet_CC.data.copy_(weight(arrays, "attention_modules.0.W_kernel").t())
    fill_stack(model.tower, arrays, "dnn")
    return model


MODELS: dict[str, Build] = {
    "lr": lr,
    "fm": fm,
    "dlrm": dlrm,
    "dcn": dcn,
    "dcn_v2": dcn_v2,
    "dcn_v2_stacked": lambda a, s: dcn_v2(a, s, structure="stacked"),
    "dcn_v2_stacked_parallel": lambda a, s: dcn_v2(a, s, structure="stacked_parallel"),
    "dcn_v2_cross_only": lambda a, s: dcn_v2(a, s, structure="cross_only"),
    "dcn_v2_mixture": lambda a, s: dcn_v2(a, s, form="mixture", rank=3, experts=2),
    "din": din,
    "din_softmax": lambda a, s: din(a, s, softmax=True),
    "dien": dien,
    "dien_bilinear": lambda a, s: dien(a, s, att="bilinear"),
    "dien_agru": lambda a, s: dien(a, s, att="dot", cell="agru"),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_the_peer(name: str) -> None:
    """Rows with no event, one and all of them are among the peer's."""
    arrays = load(f"fuxictr_{name}")
    schema = schema_of(arrays, table_of(arrays))
    model = MODELS[name](arrays, schema).eval()
    expected = torch.from_numpy(arrays["logit"])
    assert expected.std() > 0.05, "rows differ"
    assert {0, 1} <= set(arrays.get("in/seq_length", [0, 1]))
    torch.testing.assert_close(model(batch_of(arrays, schema)), expected, **TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_every_array_of_the_peer_is_used(name: str) -> None:
    arrays = load(f"fuxictr_{name}")
    assert not not_read(arrays, MODELS[name], schema_of(arrays, table_of(arrays)))

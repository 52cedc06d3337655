"""FAT against its equations (models.md section 2), float64 where the tables' float32 rows are not involved.

Dims: B batch, F fields, D width, H heads, k meta-embedding, M bases, K chosen bases
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import layer_norm, silu
from torch.utils.flop_counter import FlopCounterMode

from ctrbench.bench.counting.counter import count_step
from ctrbench.datasets.published_schemas import criteo_x1
from ctrbench.datasets.schema import synthetic_batch
from ctrbench.models.blocks import Embedded
from ctrbench.models.fat import SPEC, Fat, FatConfig, card, composition_flops, flops
from ctrbench.models.field_blocks import FieldBlock, FieldWeights, Hypernetwork, Mixture

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
SMALL = FatConfig(dim=8, hidden=12, heads=2, layers=2, bases=4, meta=5, top_k=2)
SWITCHES = [
    {"residual": "pre2"}, {"residual": "post2"}, {"prenorm": False}, {"pair_init": "paper"}, {"pair_scope": "head"},
    {"pair_scope": "model"}, {"basis_scope": "model"}, {"out_proj": "shared"}, {"out_proj": "field"},
    {"bias_site": "layer"}, {"basis_init": "n002"}, {"weights": "on_the_fly"}, {"width": 10},
]  # fmt: skip


class Given(nn.Module):
    """In the place of the embedding stage: float64 field vectors that the test holds."""

    def __init__(self, fields_BFD: Tensor) -> None:
        super().__init__()
        self.fields_BFD = fields_BFD

    def forward(self, batch: object) -> Embedded:
        return Embedded(self.fields_BFD, None, {})


def on_given_fields(config, schema, rows=3, seed=0) -> Fat:
    """A float64 FAT with weights far from their start, on random field vectors."""
    torch.manual_seed(seed)
    model = Fat(config, schema)
    model.embedder = Given(torch.randn(rows, len(schema.fields), config.dim, dtype=torch.float64))
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def test_small_preset_has_the_published_counts():
    schema = criteo_x1()
    model = Fat(FatConfig(), schema, "meta")
    dense = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("embedder"))
    assert dense == 2 * (8 * (3 * 32**2 + 2 * 32 * 64) + 5 * 16 * 8 + 39**2 + 4 * 32) + 39 * 16 + 39 * 32 + 33
    assert dense == pytest.approx(121e3, rel=0.005)  # models.md section 2: 121 k
    assert flops(FatConfig(), schema).full == pytest.approx(1.51e6, rel=0.005)  # the same: 1.51 MFLOP


def test_first_published_point_has_the_counts_of_the_re_implementation():
    preset = SPEC.published()[0]
    model = SPEC.build(preset.config, preset.schema, "meta")
    stored = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("embedder"))
    assert stored == pytest.approx(23.1e6, rel=0.005)  # models.md section 2: stored 23.1 M
    assert flops(preset.config, preset.schema).full == pytest.approx(29.7e6, rel=0.005)  # the same: 29.7 MFLOP


@pytest.mark.parametrize("switch", [{}, *SWITCHES], ids=str)
def test_counted_forward_is_the_formula_plus_composition(switch, tabular_schema):
    config = replace(SMALL, **switch)
    model = SPEC.build(config, tabular_schema)
    for train in (True, False):
        counted = count_step(model, synthetic_batch(tabular_schema, 32), train=train)
        assert not counted.unknown
        expected = flops(config, tabular_schema).full * 32 + model.train(train).flops_per_step.full
        assert counted.flops("forward") == pytest.approx(expected, rel=1e-9)


def test_composition_costs_nothing_in_steady_inference(tabular_schema):
    """Claim S17: weights are written once, so that no call after the first spends FLOPs on them."""
    model = SPEC.build(SMALL, tabular_schema)
    assert model.flops_per_step == composition_flops(SMALL, tabular_schema)
    counted = count_step(model, synthetic_batch(tabular_schema, 32), train=False)
    assert counted.flops() == pytest.approx(flops(SMALL, tabular_schema).full * 32, rel=1e-9)


def test_composition_cost_is_the_closed_form():
    fields, d, hidden, k, m, top = 39, 32, 64, 16, 8, 3
    useful = 2 * (2 * fields * top * (3 * d * d + 2 * d * hidden) + 10 * fields * k * m)
    assert composition_flops(FatConfig(), criteo_x1()).visible == useful


@pytest.mark.parametrize("switch", [s for s in [{}, *SWITCHES] if "weights" not in s], ids=str)
def test_composed_equals_on_the_fly(switch, tabular_schema):
    composed = on_given_fields(replace(SMALL, **switch), tabular_schema)
    mixed = on_given_fields(replace(SMALL, **switch, weights="on_the_fly"), tabular_schema)
    mixed.load_state_dict(composed.state_dict())
    mixed.embedder = composed.embedder
    torch.testing.assert_close(composed(None), mixed(None), **CLOSE)
    for a, b in zip(
        torch.autograd.grad(composed(None).sum(), list(composed.parameters())),
        torch.autograd.grad(mixed(None).sum(), list(mixed.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **CLOSE)


def one_set(model: Fat) -> tuple[Tensor, ...]:
    """The only basis of every map of the first layer: Q, K, V [D, D], F1 [D, E], F2 [E, D]."""
    bases = model.hypernetworks[0].bases
    return tuple(bases[n].detach()[0] for n in ("q", "k", "v", "up", "down"))


def with_one_basis(residual, schema) -> Fat:
    model = on_given_fields(replace(SMALL, layers=1, bases=1, top_k=1, residual=residual), schema)
    with torch.no_grad():
        model.pairs[0].fill_(1.0)
    return model


def test_one_basis_without_modulation_is_torchs_encoder_layer(tabular_schema):
    model = with_one_basis("pre2", tabular_schema)
    q, k, v, up, down = one_set(model)
    d = SMALL.dim
    reference = nn.TransformerEncoderLayer(
        d, SMALL.heads, SMALL.hidden, 0.0, activation=silu, batch_first=True, norm_first=True, bias=False
    ).double()
    with torch.no_grad():
        reference.self_attn.in_proj_weight.copy_(torch.cat([q, k, v], dim=1).t())
        reference.self_attn.out_proj.weight.copy_(torch.eye(d))
        reference.linear1.weight.copy_(up.t())
        reference.linear2.weight.copy_(down.t())
        block = model.layers[0]
        for ours, theirs in ((block.norm0, reference.norm1), (block.norm1, reference.norm2)):
            ours.bias.zero_()
            theirs.weight.copy_(ours.weight)
    x_BFD = model.embedder.fields_BFD
    ours_FBD = model.layers[0](x_BFD.transpose(0, 1), model.field_weights()[0], model.pairs[0])
    torch.testing.assert_close(ours_FBD.transpose(0, 1), reference(x_BFD), **CLOSE)


def test_paper_layout_has_one_residual_around_both_parts(tabular_schema):
    model = with_one_basis("paper", tabular_schema)
    q, k, v, up, down = one_set(model)
    d, block, x_BFD = SMALL.dim, model.layers[0], model.embedder.fields_BFD
    attention = nn.MultiheadAttention(d, SMALL.heads, bias=False, batch_first=True).double()
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([q, k, v], dim=1).t())
        attention.out_proj.weight.copy_(torch.eye(d))
    h_BFD = layer_norm(x_BFD, (d,), block.norm0.weight, block.norm0.bias)
    o_BFD = layer_norm(attention(h_BFD, h_BFD, h_BFD)[0], (d,), block.norm1.weight, block.norm1.bias)
    ours_FBD = block(x_BFD.transpose(0, 1), model.field_weights()[0], model.pairs[0])
    torch.testing.assert_close(ours_FBD.transpose(0, 1), x_BFD + silu(o_BFD @ up) @ down, **CLOSE)


def test_zero_pair_weights_give_every_token_the_mean_of_values(tabular_schema):
    model = on_given_fields(SMALL, tabular_schema)
    x_FBD, weights = model.embedder.fields_BFD.transpose(0, 1), model.field_weights()[0]
    qkv_FBE = torch.bmm(x_FBD, weights.qkv[0])
    out_FBD = model.layers[0].attend(qkv_FBE.transpose(0, 1), weights, torch.zeros_like(model.pairs[0]))
    values_FBD = qkv_FBE[..., 2 * SMALL.dim :]
    torch.testing.assert_close(out_FBD, values_FBD.mean(dim=0, keepdim=True).expand_as(out_FBD), **CLOSE)


def test_all_bases_chosen_is_a_plain_softmax_mixture():
    net = Hypernetwork(4, 6, bases=5, meta=3, chosen=5).double()
    meta_Fk = torch.randn(7, 3, dtype=torch.float64)
    weights = net(meta_Fk)
    for i, (name, want) in enumerate((("up", weights.up), ("down", weights.down)), start=3):
        shares_FM = torch.softmax(meta_Fk @ net.router_PkM[i], dim=-1)
        torch.testing.assert_close(want, torch.einsum("fm,mde->fde", shares_FM, net.bases[name]), **CLOSE)


def test_one_basis_a_field_is_free_weights():
    fields = 5
    net = Hypernetwork(4, 6, bases=fields, meta=fields, chosen=1).double()
    with torch.no_grad():
        net.router_PkM.copy_(torch.eye(fields))
    weights = net(3.0 * torch.eye(fields, dtype=torch.float64))
    assert torch.equal(weights.up, net.bases["up"])
    assert torch.equal(weights.qkv[0], torch.cat([net.bases[n] for n in "qkv"], dim=-1))


@pytest.mark.parametrize("switch", [{}, {"pair_scope": "head"}, {"bias_site": "layer"}, {"width": 10}], ids=str)
def test_relabelling_fields_changes_nothing(switch, tabular_schema):
    model = on_given_fields(replace(SMALL, **switch), tabular_schema)
    before = model(None)
    order = torch.randperm(len(tabular_schema.fields))
    with torch.no_grad():
        model.embedder.fields_BFD = model.embedder.fields_BFD[:, order]
        assert not torch.allclose(model(None), before)  # the field, not its place, decides
        model.bias_SFD.copy_(model.bias_SFD[:, order])
        model.meta_Fk.copy_(model.meta_Fk[order])
        for pair in model.pairs:
            pair.copy_(pair[..., order, :][..., order])
        if model.inputs.map_FED is not None:
            model.inputs.map_FED.copy_(model.inputs.map_FED[order])
    torch.testing.assert_close(model(None), before, **CLOSE)


def test_pairs_are_ordered(tabular_schema):
    model = on_given_fields(SMALL, tabular_schema)
    before = model(None)
    with torch.no_grad():
        for pair in model.pairs:
            pair.copy_(pair.t().clone())
    assert (model(None) - before).abs().min() > 1e-6


@pytest.mark.parametrize("weights", ["composed", "on_the_fly"])
def test_bases_not_chosen_get_no_gradient(weights, tabular_schema):
    model = on_given_fields(replace(SMALL, weights=weights), tabular_schema).train()
    with torch.no_grad():
        for net in model.hypernetworks:
            net.router_PkM[..., 0] = 0.0
            model.meta_Fk.abs_()
            net.router_PkM[..., 1:].abs_().add_(0.1)  # basis 0 scores lowest for every field
    model(None).sum().backward()
    for net in model.hypernetworks:
        for basis_MDE in net.bases.values():
            assert (basis_MDE.grad[0] == 0).all()
            assert basis_MDE.grad[1:].abs().sum() > 0
        assert (net.router_PkM.grad[..., 0] == 0).all()


def test_eval_weights_are_cached_until_something_changes(tabular_schema):
    model = Fat(SMALL, tabular_schema).eval()
    batch = synthetic_batch(tabular_schema, 4)
    with torch.no_grad():
        first, logit = model.field_weights(), model(batch)
        assert model.field_weights() is first
    with torch.inference_mode():
        assert model.field_weights() is first
    assert model.field_weights() is not first, "with gradients on, weights must belong to the graph"
    with torch.no_grad():
        model.hypernetworks[1].bases["down"].mul_(1.5)
        changed = model(batch)
        assert not torch.equal(changed, logit), "a changed basis must be noticed"
        model.meta_Fk.add_(1.0)
        assert not torch.equal(model(batch), changed), "a changed meta-embedding must be noticed"
        model.load_state_dict(Fat(SMALL, tabular_schema).state_dict(), strict=False)
        second = model.field_weights()
        model.train()
        assert model._cache is None
        assert model.field_weights() is not model.field_weights(), "training writes new weights every step"
        model.eval()
        assert model.field_weights() is not second
        model.double()
        assert model.field_weights()[0].up.dtype == torch.float64


def test_cached_and_training_weights_score_alike(tabular_schema, randomise):
    model, batch = randomise(Fat(SMALL, tabular_schema)), synthetic_batch(tabular_schema, 6)
    trained = model.train()(batch)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(batch), trained, rtol=1e-5, atol=1e-6)


def test_on_the_fly_leaves_mixtures():
    weights = Hypernetwork(4, 6, bases=3, meta=2, chosen=2, composed=False)(torch.randn(5, 2))
    assert isinstance(weights, FieldWeights)
    assert all(isinstance(w, Mixture) for w in (*weights.qkv, weights.up, weights.down))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: FieldBlock(10, 4), "heads=4"),
        (lambda: FieldBlock(8, 4, "post2", prenorm=False), "prenorm"),
        (lambda: Hypernetwork(4, 6, bases=2, meta=2, chosen=3), "top_k=3"),
    ],
)
def test_contradictions_are_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_moving_a_switch_marks_its_row_adapted(switch):
    (name, value), paper, moved = next(iter(switch.items())), card(FatConfig()), card(replace(FatConfig(), **switch))
    (row,) = [r for r in moved.rows if f"{name}={value}" in r.switch]
    before = next(r for r in paper.rows if r.mechanism == row.mechanism)
    # The start of pair weights is the one switch whose default leaves the paper (models.md section 2).
    assert (before.status, row.status) == ("adapted", "faithful") if name == "pair_init" else row.status == "adapted"
    assert before.status != row.status


@pytest.mark.parametrize(
    "options",
    [
        {"pairs": False}, {"qkv": "shared"}, {"hypernetwork": False}, {"qkv": "shared", "hypernetwork": False},
        {"qkv": "shared", "weights": "on_the_fly", "out_proj": "field"}, {"hypernetwork": False, "out_proj": "field"},
    ],
)  # fmt: skip
def test_ablations_have_their_flops_and_their_card(options, tabular_schema):
    config = replace(SMALL, **options)
    model, rows = Fat(config, tabular_schema).train(), 16
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(synthetic_batch(tabular_schema, rows))
    expected = rows * flops(config, tabular_schema).full + composition_flops(config, tabular_schema).full
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)
    moved = [
        row for row in card(config).rows for name in ("pairs", "qkv", "hypernetwork") if row.switch.startswith(name)
    ]
    assert [row.status for row in moved] == [
        "adapted" if name in options else "faithful" for name in ("qkv", "pairs", "hypernetwork")
    ]

"""Properties that define each legacy model (models.md sections 1.2, 1.5, 1.7, 1.9).

Cards and published sizes: test_legacy_sizes.py. DCN's cross layers and DCN-v2's mixture: test_cross_networks.py.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ctrbench.datasets.schema import synthetic_batch
from ctrbench.kernels.fm import fm_pairs
from ctrbench.legacy_baselines import composite, dcn_v2, deepfm, din
from ctrbench.legacy_baselines.interest import ActivationUnit, Dice, UnitConfig
from ctrbench.models.blocks import mlp_flops
from ctrbench.models.embedding import TableConfig, count_parameters, dense_parameters, embedding_tables
from ctrbench.models.events import Events


def _dense(model):
    return sum(p.numel() for p in dense_parameters(model))


def _mlp_numel(*widths):
    return sum(a * b + b for a, b in pairwise(widths))


# --- DeepFM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("track", ["tabular", "sequence"])
def test_deepfm_without_its_mlp_is_an_fm(track, schema_of, randomise):
    schema = schema_of[track]
    model = randomise(deepfm.DeepFM(deepfm.DeepFMConfig(), schema)).eval()
    for p in model.tower.parameters():
        nn.init.zeros_(p)
    batch = synthetic_batch(schema, 16, full=False)
    embedded = model.embedder(batch)
    torch.testing.assert_close(model(batch), embedded.linear_B + fm_pairs(embedded.fields_BFD))


def test_deepfm_both_branches_move_the_same_tables(tabular_schema, randomise):
    moved = []
    for silent in ("fm", "tower"):
        model = deepfm.DeepFM(deepfm.DeepFMConfig(tables=TableConfig(optimizer="sgd", lr=1.0)), tabular_schema)
        randomise(model)
        (tables,) = embedding_tables(model)
        before = {t: w.clone() for t, w in tables.weights().items()}
        batch = synthetic_batch(tabular_schema, 16)
        embedded = model.embedder(batch)
        out = model.fm(embedded.fields_BFD) if silent == "tower" else model.tower(embedded.fields_BFD.flatten(1))
        out.sum().backward()
        moved.append({t: (w != before[t]).any(1) for t, w in tables.weights().items()})
    assert all(torch.equal(moved[0][t], moved[1][t]) and moved[0][t].any() for t in moved[0])


def test_deepfm_numel(tabular_schema):
    config = deepfm.DeepFMConfig(dim=8, mlp=(16, 12), bn=True)
    rows = sum(tabular_schema.tables.values())
    expected = (rows + 2 * 3) * 9 + _mlp_numel(7 * 8, 16, 12, 1) + 2 * (16 + 12)
    assert count_parameters(deepfm.DeepFM(config, tabular_schema)) == expected


# --- DCN-v2 ---------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(layers=st.integers(1, 4), seed=st.integers(0, 99))
def test_l_cross_layers_are_a_polynomial_of_degree_l_plus_one(layers, seed):
    """Finite differences in a scale t of the input: order L + 2 vanishes, order L + 1 does not."""
    g = torch.Generator().manual_seed(seed)
    net = dcn_v2.CrossNet(5, layers).double()
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.5
    x0_BN = torch.randn(3, 5, generator=g, dtype=torch.float64)
    values = torch.stack([net(t * x0_BN) for t in torch.arange(layers + 3, dtype=torch.float64)])
    top = values.diff(n=layers + 1, dim=0)
    torch.testing.assert_close(
        top.diff(dim=0), torch.zeros_like(top[1:]), atol=1e-9 * float(values.abs().max()), rtol=0
    )
    assert top.abs().max() > 1e-6


@pytest.mark.parametrize("structure", ["parallel", "stacked", "stacked_parallel", "cross_only"])
def test_dcn_v2_structures_have_their_parameters_and_flops(structure, tabular_schema):
    config = dcn_v2.DCNv2Config(dim=8, cross_layers=2, mlp=(16, 12), structure=structure)
    model = dcn_v2.DCNv2(config, tabular_schema)
    n = 7 * 8
    cross, mlp = 2 * (n * n + n), _mlp_numel(n, 16, 12)
    head = {"parallel": n + 12, "stacked": 12, "stacked_parallel": 24, "cross_only": n}[structure]
    mlps = {"parallel": 1, "stacked": 1, "stacked_parallel": 2, "cross_only": 0}[structure]
    assert _dense(model) == 2 * 3 * 8 + cross + mlps * mlp + head + 1
    expected = 2 * 2 * n * n + mlps * mlp_flops(n, (16, 12)) + 2 * head
    assert dcn_v2.flops(config, tabular_schema).full == expected
    model(synthetic_batch(tabular_schema, 6)).sum().backward()
    assert all(p.grad is not None for p in dense_parameters(model))


def test_dcn_v2_reads_the_cross_where_the_structure_says(tabular_schema, randomise):
    batch = synthetic_batch(tabular_schema, 6)
    for structure in ("stacked", "parallel"):
        model = randomise(dcn_v2.DCNv2(dcn_v2.DCNv2Config(structure=structure), tabular_schema)).eval()
        seen = {}
        model.cross.register_forward_hook(lambda m, i, o, seen=seen: seen.update(x0=i[0], crossed=o))
        model.mlps[structure].register_forward_hook(lambda m, i, o, seen=seen: seen.update(mlp_in=i[0]))
        model(batch)
        assert torch.equal(seen["mlp_in"], seen["crossed"] if structure == "stacked" else seen["x0"])
        assert not torch.equal(seen["crossed"], seen["x0"])


def test_dcn_v2_refuses_an_unknown_structure():
    with pytest.raises(ValueError, match="stacked_parallel"):
        dcn_v2.DCNv2Config(structure="paralel")


# --- DIN ------------------------------------------------------------------------------------------------------------


def _unit(mode, **options):
    g = torch.Generator().manual_seed(2)
    unit = ActivationUnit(6, UnitConfig(attention=(8, 5), **options)).double()
    for p in unit.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.5
    unit.train(mode == "train")
    q_BC, h_BTC = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((9, 6), (9, 7, 6)))
    n_B = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 7])
    return unit, q_BC, h_BTC, torch.arange(7, 0, -1) <= n_B.unsqueeze(1)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(
    ("mode", "act", "stats", "same"),
    [("eval", "dice", "valid", True), ("eval", "dice", "all", True), ("eval", "relu", "valid", True),
     ("train", "relu", "valid", True), ("train", "dice", "valid", True), ("train", "dice", "all", False)],
)  # fmt: skip
def test_padding_content_changes_nothing_except_in_batch_norm_over_all_rows(mode, act, stats, same, softmax):
    """The one exception is how FuxiCTR trains: Dice normalised over padded rows too."""
    unit, q_BC, h_BTC, mask_BT = _unit(mode, act=act, dice_stats=stats, softmax=softmax)
    poisoned = torch.where(mask_BT.unsqueeze(-1), h_BTC, torch.full_like(h_BTC, 37.0))
    clean = h_BTC * mask_BT.unsqueeze(-1)
    a, b = unit(q_BC, clean, mask_BT), unit(q_BC, poisoned, mask_BT)
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-9) == same


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("softmax", [False, True])
def test_unit_ignores_event_order_and_gives_zero_for_an_empty_history(mode, softmax):
    unit, q_BC, h_BTC, mask_BT = _unit(mode, softmax=softmax)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    a, b = unit(q_BC, h_BTC, mask_BT), unit(q_BC, h_BTC[:, order], mask_BT[:, order])
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert not a[0].any()
    assert a[1:].any(dim=1).all()


@pytest.mark.parametrize("unit_form", ["concat", "split", "fold"])
def test_unit_is_the_formula_event_by_event(unit_form):
    unit, q_BC, h_BTC, mask_BT = _unit("eval", act="relu", unit=unit_form)
    expected = torch.zeros_like(q_BC)
    for b in range(9):
        for t in range(7):
            if mask_BT[b, t]:
                q, h = q_BC[b], h_BTC[b, t]
                x = torch.cat([q, h, q - h, q * h])
                for layer in unit.hidden:
                    x = layer(x)
                expected[b] += unit.score(x) * h
    torch.testing.assert_close(unit(q_BC, h_BTC, mask_BT), expected, rtol=1e-9, atol=1e-9)


def test_softmax_weights_sum_to_one():
    unit, q_BC, _, mask_BT = _unit("eval", softmax=True)
    ones_BTC = torch.ones(9, 7, 6, dtype=torch.float64)
    u_BC = unit(q_BC, ones_BTC, mask_BT)
    torch.testing.assert_close(u_BC[1:], torch.ones(8, 6, dtype=torch.float64))


def test_dice_over_valid_rows_is_dice_on_the_valid_rows_alone():
    g = torch.Generator().manual_seed(3)
    x_BTO, mask_BT = torch.randn(6, 5, 4, generator=g, dtype=torch.float64), torch.rand(6, 5, generator=g) < 0.6
    masked, alone = Dice(4, "valid").double().train(), Dice(4, "all").double().train()
    for dice in (masked, alone):
        dice.alpha_O.data = torch.tensor([0.0, 0.3, -0.5, 1.0], dtype=torch.float64)
    for _ in range(3):
        torch.testing.assert_close(masked(x_BTO, mask_BT)[mask_BT], alone(x_BTO[mask_BT]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(masked.mean_O, alone.mean_O)
    torch.testing.assert_close(masked.var_O, alone.var_O)
    masked.eval(), alone.eval()
    torch.testing.assert_close(masked(x_BTO), alone(x_BTO))


def test_dice_formula():
    dice = Dice(3).double().eval()
    dice.alpha_O.data = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    dice.mean_O.copy_(torch.tensor([0.5, -1.0, 0.0])), dice.var_O.copy_(torch.tensor([2.0, 0.5, 1.0]))
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(4, 3)
    p = torch.sigmoid((x - dice.mean_O) / torch.sqrt(dice.var_O + 1e-9))
    torch.testing.assert_close(dice(x), p * x + dice.alpha_O * (1 - p) * x)


@pytest.mark.parametrize("rows", [1, 2])
def test_din_trains_on_a_batch_of_one_and_of_empty_histories(rows, sequence_schema, take_rows):
    model = din.DIN(din.DINConfig(), sequence_schema).train()
    batch = take_rows(sequence_schema, synthetic_batch(sequence_schema, 4, full=False), [0] * rows)  # row 0 is empty
    logit = model(batch)
    logit.sum().backward()
    assert logit.isfinite().all()
    assert all(b.isfinite().all() for b in model.buffers())


def test_din_query_holds_the_target_and_one_learned_vector_for_the_action(sequence_schema, randomise):
    model = randomise(din.DIN(din.DINConfig(dim=8), sequence_schema)).eval()
    seen = {}
    model.attention.units[0].register_forward_hook(lambda m, i, o: seen.update(q=i[0]))
    batch = synthetic_batch(sequence_schema, 5)
    model(batch)
    (tables,) = embedding_tables(model)
    item, genre = (tables.weights()[f][batch.ids[f].values(), :8] for f in ("item", "genre"))
    action = model.attention.query.free_QD.expand(5, 8)
    assert torch.equal(seen["q"], torch.cat([item, genre, action], dim=1))


def test_din_without_events_scores_from_the_fields_alone(sequence_schema, take_rows, randomise):
    model = randomise(din.DIN(din.DINConfig(), sequence_schema)).eval()
    batch = take_rows(sequence_schema, synthetic_batch(sequence_schema, 4, full=False), [0])
    fields_BN = model.embedder(batch).fields_BFD.flatten(1)
    expected = model.tower(torch.cat([fields_BN, fields_BN.new_zeros(1, 3 * 16)], dim=1)).squeeze(1)
    torch.testing.assert_close(model(batch), expected)


def test_din_numel_and_lengths_in_flops(sequence_schema):
    config = din.DINConfig(dim=8, attention=(16, 12), mlp=(20, 10), act="dice")
    c, fields = 3 * 8, 5 + 1
    attention = _mlp_numel(4 * c, 16, 12, 1) + 16 + 12  # Dice has one alpha a channel
    tower = _mlp_numel(fields * 8 + c, 20, 10, 1) + 20 + 10
    assert _dense(din.DIN(config, sequence_schema)) == 2 * 8 + 8 + attention + tower
    for unit, first in (("concat", 4 * 6), ("split", 2 * 6 + 1), ("fold", 6 + 1)):
        later = 6 * (2 * (16 * 12 + 12) + 2 * c)
        full = first * 2 * c * 16 + later + mlp_flops(fields * 8 + c, (20, 10), 1)
        assert din.flops(replace(config, unit=unit), sequence_schema).full == full
    half = din.flops(replace(config, unit="concat"), sequence_schema, {"hist": 3})
    assert half.full - half.visible == 3 * (2 * (4 * c * 16 + 16 * 12 + 12) + 2 * c)


def test_unit_forms_give_one_model(sequence_schema):
    batch, logits = synthetic_batch(sequence_schema, 12, full=False), []
    for unit in ("concat", "split", "fold"):
        torch.manual_seed(4)
        logits.append(din.DIN(din.DINConfig(unit=unit), sequence_schema).eval()(batch))
    torch.testing.assert_close(logits[1], logits[0])
    torch.testing.assert_close(logits[2], logits[0])


# --- composite ------------------------------------------------------------------------------------------------------


def _events(action_ids):
    ids_BT = torch.tensor(action_ids)
    values = torch.randn(*ids_BT.shape, 4)
    return Events(values, {"hist_action": ids_BT}, torch.zeros_like(ids_BT), ids_BT > 0)


def test_liked_and_disliked_split_the_history_and_recent_cuts_it():
    events = _events([[0, 0, 3, 4, 4], [4, 3, 3, 1, 4]])
    liked = composite.by_action(events, "hist_action", (4,), True).mask_BT
    disliked = composite.by_action(events, "hist_action", (4,), False).mask_BT
    assert liked.tolist() == [[False, False, False, True, True], [True, False, False, False, True]]
    assert torch.equal(liked | disliked, events.mask_BT)
    assert not (liked & disliked).any()
    recent = composite.newest(events, 2)
    assert torch.equal(recent.values_BTE, events.values_BTE[:, 3:])
    assert torch.equal(recent.mask_BT, events.mask_BT[:, 3:])
    assert composite.newest(events, 99).values_BTE.shape == events.values_BTE.shape


@pytest.mark.parametrize(
    "histories", [("all",), ("liked", "recent"), ("all", "liked", "disliked"), ("all", "liked", "disliked", "recent")]
)
@pytest.mark.parametrize("options", [{}, {"towers": ()}, {"towers": ((32, 16), (8,)), "tasks": 2, "head": (6,)}])
def test_composite_numel_and_flops_for_every_wiring(histories, options, sequence_schema):
    config = composite.CompositeConfig(dim=8, histories=histories, recent=2, act="relu", **options)
    model = composite.Composite(config, sequence_schema)
    c, views = 24, len(histories)
    n = (5 + 1) * 8 + views * c
    shared = n + sum(t[-1] for t in config.towers)
    expected = 2 * 8 + 8 + views * _mlp_numel(4 * c, 64, 32, 1) + 2 * (n * n + n)
    expected += sum(_mlp_numel(n, *t) for t in config.towers) + config.tasks * _mlp_numel(shared, *config.head, 1)
    assert _dense(model) == expected
    lengths = {"recent": 2}
    flops = sum(
        (lengths.get(v, 6) + 1) * 2 * c * 64 + lengths.get(v, 6) * (2 * (64 * 32 + 32) + 2 * c) for v in histories
    )
    flops += 2 * 2 * n * n + sum(mlp_flops(n, t) for t in config.towers)
    flops += config.tasks * mlp_flops(shared, config.head, 1)
    assert composite.flops(config, sequence_schema).full == flops
    batch = synthetic_batch(sequence_schema, 10, full=False)
    logits_BK = model.eval().logits(batch)
    assert logits_BK.shape == (10, config.tasks)
    assert torch.equal(model(batch), logits_BK[:, 0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"histories": ()}, "one to four"),
        ({"histories": ("all", "all")}, "one to four"),
        ({"histories": ("clicked",)}, "unknown"),
        ({"towers": ((),)}, "one width a tower"),
        ({"attention": ()}, "at least one hidden width"),
        ({"unit": "folded"}, "fold"),
    ],
)
def test_composite_refuses_what_it_cannot_build(options, match):
    with pytest.raises(ValueError, match=match):
        composite.CompositeConfig(**options)


def test_composite_names_the_missing_action_field(sequence_schema):
    schema = replace(sequence_schema, fields=tuple(f for f in sequence_schema.fields if f.name != "hist_action"))
    with pytest.raises(ValueError, match="hist_action"):
        composite.Composite(composite.CompositeConfig(), schema)
    composite.Composite(composite.CompositeConfig(histories=("all", "recent")), schema)

"""Properties of BST: the layer against torch's, padding, pooling, positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ctrbench.datasets.schema import synthetic_batch
from ctrbench.models.bst import BST, BSTConfig, BSTLayer, Sequence, distance_buckets
from ctrbench.models.events import Events
from ctrbench.models.histories import TIME_BUCKETS

CONFIG = BSTConfig(heads=2)


def events(rows: int = 4, steps: int = 5, width: int = 6, seed: int = 0) -> Events:
    """Left-padded histories: full, of three, of one, empty."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(steps) >= torch.tensor([[0], [2], [4], [5]])[:rows]
    values = torch.randn(rows, steps, width, generator=g, dtype=torch.float64) * mask.unsqueeze(2)
    return Events(values, {}, (torch.arange(steps).expand(rows, -1) * 10 + 100) * mask, mask)


def test_a_layer_is_the_post_norm_encoder_layer_of_torch():
    ours = BSTLayer(6, 2, 0.0).double().eval()
    theirs = (
        nn.TransformerEncoderLayer(6, 2, 6, 0.0, nn.LeakyReLU(), batch_first=True, norm_first=False).double().eval()
    )
    for name, ours_part in (("self_attn.out_proj", "out"), ("linear1", "up"), ("linear2", "down"), ("norm1", "norm1"),
                            ("norm2", "norm2")):  # fmt: skip
        theirs.get_submodule(name).load_state_dict(ours.get_submodule(ours_part).state_dict())
    theirs.self_attn.in_proj_weight.data.copy_(ours.qkv.weight.data)
    theirs.self_attn.in_proj_bias.data.copy_(ours.qkv.bias.data)
    e = events()
    x = torch.cat([e.values_BTE, torch.ones(4, 1, 6, dtype=torch.float64)], dim=1)
    seen = torch.nn.functional.pad(e.mask_BT, (0, 1), value=True)
    with torch.enable_grad():  # torch's fast path, without gradients, refuses this activation
        expected = theirs(x, src_key_padding_mask=~seen)
    torch.testing.assert_close(ours(x, seen)[seen], expected[seen])


@pytest.mark.parametrize("pool", ["concat", "mean", "target"])
def test_padding_content_and_length_never_change_the_result(pool):
    sequence = Sequence(6, replace(CONFIG, pool=pool)).double().eval()
    e, target, now = events(), torch.randn(4, 6, dtype=torch.float64), torch.full((4,), 1000)
    out = sequence(e, target, now)
    filled = Events(torch.where(e.mask_BT.unsqueeze(2), e.values_BTE, 7.0), {}, e.times_BT, e.mask_BT)
    torch.testing.assert_close(sequence(filled, target, now), out)
    pad = torch.nn.functional.pad
    longer = Events(pad(e.values_BTE, (0, 0, 2, 0)), {}, pad(e.times_BT, (2, 0)), pad(e.mask_BT, (2, 0)))
    more = sequence(longer, target, now)
    torch.testing.assert_close(more[:, 12:] if pool == "concat" else more, out)
    if pool == "concat":
        assert not out[3, :-6].any(), "an empty history leaves the candidate alone"


def test_positions_are_distances_to_the_impression():
    times = torch.tensor([[0, 99, 97], [100, 100, 5]])
    buckets = distance_buckets(times, torch.tensor([100, 100]))
    assert buckets.tolist() == [[6, 1, 2, TIME_BUCKETS], [0, 0, 6, TIME_BUCKETS]]
    sequence = Sequence(6, CONFIG).double().eval()
    e, target = events(), torch.randn(4, 6, dtype=torch.float64)
    shifted = Events(e.values_BTE, {}, (e.times_BT + 5000) * e.mask_BT, e.mask_BT)
    now = torch.full((4,), 1000)
    torch.testing.assert_close(sequence(shifted, target, now + 5000), sequence(e, target, now))
    assert not torch.allclose(sequence(e, target, now + 100_000), sequence(e, target, now))


def test_the_order_of_events_matters_only_through_their_times():
    e, target, now = events(), torch.randn(4, 6, dtype=torch.float64), torch.full((4,), 145)
    turned = Events(e.values_BTE[:1].flip(1), {}, e.times_BT[:1], e.mask_BT[:1])
    for positions, equal in (("none", True), ("time", False)):
        sequence = Sequence(6, replace(CONFIG, pool="target", positions=positions)).double().eval()
        same = torch.allclose(sequence(turned, target[:1], now[:1]), sequence(e, target, now)[:1])
        assert same == equal


def test_the_tower_reads_fields_and_sequence(sequence_schema, randomise):
    model = randomise(BST(BSTConfig(), sequence_schema)).eval()
    seen = {}
    model.tower.register_forward_hook(lambda m, i, o: seen.update(x=i[0]))
    batch = synthetic_batch(sequence_schema, 4, full=False)
    model(batch)
    embedded = model.embedder(batch)
    (history,) = sequence_schema.histories
    pooled = model.sequences[history](
        embedded.events[history], model.target(embedded.fields_BFD, history), batch.time_B
    )
    torch.testing.assert_close(seen["x"], torch.cat([embedded.fields_BFD.flatten(1), pooled], dim=1))


def test_wrong_options_are_refused(sequence_schema):
    with pytest.raises(ValueError, match="concat, mean, target"):
        BSTConfig(pool="last")
    with pytest.raises(ValueError, match="does not divide"):
        BST(BSTConfig(heads=7), sequence_schema)

"""The two controls against the standard blocks that they claim to be (claims S18 and S20)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ctrbench.bench.counting.counter import count_step
from ctrbench.datasets.published_schemas import criteo_x1
from ctrbench.datasets.schema import synthetic_batch
from ctrbench.models import gpt_block, shared_fields
from ctrbench.models.fat import Fat, FatConfig
from ctrbench.models.fat import flops as fat_flops

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def test_gpt_layer_is_torchs_causal_encoder_layer():
    d, heads, length = 8, 2, 6
    layer = gpt_block.GptLayer(d, heads).double()
    reference = nn.TransformerEncoderLayer(d, heads, 4 * d, 0.0, "gelu", batch_first=True, norm_first=True).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
        reference.self_attn.in_proj_weight.copy_(layer.qkv.weight)
        reference.self_attn.in_proj_bias.copy_(layer.qkv.bias)
        pairs = [
            (reference.self_attn.out_proj, layer.out),
            (reference.linear1, layer.up),
            (reference.linear2, layer.down),
        ]
        pairs += [(reference.norm1, layer.norm1), (reference.norm2, layer.norm2)]
        for theirs, ours in pairs:
            theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, length, d, dtype=torch.float64)
    causal = nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)
    torch.testing.assert_close(layer(x), reference(x, src_mask=causal), **CLOSE)


def test_gpt_scores_do_not_depend_on_the_padded_length(sequence_schema, randomise):
    """A longer window adds padding on the left only; positions count real tokens."""
    model = randomise(gpt_block.SPEC.build(gpt_block.GptBlockConfig(), sequence_schema)).eval()
    batch = synthetic_batch(sequence_schema, 12, full=False)
    longer = replace(
        sequence_schema,
        fields=tuple(replace(f, max_length=f.max_length + 5) if f.max_length else f for f in sequence_schema.fields),
    )
    with torch.no_grad():
        before = model(batch)
        model.schema = model.embedder.schema = longer
        torch.testing.assert_close(model(batch), before, rtol=1e-4, atol=1e-6)


def test_gpt_reads_the_order_of_events(sequence_schema, randomise):
    model = randomise(gpt_block.SPEC.build(gpt_block.GptBlockConfig(), sequence_schema)).eval()
    batch = synthetic_batch(sequence_schema, 8)
    tokens, valid = model.tokens(model.embedder(batch))
    shuffled = torch.cat([tokens[:, :-1].flip(1), tokens[:, -1:]], dim=1)
    outs = []
    for x in (tokens, shuffled):
        for layer in model.layers:
            x = layer(x)
        outs.append(model.head(x))
    assert valid.all()
    assert (outs[0] - outs[1]).abs().max() > 1e-4


def test_full_histories_need_no_mask_in_gpt(sequence_schema, randomise):
    model = randomise(gpt_block.SPEC.build(gpt_block.GptBlockConfig(), sequence_schema)).eval()
    batch = synthetic_batch(sequence_schema, 6)
    with torch.no_grad():
        without = model(batch)
        batch.host.clear()  # type: ignore[attr-defined]
        torch.testing.assert_close(model(batch), without, rtol=1e-5, atol=1e-6)


def test_gpt_block_counts():
    config = gpt_block.GptBlockConfig(width=256, heads=4, layers=8, dim=64)
    for preset in gpt_block.published():
        model = gpt_block.SPEC.build(preset.config, preset.schema, "meta")
        d = preset.config.width
        assert sum(p.numel() for p in model.layers.parameters()) == 8 * (12 * d * d + 13 * d)
    cost = gpt_block.flops(config, gpt_block.published()[0].schema, None)
    tokens = 1025  # 1,024 events and one token for all other fields
    blocks = 8 * (24 * 256**2 * tokens + 4 * 256 * tokens**2)
    assert cost.full == pytest.approx(blocks, rel=0.02)  # the token maps are the rest
    assert cost.visible < cost.full


@pytest.mark.parametrize("residual", ["paper", "pre2", "post2"])
def test_shared_fields_are_fat_with_one_basis_and_no_modulation(residual, tabular_schema, randomise):
    """S18's control differs from FAT in nothing else."""
    control = randomise(shared_fields.SPEC.build(shared_fields.SharedFieldsConfig(residual=residual), tabular_schema))
    fat = Fat(FatConfig(bases=1, top_k=1, residual=residual), tabular_schema)
    with torch.no_grad():
        for ours, theirs in zip(
            fat.embedder.tables.weights().values(), control.embedder.tables.weights().values(), strict=True
        ):
            ours.copy_(theirs)
        fat.embedder.numeric_ID.copy_(control.embedder.numeric_ID)
        fat.embedder.missing_ID.copy_(control.embedder.missing_ID)
        fat.bias_SFD[0].copy_(control.bias_FD)
        for pair in fat.pairs:
            pair.fill_(1.0)
        for net, layer, block in zip(fat.hypernetworks, control.layers, fat.layers, strict=True):
            maps = dict(zip("qkv", layer.qkv_DE.chunk(3, dim=1), strict=True)) | {
                "up": layer.up_DE,
                "down": layer.down_DE,
            }
            for name, weight in maps.items():
                net.bases[name][0] = weight
            block.load_state_dict(layer.block.state_dict())
        fat.head.load_state_dict(control.head.state_dict())
        batch = synthetic_batch(tabular_schema, 16)
        torch.testing.assert_close(fat(batch), control(batch), rtol=1e-4, atol=1e-5)


def test_shared_fields_save_parameters_not_products():
    schema, config = criteo_x1(), shared_fields.SharedFieldsConfig()
    model = shared_fields.SPEC.build(config, schema, "meta")
    d, hidden = 32, 64
    blocks = sum(p.numel() for p in model.layers.parameters())
    assert blocks == 2 * (3 * d * d + 2 * d * hidden + 4 * d)
    assert shared_fields.flops(config, schema) == fat_flops(FatConfig(), schema)


@pytest.mark.parametrize("module", [gpt_block, shared_fields])
def test_controls_count_their_formula(module, sequence_schema):
    spec = module.SPEC
    assert spec.control
    config = spec.config()
    for full in (True, False):
        counted = count_step(
            spec.build(config, sequence_schema), synthetic_batch(sequence_schema, 16, full=full), train=True
        )
        assert not counted.unknown
        assert counted.flops("forward") == pytest.approx(16 * spec.flops(config, sequence_schema, None).full, rel=1e-9)


def test_gpt_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="heads=5"):
        gpt_block.GptLayer(8, 5)

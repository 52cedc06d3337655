"""Properties of RankMixer (models.md section 7)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.bench.step import TrainStep
from ctrbench.datasets.schema import synthetic_batch
from ctrbench.kernels.token_mixing import mix_tokens, mix_tokens_plain
from ctrbench.models.embedding import dense_parameters
from ctrbench.models.rankmixer import MixerLayer, RankMixer, RankMixerConfig, Slices, TokenNetworks

CONFIG = RankMixerConfig(tokens=3, width=6, layers=1)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 5), head=st.integers(1, 4), seed=st.integers(0, 99))
def test_mixing_by_definition_is_its_own_inverse_and_keeps_the_norm(tokens, head, seed):
    x = _random(3, tokens, tokens * head, seed=seed)
    mixed = mix_tokens(x)
    assert torch.equal(mixed, mix_tokens_plain(x))
    assert torch.equal(mix_tokens(mixed), x)
    torch.testing.assert_close(mixed.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    for b in range(3):
        for t in range(tokens):
            for u in range(tokens):
                assert torch.equal(mixed[b, t, u * head : (u + 1) * head], x[b, u, t * head : (t + 1) * head])


def test_every_token_depends_on_every_token_after_one_layer():
    layer = MixerLayer(CONFIG).double()
    x = _random(1, 3, 6).requires_grad_()
    for t in range(3):
        (grad,) = torch.autograd.grad(layer(x)[0, t].square().sum(), x)
        assert (grad[0].abs().sum(dim=1) > 1e-9).all()


def test_one_token_is_a_residual_network():
    layer = MixerLayer(RankMixerConfig(tokens=1, width=6)).double()
    x = _random(4, 1, 6)
    s = layer.norm1(2 * x)
    net = layer.networks
    hidden = torch.nn.functional.gelu(s[:, 0] @ net.up_NDK[0] + net.up_bias_NK[0])
    y = hidden @ net.down_NKD[0] + net.down_bias_ND[0]
    torch.testing.assert_close(layer(x)[:, 0], layer.norm2(y + s[:, 0]))


def test_the_network_of_a_token_learns_from_that_token_alone():
    networks = TokenNetworks(CONFIG).double()
    networks(_random(4, 3, 6))[:, 1].sum().backward()
    for p in networks.parameters():
        assert [bool(g.any()) for g in p.grad] == [False, True, False]


@settings(max_examples=15, deadline=None)
@given(inputs=st.integers(1, 12), tokens=st.integers(1, 4))
def test_slices_by_loops(inputs, tokens):
    slices = Slices(inputs, tokens, 5).double()
    x = _random(2, 1, inputs)
    out, width = slices(x), slices.slice
    for t in range(tokens):
        part = x[:, 0, t * width : (t + 1) * width]
        torch.testing.assert_close(out[:, t], part @ slices.weight_TWD[t, : part.shape[1]] + slices.bias_TD[t])


def test_experts_by_loops_and_their_budget():
    config = replace(CONFIG, moe="relu", experts=2)
    networks = TokenNetworks(config).double()
    x = _random(4, 3, 6)
    out = networks(x)
    for t in range(3):
        gates = (x[:, t] @ networks.router_TDE[t]).relu()
        parts = []
        for e in range(2):
            n = t * 2 + e
            hidden = torch.nn.functional.gelu(x[:, t] @ networks.up_NDK[n] + networks.up_bias_NK[n])
            parts.append(gates[:, e : e + 1] * (hidden @ networks.down_NKD[n] + networks.down_bias_ND[n]))
        torch.testing.assert_close(out[:, t], sum(parts) / 2)
    assert float(networks.gates_TBE.mean()) > 0


def test_a_budget_adds_to_the_loss_and_only_with_experts(tabular_schema):
    batch = synthetic_batch(tabular_schema, 16)
    losses = []
    for moe, l1 in (("off", 5.0), ("relu", 0.0), ("relu", 1.0)):
        torch.manual_seed(0)
        model = RankMixer(RankMixerConfig(moe=moe, moe_l1=l1), tabular_schema)
        assert float(model.extra_loss()) == 0, "nothing has run"
        losses.append(float(TrainStep(model)(batch)))
    assert losses[2] > losses[1]


def test_parameters_of_a_layer_follow_the_formula(tabular_schema):
    tokens, d, k = 4, 16, 3
    model = RankMixer(RankMixerConfig(tokens=tokens, width=d, expand=k, layers=2, head=(8,)), tabular_schema)
    assert sum(p.numel() for p in model.layers[0].parameters()) == tokens * (2 * k * d * d + (k + 1) * d) + 4 * d
    inputs = 7 * 16
    assert sum(p.numel() for p in model.slices.parameters()) == (inputs + tokens) * d
    embedded = sum(p.numel() for p in model.embedder.vectors)
    assert sum(p.numel() for p in dense_parameters(model)) == embedded + (inputs + tokens) * d + 2 * (
        tokens * (2 * k * d * d + (k + 1) * d) + 4 * d
    ) + (d * 8 + 8 + 8 + 1)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="does not divide"):
        RankMixerConfig(tokens=5)
    with pytest.raises(ValueError, match="off or relu"):
        RankMixerConfig(moe="topk")

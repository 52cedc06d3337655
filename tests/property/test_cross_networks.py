"""Properties of the cross networks: DCN's rank-one layers and DCN-v2's mixture (models.md sections 1.6, 1.7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ctrbench.datasets.schema import FeatureSchema, synthetic_batch
from ctrbench.kernels.cross import cross_plain
from ctrbench.legacy_baselines import dcn, dcn_v2
from ctrbench.models.blocks import mlp_flops
from ctrbench.models.embedding import dense_parameters

N = 6
EXACT: dict[str, float] = {"rtol": 1e-9, "atol": 1e-9}


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_weights(net: nn.Module, seed: int = 0, scale: float = 0.5) -> nn.Module:
    """Off the start values: zero biases hide mistakes."""
    for i, p in enumerate(net.parameters()):
        p.data = randn(seed * 100 + i, *p.shape) * scale
    return net


def order_vanishes(net: Callable[[Tensor], Tensor], layers: int) -> None:
    """Finite differences in a scale t of the input: order L + 2 vanishes, order L + 1 does not."""
    x0_BN = randn(7, 3, N)
    values = torch.stack([net(t * x0_BN).detach() for t in torch.arange(layers + 3, dtype=torch.float64)])
    top = values.diff(n=layers + 1, dim=0)
    torch.testing.assert_close(
        top.diff(dim=0), torch.zeros_like(top[1:]), atol=1e-9 * float(values.abs().max()), rtol=0
    )
    assert top.abs().max() > 1e-6


# --- DCN ------------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(layers=st.integers(1, 4), seed=st.integers(0, 99))
def test_dcn_layers_without_bias_scale_the_input_by_one_number_a_sample(layers: int, seed: int) -> None:
    net = random_weights(dcn.VectorCrossNet(N, layers), seed)
    assert isinstance(net, dcn.VectorCrossNet)
    nn.init.zeros_(net.bias_LN)
    x0_BN = randn(seed + 1, 5, N)
    ratio_BN = net(x0_BN) / x0_BN
    torch.testing.assert_close(ratio_BN, ratio_BN[:, :1].expand(-1, N), rtol=1e-9, atol=1e-9)
    assert ratio_BN[:, 0].std() > 1e-3  # a number of the sample, not one of the model


def test_a_dcn_layer_without_bias_is_a_v2_layer_of_rank_one_and_with_bias_is_not() -> None:
    """x0 (w.x) + x = x0 * (1 w^T x) + x; v2 multiplies its bias by x0, v1 does not."""
    w_N, b_N, zero_N = randn(1, N), randn(2, N), torch.zeros(N, dtype=torch.float64)
    ones_w_NN = torch.ones(N, 1, dtype=torch.float64) @ w_N.unsqueeze(0)
    x0_BN = randn(4, 5, N)
    net = dcn.VectorCrossNet(N, 1).double()
    for bias_N, same in ((zero_N, True), (b_N, False)):
        net.weight_LN.data, net.bias_LN.data = w_N.unsqueeze(0), bias_N.unsqueeze(0)
        assert torch.allclose(net(x0_BN), cross_plain(x0_BN, x0_BN, ones_w_NN, bias_N), **EXACT) == same


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_dcn_layers_are_a_polynomial_of_degree_l_plus_one(layers: int) -> None:
    order_vanishes(random_weights(dcn.VectorCrossNet(N, layers)), layers)


@pytest.mark.parametrize("structure", ["parallel", "stacked", "cross_only"])
def test_dcn_structures_have_their_parameters_and_flops(structure: Any, tabular_schema: FeatureSchema) -> None:
    config = dcn.DCNConfig(dim=8, cross_layers=2, mlp=(16, 12), structure=structure)
    model = dcn.DCN(config, tabular_schema)
    n = 7 * 8
    head = {"parallel": n + 12, "stacked": 12, "cross_only": n}[structure]
    mlp = 0 if structure == "cross_only" else sum(a * b + b for a, b in pairwise((n, 16, 12)))
    assert sum(p.numel() for p in dense_parameters(model)) == 2 * 3 * 8 + 2 * 2 * n + mlp + head + 1
    deep = 0 if structure == "cross_only" else mlp_flops(n, (16, 12))
    assert dcn.flops(config, tabular_schema).full == 2 * 2 * n + deep + 2 * head
    model(synthetic_batch(tabular_schema, 6)).sum().backward()
    assert all(p.grad is not None for p in dense_parameters(model))


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_dcn_reads_the_cross_where_the_structure_says(
    structure: Any, tabular_schema: FeatureSchema, randomise: Callable[..., nn.Module]
) -> None:
    model = randomise(dcn.DCN(dcn.DCNConfig(structure=structure), tabular_schema)).eval()
    seen: dict[str, Tensor] = {}
    model.get_submodule("cross").register_forward_hook(lambda m, i, o: seen.update(x0=i[0], crossed=o))
    model.get_submodule("mlp").register_forward_hook(lambda m, i, o: seen.update(mlp_in=i[0]))
    model(synthetic_batch(tabular_schema, 6))
    assert torch.equal(seen["mlp_in"], seen["crossed" if structure == "stacked" else "x0"])
    assert not torch.equal(seen["crossed"], seen["x0"])


# --- DCN-v2, mixture ------------------------------------------------------------------------------------------------


def one_expert(rank: int = N, act: Any = "identity", layers: int = 1) -> dcn_v2.MixtureCrossNet:
    config = dcn_v2.DCNv2Config(cross_layers=layers, form="mixture", experts=1, rank=rank, expert_act=act)
    return dcn_v2.MixtureCrossNet(N, config).double()


@pytest.mark.parametrize("factors", ["W and I", "SVD"])
@pytest.mark.parametrize(("act", "same"), [("identity", True), ("tanh", False)])
def test_one_expert_of_full_rank_is_the_full_layer(factors: str, act: Any, same: bool) -> None:
    """K=1, r=D0, C=I, g=identity, U V^T = W; with tanh it cannot be."""
    weight_NN, b_N, x0_BN = randn(1, N, N), randn(2, N), randn(3, 5, N)
    u_NR, v_RN = weight_NN, torch.eye(N, dtype=torch.float64)
    if factors == "SVD":
        left, singular, right = torch.linalg.svd(weight_NN)
        u_NR, v_RN = left * singular.sqrt(), singular.sqrt().unsqueeze(1) * right
    net = one_expert(act=act)
    net.u_NKR[0].data, net.v_KRN[0].data = u_NR.unsqueeze(1), v_RN.unsqueeze(0)
    net.c_KRR[0].data, net.b_N[0].data = torch.eye(N, dtype=torch.float64).unsqueeze(0), b_N
    full = dcn_v2.CrossNet(N, 1).double()
    (layer,) = full.layers
    layer.weight.data, layer.bias.data = weight_NN, b_N
    assert torch.allclose(net(x0_BN), full(x0_BN), **EXACT) == same


@pytest.mark.parametrize("scope", ["model", "layer"])
@pytest.mark.parametrize("impl", ["fused", "plain"])
def test_gates_sum_to_one_so_the_bias_counts_once(scope: Any, impl: Any) -> None:
    """Experts that give 0 leave x0 * b + x, whatever the gates say."""
    config = dcn_v2.DCNv2Config(
        cross_layers=1, form="mixture", experts=3, rank=2, gate_scope=scope, cross_impl=impl
    )  # fmt: skip
    net = dcn_v2.MixtureCrossNet(N, config).double()
    random_weights(net)
    nn.init.zeros_(net.u_NKR[0])
    x0_BN = randn(5, 4, N)
    torch.testing.assert_close(net(x0_BN), x0_BN * net.b_N[0] + x0_BN, **EXACT)


@settings(max_examples=8, deadline=None)
@given(layers=st.integers(1, 3), seed=st.integers(0, 99), scope=st.sampled_from(["model", "layer"]))
def test_mixture_is_the_formula_expert_by_expert(layers: int, seed: int, scope: Any) -> None:
    config = dcn_v2.DCNv2Config(cross_layers=layers, form="mixture", experts=3, rank=2, gate_scope=scope)
    net = random_weights(dcn_v2.MixtureCrossNet(N, config).double(), seed)
    assert isinstance(net, dcn_v2.MixtureCrossNet)
    x0_BN = randn(seed + 1, 4, N)
    rows = []
    for x0 in x0_BN:
        x = x0
        for i in range(layers):
            gate = net.gates[i if scope == "layer" else 0]
            assert isinstance(gate, nn.Linear)
            g_K = torch.softmax(gate.weight @ x, dim=0)
            step = torch.zeros_like(x)
            for k in range(3):
                inner = torch.tanh(net.c_KRR[i][k] @ torch.tanh(net.v_KRN[i][k] @ x))
                step = step + g_K[k] * (x0 * (net.u_NKR[i][:, k] @ inner + net.b_N[i]))
            x = step + x
        rows.append(x)
    torch.testing.assert_close(net(x0_BN), torch.stack(rows), **EXACT)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_linear_experts_are_a_polynomial_of_degree_l_plus_one(layers: int) -> None:
    order_vanishes(random_weights(one_expert(rank=3, layers=layers)), layers)


@pytest.mark.parametrize("scope", ["model", "layer"])
@pytest.mark.parametrize("structure", ["parallel", "stacked", "stacked_parallel", "cross_only"])
def test_mixture_has_its_parameters_and_flops(structure: Any, scope: Any, tabular_schema: FeatureSchema) -> None:
    """K(2 D0 r + r^2) + D0 a layer and K D0 a gate; K(4 D0 r + 2 r^2 + 2 D0) FLOPs a layer."""
    k, r, layers, n = 3, 5, 2, 7 * 8
    config = dcn_v2.DCNv2Config(
        dim=8, cross_layers=layers, mlp=(16, 12), structure=structure, form="mixture", experts=k, rank=r,
        gate_scope=scope,
    )  # fmt: skip
    mixed, full = (
        dcn_v2.DCNv2(c, tabular_schema) for c in (config, replace(config, form="full"))
    )  # fmt: skip
    gates = 1 if scope == "model" else layers
    expected = layers * (k * (2 * n * r + r * r) + n) + gates * k * n
    numel = [sum(p.numel() for p in dense_parameters(m)) for m in (mixed, full)]
    assert numel[0] - numel[1] == expected - layers * (n * n + n)
    spent = [dcn_v2.flops(c, tabular_schema).full for c in (config, replace(config, form="full"))]
    assert spent[0] - spent[1] == layers * (k * (4 * n * r + 2 * r * r + 2 * n) - 2 * n * n)
    mixed(synthetic_batch(tabular_schema, 6)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in mixed.cross.parameters() if p.requires_grad)


@pytest.mark.parametrize("impl", ["fused", "plain"])
def test_mixture_executes_the_flops_of_its_formula(impl: Any, tabular_schema: FeatureSchema) -> None:
    config = dcn_v2.DCNv2Config(form="mixture", cross_impl=impl)
    model = dcn_v2.DCNv2(config, tabular_schema).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(synthetic_batch(tabular_schema, 64))
    assert counter.get_total_flops() / 64 == dcn_v2.flops(config, tabular_schema).full


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: dcn.DCNConfig(structure="paralel"), "parallel"),  # type: ignore[arg-type]
        (lambda: dcn.DCNConfig(cross_layers=0), "at least one layer"),
        (lambda: dcn_v2.DCNv2Config(form="low_rank"), "mixture"),  # type: ignore[arg-type]
        (lambda: dcn_v2.DCNv2Config(gate_scope="net"), "layer"),  # type: ignore[arg-type]
        (lambda: dcn_v2.DCNv2Config(experts=0), "at least 1"),
    ],
)
def test_what_cannot_be_built_is_refused(build: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build()

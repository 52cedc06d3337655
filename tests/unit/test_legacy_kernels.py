"""Every fast path of the legacy kernels against its plain twin, and their cost formulas against the counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ctrbench.kernels.cross import cross_cost, cross_fused, cross_plain
from ctrbench.kernels.cross_mixture import mixture, mixture_cost, mixture_fused, mixture_plain
from ctrbench.kernels.cross_vector import cross_vector, cross_vector_cost, cross_vector_fold, cross_vector_plain
from ctrbench.kernels.dice import dice, dice_cost, dice_fused, dice_plain
from ctrbench.kernels.din_unit import IMPLS, unit_concat, unit_cost, unit_fold, unit_layer, unit_split
from ctrbench.kernels.fm import fm, fm_cost, fm_pairs, fm_sum

B, T, C, OUT, F, D = 5, 7, 6, 4, 9, 3
L, K, R = 3, 4, 2  # cross layers, experts, rank


def _inputs(*shapes):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes]


MASK_BT = torch.arange(T, 0, -1) <= torch.tensor([0, 1, 3, 6, 7]).unsqueeze(1)
UNIT = ((B, C), (B, T, C), (OUT, 4 * C), (OUT,))
MIX = ((B, C), (B, C), (B, K), (C, K, R), (K, R, R), (K, R, C), (C,))


def _mixture(kernel, act):
    return lambda x0, x, gate, *weights: kernel(x0, x, gate.softmax(dim=1), *weights, act)


TWINS = {
    "fm": (fm_pairs, fm_sum, ((B, F, D),)),
    "fm of one field": (fm_pairs, fm_sum, ((B, 1, D),)),
    "cross": (cross_plain, cross_fused, ((B, C), (B, C), (C, C), (C,))),
    "cross vector": (cross_vector_plain, cross_vector_fold, ((B, C), (L, C), (L, C))),
    "cross mixture": (_mixture(mixture_plain, "tanh"), _mixture(mixture_fused, "tanh"), MIX),
    "cross mixture, linear": (_mixture(mixture_plain, "identity"), _mixture(mixture_fused, "identity"), MIX),
    "dice": (lambda x, a: dice_plain(x, MASK_BT, a)[0], lambda x, a: dice_fused(x, MASK_BT, a)[0], ((B, T, C), (C,))),
    "din split": (unit_concat, unit_split, UNIT),
    "din fold": (unit_concat, unit_fold, UNIT),
}


@pytest.mark.parametrize("twin", TWINS)
def test_fast_path_equals_its_plain_twin_forward_and_backward(twin):
    plain, fast, shapes = TWINS[twin]
    inputs = _inputs(*shapes)
    expected, got = plain(*inputs), fast(*inputs)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    weight = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    grads = [torch.autograd.grad((y * weight).sum(), inputs) for y in (expected, got)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("impl", ["fused", "plain"])
def test_dice_statistics_are_those_of_the_valid_rows(impl):
    (x_BTC,), alpha_C = _inputs((B, T, C)), torch.zeros(C, dtype=torch.float64)
    valid = x_BTC[MASK_BT]
    _, mean_C, var_C = dice(x_BTC, MASK_BT, alpha_C, impl=impl)
    torch.testing.assert_close(mean_C, valid.mean(0))
    torch.testing.assert_close(var_C, valid.var(0, unbiased=False))
    out, mean_C, _ = dice(x_BTC, torch.zeros_like(MASK_BT), alpha_C, impl=impl)
    assert out.isfinite().all()
    assert not mean_C.any()
    assert dice_cost(C, T).flops == 0


def test_fm_of_pairs_is_the_sum_over_pairs():
    (x_BFD,) = _inputs((B, F, D))
    by_hand = sum((x_BFD[:, i] * x_BFD[:, j]).sum(1) for i in range(F) for j in range(i + 1, F))
    for impl in ("sum", "pairs"):
        torch.testing.assert_close(fm(x_BFD, impl), by_hand)


def test_a_field_with_a_zero_vector_does_not_enter_the_pair_term():
    (x_BFD,) = _inputs((B, F, D))
    without = torch.cat([x_BFD[:, :4], x_BFD[:, 5:]], dim=1)
    zeroed = x_BFD.detach().clone()
    zeroed[:, 4] = 0
    torch.testing.assert_close(fm(zeroed), fm(without))


@pytest.mark.parametrize("impl", IMPLS)
def test_unit_cost_is_what_the_counter_sees(impl):
    inputs = _inputs(*UNIT)
    with FlopCounterMode(display=False) as counter:
        unit_layer(*inputs, impl)
    assert counter.get_total_flops() / B == unit_cost(C, OUT, T, impl).flops


def test_unit_costs_are_in_the_documented_ratios():
    product = 2 * C * OUT
    assert unit_cost(C, OUT, T, "concat").flops == 4 * product * T
    assert unit_cost(C, OUT, T, "split").flops == (2 * T + 1) * product
    assert unit_cost(C, OUT, T, "fold").flops == (T + 1) * product


def test_cross_and_fm_costs():
    inputs = _inputs((B, C), (B, C), (C, C), (C,))
    for kernel in (cross_plain, cross_fused):
        with FlopCounterMode(display=False) as counter:
            kernel(*inputs)
        assert counter.get_total_flops() / B == cross_cost(C).flops == 2 * C * C
    (x_BFD,) = _inputs((B, F, D))
    for impl in ("sum", "pairs"):
        with FlopCounterMode(display=False) as counter:
            fm(x_BFD, impl)
        assert counter.get_total_flops() == fm_cost(F, D, impl).flops == 0
    assert fm_cost(F, D, "pairs").elementwise == F * (F - 1) * D
    assert fm_cost(F, D, "sum").elementwise == 3 * F * D + 3 * D


@pytest.mark.parametrize("impl", ["plain", "fold"])
def test_cross_vector_cost_is_what_the_counter_sees(impl):
    with FlopCounterMode(display=False) as counter:
        cross_vector(*_inputs((B, C), (L, C), (L, C)), impl)
    assert counter.get_total_flops() / B == cross_vector_cost(C, L, impl).flops == 2 * L * C


@pytest.mark.parametrize("impl", ["plain", "fused"])
def test_mixture_cost_is_what_the_counter_sees_and_the_gate(impl):
    """The kernel is handed the gates: their product, 2 K N, is the network's."""
    with FlopCounterMode(display=False) as counter:
        mixture(*_inputs(*MIX), impl=impl)
    assert counter.get_total_flops() / B + 2 * K * C == mixture_cost(C, R, K).flops
    assert mixture_cost(C, R, K).flops == K * (4 * C * R + 2 * R * R + 2 * C)

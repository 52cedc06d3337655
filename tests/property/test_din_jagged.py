"""DIN's unit on real events against its padded twin, and the model against its padded forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ctrbench.kernels.din_attention as kernel
from ctrbench.datasets.schema import synthetic_batch
from ctrbench.kernels.cpu import din_blocks
from ctrbench.kernels.dice import BlockAct
from ctrbench.legacy_baselines import din
from ctrbench.models.events import newest_flat

C, UNITS = 3, (4, 2)


def arguments(lengths, dice, softmax, given_stats):
    def random(*size):
        return torch.randn(size, dtype=torch.float64, requires_grad=True)

    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    pairs = [(4 * C, UNITS[0]), UNITS, (UNITS[1], 1)]
    stats = tuple((torch.randn(o).double(), torch.rand(o).double() + 0.1) if given_stats else None for o in UNITS)
    return (
        random(len(lengths), C), random(sum(lengths), C), offsets, tuple(random(o, i) for i, o in pairs),
        tuple(random(o) for _, o in pairs), tuple(random(o) if dice else None for o in UNITS), stats, softmax,
    )  # fmt: skip


def leaves(args):
    q, h, _, weights, biases, alphas, *_ = args
    return [q, h, *weights, *biases, *(a for a in alphas if a is not None)]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=9), dice=st.booleans(), softmax=st.booleans(),
    given_stats=st.booleans(), block=st.sampled_from([1, 16, 1 << 19]), seed=st.integers(0, 99),
)  # fmt: skip
def test_real_events_give_what_padded_rows_give(lengths, dice, softmax, given_stats, block, seed):
    """Blocks down to one row, so that statistics and sums cross them; one event alone has no variance to divide by."""
    torch.manual_seed(seed)
    args = arguments(lengths, dice, softmax, given_stats)
    before, kernel.BLOCK = kernel.BLOCK, block
    try:
        (expected, moments), *others = (f(*args) for f in (kernel.din_padded, kernel.din_fused, kernel.din_flat))
        weight = torch.randn_like(expected)
        want = torch.autograd.grad(expected, leaves(args), weight, allow_unused=True)
        close = {"rtol": 1e-7, "atol": 1e-7} if sum(lengths) > 1 else {"rtol": 1e-4, "atol": 1e-4}
        for got, found in others:
            torch.testing.assert_close(got, expected, **close)
            for a, b in zip(found, moments, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a, b)
            grads = torch.autograd.grad(got, leaves(args), weight, allow_unused=True)
            for mine, theirs, leaf in zip(grads, want, leaves(args), strict=True):
                mine, theirs = (torch.zeros_like(leaf) if g is None else g for g in (mine, theirs))
                torch.testing.assert_close(mine, theirs, **close)
    finally:
        kernel.BLOCK = before


needs_compiler = pytest.mark.skipif(not din_blocks.available(), reason="no C compiler: ATen does these steps")


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("dice", [True, False])
@pytest.mark.parametrize("given_stats", [True, False])
def test_float32_steps_in_c_and_without_a_compiler(native, softmax, dice, given_stats, monkeypatch):
    """Values and all gradients within rounding of the twin in float64; several blocks, partial sums and empty rows."""
    if not native:
        monkeypatch.setattr(din_blocks, "available", lambda: False)
    monkeypatch.setattr(kernel, "BLOCK", 3000)
    torch.manual_seed(5)
    args = arguments([0, 301, 7, 0, 290, 1, 23, 600, 0], dice, softmax, given_stats)

    def single(part):
        if isinstance(part, tuple):
            return tuple(single(p) for p in part)
        return part.detach().float().requires_grad_(part.requires_grad) if floating(part) else part

    def floating(part):
        return isinstance(part, torch.Tensor) and part.is_floating_point()

    mine = single(args)
    expected, got = kernel.din_padded(*args)[0], kernel.din_fused(*mine)[0]
    weight = torch.randn_like(expected)
    want = torch.autograd.grad(expected, leaves(args), weight, allow_unused=True)
    grads = torch.autograd.grad(got, leaves(mine), weight.float(), allow_unused=True)
    for a, b in [(got, expected), *((a, b) for a, b in zip(grads, want, strict=True) if b is not None)]:
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-5 * (1 + b.detach().abs().max().item()))


@needs_compiler
@pytest.mark.parametrize("far", [0.0, 20.0, 100.0])
def test_dice_in_c_saturates_as_its_definition_does(far):
    x_EO = torch.linspace(-3, 3, 600).view(-1, 2) + far
    act = BlockAct(torch.tensor([0.25, -0.5]), (torch.zeros(2), torch.ones(2)))
    act.close(1e-9)
    p_EO = torch.sigmoid(x_EO)
    torch.testing.assert_close(act.out(x_EO, torch.empty(600)), (p_EO + act.alpha_O * (1 - p_EO)) * x_EO)
    torch.testing.assert_close(
        act.out(-x_EO, torch.empty(600)), (1 - p_EO + act.alpha_O * p_EO) * -x_EO, atol=2e-6, rtol=1e-5
    )


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("act", ["dice", "relu"])
def test_the_model_gives_what_its_padded_form_gives_and_learns_the_same(act, softmax, sequence_schema):
    """Logits and running statistics within 1e-5 after each of two steps, training and scoring."""
    batch = synthetic_batch(sequence_schema, 33, full=False)
    models = []
    for unit in ("jagged", "split", "concat"):
        torch.manual_seed(3)
        config = din.DINConfig(act=act, softmax=softmax)
        models.append(din.DIN(replace(config, unit=unit), sequence_schema))
    for _ in range(2):
        logits = [m.train()(batch) for m in models]
        for logit_B in logits[1:]:
            torch.testing.assert_close(logits[0], logit_B, rtol=1e-5, atol=1e-5)
        for m, logit_B in zip(models, logits, strict=True):
            logit_B.square().sum().backward()
            with torch.no_grad():
                for p in m.parameters():
                    if p.grad is not None:
                        p.sub_(0.01 * p.grad)
                        p.grad = None
        states = [dict(m.named_buffers()) for m in models]
        for name, value in states[0].items():
            for other in states[1:]:
                torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        scored = [m.eval()(batch) for m in models]
    for logit_B in scored[1:]:
        torch.testing.assert_close(scored[0], logit_B, rtol=1e-5, atol=1e-5)


def test_histories_too_long_keep_their_newest_events():
    values = torch.arange(9.0).unsqueeze(1)
    flat = newest_flat(values, torch.tensor([0, 4, 4, 9]), 3)
    assert flat.values_NE[:, 0].tolist() == [1, 2, 3, 6, 7, 8]
    assert flat.offsets_B1.tolist() == [0, 3, 3, 6]

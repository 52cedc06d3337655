"""Fast paths of the transformer kernels against their plain twins, forward and backward, in float64.

Dims: B batch, H heads, Q queries, K keys, P prefix keys, C candidates, F fields, D input width, E output width
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ctrbench.kernels import attention as att
from ctrbench.kernels.compose import MIN_WEIGHTS, compose, compose_cost
from ctrbench.kernels.field_linear import field_linear, field_linear_cost
from ctrbench.kernels.mixed_linear import mixed_linear
from ctrbench.kernels.mixture_linear import mixture_linear
from ctrbench.kernels.pair_attention import pair_attention
from ctrbench.kernels.prefix_attention import prefix_attention

torch.set_num_threads(1)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def outputs(result: Any) -> list[Tensor]:
    return [t for t in (result if isinstance(result, tuple) else (result,)) if t is not None]


def assert_twins(
    run: Callable[..., Any], inputs: Sequence[Tensor | None], fast: str = "fused", tolerance: float = 1e-9
) -> None:
    """Same outputs and same gradients of every float input under both implementations."""
    found = []
    for impl in (fast, "plain"):
        leaves = [t.clone().requires_grad_() if t is not None and t.is_floating_point() else t for t in inputs]
        out = outputs(run(*leaves, impl=impl))
        torch.manual_seed(1)
        total = sum((o * rand(*o.shape)).sum() for o in out)
        assert isinstance(total, Tensor)
        diff = [t for t in leaves if t is not None and t.requires_grad]
        found.append((out, torch.autograd.grad(total, diff, allow_unused=True)))
    for a, b in zip(*[f[0] for f in found], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for a, b in zip(*[f[1] for f in found], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def mask_of(kind: str, batch: int, queries: int, keys: int) -> Tensor | None:
    torch.manual_seed(3)
    if kind == "none":
        return None
    seen = torch.rand(batch, 1, queries, keys) < 0.6
    seen[0, :, 0] = False  # a row that sees nothing
    if kind == "bool":
        return seen
    seen[..., keys - queries :] |= torch.eye(queries, dtype=torch.bool)  # additive masks are used without blind rows
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -math.inf)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@pytest.mark.parametrize(
    ("heads", "queries", "keys", "width"), [(2, 5, 5, 4), (1, 1, 7, 3), (3, 4, 9, 5), (1, 1, 1, 1)]
)
def test_attention(kind: str, causal: bool, heads: int, queries: int, keys: int, width: int) -> None:
    mask = mask_of(kind, 3, queries, keys)
    q, k, v = rand(3, heads, queries, width), rand(3, heads, keys, width), rand(3, heads, keys, width)
    assert_twins(lambda q, k, v, impl: att.attention(q, k, v, mask, causal, impl=impl), (q, k, v))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_attention_with_a_mask_of_another_precision(dtype: torch.dtype, causal: bool) -> None:
    """At 16 keys torch's CPU operator takes its vectorised path, which a float32 mask once went into unconverted."""
    mask = (mask_of("float", 2, 16, 16) + rand(2, 1, 16, 16)).to(dtype)  # type: ignore[operator]
    q, k, v = (rand(2, 2, 16, 8) for _ in range(3))
    assert_twins(lambda q, k, v, impl: att.attention(q, k, v, mask, causal, impl=impl), (q, k, v))


def test_attention_row_that_sees_nothing_is_zero() -> None:
    seen = torch.zeros(1, 1, 2, 3, dtype=torch.bool)
    seen[..., 1, :] = True
    for impl in ("fused", "plain"):
        q = rand(1, 1, 2, 4).requires_grad_()
        out = att.attention(q, rand(1, 1, 3, 4), rand(1, 1, 3, 4), seen, impl=impl)  # type: ignore[arg-type]
        out.sum().backward()
        assert (out[0, 0, 0] == 0).all()
        assert (out[0, 0, 1] != 0).all()
        assert q.grad is not None
        assert not q.grad.isnan().any()


def test_causal_is_aligned_at_the_lower_right() -> None:
    q, k, v = rand(1, 1, 2, 4), rand(1, 1, 5, 4), rand(1, 1, 5, 4)
    before = att.attention(q, k, v, causal=True)
    k[:, :, 4] += 1.0  # the last key: only the last query may notice
    after = att.attention(q, k, v, causal=True)
    assert torch.equal(before[:, :, 0], after[:, :, 0])
    assert not torch.equal(before[:, :, 1], after[:, :, 1])


@pytest.mark.parametrize(("candidates", "own", "prefix"), [(3, 2, 5), (1, 4, 7), (5, 1, 1), (2, 3, 0)])
def test_prefix_attention(candidates: int, own: int, prefix: int) -> None:
    inputs = (
        rand(candidates, 2, own, 3), rand(1, 2, prefix, 3), rand(1, 2, prefix, 3),
        rand(candidates, 2, own, 3), rand(candidates, 2, own, 3),
    )  # fmt: skip
    assert_twins(lambda *x, impl: prefix_attention(*x, impl=impl), inputs)
    with torch.no_grad():  # another path: the prefix through the flash operator
        both = [prefix_attention(*inputs, impl=impl) for impl in ("fused", "plain")]  # type: ignore[arg-type]
        torch.testing.assert_close(*both, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(
    ("batch", "heads", "fields", "width"), [(3, 2, 5, 4), (1, 1, 1, 1), (2, 3, 7, 3), (0, 2, 4, 2)]
)
def test_pair_attention(batch: int, heads: int, fields: int, width: int, per_head: bool) -> None:
    q, k, v = rand(batch, heads, fields, width), rand(batch, heads, fields, width), rand(batch, heads, fields, width)
    pair = rand(heads, fields, fields) if per_head else rand(fields, fields)
    assert_twins(pair_attention, (q, k, v, pair))


@pytest.mark.parametrize(("fields", "batch", "width", "out"), [(5, 4, 3, 7), (1, 1, 1, 1), (39, 3, 5, 9), (4, 0, 3, 2)])
def test_field_linear(fields: int, batch: int, width: int, out: int) -> None:
    assert_twins(field_linear, (rand(fields, batch, width), rand(fields, width, out)))
    assert field_linear_cost(fields, width, out).flops == 2 * fields * width * out


@pytest.mark.parametrize(("fields", "bases", "chosen"), [(5, 4, 2), (3, 1, 1), (7, 7, 7)])
def test_compose_and_mixture(fields: int, bases: int, chosen: int) -> None:
    share = torch.softmax(rand(fields, chosen), dim=-1)
    index = torch.stack([torch.randperm(bases)[:chosen] for _ in range(fields)])
    assert_twins(lambda s, b, impl: compose(s, index, b, impl=impl), (share, rand(bases, 11)))
    x, stack = rand(fields, 3, 5), rand(bases, 5, 7)
    assert_twins(lambda x, s, b, impl: mixture_linear(x, s, index, b, impl=impl), (x, share, stack))
    assert compose_cost(fields, bases, chosen, 11, useful=True).flops == 2 * fields * chosen * 11


def test_wide_bases_are_composed_by_onednn() -> None:
    share = torch.rand(3, 2, requires_grad=True)
    index = torch.stack([torch.randperm(5)[:2] for _ in range(3)])
    bases = torch.randn(5, MIN_WEIGHTS, requires_grad=True)
    up = torch.randn(3, MIN_WEIGHTS)
    found = {}
    for impl in ("fused", "plain"):
        with FlopCounterMode(display=False) as counted:
            out = compose(share, index, bases, impl)  # type: ignore[arg-type]
            found[impl] = (out, *torch.autograd.grad(out, (share, bases), up))
        if impl == "fused":
            assert "ctrbench.linear" in str(counted.get_flop_counts()["Global"])
            assert counted.get_total_flops() == 3 * 2 * 3 * 5 * MIN_WEIGHTS
    for mine, twin in zip(found["fused"], found["plain"], strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("shared", "own", "width", "out"), [(6, 3, 4, 5), (0, 2, 3, 3), (None, 4, 3, 7), (5, None, 2, 1)]
)
def test_mixed_linear(shared: int | None, own: int | None, width: int, out: int) -> None:
    s = None if shared is None else rand(3, shared, width)
    n = None if own is None else rand(3, own, width)
    assert_twins(mixed_linear, (s, n, rand(width, out), rand(own or 2, width, out)))

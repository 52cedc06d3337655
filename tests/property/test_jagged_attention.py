"""Jagged attention is padded attention of every row by itself, whatever the lengths and however few tokens ask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ctrbench.kernels.attention import attention_plain
from ctrbench.kernels.jagged_attention import (
    SHORT,
    jagged_attention,
    jagged_attention_flash,
    jagged_attention_grouped,
    jagged_attention_plain,
)

Sizes = list[tuple[int, int]]
PATHS = [jagged_attention_grouped, jagged_attention_flash]
ROWS = st.lists(st.integers(0, 20).flatmap(lambda k: st.tuples(st.integers(0, k), st.just(k))), max_size=6)


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def made(sizes: Sizes, heads: int = 2, width: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    torch.manual_seed(0)
    queries, keys = [q for q, _ in sizes], [k for _, k in sizes]
    q, k, v = (
        torch.randn(n, heads, width, dtype=torch.float64, requires_grad=True)
        for n in (sum(queries), sum(keys), sum(keys))
    )
    return q, k, v, offsets(queries), offsets(keys), max(keys, default=0)


def row_by_row(q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, longest: int) -> Tensor:
    rows = [
        attention_plain(*(t.transpose(0, 1).unsqueeze(0) for t in (q[a:b], k[c:d], v[c:d])), causal=True)[0]
        for a, b, c, d in zip(q_at[:-1], q_at[1:], k_at[:-1], k_at[1:], strict=True)
    ]
    return torch.cat([r.transpose(0, 1) for r in rows]) if rows else q * 1.0


def with_gradients(path: object, args: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]) -> list[Tensor]:
    out = path(*args)  # type: ignore[operator]
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    found = torch.autograd.grad((out * weights).sum(), args[:3], allow_unused=True)
    return [out, *(torch.zeros_like(a) if g is None else g for a, g in zip(args[:3], found, strict=True))]


@settings(max_examples=25, deadline=None)
@given(sizes=ROWS)
@pytest.mark.parametrize("path", PATHS)
def test_every_row_is_attended_by_itself(path: object, sizes: Sizes) -> None:
    args = made(sizes)
    for mine, theirs in zip(with_gradients(path, args), with_gradients(row_by_row, args), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [(0, 0), (0, 0)],
        [(0, 3), (0, 0)],
        [(1, 1), (0, 0), (1, 1)],
        [(5, 5)] * 3,
        [(4, SHORT + 3), (SHORT + 3, SHORT + 3), (2, 9), (0, 7)],
    ],
    ids=["no rows", "empty rows", "nobody asks", "length 1", "all full", "short and long"],
)
@pytest.mark.parametrize("path", [jagged_attention, jagged_attention_plain, *PATHS])
def test_odd_rows(path: object, sizes: Sizes) -> None:
    args = made(sizes)
    if path is jagged_attention_plain and not sizes:
        pytest.skip("the twin pads to the longest row, and there is none")
    for mine, theirs in zip(with_gradients(path, args), with_gradients(row_by_row, args), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_a_row_with_more_queries_than_keys_is_refused() -> None:
    q, k, v, _, k_at, longest = made([(2, 2), (3, 3)])
    with pytest.raises(ValueError, match="row 0 has 3 queries and 2 keys"):
        jagged_attention(q, k, v, torch.tensor([0, 3, 5]), k_at, longest)


def test_half_types_keep_their_weights_in_float32() -> None:
    args = made([(3, 5), (7, 7), (2, 2)], width=8)
    half = tuple(a.detach().bfloat16() for a in args[:3])
    exact = jagged_attention_plain(*(h.double() for h in half), *args[3:])
    torch.testing.assert_close(jagged_attention(*half, *args[3:]).double(), exact, rtol=2e-2, atol=2e-2)

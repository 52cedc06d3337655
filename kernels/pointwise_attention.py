"""Attention without softmax: SiLU of the scores over a constant (HSTU, 2402.17152 section 3.2).

Dims: B batch, b rows at a time, H heads, N = b*H, Q queries, K keys, d width of a head's queries and keys, e of its
values
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu

IN_CACHE, MANY = 1 << 19, 1 << 23
"""Scores at a time, and scores of a call from which that pays; docs/performance/transformer_operators.md."""


def pointwise_attention_plain(
    q_BHQd: Tensor, k_BHKd: Tensor, v_BHKe: Tensor, seen_BQK: Tensor, bias_BQK: Tensor | None, scale: float, norm: float
) -> Tensor:
    """Plain twin: a score at a time. Arguments and result as of `pointwise_attention`."""
    batch, heads, queries = q_BHQd.shape[:3]
    rows = []
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                out = v_BHKe.new_zeros(v_BHKe.shape[-1])
                for j in range(k_BHKd.shape[2]):
                    if seen_BQK[b, i, j]:
                        score = scale * (q_BHQd[b, h, i] @ k_BHKd[b, h, j])
                        score = score if bias_BQK is None else score + bias_BQK[b, i, j]
                        out = out + silu(score) / norm * v_BHKe[b, h, j]
                rows.append(out)
    return torch.stack(rows).view(batch, heads, queries, -1)


def pointwise_attention_whole(
    q_BHQd: Tensor, k_BHKd: Tensor, v_BHKe: Tensor, seen_BQK: Tensor, bias_BQK: Tensor | None, scale: float, norm: float
) -> Tensor:
    """Fast path of all rows at once, any device."""
    scores_BHQK = torch.matmul(q_BHQd * scale, k_BHKd.transpose(2, 3))
    if bias_BQK is not None:
        scores_BHQK = scores_BHQK + bias_BQK.unsqueeze(1)
    weights_BHQK = silu(scores_BHQK) * (seen_BQK.to(scores_BHQK.dtype) / norm).unsqueeze(1)
    return torch.matmul(weights_BHQK, v_BHKe)


def _chunks(rows: int, scores: int) -> Iterator[slice]:
    size = max(1, IN_CACHE // scores)
    return (slice(at, min(at + size, rows)) for at in range(0, rows, size))


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BHQd: Tensor, k_BHKd: Tensor, v_BHKe: Tensor, seen_BQK: Tensor, bias_BQK: Tensor | None,
        scale: float, norm: float,
    ) -> Tensor:  # fmt: skip
        batch, heads, queries, _ = q_BHQd.shape
        out_BQHe, kept = q_BHQd.new_empty(batch, queries, heads, v_BHKe.shape[3]), []
        for rows in _chunks(batch, heads * queries * k_BHKd.shape[2]):
            q_NQd, k_NKd, v_NKe = (x[rows].flatten(0, 1) for x in (q_BHQd, k_BHKd, v_BHKe))
            scores_bHQK = torch.bmm(q_NQd * scale, k_NKd.transpose(1, 2)).unflatten(0, (-1, heads))
            if bias_BQK is not None:
                scores_bHQK += bias_BQK[rows].unsqueeze(1)
            weights_bHQK = silu(scores_bHQK).mul_(seen_BQK[rows].to(q_BHQd.dtype).div_(norm).unsqueeze(1))
            out_BQHe[rows] = torch.bmm(weights_bHQK.flatten(0, 1), v_NKe).unflatten(0, (-1, heads)).transpose(1, 2)
            kept.append(scores_bHQK)
        ctx.save_for_backward(q_BHQd, k_BHKd, v_BHKe, seen_BQK, bias_BQK, *kept)
        ctx.scale, ctx.norm = scale, norm
        return out_BQHe.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHQe: Tensor) -> tuple[Tensor | None, ...]:
        q_BHQd, k_BHKd, v_BHKe, seen_BQK, bias_BQK, *kept = ctx.saved_tensors
        batch, heads, queries, _ = q_BHQd.shape
        found = [grad_BHQe.new_empty(batch, x.shape[2], heads, x.shape[3]) for x in (q_BHQd, k_BHKd, v_BHKe)]
        of_bias_BQK = torch.empty_like(bias_BQK) if ctx.needs_input_grad[4] else None
        for rows, scores_bHQK in zip(_chunks(batch, heads * queries * k_BHKd.shape[2]), kept, strict=True):
            q_NQd, k_NKd, v_NKe, grad_NQe = (x[rows].flatten(0, 1) for x in (q_BHQd, k_BHKd, v_BHKe, grad_BHQe))
            shown_b1QK = seen_BQK[rows].to(q_BHQd.dtype).div_(ctx.norm).unsqueeze(1)
            weights_NQK = silu(scores_bHQK).mul_(shown_b1QK).flatten(0, 1)
            of_weights_bHQK = torch.bmm(grad_NQe, v_NKe.transpose(1, 2)).unflatten(0, (-1, heads)).mul_(shown_b1QK)
            of_scores_bHQK = torch.ops.aten.silu_backward(of_weights_bHQK, scores_bHQK)
            if of_bias_BQK is not None:
                of_bias_BQK[rows] = of_scores_bHQK.sum(dim=1)
            of_scores_NQK = of_scores_bHQK.flatten(0, 1)
            parts = (
                torch.bmm(of_scores_NQK, k_NKd).mul_(ctx.scale),
                torch.bmm(of_scores_NQK.transpose(1, 2), q_NQd).mul_(ctx.scale),
                torch.bmm(weights_NQK.transpose(1, 2), grad_NQe),
            )
            for to, part in zip(found, parts, strict=True):
                to[rows] = part.unflatten(0, (-1, heads)).transpose(1, 2)
        return (*(t.transpose(1, 2) for t in found), None, of_bias_BQK, None, None)


def pointwise_attention_blocked(
    q_BHQd: Tensor, k_BHKd: Tensor, v_BHKe: Tensor, seen_BQK: Tensor, bias_BQK: Tensor | None, scale: float, norm: float
) -> Tensor:
    """Fast path on CPU: so many rows at a time as keep their scores in cache. Not differentiable twice."""
    return _Blocked.apply(q_BHQd, k_BHKd, v_BHKe, seen_BQK, bias_BQK, scale, norm)


def _worth(q_BHQd: Tensor, k_BHKd: Tensor, seen_BQK: Tensor, bias_BQK: Tensor | None) -> bool:
    """Blocks take masks and biases of every row, and beat the whole where that leaves the cache."""
    batch, heads, queries, _ = q_BHQd.shape
    whole = (batch, queries, k_BHKd.shape[2])
    return (
        q_BHQd.device.type == "cpu"
        and batch * heads * queries * k_BHKd.shape[2] >= MANY
        and seen_BQK.shape == whole
        and (bias_BQK is None or (bias_BQK.shape == whole and bias_BQK.dtype == q_BHQd.dtype))
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def pointwise_attention(
    q_BHQd: Tensor, k_BHKd: Tensor, v_BHKe: Tensor, seen_BQK: Tensor, bias_BQK: Tensor | None, scale: float, norm: float
) -> Tensor:
    """silu(scale q kᵀ + bias) / norm, zero where not seen, times v: [B, H, Q, e].

    Args:
        q_BHQd, k_BHKd, v_BHKe: queries, keys, values.
        seen_BQK: bool; a query that sees no key gets zeros.
        bias_BQK: added to the scores of all heads.
        scale: of the products.
        norm: a constant, never the length of the batch.
    """
    fast = on_gpu("pointwise_attention", q_BHQd)
    if fast is None:
        blocked = _worth(q_BHQd, k_BHKd, seen_BQK, bias_BQK)
        fast = pointwise_attention_blocked if blocked else pointwise_attention_whole
    return fast(q_BHQd, k_BHKd, v_BHKe, seen_BQK, bias_BQK, scale, norm)


def pointwise_cost(heads: int, qk: int, v: int, queries: float, keys: float) -> Cost:
    """One sample, the whole rectangle: two products a head; scale, bias, SiLU, mask a score."""
    pairs = queries * keys
    return Cost(flops=2.0 * heads * (qk + v) * pairs, elementwise=5.0 * heads * pairs)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    batch, heads, tokens, width = (int(shape[n]) for n in ("batch", "heads", "tokens", "width"))
    q_BHNd, k_BHNd, v_BHNd = (
        torch.randn(batch, tokens, heads, width, dtype=dtype, device=device).transpose(1, 2).requires_grad_()
        for _ in range(3)
    )
    first_B11 = torch.randint(tokens + 1, (batch, 1, 1), device=device)
    triangle_NN = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    seen_BNN = triangle_NN & (torch.arange(tokens, device=device) >= first_B11)
    bias_BNN = None
    if shape.get("bias", 1):
        bias_BNN = torch.randn(batch, tokens, tokens, dtype=dtype, device=device, requires_grad=True)
    return q_BHNd, k_BHNd, v_BHNd, seen_BNN, bias_BNN, width**-0.5, float(tokens)


def _cost(s: Shape) -> Cost:
    heads, width, tokens = int(s["heads"]), int(s["width"]), s["tokens"]
    return pointwise_cost(heads, width, width, tokens, tokens) * s["batch"]


OPERATOR = Operator(
    title="Pointwise attention (HSTU)",
    twin=pointwise_attention_plain,
    run=pointwise_attention,
    paths={"whole": pointwise_attention_whole, "blocked": pointwise_attention_blocked},
    inputs=_inputs,
    cost=_cost,
    small=(
        {"batch": 3, "heads": 2, "tokens": 3, "width": 2},
        {"batch": 2, "heads": 1, "tokens": 4, "width": 3, "bias": 0},
        {"batch": 1, "heads": 1, "tokens": 1, "width": 2},
    ),
    shapes={
        "B4 T16 d8": {"batch": 4, "heads": 2, "tokens": 16, "width": 8},
    },
    gpu="pointwise_attention",
)
"""The twin goes score by score, so it is benchmarked at a small shape; the fast paths among themselves in the notes."""

"""Attention without softmax: SiLU of the scores over a constant (HSTU, 2402.17152 section 3.2).

Dims: B batch, H heads, Q queries, K keys, d width of a head's queries and keys, e of its values
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu


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


def pointwise_attention_fused(
    q_BHQd: Tensor, k_BHKd: Tensor, v_BHKe: Tensor, seen_BQK: Tensor, bias_BQK: Tensor | None, scale: float, norm: float
) -> Tensor:
    """Fast path, any device."""
    scores_BHQK = torch.matmul(q_BHQd * scale, k_BHKd.transpose(2, 3))
    if bias_BQK is not None:
        scores_BHQK = scores_BHQK + bias_BQK.unsqueeze(1)
    weights_BHQK = silu(scores_BHQK) * (seen_BQK.to(scores_BHQK.dtype) / norm).unsqueeze(1)
    return torch.matmul(weights_BHQK, v_BHKe)


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
    fast = on_gpu("pointwise_attention", q_BHQd) or pointwise_attention_fused
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
    paths={"fused": pointwise_attention_fused},
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
"""The twin goes score by score, so it is benchmarked at a small shape."""

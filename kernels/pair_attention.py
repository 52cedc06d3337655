"""Attention over fields, scores multiplied by a weight of the ordered field pair (FAT, 2511.12081 section 3.2).

The weight acts before the softmax and is no additive bias, so torch's fused attention cannot take it. The fast path
folds 1/√d into the [F, F] weights. A node that works on as many rows as keep their scores in cache is slower
(docs/performance/transformer_operators.md).

Dims: B batch, H heads, F fields, d width of a head
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu

Impl = Literal["fused", "plain"]


def pair_attention_plain(q_BHFd: Tensor, k_BHFd: Tensor, v_BHFd: Tensor, pair_FF: Tensor) -> Tensor:
    """Plain twin: the equation as printed."""
    scores_BHFF = torch.einsum("bhid,bhjd->bhij", q_BHFd, k_BHFd) / math.sqrt(q_BHFd.shape[-1])
    return torch.einsum("bhij,bhjd->bhid", (scores_BHFF * pair_FF).softmax(dim=-1), v_BHFd)


def pair_attention_fused(q_BHFd: Tensor, k_BHFd: Tensor, v_BHFd: Tensor, pair_FF: Tensor) -> Tensor:
    """Fast path, any device: the scale rides in the pair weights."""
    scores_BHFF = (q_BHFd @ k_BHFd.transpose(-1, -2)) * (pair_FF * (1.0 / math.sqrt(q_BHFd.shape[-1])))
    return scores_BHFF.softmax(dim=-1) @ v_BHFd


def pair_attention(q_BHFd: Tensor, k_BHFd: Tensor, v_BHFd: Tensor, pair_FF: Tensor, impl: Impl = "fused") -> Tensor:
    """softmax_j((q_i·k_j / √d) · w[i, j]) v, [B, H, F, d]; `pair_FF` is [F, F], or [H, F, F] with weights a head."""
    if impl == "plain":
        return pair_attention_plain(q_BHFd, k_BHFd, v_BHFd, pair_FF)
    return (on_gpu("pair_attention", q_BHFd) or pair_attention_fused)(q_BHFd, k_BHFd, v_BHFd, pair_FF)


def pair_attention_cost(fields: int, width: int, heads: int) -> Cost:
    """One sample: two products over all heads; weight, subtract, exp, sum and divide a score."""
    return Cost(flops=4.0 * fields * fields * width, elementwise=5.0 * heads * fields * fields)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    batch, fields, heads, width = (int(shape[n]) for n in ("batch", "fields", "heads", "width"))
    q_BHFd, k_BHFd, v_BHFd = (
        torch.randn(batch, fields, heads, width, dtype=dtype, device=device).transpose(1, 2).requires_grad_()
        for _ in range(3)
    )
    own = (heads,) if shape.get("own") else ()
    return q_BHFd, k_BHFd, v_BHFd, torch.randn(*own, fields, fields, dtype=dtype, device=device, requires_grad=True)


OPERATOR = Operator(
    title="Pair-modulated field attention (FAT)",
    twin=pair_attention_plain,
    run=pair_attention,
    paths={"fused": pair_attention_fused},
    inputs=_inputs,
    cost=lambda s: pair_attention_cost(int(s["fields"]), int(s["heads"] * s["width"]), int(s["heads"])) * s["batch"],
    small=(
        {"batch": 3, "fields": 4, "heads": 2, "width": 3},
        {"batch": 2, "fields": 3, "heads": 2, "width": 2, "own": 1},
        {"batch": 1, "fields": 1, "heads": 1, "width": 2},
    ),
    shapes={
        f"B{b} F39 H{h} d{d}": {"batch": b, "fields": 39, "heads": h, "width": d}
        for b, h, d in ((256, 4, 8), (4096, 4, 8), (1024, 8, 16))
    },
    gpu="pair_attention",
)

"""Attention over fields, scores multiplied by a weight of the ordered field pair (FAT, 2511.12081 section 3.2).

The weight acts before the softmax and is no additive bias, so torch's fused attention cannot take it. The fast path
folds 1/√d into the [F, F] weights and on CPU works on so many rows at a time as keep their scores in cache: what is
kept for the gradient is one [B, H, F, F], the softmax.

Dims: B batch, b rows at a time, N = b*H, H heads, F fields, d width of a head
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu

Impl = Literal["fused", "plain"]

IN_CACHE, MANY = 1 << 18, 1 << 23
"""Scores at a time, and scores of a call from which that pays; docs/performance/transformer_operators.md."""


def pair_attention_plain(q_BHFd: Tensor, k_BHFd: Tensor, v_BHFd: Tensor, pair_FF: Tensor) -> Tensor:
    """Plain twin: the equation as printed."""
    scores_BHFF = torch.einsum("bhid,bhjd->bhij", q_BHFd, k_BHFd) / math.sqrt(q_BHFd.shape[-1])
    return torch.einsum("bhij,bhjd->bhid", (scores_BHFF * pair_FF).softmax(dim=-1), v_BHFd)


def pair_attention_whole(q_BHFd: Tensor, k_BHFd: Tensor, v_BHFd: Tensor, pair_FF: Tensor) -> Tensor:
    """Fast path of all rows at once, any device: the scale rides in the pair weights."""
    scores_BHFF = (q_BHFd @ k_BHFd.transpose(-1, -2)) * (pair_FF * (1.0 / math.sqrt(q_BHFd.shape[-1])))
    return scores_BHFF.softmax(dim=-1) @ v_BHFd


def _chunks(q_BHFd: Tensor) -> Iterator[slice]:
    batch, heads, fields, _ = q_BHFd.shape
    size = max(1, IN_CACHE // (heads * fields * fields))
    return (slice(at, min(at + size, batch)) for at in range(0, batch, size))


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHFd: Tensor, k_BHFd: Tensor, v_BHFd: Tensor, pair_FF: Tensor) -> Tensor:
        batch, heads, fields, width = q_BHFd.shape
        weight_FF, kept = pair_FF * (1.0 / math.sqrt(width)), []
        out_BFHd = q_BHFd.new_empty(batch, fields, heads, v_BHFd.shape[3])
        for rows in _chunks(q_BHFd):
            q_NFd, k_NFd, v_NFd = (x[rows].flatten(0, 1) for x in (q_BHFd, k_BHFd, v_BHFd))
            scores_bHFF = torch.bmm(q_NFd, k_NFd.transpose(1, 2)).unflatten(0, (-1, heads)).mul_(weight_FF)
            kept.append(scores_bHFF.softmax(dim=-1))
            out_BFHd[rows] = torch.bmm(kept[-1].flatten(0, 1), v_NFd).unflatten(0, (-1, heads)).transpose(1, 2)
        ctx.save_for_backward(q_BHFd, k_BHFd, v_BHFd, pair_FF, *kept)
        return out_BFHd.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHFd: Tensor) -> tuple[Tensor, ...]:
        q_BHFd, k_BHFd, v_BHFd, pair_FF, *kept = ctx.saved_tensors
        batch, heads, fields, width = q_BHFd.shape
        scale = 1.0 / math.sqrt(width)
        weight_FF, of_pair_HFF = pair_FF * scale, pair_FF.new_zeros(heads, fields, fields)
        # queries, keys and values side by side in a row, as one projection made them
        found = [grad_BHFd.new_empty(batch, fields, heads, x.shape[3]) for x in (q_BHFd, k_BHFd, v_BHFd)]
        for rows, weights_bHFF in zip(_chunks(q_BHFd), kept, strict=True):
            q_NFd, k_NFd, v_NFd, grad_NFd = (x[rows].flatten(0, 1) for x in (q_BHFd, k_BHFd, v_BHFd, grad_BHFd))
            weights_NFF = weights_bHFF.flatten(0, 1)
            of_weights_NFF = torch.bmm(grad_NFd, v_NFd.transpose(1, 2))
            of_scores_NFF = torch._softmax_backward_data(of_weights_NFF, weights_NFF, -1, weights_NFF.dtype)
            raw_NFF = torch.bmm(q_NFd, k_NFd.transpose(1, 2), out=of_weights_NFF).mul_(of_scores_NFF)
            of_pair_HFF += raw_NFF.unflatten(0, (-1, heads)).sum(dim=0)
            of_scores_NFF.unflatten(0, (-1, heads)).mul_(weight_FF)
            parts = (
                torch.bmm(of_scores_NFF, k_NFd),
                torch.bmm(of_scores_NFF.transpose(1, 2), q_NFd),
                torch.bmm(weights_NFF.transpose(1, 2), grad_NFd),
            )
            for to, part in zip(found, parts, strict=True):
                to[rows] = part.unflatten(0, (-1, heads)).transpose(1, 2)
        of_pair = of_pair_HFF.mul_(scale).sum_to_size(pair_FF.shape)
        return (*(t.transpose(1, 2) for t in found), of_pair)


def pair_attention_blocked(q_BHFd: Tensor, k_BHFd: Tensor, v_BHFd: Tensor, pair_FF: Tensor) -> Tensor:
    """Fast path on CPU: a few rows at a time. Not differentiable twice."""
    return _Blocked.apply(q_BHFd, k_BHFd, v_BHFd, pair_FF)


def pair_attention(q_BHFd: Tensor, k_BHFd: Tensor, v_BHFd: Tensor, pair_FF: Tensor, impl: Impl = "fused") -> Tensor:
    """softmax_j((q_i·k_j / √d) · w[i, j]) v, [B, H, F, d]; `pair_FF` is [F, F], or [H, F, F] with weights a head."""
    if impl == "plain":
        return pair_attention_plain(q_BHFd, k_BHFd, v_BHFd, pair_FF)
    fast = on_gpu("pair_attention", q_BHFd)
    if fast is None:
        fast = pair_attention_blocked if _worth(q_BHFd, pair_FF) else pair_attention_whole
    return fast(q_BHFd, k_BHFd, v_BHFd, pair_FF)


def _worth(q_BHFd: Tensor, pair_FF: Tensor) -> bool:
    """Blocks beat the whole where that leaves the cache; the compiler makes its own loops."""
    return (
        q_BHFd.device.type == "cpu"
        and q_BHFd.numel() // q_BHFd.shape[-1] * q_BHFd.shape[-2] >= MANY
        and q_BHFd.dtype == pair_FF.dtype
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


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
    paths={"whole": pair_attention_whole, "blocked": pair_attention_blocked},
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

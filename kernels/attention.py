"""Scaled dot-product attention, causal at the lower right.

The fast path is torch's fused operator, called through the module attribute so that a counter's function mode sees it.
Its `is_causal` aligns the triangle at the top left, which is wrong when there are fewer queries than keys (a pyramid's
tail): an explicit triangle replaces it there. Rows that see no key give zeros on both paths, never NaN.

Measured, one CPU thread, B=256, H=4, d_h=8, forward + backward, 68 x 68: fused 63 ms, explicit softmax 97 ms; with a
mask of its own for every row 83 and 145 ms as bool, 65 and 79 ms as additive float, so callers build the float once.

Dims: B batch, H heads, Q queries, K keys, d width of a head
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape

Impl = Literal["fused", "plain"]


def lower_right(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """bool [Q, K]: query i is the key at i + K - Q and sees itself and everything before it."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _combined(mask: Tensor | None, causal: bool, queries: int, keys: int, device: torch.device) -> Tensor | None:
    if not causal:
        return mask
    seen_QK = lower_right(queries, keys, device)
    if mask is None:
        return seen_QK
    return mask & seen_QK if mask.dtype == torch.bool else mask.masked_fill(~seen_QK, -math.inf)


def attention_plain(
    q_BHQd: Tensor, k_BHKd: Tensor, v_BHKd: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Plain twin: scores, mask, softmax, weighted sum, one operator each."""
    scores_BHQK = torch.einsum("bhqd,bhkd->bhqk", q_BHQd, k_BHKd) / math.sqrt(q_BHQd.shape[-1])
    mask = _combined(mask, causal, q_BHQd.shape[2], k_BHKd.shape[2], q_BHQd.device)
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=scores_BHQK.dtype, device=mask.device).masked_fill(~mask, -math.inf)
        scores_BHQK = scores_BHQK + mask
        blind = (scores_BHQK == -math.inf).all(dim=-1, keepdim=True)
        weights_BHQK = scores_BHQK.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)
    else:
        weights_BHQK = scores_BHQK.softmax(dim=-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights_BHQK, v_BHKd)


def attention_fused(
    q_BHQd: Tensor, k_BHKd: Tensor, v_BHKd: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Fast path: torch's fused operator."""
    queries, keys = q_BHQd.shape[2], k_BHKd.shape[2]
    square = causal and mask is None and queries == keys
    if not square:
        mask = _combined(mask, causal, queries, keys, q_BHQd.device)
    if mask is not None and mask.is_floating_point():
        # From 16 keys on, torch 2.13 on CPU misreads a float32 mask beside float64 queries, without a word and by more
        # than 1; masks of other dtypes than float32 and the queries' it refuses.
        mask = mask.to(q_BHQd.dtype)
    return torch.nn.functional.scaled_dot_product_attention(q_BHQd, k_BHKd, v_BHKd, attn_mask=mask, is_causal=square)


def attention(
    q_BHQd: Tensor,
    k_BHKd: Tensor,
    v_BHKd: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    impl: Impl = "fused",
) -> Tensor:
    """softmax(q kᵀ / √d + mask) v, [B, H, Q, d].

    Args:
        mask: broadcastable to [B, H, Q, K]; bool (True = seen) or added to the scores.
        causal: query i sees keys 0 .. i + K - Q.
        impl: `plain` is the twin that tests compare with.
    """
    return (attention_fused if impl == "fused" else attention_plain)(q_BHQd, k_BHKd, v_BHKd, mask, causal)


def visible_pairs(queries: float, keys: float) -> float:
    """(query, key) pairs under the lower-right triangle: Q(K - Q) + Q(Q + 1)/2 (models.md section 3)."""
    return queries * (keys - queries) + queries * (queries + 1) / 2


def attention_cost(width: int, heads: int, queries: int, keys: int) -> Cost:
    """Whole rectangle of one sample: two products over all heads; scale, subtract, exp, divide and sum a score."""
    pairs = float(queries * keys)
    return Cost(flops=4 * width * pairs, elementwise=5 * heads * pairs)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor | bool | None, ...]:
    batch, heads, queries, keys, width = (int(shape[n]) for n in ("batch", "heads", "queries", "keys", "width"))
    q_BHQd, k_BHKd, v_BHKd = (
        torch.randn(batch, n, heads, width, dtype=dtype, device=device).transpose(1, 2).requires_grad_()
        for n in (queries, keys, keys)
    )
    if not shape.get("padding"):
        return q_BHQd, k_BHKd, v_BHKd, None, True
    first_B11 = torch.randint(int(shape["padding"]) + 1, (batch, 1, 1), device=device)
    real_B1K = torch.arange(keys, device=device) >= first_B11
    own_QK = torch.eye(keys, dtype=torch.bool, device=device)[keys - queries :]
    seen_BQK = (real_B1K & lower_right(queries, keys, device)) | own_QK
    mask = torch.zeros(seen_BQK.shape, dtype=dtype, device=device).masked_fill(~seen_BQK, -math.inf)
    return q_BHQd, k_BHKd, v_BHKd, mask.unsqueeze(1), False


OPERATOR = Operator(
    title="Causal attention",
    twin=attention_plain,
    run=attention,
    paths={"fused": attention_fused},
    inputs=_inputs,
    cost=lambda s: (
        attention_cost(int(s["heads"] * s["width"]), int(s["heads"]), int(s["queries"]), int(s["keys"])) * s["batch"]
    ),
    small=(
        {"batch": 2, "heads": 2, "queries": 3, "keys": 3, "width": 2},
        {"batch": 2, "heads": 1, "queries": 2, "keys": 4, "width": 3},
        {"batch": 3, "heads": 1, "queries": 3, "keys": 5, "width": 2, "padding": 4},
        {"batch": 1, "heads": 1, "queries": 1, "keys": 1, "width": 2},
    ),
    shapes={
        "B256 T64 d16": {"batch": 256, "heads": 4, "queries": 64, "keys": 64, "width": 16},
        "B256 T64 d16 padded": {"batch": 256, "heads": 4, "queries": 64, "keys": 64, "width": 16, "padding": 64},
        "B64 T256 d64": {"batch": 64, "heads": 4, "queries": 256, "keys": 256, "width": 64},
        "B64 T256 Q32 d64": {"batch": 64, "heads": 4, "queries": 32, "keys": 256, "width": 64},
    },
    no_gpu="torch's own operator picks flash, memory-efficient or cuDNN kernels there",
)

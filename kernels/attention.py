"""Scaled dot-product attention, causal at the lower right, and attention of many candidates to one shared prefix.

The fast path is torch's fused operator, called through the module attribute so that a counter's function mode sees it.
Its `is_causal` aligns the triangle at the top left, which is wrong when there are fewer queries than keys (a pyramid's
tail): an explicit triangle replaces it there. Rows that see no key give zeros on both paths, never NaN.

Measured, one CPU thread, B=256, H=4, d_h=8, forward + backward, 68 x 68: fused 63 ms, explicit softmax 97 ms; with a
mask of its own for every row 83 and 145 ms as bool, 65 and 79 ms as additive float, so callers build the float once.

Dims: B batch, C candidates, H heads, Q queries, K keys, P prefix keys, d width of a head
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


def prefix_attention_plain(
    q_CHQd: Tensor, prefix_k_1HPd: Tensor, prefix_v_1HPd: Tensor, k_CHQd: Tensor, v_CHQd: Tensor
) -> Tensor:
    """Plain twin: the prefix is copied to every candidate and ordinary causal attention follows."""
    count = q_CHQd.shape[0]
    k_CHKd = torch.cat([prefix_k_1HPd.expand(count, -1, -1, -1), k_CHQd], dim=2)
    v_CHKd = torch.cat([prefix_v_1HPd.expand(count, -1, -1, -1), v_CHQd], dim=2)
    return attention_plain(q_CHQd, k_CHKd, v_CHKd, causal=True)


def prefix_attention_fused(
    q_CHQd: Tensor, prefix_k_1HPd: Tensor, prefix_v_1HPd: Tensor, k_CHQd: Tensor, v_CHQd: Tensor
) -> Tensor:
    """Fast path: the queries of all candidates read the prefix in one product, nothing is copied.

    On CPU without gradient torch's flash operator takes the prefix and its log-sum-exp joins both parts: scores of 512
    candidates do not fit a cache. C=512, H=4, Q=4, P=1,024, d=16, one thread: 13 ms, 74 with the scores written out.
    """
    count, heads, own, width = q_CHQd.shape
    q_HNd = q_CHQd.transpose(0, 1).reshape(heads, count * own, width)
    own_CHQQ = (q_CHQd * (1.0 / math.sqrt(width))) @ k_CHQd.transpose(2, 3)
    own_CHQQ = own_CHQQ.masked_fill(~lower_right(own, own, q_CHQd.device), -math.inf)
    prefix = prefix_k_1HPd.shape[2]
    if q_CHQd.device.type == "cpu" and prefix and count and not torch.is_grad_enabled():
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        from_1HNd, log_1HN = flash(q_HNd.unsqueeze(0), prefix_k_1HPd, prefix_v_1HPd)
        # the prefix is one key whose score is the log of its sum and whose value is what it gave
        log_CHQ1 = log_1HN.view(heads, count, own, 1).transpose(0, 1)
        weights_CHQK = torch.cat([log_CHQ1.to(own_CHQQ.dtype), own_CHQQ], dim=3).softmax(dim=3)
        from_CHQd = from_1HNd.view(heads, count, own, width).transpose(0, 1)
        return from_CHQd * weights_CHQK[..., :1] + weights_CHQK[..., 1:] @ v_CHQd
    prefix_HNP = torch.bmm(q_HNd * (1.0 / math.sqrt(width)), prefix_k_1HPd[0].transpose(1, 2))
    own_HNQ = own_CHQQ.transpose(0, 1).reshape(heads, count * own, own)
    weights_HNK = torch.cat([prefix_HNP, own_HNQ], dim=2).softmax(dim=2)
    from_prefix_HNd = torch.bmm(weights_HNK[..., :prefix], prefix_v_1HPd[0])
    own_CHQQ = weights_HNK[..., prefix:].view(heads, count, own, own).transpose(0, 1)
    return from_prefix_HNd.view(heads, count, own, width).transpose(0, 1) + own_CHQQ @ v_CHQd


def prefix_attention(
    q_CHQd: Tensor,
    prefix_k_1HPd: Tensor,
    prefix_v_1HPd: Tensor,
    k_CHQd: Tensor,
    v_CHQd: Tensor,
    impl: Impl = "fused",
) -> Tensor:
    """Causal attention of C short suffixes to one shared prefix and to themselves, [C, H, Q, d]."""
    run = prefix_attention_fused if impl == "fused" else prefix_attention_plain
    return run(q_CHQd, prefix_k_1HPd, prefix_v_1HPd, k_CHQd, v_CHQd)


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

"""Attention over fields, scores multiplied by a weight of the ordered field pair (FAT, 2511.12081 section 3.2).

The weight acts before the softmax and is no additive bias, so torch's fused attention cannot take it. The fast path
folds 1/√d into the [F, F] weights: one pass less over the [B, H, F, F] scores.

Dims: B batch, H heads, F fields, d width of a head
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost

Impl = Literal["fused", "plain"]


def pair_attention_plain(q_BHFd: Tensor, k_BHFd: Tensor, v_BHFd: Tensor, pair_FF: Tensor) -> Tensor:
    """Plain twin: the equation as printed."""
    scores_BHFF = torch.einsum("bhid,bhjd->bhij", q_BHFd, k_BHFd) / math.sqrt(q_BHFd.shape[-1])
    return torch.einsum("bhij,bhjd->bhid", (scores_BHFF * pair_FF).softmax(dim=-1), v_BHFd)


def pair_attention_fused(q_BHFd: Tensor, k_BHFd: Tensor, v_BHFd: Tensor, pair_FF: Tensor) -> Tensor:
    """Fast path: the scale rides in the pair weights."""
    scores_BHFF = (q_BHFd @ k_BHFd.transpose(-1, -2)) * (pair_FF * (1.0 / math.sqrt(q_BHFd.shape[-1])))
    return scores_BHFF.softmax(dim=-1) @ v_BHFd


def pair_attention(q_BHFd: Tensor, k_BHFd: Tensor, v_BHFd: Tensor, pair_FF: Tensor, impl: Impl = "fused") -> Tensor:
    """softmax_j((q_i·k_j / √d) · w[i, j]) v, [B, H, F, d]; `pair_FF` is [F, F], or [H, F, F] with weights a head."""
    run = pair_attention_fused if impl == "fused" else pair_attention_plain
    return run(q_BHFd, k_BHFd, v_BHFd, pair_FF)


def pair_attention_cost(fields: int, width: int, heads: int) -> Cost:
    """One sample: two products over all heads; weight, subtract, exp, sum and divide a score."""
    return Cost(flops=4.0 * fields * fields * width, elementwise=5.0 * heads * fields * fields)

"""Causal attention of many candidates to one shared prefix (OneTrans, 2510.26104 section 3.5: serving on a cache).

Dims: C candidates, H heads, Q queries of a candidate, K keys, P prefix keys, N queries of all, d width of a head
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ctrbench.kernels.attention import attention_cost, attention_plain, lower_right
from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape

Impl = Literal["fused", "plain"]


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


def prefix_attention_cost(width: int, heads: int, own: int, prefix: int) -> Cost:
    """One candidate with `own` tokens on a prefix of `prefix` keys, the whole rectangle."""
    return attention_cost(width, heads, own, prefix + own)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    count, heads, own, prefix, width = (int(shape[n]) for n in ("candidates", "heads", "own", "prefix", "width"))

    def drawn(rows: int, tokens: int) -> Tensor:
        return torch.randn(rows, heads, tokens, width, dtype=dtype, device=device, requires_grad=True)

    return drawn(count, own), drawn(1, prefix), drawn(1, prefix), drawn(count, own), drawn(count, own)


OPERATOR = Operator(
    title="Attention to a shared prefix",
    twin=prefix_attention_plain,
    run=prefix_attention,
    paths={"fused": prefix_attention_fused},
    inputs=_inputs,
    cost=lambda s: (
        prefix_attention_cost(int(s["heads"] * s["width"]), int(s["heads"]), int(s["own"]), int(s["prefix"]))
        * s["candidates"]
    ),
    small=(
        {"candidates": 3, "heads": 2, "own": 2, "prefix": 4, "width": 3},
        {"candidates": 1, "heads": 1, "own": 1, "prefix": 1, "width": 2},
    ),
    shapes={"C512 P1024 d16": {"candidates": 512, "heads": 4, "own": 4, "prefix": 1024, "width": 16}},
    served=True,
    no_gpu="torch's flash operator takes the prefix there as well; what joins both parts is a softmax of Q + 1 values",
)

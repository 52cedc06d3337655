"""Pair attention of one request's candidates, who share the user's fields (FAT, 2511.12081 section 3.2, served).

The rows of a request are [user's fields ; a candidate's fields], and the user's Q, K and V are the same in all of them.
Scores of user against user and their weighted values are made once; where a candidate meets the user, all candidates
are one product with the user's matrix. The user's softmax goes on over a candidate's keys from its running maximum,
sum and values, so nothing is approximated.

Dims: R requests, C candidates of each, H heads, U user's fields, J candidate's fields, F = U + J, d width of a head
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape
from ctrbench.kernels.pair_attention import pair_attention_plain

Impl = Literal["fused", "plain"]
Triple = tuple[Tensor, Tensor, Tensor]


def shared_pair_attention_plain(user: Triple, own: Triple, pair_FF: Tensor) -> tuple[Tensor, Tensor]:
    """Plain twin: the user's fields copied to every candidate."""
    count, fields = own[0].shape[2], user[0].shape[2]
    q_NHFd, k_NHFd, v_NHFd = (
        torch.cat([u.unsqueeze(2).expand(-1, -1, count, -1, -1), o], dim=3).transpose(1, 2).flatten(0, 1)
        for u, o in zip(user, own, strict=True)
    )
    out_NHFd = pair_attention_plain(q_NHFd, k_NHFd, v_NHFd, pair_FF)
    out_RHCFd = out_NHFd.view(-1, count, *out_NHFd.shape[1:]).transpose(1, 2)
    return out_RHCFd[..., :fields, :], out_RHCFd[..., fields:, :]


def shared_pair_attention_fused(user: Triple, own: Triple, pair_FF: Tensor) -> tuple[Tensor, Tensor]:
    """Fast path."""
    u = user[0].shape[2]
    pair_FF = pair_FF * (1.0 / math.sqrt(user[0].shape[-1]))
    return (
        _user_queries(user, own, pair_FF[..., :u, :u], pair_FF[..., :u, u:]),
        _own_queries(user, own, pair_FF[..., u:, :u], pair_FF[..., u:, u:]),
    )


def _user_queries(user: Triple, own: Triple, among_UU: Tensor, across_UJ: Tensor) -> Tensor:
    (q_RHUd, k_RHUd, v_RHUd), (_, k_RHCJd, v_RHCJd) = user, own
    scores_RHUU = (q_RHUd @ k_RHUd.transpose(-1, -2)) * among_UU
    top_RHU = scores_RHUU.amax(dim=-1)
    shared_RHUU = (scores_RHUU - top_RHU.unsqueeze(-1)).exp()
    # Keys before queries: a reduction over a candidate's keys then runs along the user's fields.
    scores_RHCJU = (k_RHCJd.flatten(2, 3) @ q_RHUd.transpose(-1, -2)).view(*k_RHCJd.shape[:-1], -1)
    scores_RHCJU = scores_RHCJU * across_UJ.transpose(-1, -2).unsqueeze(-3)
    top_RHCU = torch.maximum(scores_RHCJU.amax(dim=-2), top_RHU.unsqueeze(2))
    scale_RHCU = (top_RHU.unsqueeze(2) - top_RHCU).exp_()
    own_RHCJU = (scores_RHCJU - top_RHCU.unsqueeze(-2)).exp_()
    total_RHCU = own_RHCJU.sum(dim=-2).addcmul_(scale_RHCU, shared_RHUU.sum(dim=-1).unsqueeze(2))
    out_RHCUd = own_RHCJU.transpose(-1, -2) @ v_RHCJd
    out_RHCUd = torch.addcmul(out_RHCUd, scale_RHCU.unsqueeze(-1), (shared_RHUU @ v_RHUd).unsqueeze(2))
    return out_RHCUd / total_RHCU.unsqueeze(-1)


def _own_queries(user: Triple, own: Triple, across_JU: Tensor, among_JJ: Tensor) -> Tensor:
    (_, k_RHUd, v_RHUd), (q_RHCJd, k_RHCJd, v_RHCJd) = user, own
    fields = k_RHUd.shape[2]
    across_RHCJU = (q_RHCJd.flatten(2, 3) @ k_RHUd.transpose(-1, -2)).view(*q_RHCJd.shape[:-1], fields)
    among_RHCJJ = q_RHCJd @ k_RHCJd.transpose(-1, -2)
    scores_RHCJF = torch.cat([across_RHCJU * across_JU.unsqueeze(-3), among_RHCJJ * among_JJ.unsqueeze(-3)], dim=-1)
    weights_RHCJF = scores_RHCJF.softmax(dim=-1)
    out_RHCJd = (weights_RHCJF[..., :fields].flatten(2, 3) @ v_RHUd).view_as(q_RHCJd)
    return out_RHCJd + weights_RHCJF[..., fields:] @ v_RHCJd


def shared_pair_attention(user: Triple, own: Triple, pair_FF: Tensor, impl: Impl = "fused") -> tuple[Tensor, Tensor]:
    """Attention over [user's fields ; a candidate's], for every candidate.

    Args:
        user: Q, K and V of the user's fields, [R, H, U, d].
        own: those of the candidates' fields, [R, H, C, J, d].
        pair_FF: weights of ordered pairs, user's fields first; [F, F] or [H, F, F].
        impl: fast path or plain twin.

    Returns:
        What the user's fields take, [R, H, C, U, d], and the candidates', [R, H, C, J, d].
    """
    run = shared_pair_attention_fused if impl == "fused" else shared_pair_attention_plain
    return run(user, own, pair_FF)


def shared_pair_attention_cost(user: int, own: int, width: int, heads: int) -> tuple[Cost, Cost]:
    """(once a request, a candidate); `width` is that of all heads."""
    pairs = (user + own) ** 2 - user**2
    once = Cost(flops=4.0 * user**2 * width, elementwise=5.0 * heads * user**2)
    return once, Cost(flops=4.0 * pairs * width, elementwise=5.0 * heads * pairs)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Triple, Triple, Tensor]:
    requests, count, heads, u, j, width = (
        int(shape[n]) for n in ("requests", "candidates", "heads", "user", "own", "width")
    )

    def three(*sizes: int) -> Triple:
        q, k, v = (torch.randn(*sizes, width, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
        return q, k, v

    pair_FF = torch.randn(u + j, u + j, dtype=dtype, device=device, requires_grad=True)
    return three(requests, heads, u), three(requests, heads, count, j), pair_FF


def _cost(s: Shape) -> Cost:
    once, each = shared_pair_attention_cost(
        int(s["user"]), int(s["own"]), int(s["heads"] * s["width"]), int(s["heads"])
    )
    return (once + each * s["candidates"]) * s["requests"]


OPERATOR = Operator(
    title="Pair attention with shared user fields (FAT, served)",
    twin=shared_pair_attention_plain,
    run=shared_pair_attention,
    paths={"fused": shared_pair_attention_fused},
    inputs=_inputs,
    cost=_cost,
    small=(
        {"requests": 2, "candidates": 3, "heads": 2, "user": 3, "own": 2, "width": 2},
        {"requests": 1, "candidates": 1, "heads": 1, "user": 1, "own": 1, "width": 2},
    ),
    shapes={
        f"C{c} U9 J4 H4 d8": {"requests": 1, "candidates": c, "heads": 4, "user": 9, "own": 4, "width": 8}
        for c in (16, 128, 512)
    },
    served=True,
    no_gpu="a few batched products over one request's candidates; between them only what a library softmax does",
)

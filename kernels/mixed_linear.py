"""One weight for all S-tokens, one for each NS-token (OneTrans, 2510.26104 section 3.3).

S- and NS-tokens stay in two tensors, so neither activations nor weights are concatenated: one GEMM for S, one batched
GEMM over NS-tokens.

Dims: B batch, S sequence tokens, N other (NS) tokens, D input width, E output width
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.linear import linear

Impl = Literal["fused", "plain"]


def mixed_linear_plain(
    s_BSD: Tensor | None, n_BND: Tensor | None, shared_DE: Tensor | None, own_NDE: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Plain twin: a weight is looked up for every token of one sequence."""
    tokens, weights = [], []
    if s_BSD is not None and shared_DE is not None:
        tokens.append(s_BSD)
        weights.append(shared_DE.expand(s_BSD.shape[1], -1, -1))
    if n_BND is not None and own_NDE is not None:
        tokens.append(n_BND)
        weights.append(own_NDE)
    y_BTE = torch.einsum("btd,tde->bte", torch.cat(tokens, dim=1), torch.cat(weights))
    split = 0 if s_BSD is None else s_BSD.shape[1]
    return None if s_BSD is None else y_BTE[:, :split], None if n_BND is None else y_BTE[:, split:]


def mixed_linear_fused(
    s_BSD: Tensor | None, n_BND: Tensor | None, shared_DE: Tensor | None, own_NDE: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Fast path."""
    s_BSE = None if s_BSD is None or shared_DE is None else linear(s_BSD, shared_DE.t())
    n_BNE = None if n_BND is None or own_NDE is None else torch.bmm(n_BND.transpose(0, 1), own_NDE).transpose(0, 1)
    return s_BSE, n_BNE


def mixed_linear(
    s_BSD: Tensor | None,
    n_BND: Tensor | None,
    shared_DE: Tensor | None,
    own_NDE: Tensor | None,
    impl: Impl = "fused",
) -> tuple[Tensor | None, Tensor | None]:
    """[B, S, D] and [B, N, D] -> [B, S, E] and [B, N, E]; a side that is None stays None (serving computes one)."""
    return (mixed_linear_fused if impl == "fused" else mixed_linear_plain)(s_BSD, n_BND, shared_DE, own_NDE)


def mixed_linear_cost(shared_tokens: float, own_tokens: float, width: int, out: int) -> Cost:
    """One sample; a token costs the same whoever owns its weight."""
    return Cost(flops=2.0 * (shared_tokens + own_tokens) * width * out, elementwise=0.0)

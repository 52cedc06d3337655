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
from ctrbench.kernels.operator import Operator, Shape, on_gpu

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
    given = s_BSD if s_BSD is not None else n_BND
    if impl == "plain" or given is None:
        return mixed_linear_plain(s_BSD, n_BND, shared_DE, own_NDE)
    return (on_gpu("mixed_linear", given) or mixed_linear_fused)(s_BSD, n_BND, shared_DE, own_NDE)


def mixed_linear_cost(shared_tokens: float, own_tokens: float, width: int, out: int) -> Cost:
    """One sample; a token costs the same whoever owns its weight."""
    return Cost(flops=2.0 * (shared_tokens + own_tokens) * width * out, elementwise=0.0)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor | None, ...]:
    batch, s, n, width, out = (int(shape[k]) for k in ("batch", "sequence", "own", "width", "out"))

    def some(*sizes: int) -> Tensor:
        return torch.randn(*sizes, dtype=dtype, device=device, requires_grad=True)

    own = (some(batch, n, width), some(n, width, out)) if n else (None, None)
    shared = (some(batch, s, width), some(width, out)) if s else (None, None)
    return shared[0], own[0], shared[1], own[1]


OPERATOR = Operator(
    title="Mixed linear layer (OneTrans)",
    twin=mixed_linear_plain,
    run=mixed_linear,
    paths={"fused": mixed_linear_fused},
    inputs=_inputs,
    cost=lambda s: mixed_linear_cost(s["sequence"], s["own"], int(s["width"]), int(s["out"])) * s["batch"],
    small=(
        {"batch": 2, "sequence": 3, "own": 2, "width": 4, "out": 3},
        {"batch": 2, "sequence": 0, "own": 2, "width": 2, "out": 2},
        {"batch": 2, "sequence": 3, "own": 0, "width": 2, "out": 2},
    ),
    shapes={
        f"B{b} S64 N{n} D{d}-{2 * d}": {"batch": b, "sequence": 64, "own": n, "width": d, "out": 2 * d}
        for b, n, d in ((256, 4, 32), (64, 12, 256))
    },
    gpu="mixed_linear",
)

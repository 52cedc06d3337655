"""Low-rank mixture cross layer of DCN-v2 (2008.13535 section 3.5).

x_{l+1} = sum_k G_k(x_l) [x0 * (U_k g(C_k g(V_k^T x_l)) + b)] + x_l, with G the softmax over experts.
The gates sum to 1, so b counts once, and sum_k G_k U_k z_k is one product of the gated z side by side with all U_k.

Dims: B batch, N width of the flattened input, K experts, R rank
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.linear import linear
from ctrbench.kernels.operator import Operator, Shape

Impl = Literal["fused", "plain"]
Act = Literal["tanh", "identity"]


def _act(x: Tensor, act: Act) -> Tensor:
    return torch.tanh(x) if act == "tanh" else x


def mixture_plain(
    x0_BN: Tensor, x_BN: Tensor, gate_BK: Tensor, u_NKR: Tensor, c_KRR: Tensor, v_KRN: Tensor, b_N: Tensor, act: Act
) -> Tensor:
    """Plain twin: the equation as printed, expert by expert."""
    out_BN = x_BN
    for k in range(v_KRN.shape[0]):
        z_BR = _act(x_BN @ v_KRN[k].t(), act)
        z_BR = _act(z_BR @ c_KRR[k].t(), act)
        out_BN = out_BN + gate_BK[:, k : k + 1] * (x0_BN * (z_BR @ u_NKR[:, k].t() + b_N))
    return out_BN


def mixture_fused(
    x0_BN: Tensor, x_BN: Tensor, gate_BK: Tensor, u_NKR: Tensor, c_KRR: Tensor, v_KRN: Tensor, b_N: Tensor, act: Act
) -> Tensor:
    """Fast path: one GEMM into all experts, one batched product, one GEMM out of them."""
    experts, rank, width = v_KRN.shape
    into_BE = linear(x_BN, v_KRN.reshape(experts * rank, width))
    return torch.addcmul(x_BN, x0_BN, mixture_inner(into_BE, gate_BK, u_NKR, c_KRR, b_N, act))


def mixture_inner(into_BE: Tensor, gate_BK: Tensor, u_NKR: Tensor, c_KRR: Tensor, b_N: Tensor, act: Act) -> Tensor:
    """sum_k G_k U_k g(C_k g(V_k^T x)) + b, [B, N], of all experts' V^T x side by side, [B, K*R]."""
    width, experts, rank = u_NKR.shape
    z_KBR = _act(into_BE, act).view(-1, experts, rank).transpose(0, 1)
    z_KBR = _act(torch.bmm(z_KBR, c_KRR.transpose(1, 2)), act)
    gated_BKR = z_KBR.transpose(0, 1) * gate_BK.unsqueeze(-1)
    return linear(gated_BKR.reshape(-1, experts * rank), u_NKR.reshape(width, experts * rank), b_N)


def mixture(
    x0_BN: Tensor, x_BN: Tensor, gate_BK: Tensor, u_NKR: Tensor, c_KRR: Tensor, v_KRN: Tensor, b_N: Tensor,
    act: Act = "tanh", impl: Impl = "fused",
) -> Tensor:  # fmt: skip
    """One layer, [B, N] -> [B, N].

    Args:
        x0_BN: the network's input.
        x_BN: the layer's input.
        gate_BK: weights of the experts; `fused` relies on their sum being 1.
        u_NKR: U, out of the experts.
        c_KRR: C, [expert, out, in].
        v_KRN: V^T, into the experts.
        b_N: bias, shared by the experts.
        act: g.
        impl: fast path or plain twin.
    """
    return (mixture_fused if impl == "fused" else mixture_plain)(x0_BN, x_BN, gate_BK, u_NKR, c_KRR, v_KRN, b_N, act)


def mixture_cost(width: int, rank: int, experts: int) -> Cost:
    """K experts of 2NR in, 2R^2 inside and 2NR out, and 2N for the gate of each."""
    flops = experts * (4.0 * width * rank + 2.0 * rank * rank + 2.0 * width)
    return Cost(flops=flops, elementwise=3.0 * width + experts * (3.0 * rank + 5.0))


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    batch, width, experts, rank = (int(shape[n]) for n in ("batch", "width", "experts", "rank"))

    def random(*size: int, over: int = 1) -> Tensor:
        return (torch.randn(size, dtype=dtype, device=device) / over**0.5).requires_grad_()

    gate_BK = random(batch, experts).detach().softmax(dim=1)  # of the network: no leaf, its sum is 1
    return (
        random(batch, width), random(batch, width), gate_BK, random(width, experts, rank, over=rank),
        random(experts, rank, rank, over=rank), random(experts, rank, width, over=width), random(width), "tanh",
    )  # fmt: skip


OPERATOR = Operator(
    title="DCN-v2 low-rank mixture cross layer",
    twin=mixture_plain,
    run=mixture,
    paths={"fused": mixture_fused},
    inputs=_inputs,
    cost=lambda s: mixture_cost(int(s["width"]), int(s["rank"]), int(s["experts"])) * s["batch"],
    small=({"batch": 3, "width": 4, "experts": 2, "rank": 2}, {"batch": 1, "width": 3, "experts": 1, "rank": 1}),
    shapes={"B4096 N390 K4 R32": {"batch": 4096, "width": 390, "experts": 4, "rank": 32}},
    no_gpu="two large GEMMs and a batched one, which ATen has; the epilogue alone would be a kernel",
)

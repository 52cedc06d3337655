"""Full-matrix cross layer of DCN-v2 (2008.13535 section 3.2): x0 * (W x + b) + x.

Dims: B batch, N width of the flattened input
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.linear import linear
from ctrbench.kernels.operator import Operator, Shape, on_gpu

Impl = Literal["fused", "plain"]


def cross_plain(x0_BN: Tensor, x_BN: Tensor, weight_NN: Tensor, bias_N: Tensor) -> Tensor:
    """Plain twin: the equation as printed, one operator a symbol."""
    return x0_BN * (x_BN @ weight_NN.t() + bias_N) + x_BN


def cross_fused(x0_BN: Tensor, x_BN: Tensor, weight_NN: Tensor, bias_N: Tensor) -> Tensor:
    """Fast path: the bias rides in the GEMM, product and sum are one pass over the activations."""
    return torch.addcmul(x_BN, x0_BN, linear(x_BN, weight_NN, bias_N))


def cross(x0_BN: Tensor, x_BN: Tensor, weight_NN: Tensor, bias_N: Tensor, impl: Impl = "fused") -> Tensor:
    """One cross layer, [B, N] -> [B, N]; `x0_BN` is the network's input, `x_BN` the layer's."""
    if impl == "plain":
        return cross_plain(x0_BN, x_BN, weight_NN, bias_N)
    return (on_gpu("cross", x_BN) or cross_fused)(x0_BN, x_BN, weight_NN, bias_N)


def cross_cost(width: int) -> Cost:
    """One GEMM of N x N; bias, product and sum are 3N element-wise operations."""
    return Cost(flops=2.0 * width * width, elementwise=3.0 * width)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    batch, width = int(shape["batch"]), int(shape["width"])
    x0_BN, x_BN = (torch.randn(batch, width, dtype=dtype, device=device, requires_grad=True) for _ in range(2))
    weight_NN = (torch.randn(width, width, dtype=dtype, device=device) / width**0.5).requires_grad_()
    return x0_BN, x_BN, weight_NN, torch.randn(width, dtype=dtype, device=device, requires_grad=True)


OPERATOR = Operator(
    title="DCN-v2 cross layer",
    twin=cross_plain,
    run=cross,
    paths={"fused": cross_fused},
    inputs=_inputs,
    cost=lambda s: cross_cost(int(s["width"])) * s["batch"],
    small=({"batch": 3, "width": 5},),
    shapes={"B4096 N390": {"batch": 4096, "width": 390}, "B4096 N624": {"batch": 4096, "width": 624}},
    gpu="cross",
)

"""Cross network of DCN (1708.05123 section 2.2): x_{l+1} = x0 (w_l . x_l) + b_l + x_l, rank one a layer.

Every layer stays in the plane of x0 and a vector that no sample changes: x_l = a_l x0 + c_l with a_0 = 1, c_0 = 0,
    a_{l+1} = a_l (1 + w_l . x0) + w_l . c_l,    c_{l+1} = c_l + b_l,
so all L layers are one product of x0 with L columns, a recursion on one number a sample, and one pass that writes x_L;
the equation as printed reads and writes [B, N] in every layer.

Dims: B batch, N width of the flattened input, L layers
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.linear import linear
from ctrbench.kernels.operator import Operator, Shape

Impl = Literal["fold", "plain"]


def cross_vector_plain(x0_BN: Tensor, weight_LN: Tensor, bias_LN: Tensor) -> Tensor:
    """Plain twin: the equation as printed, layer by layer."""
    x_BN = x0_BN
    for w_N, b_N in zip(weight_LN, bias_LN, strict=True):
        x_BN = x0_BN * (x_BN @ w_N.unsqueeze(1)) + b_N + x_BN
    return x_BN


def cross_vector_fold(x0_BN: Tensor, weight_LN: Tensor, bias_LN: Tensor) -> Tensor:
    """Fast path: the recursion on the scalars a_l."""
    until_LN = bias_LN.cumsum(dim=0) - bias_LN  # c_l: the biases of the layers before
    step_BL = linear(x0_BN, weight_LN) + 1
    shift_L = (weight_LN * until_LN).sum(dim=1)
    scale_B1 = x0_BN.new_ones(x0_BN.shape[0], 1)
    for step_B1, shift in zip(step_BL.split(1, dim=1), shift_L.unbind(), strict=True):
        scale_B1 = scale_B1 * step_B1 + shift
    return torch.addcmul(bias_LN.sum(dim=0), scale_B1, x0_BN)


def cross_vector(x0_BN: Tensor, weight_LN: Tensor, bias_LN: Tensor, impl: Impl = "fold") -> Tensor:
    """All layers of the network, [B, N] -> [B, N]."""
    return (cross_vector_fold if impl == "fold" else cross_vector_plain)(x0_BN, weight_LN, bias_LN)


def cross_vector_cost(width: int, layers: int, impl: Impl = "fold") -> Cost:
    """One dot product of N a layer in both forms; the passes over [B, N] are what `fold` saves."""
    elementwise = 3.0 * layers + 2.0 * width if impl == "fold" else 3.0 * layers * width
    return Cost(flops=2.0 * layers * width, elementwise=elementwise)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    batch, width, layers = (int(shape[n]) for n in ("batch", "width", "layers"))
    x0_BN = torch.randn(batch, width, dtype=dtype, device=device, requires_grad=True)
    weight_LN = (torch.randn(layers, width, dtype=dtype, device=device) / width**0.5).requires_grad_()
    return x0_BN, weight_LN, torch.randn(layers, width, dtype=dtype, device=device, requires_grad=True)


OPERATOR = Operator(
    title="DCN cross network",
    twin=cross_vector_plain,
    run=cross_vector,
    paths={"fold": cross_vector_fold},
    inputs=_inputs,
    cost=lambda s: cross_vector_cost(int(s["width"]), int(s["layers"])) * s["batch"],
    small=({"batch": 3, "width": 4, "layers": 2}, {"batch": 1, "width": 1, "layers": 1}),
    shapes={"B4096 N390 L3": {"batch": 4096, "width": 390, "layers": 3}},
    no_gpu="one thin GEMM and one pass over the input, both ATen's",
)

"""Second-order term of a factorisation machine: the sum of all pairwise inner products (Rendle, ICDM 2010).

Dims: B batch, F fields, D embedding width
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu

Impl = Literal["sum", "pairs"]


def fm_pairs(x_BFD: Tensor) -> Tensor:
    """Plain twin: every pair i < j is multiplied out. Returns [B]."""
    i, j = torch.triu_indices(x_BFD.shape[1], x_BFD.shape[1], offset=1, device=x_BFD.device)
    return (x_BFD[:, i] * x_BFD[:, j]).sum(dim=(1, 2))


def fm_sum(x_BFD: Tensor) -> Tensor:
    """Fast path: half the square of the sum less the sum of squares, linear in F. Returns [B]."""
    return 0.5 * (x_BFD.sum(dim=1).square().sum(dim=1) - x_BFD.square().sum(dim=(1, 2)))


def fm(x_BFD: Tensor, impl: Impl = "sum") -> Tensor:
    """Sum over i < j of <x_i, x_j>, [B, F, D] -> [B]."""
    if impl == "pairs":
        return fm_pairs(x_BFD)
    return (on_gpu("fm", x_BFD) or fm_sum)(x_BFD)


def fm_cost(fields: int, dim: int, impl: Impl = "sum") -> Cost:
    """No matrix product either way; 3FD + 3D operations against F(F-1)D for the pairs."""
    elementwise = 3 * fields * dim + 3 * dim if impl == "sum" else fields * (fields - 1) * dim
    return Cost(flops=0.0, elementwise=float(elementwise))


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    sizes = (int(shape["batch"]), int(shape["fields"]), int(shape["dim"]))
    return (torch.randn(sizes, dtype=dtype, device=device, requires_grad=True),)


OPERATOR = Operator(
    title="FM sum-square",
    twin=fm_pairs,
    run=fm,
    paths={"sum": fm_sum},
    inputs=_inputs,
    cost=lambda s: fm_cost(int(s["fields"]), int(s["dim"])) * s["batch"],
    small=({"batch": 3, "fields": 4, "dim": 2}, {"batch": 2, "fields": 1, "dim": 3}),
    shapes={
        "B4096 F39 D10": {"batch": 4096, "fields": 39, "dim": 10},
        "B4096 F39 D16": {"batch": 4096, "fields": 39, "dim": 16},
    },
    gpu="fm",
)

"""Inner products of all pairs of field vectors, each pair an output (DLRM, 1906.00091 section 2.1.3).

Dims: B batch, F vectors, D width, P = F(F-1)/2 pairs
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape


def dot_pairs(x_BFD: Tensor) -> Tensor:
    """Plain twin: pair by pair, i < j in row order. Returns [B, P]."""
    fields = x_BFD.shape[1]
    pairs = [(x_BFD[:, i] * x_BFD[:, j]).sum(dim=1) for i in range(fields) for j in range(i + 1, fields)]
    return torch.stack(pairs, dim=1) if pairs else x_BFD.new_zeros(x_BFD.shape[0], 0)


def dot_interaction(x_BFD: Tensor) -> Tensor:
    """The same as one batched product, of which the strict upper triangle is kept. Returns [B, P]."""
    fields = x_BFD.shape[1]
    i, j = torch.triu_indices(fields, fields, offset=1, device=x_BFD.device)
    return torch.bmm(x_BFD, x_BFD.transpose(1, 2)).flatten(1).index_select(1, i * fields + j)


def pairs_of(fields: int) -> int:
    """P."""
    return fields * (fields - 1) // 2


def dot_cost(fields: int, dim: int) -> Cost:
    """One row: all F x F products are made, half of them are kept."""
    return Cost(flops=2.0 * fields * fields * dim, elementwise=0.0)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    sizes = (int(shape["batch"]), int(shape["fields"]), int(shape["dim"]))
    return (torch.randn(sizes, dtype=dtype, device=device, requires_grad=True),)


OPERATOR = Operator(
    title="DLRM dot interaction",
    twin=dot_pairs,
    run=dot_interaction,
    inputs=_inputs,
    cost=lambda s: dot_cost(int(s["fields"]), int(s["dim"])) * s["batch"],
    small=({"batch": 3, "fields": 4, "dim": 2}, {"batch": 1, "fields": 2, "dim": 1}),
    shapes={"B4096 F27 D16": {"batch": 4096, "fields": 27, "dim": 16}},
    no_gpu="one batched product, ATen's; the gather of its upper triangle is what a kernel would spare",
)

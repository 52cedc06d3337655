"""Pair term of a field-aware factorisation machine: a vector for every other field (Juan et al., RecSys 2016).

Dims: B batch, F fields, S = F - 1 slots of a field, D width of a slot, P pairs
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape


def ffm_pairs(x_BFSD: Tensor) -> Tensor:
    """Plain twin: sum over i < j of <v_{i,j}, v_{j,i}>, pair by pair. Returns [B]."""
    fields = x_BFSD.shape[1]
    total = x_BFSD.new_zeros(x_BFSD.shape[0])
    for i in range(fields):
        for j in range(i + 1, fields):
            total = total + (x_BFSD[:, i, j - 1] * x_BFSD[:, j, i]).sum(dim=1)
    return total


def ffm(x_BFSD: Tensor) -> Tensor:
    """The same as one dot product a row of all left sides with all right sides. Returns [B].

    Slot j of field i is the vector of field j if j < i, else of field j + 1.
    """
    batch, fields = x_BFSD.shape[:2]
    i, j = torch.triu_indices(fields, fields, offset=1, device=x_BFSD.device)
    slots_BKD = x_BFSD.flatten(1, 2)
    left_BPD = slots_BKD.index_select(1, i * (fields - 1) + j - 1)
    right_BPD = slots_BKD.index_select(1, j * (fields - 1) + i)
    return torch.bmm(left_BPD.reshape(batch, 1, -1), right_BPD.reshape(batch, -1, 1)).view(batch)


def ffm_cost(fields: int, dim: int) -> Cost:
    """F(F-1)/2 dot products of D values."""
    return Cost(flops=float(fields * (fields - 1) * dim), elementwise=0.0)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    batch, fields, dim = (int(shape[n]) for n in ("batch", "fields", "dim"))
    return (torch.randn(batch, fields, fields - 1, dim, dtype=dtype, device=device, requires_grad=True),)


OPERATOR = Operator(
    title="FFM pair term",
    twin=ffm_pairs,
    run=ffm,
    inputs=_inputs,
    cost=lambda s: ffm_cost(int(s["fields"]), int(s["dim"])) * s["batch"],
    small=({"batch": 3, "fields": 4, "dim": 2}, {"batch": 1, "fields": 2, "dim": 1}),
    shapes={"B1024 F39 D4": {"batch": 1024, "fields": 39, "dim": 4}},
    no_gpu="two gathers and a dot product a row, bound by memory: a kernel would spare the gathered copies alone",
)

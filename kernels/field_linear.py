"""One linear map a field (FAT, 2511.12081 section 3.2).

Activations are field-major, [F, B, D]: each field's rows are then one GEMM of a batched product without a copy.
Measured, one CPU thread, F=39, B=256, 32 -> 96, forward + backward: field-major bmm 5.1 ms, bmm on a strided view of
[B, F, D] 5.7, einsum 6.0. Composing 39 sets of 7,168 weights of K=3 out of M=8 (64) bases: the dense product of a
zero-filled [F, M] with the bases 1.0 (3.4) ms, gather and batched product 3.8 (4.0), embedding_bag 2.4 (2.5).

Dims: F fields, B batch, D input width, E output width, K chosen bases, M bases, N weights of one basis
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu

Impl = Literal["fused", "plain"]


def field_linear_plain(x_FBD: Tensor, weight_FDE: Tensor) -> Tensor:
    """Plain twin: the definition as an einsum."""
    return torch.einsum("fbd,fde->fbe", x_FBD, weight_FDE)


def field_linear(x_FBD: Tensor, weight_FDE: Tensor, impl: Impl = "fused") -> Tensor:
    """[F, B, D] and one [D, E] a field -> [F, B, E]; Q, K and V ride in one weight of 3D columns."""
    if impl == "plain":
        return field_linear_plain(x_FBD, weight_FDE)
    return (on_gpu("field_linear", x_FBD) or torch.bmm)(x_FBD, weight_FDE)


def field_projections_plain(x_FBD: Tensor, *weights: Tensor) -> Tensor:
    """Plain twin: FAT's definition, an einsum a projection, what they give side by side."""
    return torch.cat([torch.einsum("fbd,fde->fbe", x_FBD, w_FDE) for w_FDE in weights], dim=-1)


def field_projections(x_FBD: Tensor, *weights: Tensor) -> Tensor:
    """Several projections of the same activations, [F, B, D] and weights [F, D, E] -> [F, B, ΣE].

    The weights are put side by side, which depends on no sample, and one batched product takes them all.
    """
    return field_linear(x_FBD, torch.cat(weights, dim=-1))


def field_linear_cost(fields: int, width: int, out: int) -> Cost:
    """One sample."""
    return Cost(flops=2.0 * fields * width * out, elementwise=0.0)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Activations lie row by row, as embedding leaves them: neither side gets them field-major."""
    batch, fields, width = (int(shape[n]) for n in ("batch", "fields", "width"))
    x_FBD = torch.randn(batch, fields, width, dtype=dtype, device=device).transpose(0, 1).requires_grad_()
    weights = (torch.randn(fields, width, width, dtype=dtype, device=device) / width**0.5 for _ in range(3))
    return x_FBD, *(w.requires_grad_() for w in weights)


OPERATOR = Operator(
    title="FAT's grouped projections",
    twin=field_projections_plain,
    run=field_projections,
    inputs=_inputs,
    cost=lambda s: field_linear_cost(int(s["fields"]), int(s["width"]), 3 * int(s["width"])) * s["batch"],
    small=({"batch": 3, "fields": 4, "width": 5}, {"batch": 1, "fields": 1, "width": 2}),
    shapes={
        f"B{b} F39 D{d}": {"batch": b, "fields": 39, "width": d}
        for b, d in ((256, 32), (1024, 32), (4096, 32), (256, 128), (1024, 128))
    },
    gpu="field_linear",
)
"""Twin and run get the same activations and three weights and return Q, K and V in one tensor."""

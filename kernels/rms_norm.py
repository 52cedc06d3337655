"""RMS norm of a residual sum (1910.07467): h = x + y, n = h / sqrt(mean(h^2) + eps) * gain.

torch makes it of five operators and as many passes on CPU, and of more in the backward pass. Here it is one node that
keeps the sum and one number a row.

Dims: M rows, D width
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu

Impl = Literal["fused", "plain"]


def rms_norm_plain(x: Tensor, y: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Plain twin: the equation."""
    h = x if y is None else x + y
    return h * torch.rsqrt(h.square().mean(dim=-1, keepdim=True) + eps) * gain_D, h


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        h = x if y is None else x + y
        norm = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
        inverse = norm.square_().div_(h.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(h, inverse, gain_D)
        ctx.both = y is not None
        if y is None:
            ctx.mark_non_differentiable(h)
        return (h * inverse).mul_(gain_D), h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_h: Tensor | None) -> tuple[Tensor | None, ...]:
        h, inverse, gain_D = ctx.saved_tensors
        unit = h * inverse
        of_gain_D = (unit * grad).flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[2] else None
        scaled = grad * gain_D
        along = torch.linalg.vecdot(scaled, unit, dim=-1).div_(-h.shape[-1]).unsqueeze(-1)
        of_h = scaled.addcmul_(unit, along).mul_(inverse)
        if ctx.both and grad_h is not None:
            of_h += grad_h
        return of_h, of_h if ctx.both else None, of_gain_D, None


def rms_norm_fused(x: Tensor, y: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Fast path on CPU: one node. Not differentiable twice."""
    normed, h = _RmsNorm.apply(x, y, gain_D, eps)
    return normed, x if y is None else h


def rms_norm(
    x: Tensor, y: Tensor | None, gain_D: Tensor, eps: float = 1e-6, impl: Impl = "fused"
) -> tuple[Tensor, Tensor]:
    """(norm of the sum, the sum), each [..., D].

    Args:
        x: what the residual branch left, [..., D].
        y: what is added to it, or None.
        gain_D: of the norm.
        eps: under the root.
        impl: `plain` is the twin that tests compare with.
    """
    if impl == "plain":
        return rms_norm_plain(x, y, gain_D, eps)
    return (on_gpu("rms_norm", x) or rms_norm_fused)(x, y, gain_D, eps)


def rms_norm_cost(width: int, residual: bool = True) -> Cost:
    """One row: square, add, scale and gain an element, and the residual sum."""
    return Cost(flops=0.0, elementwise=(4.0 + residual) * width)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    rows, width = int(shape["rows"]), int(shape["width"])
    x, y = (torch.randn(rows, width, dtype=dtype, device=device, requires_grad=True) for _ in range(2))
    gain_D = (1 + 0.1 * torch.randn(width, dtype=dtype, device=device)).requires_grad_()
    return x, y if shape.get("residual", 1) else None, gain_D, 1e-6


OPERATOR = Operator(
    title="RMS norm with residual",
    twin=rms_norm_plain,
    run=rms_norm,
    paths={"fused": rms_norm_fused},
    inputs=_inputs,
    cost=lambda s: rms_norm_cost(int(s["width"]), bool(s.get("residual", 1))) * s["rows"],
    small=({"rows": 3, "width": 5}, {"rows": 2, "width": 3, "residual": 0}, {"rows": 1, "width": 1}),
    shapes={f"M{m} D{d}": {"rows": m, "width": d} for m, d in ((16384, 32), (16384, 256))},
    gpu="rms_norm",
)

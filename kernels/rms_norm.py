"""RMS norm of a residual sum (1910.07467): h = x + y, n = h / sqrt(mean(h^2) + eps) * gain.

torch makes it of five operators and as many passes on CPU, and of more in the backward pass. The fast path is one node
that keeps the sum and one number a row; under a million elements torch's own is as fast.

Dims: M rows, m rows at a time, D width
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu

Impl = Literal["fused", "plain"]

IN_CACHE, MANY = 1 << 18, 1 << 20
"""Elements at a time, and elements of a call from which one node pays; docs/performance/transformer_operators.md."""


def rms_norm_plain(x: Tensor, y: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Plain twin: the equation."""
    h = x if y is None else x + y
    return h * torch.rsqrt(h.square().mean(dim=-1, keepdim=True) + eps) * gain_D, h


def rms_norm_torch(x: Tensor, y: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """torch's own, for any device and under the compiler."""
    h = x if y is None else x + y
    return functional.rms_norm(h, h.shape[-1:], gain_D, eps), h


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, y_MD: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        rows, width = x_MD.shape
        h_MD = x_MD if y_MD is None else torch.empty_like(x_MD)
        normed_MD, inverse_M1 = torch.empty_like(x_MD), x_MD.new_empty(rows, 1)
        for at in _chunks(rows, width):
            h_mD = h_MD[at]
            if y_MD is not None:
                torch.add(x_MD[at], y_MD[at], out=h_mD)
            inverse_m1 = torch.linalg.vector_norm(h_mD, dim=1, keepdim=True, out=inverse_M1[at])
            inverse_m1.square_().div_(width).add_(eps).rsqrt_()
            torch.mul(h_mD, inverse_m1, out=normed_MD[at]).mul_(gain_D)
        ctx.save_for_backward(h_MD, inverse_M1, gain_D)
        ctx.set_materialize_grads(False)
        ctx.summed = y_MD is not None
        if y_MD is None:
            h_MD = h_MD.new_empty(0)
        return normed_MD, h_MD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_MD: Tensor | None, grad_h_MD: Tensor | None) -> tuple[Tensor | None, ...]:
        h_MD, inverse_M1, gain_D = ctx.saved_tensors
        grad_MD = torch.zeros_like(h_MD) if grad_MD is None else grad_MD
        of_h_MD, of_gain_D = torch.empty_like(h_MD), torch.zeros_like(gain_D)
        for at in _chunks(*h_MD.shape):
            unit_mD, grad_mD = h_MD[at] * inverse_M1[at], grad_MD[at]
            of_h_mD = torch.mul(grad_mD, gain_D, out=of_h_MD[at])
            along_m1 = torch.linalg.vecdot(of_h_mD, unit_mD).div_(-h_MD.shape[1]).unsqueeze(1)
            of_h_mD.addcmul_(unit_mD, along_m1).mul_(inverse_M1[at])
            of_gain_D += unit_mD.mul_(grad_mD).sum(dim=0)
            if grad_h_MD is not None and ctx.summed:
                of_h_mD += grad_h_MD[at]
        return of_h_MD, of_h_MD if ctx.summed else None, of_gain_D, None


def _chunks(rows: int, width: int) -> Iterator[slice]:
    size = max(1, IN_CACHE // max(width, 1))
    return (slice(at, min(at + size, rows)) for at in range(0, rows, size))


def rms_norm_fused(x: Tensor, y: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Fast path on CPU: one node, all passes over a few rows while they are in cache. Not differentiable twice."""
    width = x.shape[-1]
    flat_y_MD = None if y is None else y.reshape(-1, width)
    normed_MD, h_MD = _RmsNorm.apply(x.reshape(-1, width), flat_y_MD, gain_D, eps)
    return normed_MD.view(x.shape), x if y is None else h_MD.view(x.shape)


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
    fast = on_gpu("rms_norm", x)
    if fast is None:
        own = x.device.type == "cpu" and x.dtype == gain_D.dtype and x.numel() >= MANY
        fast = rms_norm_fused if own and not torch.compiler.is_compiling() else rms_norm_torch
    return fast(x, y, gain_D, eps)


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
    paths={"fused": rms_norm_fused, "torch": rms_norm_torch},
    inputs=_inputs,
    cost=lambda s: rms_norm_cost(int(s["width"]), bool(s.get("residual", 1))) * s["rows"],
    small=({"rows": 3, "width": 5}, {"rows": 2, "width": 3, "residual": 0}, {"rows": 1, "width": 1}),
    shapes={f"M{m} D{d}": {"rows": m, "width": d} for m, d in ((16384, 32), (16384, 256))},
    gpu="rms_norm",
)

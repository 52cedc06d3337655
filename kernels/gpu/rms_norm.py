"""Residual sum and RMS norm on CUDA: one pass over the rows forward, one backward.

Dims: N rows, D width, P programs
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctrbench.kernels.gpu.kernel import TYPES, Kernel, Tiles, by_type, padded, takes
from ctrbench.kernels.rms_norm import rms_norm_fused

MOST_WIDTH = 4096
"""Widest row that a program holds."""
PROGRAMS = 256
"""Groups of rows whose parts of the gain's gradient are summed by ATen."""


@triton.jit
def _forward(
    x, y, gain, out, total, rstd, N, D, eps, ADD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < N) & (cols[None, :] < D)
    at = rows[:, None].to(tl.int64) * D + cols[None, :]
    z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        z += tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + at, z, mask=inside)
    r = 1.0 / tl.sqrt(tl.sum(z * z, axis=1) / D + eps)
    tl.store(rstd + rows, r, mask=rows < N)
    g = tl.load(gain + cols, mask=cols < D, other=0.0).to(tl.float32)
    tl.store(out + at, z * r[:, None] * g[None, :], mask=inside)


@triton.jit
def _backward(
    grad, grad_total, total, gain, rstd, d_x, d_gain, N, D, ROWS, ADD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, BLOCK_D)
    first = tl.program_id(0) * ROWS
    scale = tl.load(gain + cols, mask=cols < D, other=0.0).to(tl.float32)
    of_gain = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for start in range(first, first + ROWS, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        inside = (rows[:, None] < N) & (cols[None, :] < D)
        at = rows[:, None].to(tl.int64) * D + cols[None, :]
        r = tl.load(rstd + rows, mask=rows < N, other=0.0)[:, None]
        normed = tl.load(total + at, mask=inside, other=0.0).to(tl.float32) * r
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        of_gain += tl.sum(g * normed, axis=0)
        g *= scale[None, :]
        d = r * (g - normed * (tl.sum(g * normed, axis=1) / D)[:, None])
        if ADD:
            d += tl.load(grad_total + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_x + at, d, mask=inside)
    tl.store(d_gain + tl.program_id(0) * D + cols, of_gain, mask=cols < D)


def _tiles(dtype: str, width: int) -> Tiles:
    block = padded(width)
    rows = max(1, 1024 // block)
    return {"BLOCK_N": rows, "BLOCK_D": block, "num_warps": 8 if block >= 2048 else 4, "num_stages": 1}


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, y_ND: Tensor | None, gain_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor | None]:
        (n, width), tiles = x_ND.shape, _tiles(TYPES[x_ND.dtype], x_ND.shape[1])
        out_ND, rstd_N = torch.empty_like(x_ND), x_ND.new_empty(n, dtype=torch.float32)
        total_ND = x_ND if y_ND is None else torch.empty_like(x_ND)
        _forward[(triton.cdiv(n, tiles["BLOCK_N"]),)](
            x_ND, x_ND if y_ND is None else y_ND, gain_D, out_ND, total_ND, rstd_N, n, width, eps,
            ADD=y_ND is not None, **tiles,
        )  # fmt: skip
        ctx.save_for_backward(total_ND, gain_D, rstd_N)
        ctx.both = y_ND is not None
        ctx.set_materialize_grads(False)
        return out_ND, total_ND if ctx.both else None

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ND: Tensor | None, grad_total_ND: Tensor | None) -> tuple[Tensor | None, ...]:
        total_ND, gain_D, rstd_N = ctx.saved_tensors
        if grad_ND is None:
            return grad_total_ND, grad_total_ND if ctx.both else None, None, None
        (n, width), tiles = total_ND.shape, _tiles(TYPES[total_ND.dtype], total_ND.shape[1])
        each = triton.cdiv(triton.cdiv(n, tiles["BLOCK_N"]), PROGRAMS) * tiles["BLOCK_N"]
        programs = triton.cdiv(n, each)
        d_x_ND, grad_ND = torch.empty_like(total_ND), grad_ND.contiguous()
        parts_PD = total_ND.new_empty(programs, width, dtype=torch.float32)
        _backward[(programs,)](
            grad_ND, grad_ND if grad_total_ND is None else grad_total_ND.contiguous(), total_ND, gain_D, rstd_N,
            d_x_ND, parts_PD, n, width, each, ADD=grad_total_ND is not None, **tiles,
        )  # fmt: skip
        return d_x_ND, d_x_ND if ctx.both else None, parts_PD.sum(dim=0).to(gain_D.dtype), None


def rms_norm(x: Tensor, y: Tensor | None, gain_D: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(norm of the sum, the sum), [..., D] each; rows wider than 4,096 and mixed types go to ATen."""
    if not takes(x, y, gain_D) or x.shape[-1] > MOST_WIDTH or (y is not None and y.shape != x.shape):
        return rms_norm_fused(x, y, gain_D, eps)
    flat = (None if t is None else t.reshape(-1, x.shape[-1]).contiguous() for t in (x, y))
    out_ND, total_ND = _RmsNorm.apply(*flat, gain_D.contiguous(), eps)
    return out_ND.view(x.shape), x if total_ND is None else total_ND.view(x.shape)


KERNELS = (
    Kernel(fn=_forward, args="*T *T *T *T *T *fp32 i32 I32 fp32", tiles=by_type(_tiles, 256, ADD=True)),
    Kernel(fn=_backward, args="*T *T *T *T *fp32 *T *fp32 i32 I32 i32", tiles=by_type(_tiles, 256, ADD=True)),
)

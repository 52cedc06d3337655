"""Sum over pairs of a factorisation machine on CUDA: the fields are read once, only their sum is kept for the gradient.

Dims: B batch, F fields, D embedding width
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctrbench.kernels.fm import fm_sum
from ctrbench.kernels.gpu.kernel import TYPES, Kernel, Tiles, by_type, padded, rows_per_program, takes


@triton.jit
def _forward(x, out, total, B, F, D: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr):
    rows, width = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < B) & (width[None, :] < D)
    at = rows[:, None].to(tl.int64) * F * D + width[None, :]
    sums = tl.zeros((BLOCK_B, BLOCK_D), dtype=tl.float32)
    squares = tl.zeros((BLOCK_B, BLOCK_D), dtype=tl.float32)
    for f in range(0, F):
        x_tile = tl.load(x + at + f * D, mask=inside, other=0.0).to(tl.float32)
        sums += x_tile
        squares += x_tile * x_tile
    tl.store(total + rows[:, None] * D + width[None, :], sums, mask=inside)
    tl.store(out + rows, 0.5 * tl.sum(sums * sums - squares, axis=1), mask=rows < B)


@triton.jit
def _backward(grad, x, total, d_x, B, F, D: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr):
    rows, width = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < B) & (width[None, :] < D)
    at = rows[:, None].to(tl.int64) * F * D + width[None, :]
    g = tl.load(grad + rows, mask=rows < B, other=0.0).to(tl.float32)[:, None]
    sums = tl.load(total + rows[:, None] * D + width[None, :], mask=inside, other=0.0)
    for f in range(0, F):
        x_tile = tl.load(x + at + f * D, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_x + at + f * D, g * (sums - x_tile), mask=inside)


def _tiles(dtype: str, width: int) -> Tiles:
    block = padded(width)
    return {"D": width, "BLOCK_D": block, "BLOCK_B": rows_per_program(block, 32), "num_warps": 4, "num_stages": 2}


class _Fm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BFD: Tensor) -> Tensor:
        batch, fields, width = x_BFD.shape
        x_BFD, tiles = x_BFD.contiguous(), _tiles(TYPES[x_BFD.dtype], width)
        out_B, total_BD = x_BFD.new_empty(batch), x_BFD.new_empty(batch, width, dtype=torch.float32)
        _forward[(triton.cdiv(batch, tiles["BLOCK_B"]),)](x_BFD, out_B, total_BD, batch, fields, **tiles)
        ctx.save_for_backward(x_BFD, total_BD)
        return out_B

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> Tensor:
        x_BFD, total_BD = ctx.saved_tensors
        batch, fields, width = x_BFD.shape
        tiles, d_x_BFD = _tiles(TYPES[x_BFD.dtype], width), torch.empty_like(x_BFD)
        grid = (triton.cdiv(batch, tiles["BLOCK_B"]),)
        _backward[grid](grad_B.contiguous(), x_BFD, total_BD, d_x_BFD, batch, fields, **tiles)
        return d_x_BFD


def fm(x_BFD: Tensor) -> Tensor:
    """Sum over i < j of <x_i, x_j>, [B, F, D] -> [B]; widths over 1,024 go to ATen."""
    return _Fm.apply(x_BFD) if takes(x_BFD) and x_BFD.shape[2] <= 1024 else fm_sum(x_BFD)


KERNELS = (
    Kernel(fn=_forward, args="*T *T *fp32 i32 i32", tiles=by_type(_tiles, 16)),
    Kernel(fn=_backward, args="*T *T *fp32 *T i32 i32", tiles=by_type(_tiles, 16)),
)

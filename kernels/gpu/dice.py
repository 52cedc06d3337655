"""Dice on CUDA: two passes over the rows forward and two backward, nothing but the input kept between them.

Statistics of a program's rows are its count, mean and sum of squared differences, joined without cancellation.

Dims: N rows, O channels, P programs a column of blocks
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctrbench.kernels.dice import dice_fused
from ctrbench.kernels.gpu.kernel import TYPES, Kernel, Tiles, by_type, takes

PROGRAMS = 256
"""Blocks of rows whose sums are joined by ATen."""


@triton.jit
def _moments(x, mask, parts, N, OUT, ROWS, MASKED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr):
    cols = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    count = 0.0
    mean = tl.zeros((BLOCK_O,), dtype=tl.float32)
    m2 = tl.zeros((BLOCK_O,), dtype=tl.float32)
    first = tl.program_id(0) * ROWS
    for start in range(first, first + ROWS, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        inside = rows < N
        if MASKED:
            inside = inside & (tl.load(mask + rows, mask=inside, other=0.0) != 0.0)
        at = rows[:, None].to(tl.int64) * OUT + cols[None, :]
        x_tile = tl.load(x + at, mask=inside[:, None] & (cols[None, :] < OUT), other=0.0).to(tl.float32)
        here = tl.sum(inside.to(tl.float32), axis=0)
        here_mean = tl.sum(x_tile, axis=0) / tl.maximum(here, 1.0)
        off = tl.where(inside[:, None], x_tile - here_mean[None, :], 0.0)
        both = tl.maximum(count + here, 1.0)
        shift = here_mean - mean
        m2 += tl.sum(off * off, axis=0) + shift * shift * (count * here / both)
        mean += shift * (here / both)
        count += here
    at = tl.program_id(0) * 3 * OUT + cols
    tl.store(parts + at, tl.zeros((BLOCK_O,), dtype=tl.float32) + count, mask=cols < OUT)
    tl.store(parts + at + OUT, mean, mask=cols < OUT)
    tl.store(parts + at + 2 * OUT, m2, mask=cols < OUT)


@triton.jit
def _apply(x, alpha, mean, rstd, out, N, OUT, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    inside = (rows[:, None] < N) & (cols[None, :] < OUT)
    at = rows[:, None].to(tl.int64) * OUT + cols[None, :]
    a = tl.load(alpha + cols, mask=cols < OUT, other=0.0).to(tl.float32)[None, :]
    x_tile = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    z = x_tile - tl.load(mean + cols, mask=cols < OUT, other=0.0)[None, :]
    p = tl.sigmoid(z * tl.load(rstd + cols, mask=cols < OUT, other=0.0)[None, :])
    tl.store(out + at, (a + (1.0 - a) * p) * x_tile, mask=inside)


@triton.jit
def _sums(
    grad, x, mean, rstd, parts, N, OUT, ROWS, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr
):  # fmt: skip
    """Sums over rows of g x, g x p, s and s z with s = g x p (1 - p), the gradient of z less its factor 1 - alpha."""
    cols = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    m = tl.load(mean + cols, mask=cols < OUT, other=0.0)[None, :]
    r = tl.load(rstd + cols, mask=cols < OUT, other=0.0)[None, :]
    t_sum = tl.zeros((BLOCK_O,), dtype=tl.float32)
    tp_sum = tl.zeros((BLOCK_O,), dtype=tl.float32)
    s_sum = tl.zeros((BLOCK_O,), dtype=tl.float32)
    sz_sum = tl.zeros((BLOCK_O,), dtype=tl.float32)
    first = tl.program_id(0) * ROWS
    for start in range(first, first + ROWS, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        inside = (rows[:, None] < N) & (cols[None, :] < OUT)
        at = rows[:, None].to(tl.int64) * OUT + cols[None, :]
        x_tile = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32) * x_tile
        z = (x_tile - m) * r
        p = tl.sigmoid(z)
        s = t * p * (1.0 - p)
        t_sum += tl.sum(t, axis=0)
        tp_sum += tl.sum(t * p, axis=0)
        s_sum += tl.sum(s, axis=0)
        sz_sum += tl.sum(s * z, axis=0)
    at = tl.program_id(0) * 4 * OUT + cols
    tl.store(parts + at, t_sum, mask=cols < OUT)
    tl.store(parts + at + OUT, tp_sum, mask=cols < OUT)
    tl.store(parts + at + 2 * OUT, s_sum, mask=cols < OUT)
    tl.store(parts + at + 3 * OUT, sz_sum, mask=cols < OUT)


@triton.jit
def _backward(
    grad, x, mask, alpha, mean, rstd, s_mean, sz_mean, d_x, N, OUT,
    MASKED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    inside = (rows[:, None] < N) & (cols[None, :] < OUT)
    at = rows[:, None].to(tl.int64) * OUT + cols[None, :]
    a = tl.load(alpha + cols, mask=cols < OUT, other=0.0).to(tl.float32)[None, :]
    r = tl.load(rstd + cols, mask=cols < OUT, other=0.0)[None, :]
    x_tile = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    z = (x_tile - tl.load(mean + cols, mask=cols < OUT, other=0.0)[None, :]) * r
    p = tl.sigmoid(z)
    through = tl.load(s_mean + cols, mask=cols < OUT, other=0.0)[None, :]
    through += z * tl.load(sz_mean + cols, mask=cols < OUT, other=0.0)[None, :]
    if MASKED:
        through *= tl.load(mask + rows, mask=rows < N, other=0.0).to(tl.float32)[:, None]
    s = g * x_tile * p * (1.0 - p) - through
    tl.store(d_x + at, (a + (1.0 - a) * p) * g + s * (1.0 - a) * r, mask=inside)


def _tiles(dtype: str) -> Tiles:
    return {"BLOCK_N": 32, "BLOCK_O": 64, "num_warps": 4, "num_stages": 1}


def _grids(x_NO: Tensor, tiles: Tiles) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(grid that covers all rows, grid of the sums, rows of one of its programs)."""
    columns = triton.cdiv(x_NO.shape[1], tiles["BLOCK_O"])
    blocks = triton.cdiv(len(x_NO), tiles["BLOCK_N"])
    each = triton.cdiv(blocks, PROGRAMS)
    return (blocks, columns), (triton.cdiv(blocks, each), columns), each * tiles["BLOCK_N"]


class _Dice(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NO: Tensor, mask_N: Tensor | None, alpha_O: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, out = x_NO.shape
        tiles = _tiles(TYPES[x_NO.dtype])
        all_rows, some_rows, rows = _grids(x_NO, tiles)
        parts_P3O = x_NO.new_empty(some_rows[0], 3, out, dtype=torch.float32)
        _moments[some_rows](
            x_NO, x_NO if mask_N is None else mask_N, parts_P3O, n, out, rows, mask_N is not None, **tiles
        )
        count_PO, mean_PO, m2_PO = parts_P3O.unbind(1)
        count_O = count_PO.sum(0).clamp(min=1)
        mean_O = (count_PO * mean_PO).sum(0) / count_O
        var_O = (m2_PO + count_PO * (mean_PO - mean_O).square()).sum(0) / count_O
        rstd_O, out_NO = torch.rsqrt(var_O + eps), torch.empty_like(x_NO)
        _apply[all_rows](x_NO, alpha_O, mean_O, rstd_O, out_NO, n, out, **tiles)
        ctx.save_for_backward(x_NO, mask_N, alpha_O, mean_O, rstd_O, count_O)
        mean_O, var_O = mean_O.to(x_NO.dtype), var_O.to(x_NO.dtype)
        ctx.mark_non_differentiable(mean_O, var_O)
        return out_NO, mean_O, var_O

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NO: Tensor, *_: Tensor) -> tuple[Tensor, None, Tensor, None]:
        x_NO, mask_N, alpha_O, mean_O, rstd_O, count_O = ctx.saved_tensors
        n, out = x_NO.shape
        tiles, grad_NO = _tiles(TYPES[x_NO.dtype]), grad_NO.contiguous()
        all_rows, some_rows, rows = _grids(x_NO, tiles)
        parts_P4O = x_NO.new_empty(some_rows[0], 4, out, dtype=torch.float32)
        _sums[some_rows](grad_NO, x_NO, mean_O, rstd_O, parts_P4O, n, out, rows, **tiles)
        t_O, tp_O, s_O, sz_O = parts_P4O.sum(0)
        d_x_NO = torch.empty_like(x_NO)
        _backward[all_rows](
            grad_NO, x_NO, x_NO if mask_N is None else mask_N, alpha_O, mean_O, rstd_O, s_O / count_O, sz_O / count_O,
            d_x_NO, n, out, mask_N is not None, **tiles,
        )  # fmt: skip
        return d_x_NO, None, (t_O - tp_O).to(alpha_O.dtype), None


def dice_rows(x_NO: Tensor, mask_N: Tensor | None, alpha_O: Tensor, eps: float = 1e-9) -> tuple[Tensor, Tensor, Tensor]:
    """Dice of flat rows; without a mask all of them are valid."""
    return _Dice.apply(x_NO.contiguous(), mask_N, alpha_O, eps)


def dice(x_NO: Tensor, mask_N: Tensor, alpha_O: Tensor, eps: float = 1e-9) -> tuple[Tensor, Tensor, Tensor]:
    """Dice over the rows in `mask_N`: out [N, O], mean [O] and biased variance [O]."""
    if not takes(x_NO, alpha_O):
        return dice_fused(x_NO, mask_N, alpha_O, eps)
    mask = mask_N.to(x_NO.dtype).reshape(-1).contiguous()
    out_NO, mean_O, var_O = dice_rows(x_NO.reshape(-1, x_NO.shape[-1]), mask, alpha_O, eps)
    return out_NO.view(x_NO.shape), mean_O, var_O


KERNELS = (
    Kernel(fn=_moments, args="*T *T *fp32 i32 I32 i32", tiles=by_type(_tiles, MASKED=True)),
    Kernel(fn=_apply, args="*T *T *fp32 *fp32 *T i32 I32", tiles=by_type(_tiles)),
    Kernel(fn=_sums, args="*T *T *fp32 *fp32 *fp32 i32 I32 i32", tiles=by_type(_tiles)),
    Kernel(
        fn=_backward,
        args="*T *T *T *T *fp32 *fp32 *fp32 *fp32 *T i32 I32",
        tiles=by_type(_tiles, MASKED=True),
    ),
)

"""Cross layer on CUDA: one kernel for product, bias, x0 * and + x; one for what the backward pass does a value.

The two products of the backward pass are ATen's: `grad + d Wᵀ` is its addmm, whose epilogue already adds.

Dims: B batch, N width
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctrbench.kernels.cross import cross_fused
from ctrbench.kernels.gpu.kernel import (
    TYPES,
    Kernel,
    Tiles,
    by_product,
    by_type,
    cast,
    element_type,
    precision,
    product,
    product_tiles,
    takes,
)


@triton.jit
def _forward(
    x0, x, weight, bias, out, inner, B, N,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, col = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    acc = product(x, weight, row, col, B, N, N, N, 1, 1, N, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
    rows, cols = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
    acc += tl.load(bias + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    at = rows[:, None].to(tl.int64) * N + cols[None, :]
    inside = (rows[:, None] < B) & (cols[None, :] < N)
    tl.store(inner + at, acc, mask=inside)
    x0_tile = tl.load(x0 + at, mask=inside, other=0.0).to(tl.float32)
    x_tile = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, x0_tile * acc + x_tile, mask=inside)


@triton.jit
def _backward(
    grad, x0, inner, d_inner, d_x0, d_bias, B, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    at = rows[:, None].to(tl.int64) * N + cols[None, :]
    inside = (rows[:, None] < B) & (cols[None, :] < N)
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    d = g * tl.load(x0 + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(d_inner + at, d, mask=inside)
    tl.store(d_x0 + at, g * tl.load(inner + at, mask=inside, other=0.0).to(tl.float32), mask=inside)
    tl.store(d_bias + tl.program_id(0).to(tl.int64) * N + cols, tl.sum(d, axis=0), mask=cols < N)


def _forward_tiles(dtype: str) -> Tiles:
    """Eight warps in TF32: rows of an odd width are loaded value by value, which with four spills."""
    return {**product_tiles(dtype), "num_warps": 8} if dtype == "tf32" else product_tiles(dtype)


def _backward_tiles(dtype: str) -> Tiles:
    return {"BLOCK_M": 16, "BLOCK_N": 128, "num_warps": 4, "num_stages": 1}


class _Cross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x0_BN: Tensor, x_BN: Tensor, weight_NN: Tensor, bias_N: Tensor) -> Tensor:
        (batch, width), tiles = x_BN.shape, _forward_tiles(element_type(x_BN))
        x0_BN, x_BN, weight_NN = x0_BN.contiguous(), x_BN.contiguous(), weight_NN.contiguous()
        out_BN, inner_BN = torch.empty_like(x_BN), torch.empty_like(x_BN)
        grid = (triton.cdiv(batch, tiles["BLOCK_M"]), triton.cdiv(width, tiles["BLOCK_N"]))
        _forward[grid](x0_BN, x_BN, weight_NN, bias_N, out_BN, inner_BN, batch, width, PRECISION=precision(), **tiles)
        ctx.save_for_backward(x0_BN, x_BN, weight_NN, inner_BN)
        return out_BN

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BN: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x0_BN, x_BN, weight_NN, inner_BN = ctx.saved_tensors
        (batch, width), tiles = x_BN.shape, _backward_tiles(TYPES[x_BN.dtype])
        grad_BN = grad_BN.contiguous()
        grid = (triton.cdiv(batch, tiles["BLOCK_M"]), triton.cdiv(width, tiles["BLOCK_N"]))
        d_inner_BN, d_x0_BN = torch.empty_like(x_BN), torch.empty_like(x_BN)
        parts_PN = torch.empty(grid[0], width, dtype=torch.float32, device=x_BN.device)
        _backward[grid](grad_BN, x0_BN, inner_BN, d_inner_BN, d_x0_BN, parts_PN, batch, width, **tiles)
        d_x_BN = torch.addmm(grad_BN, d_inner_BN, weight_NN)
        return d_x0_BN, d_x_BN, d_inner_BN.t() @ x_BN, parts_PN.sum(dim=0).to(x_BN.dtype)


def cross(x0_BN: Tensor, x_BN: Tensor, weight_NN: Tensor, bias_N: Tensor) -> Tensor:
    """One cross layer, [B, N] -> [B, N].

    ATen's without gradients: on an H100 its product and addcmul take 0.7 to 0.8 times as long as one kernel does, and
    with the backward pass about as long (docs/performance/triton_h100.md).
    """
    given = cast(x0_BN, x_BN, weight_NN, bias_N)
    kept = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    return _Cross.apply(*given) if kept and takes(*given) and x_BN.dim() == 2 else cross_fused(*given)


KERNELS = (
    *(
        Kernel(
            fn=_forward, variant=variant, args=f"*T *T *T *T *T *T i32 {kind}", dot=True,
            tiles=by_product(_forward_tiles),
        )
        for variant, kind in (("N624", "I32"), ("N390", "i32"))
    ),
    Kernel(fn=_backward, args="*T *T *T *T *T *fp32 i32 I32", tiles=by_type(_backward_tiles)),
)  # fmt: skip

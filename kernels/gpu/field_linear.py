"""One linear map a field on CUDA: one batched product in one launch, forward and both products backward.

The same kernel makes y = x W, dx = dy Wᵀ and dW = xᵀ dy: only strides differ. Q, K and V ride in one weight.

Dims: F fields, B batch, D input width, E output width
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctrbench.kernels.gpu.kernel import Kernel, by_product, cast, element_type, precision, product, product_tiles, takes


@triton.jit
def _product(
    a, b, out, M, N, K, a_f, a_m, a_k, b_f, b_k, b_n,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    field = tl.program_id(2).to(tl.int64)
    row, col = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    acc = product(
        a + field * a_f, b + field * b_f, row, col, M, N, K, a_m, a_k, b_k, b_n, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
    )
    rows, cols = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
    at = field * M * N + rows[:, None].to(tl.int64) * N + cols[None, :]
    tl.store(out + at, acc, mask=(rows[:, None] < M) & (cols[None, :] < N))


def multiply(a_FMK: Tensor, b_FKN: Tensor) -> Tensor:
    """Batched product of any strided views, [F, M, N]."""
    (fields, m, k), n = a_FMK.shape, b_FKN.shape[2]
    tiles, out_FMN = product_tiles(element_type(a_FMK)), a_FMK.new_empty(fields, m, n)
    grid = (triton.cdiv(m, tiles["BLOCK_M"]), triton.cdiv(n, tiles["BLOCK_N"]), fields)
    _product[grid](a_FMK, b_FKN, out_FMN, m, n, k, *a_FMK.stride(), *b_FKN.stride(), PRECISION=precision(), **tiles)
    return out_FMN


class _FieldLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_FBD: Tensor, weight_FDE: Tensor) -> Tensor:
        ctx.save_for_backward(x_FBD, weight_FDE)
        return multiply(x_FBD, weight_FDE)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_FBE: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_FBD, weight_FDE = ctx.saved_tensors
        for_x, for_weight = ctx.needs_input_grad
        d_x_FBD = multiply(grad_FBE, weight_FDE.transpose(1, 2)) if for_x else None
        return d_x_FBD, multiply(x_FBD.transpose(1, 2), grad_FBE) if for_weight else None


def field_linear(x_FBD: Tensor, weight_FDE: Tensor) -> Tensor:
    """[F, B, D] and one [D, E] a field -> [F, B, E]; more fields than a grid can hold go to ATen."""
    x_FBD, weight_FDE = cast(x_FBD, weight_FDE)
    fits = takes(x_FBD, weight_FDE) and x_FBD.shape[0] < 1 << 16
    return _FieldLinear.apply(x_FBD, weight_FDE) if fits else torch.bmm(x_FBD, weight_FDE)


_ARGS = "*T *T *T I32 I32 I32 I32 I32 I32 I32"
KERNELS = tuple(
    Kernel(fn=_product, variant=of, args=_ARGS, ones=ones, dot=True, tiles=by_product(product_tiles))
    for of, ones in (("y", ("a_k", "b_n")), ("dx", ("a_k", "b_k")), ("dw", ("a_m", "b_n")))
)

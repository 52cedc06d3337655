"""One weight for S-tokens, one for each NS-token, on CUDA: one launch reads both inputs and writes one output.

A program is a tile of S-rows under the shared weight, or a tile of one NS-token's rows under its own. Gradients of the
inputs take the same kernel with transposed weights; those of the weights are one product and one batched product of
ATen.

Dims: B batch, S sequence tokens, N other (NS) tokens, D input width, E output width
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctrbench.kernels.gpu.kernel import Kernel, by_product, cast, element_type, precision, product_tiles, takes
from ctrbench.kernels.mixed_linear import mixed_linear_fused

WIDE = 128
"""Input width from which float32 goes to ATen."""


@triton.jit
def _forward(
    s, n, shared, own, out, B, S, N, D, E, s_b, s_t, n_b, n_t, own_n, w_d, w_e, S_TILES, B_TILES,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    is_s = tile < S_TILES
    token = tl.where(is_s, 0, (tile - S_TILES) // B_TILES)
    first = tl.where(is_s, tile, (tile - S_TILES) % B_TILES) * BLOCK_M
    rows, cols = first + tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    # rows of the S side are (batch, token); those of an NS tile are the batch
    batch = tl.where(is_s, rows // S, rows).to(tl.int64)
    place = tl.where(is_s, rows % S, token)
    some = rows < tl.where(is_s, B * S, B)
    a_at = batch * tl.where(is_s, s_b, n_b) + place * tl.where(is_s, s_t, n_t)
    if is_s:
        source, weight = s, shared
    else:
        source, weight = n, own + token.to(tl.int64) * own_n
    inner = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, D, BLOCK_K):
        at = k + inner
        a_tile = tl.load(source + a_at[:, None] + at[None, :], mask=some[:, None] & (at[None, :] < D), other=0.0)
        b_tile = tl.load(
            weight + at[:, None] * w_d + cols[None, :] * w_e, mask=(at[:, None] < D) & (cols[None, :] < E), other=0.0
        )
        acc = tl.dot(a_tile, b_tile, acc, input_precision=PRECISION)
    to = (batch * (S + N) + tl.where(is_s, place, S + token)) * E
    tl.store(out + to[:, None] + cols[None, :], acc, mask=some[:, None] & (cols[None, :] < E))


def _both(s_BSD: Tensor, n_BND: Tensor, shared_DE: Tensor, own_NDE: Tensor) -> tuple[Tensor, Tensor]:
    """([B, S, E], [B, N, E]), two views of one buffer; the weights may be transposed views of contiguous ones."""
    (batch, tokens, width), own, out = s_BSD.shape, n_BND.shape[1], shared_DE.shape[1]
    tiles = product_tiles(element_type(s_BSD))
    s_tiles, b_tiles = (triton.cdiv(rows, tiles["BLOCK_M"]) for rows in (batch * tokens, batch))
    out_BTE = s_BSD.new_empty(batch, tokens + own, out)
    grid = (s_tiles + own * b_tiles, triton.cdiv(out, tiles["BLOCK_N"]))
    _forward[grid](
        s_BSD, n_BND, shared_DE, own_NDE, out_BTE, batch, tokens, own, width, out, *s_BSD.stride()[:2],
        *n_BND.stride()[:2], own_NDE.stride(0), *shared_DE.stride(), s_tiles, b_tiles, PRECISION=precision(), **tiles,
    )  # fmt: skip
    return out_BTE[:, :tokens], out_BTE[:, tokens:]


def _dense(x: Tensor) -> Tensor:
    """Any strides but the last, which must be 1."""
    return x if x.stride(-1) == 1 else x.contiguous()


class _MixedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s_BSD: Tensor, n_BND: Tensor, shared_DE: Tensor, own_NDE: Tensor) -> tuple[Tensor, Tensor]:
        s_BSD, n_BND, shared_DE, own_NDE = _dense(s_BSD), _dense(n_BND), shared_DE.contiguous(), own_NDE.contiguous()
        ctx.save_for_backward(s_BSD, n_BND, shared_DE, own_NDE)
        return _both(s_BSD, n_BND, shared_DE, own_NDE)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, s_grad: Tensor, n_grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s_BSD, n_BND, shared_DE, own_NDE = ctx.saved_tensors
        s_grad, n_grad = _dense(s_grad), _dense(n_grad)
        d_s, d_n = _both(s_grad, n_grad, shared_DE.t(), own_NDE.transpose(1, 2))
        d_shared_DE = s_BSD.flatten(0, 1).t() @ s_grad.flatten(0, 1)
        return d_s, d_n, d_shared_DE, torch.bmm(n_BND.permute(1, 2, 0), n_grad.transpose(0, 1))


def mixed_linear(
    s_BSD: Tensor | None, n_BND: Tensor | None, shared_DE: Tensor | None, own_NDE: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """[B, S, D] and [B, N, D] -> [B, S, E] and [B, N, E], two views of one buffer.

    One side alone goes to ATen, and so do wide float32 inputs: there cuBLAS is faster than one launch on an H100.
    """
    if s_BSD is None or n_BND is None or shared_DE is None or own_NDE is None:
        return mixed_linear_fused(s_BSD, n_BND, shared_DE, own_NDE)
    given = cast(s_BSD, n_BND, shared_DE, own_NDE)
    wide = given[0].dtype == torch.float32 and given[0].shape[-1] >= WIDE
    return _MixedLinear.apply(*given) if takes(*given) and not wide else mixed_linear_fused(*given)


_ARGS = "*T *T *T *T *T i32 i32 i32 I32 I32 I32 I32 I32 I32 I32 I32 i32 i32"
KERNELS = (
    Kernel(fn=_forward, variant="y", args=_ARGS, ones=("w_e",), dot=True, tiles=by_product(product_tiles)),
    Kernel(fn=_forward, variant="dx", args=_ARGS, ones=("w_d",), dot=True, tiles=by_product(product_tiles)),
)

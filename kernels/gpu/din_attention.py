"""DIN's activation unit over real events on CUDA: first layer and pooling by kernels of their own, Dice by dice.py's.

The first layer multiplies a tile of events, and the same tile times its rows' queries, by both parts of the weight:
neither the four-part input nor the product q * h is built. Layers after it are ATen's products. Gradients and sums by
row come from one program a row, so that nothing is added atomically.

Dims: B rows, N events of all rows, R = B + 1 offsets, C width of an event, O width of the first layer
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear, relu

from ctrbench.kernels.din_attention import din_flat
from ctrbench.kernels.gpu.dice import dice_rows
from ctrbench.kernels.gpu.kernel import TYPES, Kernel, Tiles, by_type, padded, precision, takes

MOST_WIDTH = 128
Moments = tuple[tuple[Tensor, Tensor] | None, ...]


@triton.jit
def _first(
    q, h, row_part, by_event, by_product, row_of, out, N, C, OUT,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    events = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    rows = tl.load(row_of + events, mask=events < N, other=0)
    acc = tl.zeros((BLOCK_N, BLOCK_O), dtype=tl.float32)
    for c in range(0, C, BLOCK_C):
        width = c + tl.arange(0, BLOCK_C)
        inside = (events[:, None] < N) & (width[None, :] < C)
        h_tile = tl.load(h + events[:, None].to(tl.int64) * C + width[None, :], mask=inside, other=0.0)
        q_tile = tl.load(q + rows[:, None] * C + width[None, :], mask=inside, other=0.0)
        at, some = cols[None, :] * C + width[:, None], (cols[None, :] < OUT) & (width[:, None] < C)
        acc = tl.dot(h_tile, tl.load(by_event + at, mask=some, other=0.0), acc, input_precision=PRECISION)
        acc = tl.dot(q_tile * h_tile, tl.load(by_product + at, mask=some, other=0.0), acc, input_precision=PRECISION)
    inside = (events[:, None] < N) & (cols[None, :] < OUT)
    acc += tl.load(row_part + rows[:, None] * OUT + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(out + events[:, None].to(tl.int64) * OUT + cols[None, :], acc, mask=inside)


@triton.jit
def _first_backward(
    grad, q, h, by_event, by_product, starts, d_q, d_h, product, C, OUT,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One row: gradients of its query's products and of its events; q * h for the gradient of the weight."""
    row, width = tl.program_id(0), tl.arange(0, BLOCK_C)
    first, last = tl.load(starts + row), tl.load(starts + row + 1)
    q_row = tl.load(q + row * C + width, mask=width < C, other=0.0).to(tl.float32)[None, :]
    of_q = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for start in range(first, last, BLOCK_N):
        events = start + tl.arange(0, BLOCK_N)
        at, inside = events[:, None] * C + width[None, :], (events[:, None] < last) & (width[None, :] < C)
        of_event = tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32)
        of_product = tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32)
        for o in range(0, OUT, BLOCK_O):
            cols = o + tl.arange(0, BLOCK_O)
            some = (events[:, None] < last) & (cols[None, :] < OUT)
            g = tl.load(grad + events[:, None] * OUT + cols[None, :], mask=some, other=0.0)
            w_at, known = cols[:, None] * C + width[None, :], (cols[:, None] < OUT) & (width[None, :] < C)
            of_event = tl.dot(g, tl.load(by_event + w_at, mask=known, other=0.0), of_event, input_precision=PRECISION)
            w = tl.load(by_product + w_at, mask=known, other=0.0)
            of_product = tl.dot(g, w, of_product, input_precision=PRECISION)
        h_tile = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_h + at, of_event + of_product * q_row, mask=inside)
        tl.store(product + at, q_row * h_tile, mask=inside)
        of_q += tl.sum(of_product * h_tile, axis=0)
    tl.store(d_q + row * C + width, of_q, mask=width < C)


@triton.jit
def _row_sums(x, starts, out, OUT, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr):
    row, cols = tl.program_id(0), tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    first, last = tl.load(starts + row), tl.load(starts + row + 1)
    acc = tl.zeros((BLOCK_O,), dtype=tl.float32)
    for start in range(first, last, BLOCK_N):
        events = start + tl.arange(0, BLOCK_N)
        inside = (events[:, None] < last) & (cols[None, :] < OUT)
        tile = tl.load(x + events[:, None] * OUT + cols[None, :], mask=inside, other=0.0)
        acc += tl.sum(tile.to(tl.float32), axis=0)
    tl.store(out + row * OUT + cols, acc, mask=cols < OUT)


@triton.jit
def _pool(
    score, h, starts, out, lse, C, SOFTMAX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    row, width = tl.program_id(0), tl.arange(0, BLOCK_C)
    first, last = tl.load(starts + row), tl.load(starts + row + 1)
    top, total = -1e30, 0.0
    acc = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for start in range(first, last, BLOCK_N):
        events = start + tl.arange(0, BLOCK_N)
        w = tl.load(score + events, mask=events < last, other=0.0).to(tl.float32)
        if SOFTMAX:
            now = tl.maximum(top, tl.max(tl.where(events < last, w, -1e30), axis=0))
            w = tl.where(events < last, tl.exp(w - now), 0.0)
            acc *= tl.exp(top - now)
            total = total * tl.exp(top - now) + tl.sum(w, axis=0)
            top = now
        inside = (events[:, None] < last) & (width[None, :] < C)
        h_tile = tl.load(h + events[:, None] * C + width[None, :], mask=inside, other=0.0).to(tl.float32)
        acc += tl.sum(w[:, None] * h_tile, axis=0)
    if SOFTMAX:
        acc /= tl.where(total > 0.0, total, 1.0)
        tl.store(lse + row, top + tl.log(tl.where(total > 0.0, total, 1.0)))
    tl.store(out + row * C + width, acc, mask=width < C)


@triton.jit
def _pool_backward(
    grad, score, h, starts, out, lse, d_score, d_h, C,
    SOFTMAX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row, width = tl.program_id(0), tl.arange(0, BLOCK_C)
    first, last = tl.load(starts + row), tl.load(starts + row + 1)
    g = tl.load(grad + row * C + width, mask=width < C, other=0.0).to(tl.float32)
    pooled = tl.load(out + row * C + width, mask=width < C, other=0.0).to(tl.float32)
    mean = tl.sum(g * pooled, axis=0)
    for start in range(first, last, BLOCK_N):
        events = start + tl.arange(0, BLOCK_N)
        at, inside = events[:, None] * C + width[None, :], (events[:, None] < last) & (width[None, :] < C)
        h_tile = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(score + events, mask=events < last, other=0.0).to(tl.float32)
        d_w = tl.sum(h_tile * g[None, :], axis=1)
        if SOFTMAX:
            w = tl.exp(w - tl.load(lse + row))
            d_w = w * (d_w - mean)
        tl.store(d_score + events, d_w, mask=events < last)
        tl.store(d_h + at, w[:, None] * g[None, :], mask=inside)


def _first_tiles(dtype: str) -> Tiles:
    if dtype == "fp32":
        return {"BLOCK_N": 64, "BLOCK_O": 32, "BLOCK_C": 16, "num_warps": 4, "num_stages": 2}
    return {"BLOCK_N": 64, "BLOCK_O": 64, "BLOCK_C": 32, "num_warps": 4, "num_stages": 2}


def _row_tiles(dtype: str, width: int) -> Tiles:
    block = 16 if dtype == "fp32" or width > 64 else 32
    return {"BLOCK_N": block, "BLOCK_O": block, "BLOCK_C": padded(width), "num_warps": 4, "num_stages": 2}


def _sum_tiles(dtype: str) -> Tiles:
    return {"BLOCK_N": 32, "BLOCK_O": 64, "num_warps": 4, "num_stages": 2}


def _pool_tiles(dtype: str, width: int) -> Tiles:
    return {"BLOCK_N": 32, "BLOCK_C": padded(width), "num_warps": 4, "num_stages": 2}


class _First(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BC: Tensor, h_NC: Tensor, part_BO: Tensor, event_OC: Tensor, product_OC: Tensor, starts_R: Tensor
    ) -> Tensor:
        (n, width), out = h_NC.shape, len(event_OC)
        rows_N = torch.repeat_interleave(starts_R.diff(), output_size=n)
        q_BC, h_NC, part_BO = q_BC.contiguous(), h_NC.contiguous(), part_BO.contiguous()
        event_OC, product_OC = event_OC.contiguous(), product_OC.contiguous()
        tiles, x_NO = _first_tiles(TYPES[h_NC.dtype]), h_NC.new_empty(n, out)
        grid = (triton.cdiv(n, tiles["BLOCK_N"]), triton.cdiv(out, tiles["BLOCK_O"]))
        _first[grid](
            q_BC, h_NC, part_BO, event_OC, product_OC, rows_N, x_NO, n, width, out, PRECISION=precision(), **tiles
        )
        ctx.save_for_backward(q_BC, h_NC, event_OC, product_OC, starts_R)
        return x_NO

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, None]:
        q_BC, h_NC, event_OC, product_OC, starts_R = ctx.saved_tensors
        (batch, width), out, dtype = q_BC.shape, len(event_OC), TYPES[h_NC.dtype]
        grad_NO, tiles, sums = grad_NO.contiguous(), _row_tiles(dtype, width), _sum_tiles(dtype)
        d_q_BC, d_h_NC, qh_NC = torch.empty_like(q_BC), torch.empty_like(h_NC), torch.empty_like(h_NC)
        _first_backward[(batch,)](
            grad_NO, q_BC, h_NC, event_OC, product_OC, starts_R, d_q_BC, d_h_NC, qh_NC, width, out,
            PRECISION=precision(), **tiles,
        )  # fmt: skip
        d_part_BO = q_BC.new_empty(batch, out)
        _row_sums[(batch, triton.cdiv(out, sums["BLOCK_O"]))](grad_NO, starts_R, d_part_BO, out, **sums)
        return d_q_BC, d_h_NC, d_part_BO, grad_NO.t() @ h_NC, grad_NO.t() @ qh_NC, None


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score_N: Tensor, h_NC: Tensor, starts_R: Tensor, softmax: bool) -> Tensor:
        batch, width = len(starts_R) - 1, h_NC.shape[1]
        score_N, h_NC = score_N.contiguous(), h_NC.contiguous()
        u_BC, lse_B = h_NC.new_empty(batch, width), h_NC.new_empty(batch, dtype=torch.float32)
        tiles = _pool_tiles(TYPES[h_NC.dtype], width)
        _pool[(batch,)](score_N, h_NC, starts_R, u_BC, lse_B, width, SOFTMAX=softmax, **tiles)
        ctx.softmax = softmax
        ctx.save_for_backward(score_N, h_NC, starts_R, u_BC, lse_B)
        return u_BC

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BC: Tensor) -> tuple[Tensor, Tensor, None, None]:
        score_N, h_NC, starts_R, u_BC, lse_B = ctx.saved_tensors
        batch, width = u_BC.shape
        d_score_N, d_h_NC = torch.empty_like(score_N), torch.empty_like(h_NC)
        _pool_backward[(batch,)](
            grad_BC.contiguous(), score_N, h_NC, starts_R, u_BC, lse_B, d_score_N, d_h_NC, width,
            SOFTMAX=ctx.softmax, **_pool_tiles(TYPES[h_NC.dtype], width),
        )  # fmt: skip
        return d_score_N, d_h_NC, None, None


def _acted(
    x_NO: Tensor, alpha_O: Tensor | None, given: tuple[Tensor, Tensor] | None, eps: float
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    if alpha_O is None:
        return relu(x_NO), None
    if given is None:
        out_NO, mean_O, var_O = dice_rows(x_NO, None, alpha_O, eps)
        return out_NO, (mean_O, var_O)
    p_NO = torch.sigmoid((x_NO - given[0]) * torch.rsqrt(given[1] + eps))
    return torch.lerp(alpha_O.expand_as(p_NO), torch.ones_like(p_NO), p_NO) * x_NO, None


def din_attention(
    q_BC: Tensor, h_NC: Tensor, offsets_B1: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...],
    alphas: Sequence[Tensor | None], stats: Moments, softmax: bool = False, eps: float = 1e-9,
) -> tuple[Tensor, Moments]:  # fmt: skip
    """(u [B, C], moments a layer); events wider than 128, autocast and no events at all go to ATen."""
    plain = torch.is_autocast_enabled(q_BC.device.type) or q_BC.shape[1] > MOST_WIDTH or not alphas
    if plain or not takes(q_BC, h_NC, *weights, *biases, *alphas):
        return din_flat(q_BC, h_NC, offsets_B1, weights, biases, alphas, stats, softmax, eps)
    w_q, w_h, w_d, w_p = weights[0].chunk(4, dim=1)
    starts_R = offsets_B1.contiguous()
    x_NO = _First.apply(q_BC, h_NC, linear(q_BC, w_q + w_d, biases[0]), w_h - w_d, w_p, starts_R)
    moments: list[tuple[Tensor, Tensor] | None] = []
    for alpha_O, given, weight, bias in zip(alphas, stats, weights[1:], biases[1:], strict=True):
        x_NO, found = _acted(x_NO, alpha_O, given, eps)
        moments.append(found)
        x_NO = linear(x_NO, weight, bias)
    return _Pool.apply(x_NO.squeeze(1), h_NC, starts_R, softmax), tuple(moments)


KERNELS = (
    Kernel(
        fn=_first, args="*T *T *T *T *T *i64 *T i32 I32 I32", dot=True, tiles=by_type(_first_tiles, PRECISION="ieee")
    ),
    Kernel(
        fn=_first_backward, args="*T *T *T *T *T *i64 *T *T *T I32 I32", dot=True,
        tiles=by_type(_row_tiles, 32, PRECISION="ieee"),
    ),
    Kernel(fn=_row_sums, args="*T *i64 *T I32", tiles=by_type(_sum_tiles)),
    Kernel(fn=_pool, args="*T *T *i64 *T *fp32 I32", tiles=by_type(_pool_tiles, 32, SOFTMAX=True)),
    Kernel(fn=_pool_backward, args="*T *T *T *i64 *T *fp32 *T *T I32", tiles=by_type(_pool_tiles, 32, SOFTMAX=True)),
)  # fmt: skip

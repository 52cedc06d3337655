"""Attention over fields with a weight of the ordered pair, on CUDA: scores, weights, softmax and sum in one pass.

A program holds one sample's keys and values of one head and goes over its queries in blocks. Backward two kernels: one
over blocks of queries and a run of samples (gradients of queries and of the weights, which sum over the samples), one
over blocks of keys.

Dims: B batch, H heads, F fields, d width of a head, P programs a head
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctrbench.kernels.gpu.kernel import TYPES, Kernel, Tiles, by_type, cast, padded, precision, takes
from ctrbench.kernels.pair_attention import pair_attention_fused

MOST_FIELDS, MOST_WIDTH = 128, 128
"""What a program can hold."""
PROGRAMS = 128
"""Runs of samples whose parts of the weights' gradient are summed by ATen."""


@triton.jit
def _rows(x, at, places, stride, F, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of one sample and head, [places, d]; beyond the fields they are zero."""
    width = tl.arange(0, BLOCK_D)
    inside = (places[:, None] < F) & (width[None, :] < D)
    return tl.load(x + at + places[:, None] * stride + width[None, :], mask=inside, other=0.0)


@triton.jit
def _forward(
    q, k, v, pair, out, lse, F, scale, pair_h, i_b, i_h, i_f, o_b, o_h, o_f,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_I: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    batch, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    keys, width = tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    k_tile = _rows(k, batch * i_b + head * i_h, keys, i_f, F, D, BLOCK_D)
    v_tile = _rows(v, batch * i_b + head * i_h, keys, i_f, F, D, BLOCK_D)
    for first in range(0, F, BLOCK_I):
        asks = first + tl.arange(0, BLOCK_I)
        both = (asks[:, None] < F) & (keys[None, :] < F)
        q_tile = _rows(q, batch * i_b + head * i_h, asks, i_f, F, D, BLOCK_D)
        w = tl.load(pair + head * pair_h + asks[:, None] * F + keys[None, :], mask=both, other=0.0).to(tl.float32)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * (w * scale)
        s = tl.where(keys[None, :] < F, s, float("-inf"))
        top = tl.max(s, axis=1)
        e = tl.exp(s - top[:, None])
        total = tl.sum(e, axis=1)
        o = tl.dot((e / total[:, None]).to(v_tile.dtype), v_tile, input_precision=PRECISION)
        to = batch * o_b + head * o_h + asks[:, None] * o_f + width[None, :]
        tl.store(out + to, o, mask=(asks[:, None] < F) & (width[None, :] < D))
        tl.store(lse + (batch * tl.num_programs(1) + head) * F + asks, top + tl.log(total), mask=asks < F)


@triton.jit
def _backward_queries(
    grad, q, k, v, pair, out, lse, delta, d_q, d_pair, B, F, RUN, scale, pair_h, i_b, i_h, i_f, o_b, o_h, o_f,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_I: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, heads = tl.program_id(1), tl.num_programs(1)
    asks, keys, width = tl.program_id(2) * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    both = (asks[:, None] < F) & (keys[None, :] < F)
    w = tl.load(pair + head * pair_h + asks[:, None] * F + keys[None, :], mask=both, other=0.0).to(tl.float32) * scale
    of_pair = tl.zeros((BLOCK_I, BLOCK_F), dtype=tl.float32)
    first = tl.program_id(0) * RUN
    for b in range(first, tl.minimum(first + RUN, B)):
        batch = tl.cast(b, tl.int64)
        here, there = batch * i_b + head * i_h, batch * o_b + head * o_h
        q_tile = _rows(q, here, asks, i_f, F, D, BLOCK_D)
        k_tile = _rows(k, here, keys, i_f, F, D, BLOCK_D)
        v_tile = _rows(v, here, keys, i_f, F, D, BLOCK_D)
        g_tile = _rows(grad, there, asks, o_f, F, D, BLOCK_D)
        o_tile = _rows(out, there, asks, o_f, F, D, BLOCK_D)
        at = (batch * heads + head) * F + asks
        row = tl.sum(g_tile.to(tl.float32) * o_tile.to(tl.float32), axis=1)
        tl.store(delta + at, row, mask=asks < F)
        qk = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        log = tl.load(lse + at, mask=asks < F, other=0.0)
        p = tl.where(both, tl.exp(qk * w - log[:, None]), 0.0)
        d_s = p * (tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION) - row[:, None])
        of_pair += d_s * qk
        d_tile = tl.dot((d_s * w).to(k_tile.dtype), k_tile, input_precision=PRECISION)
        to = there + asks[:, None] * o_f + width[None, :]
        tl.store(d_q + to, d_tile, mask=(asks[:, None] < F) & (width[None, :] < D))
    to = (tl.program_id(0) * heads + head).to(tl.int64) * F * F + asks[:, None] * F + keys[None, :]
    tl.store(d_pair + to, of_pair * scale, mask=both)


@triton.jit
def _backward_keys(
    grad, q, k, v, pair, lse, delta, d_k, d_v, F, scale, pair_h, i_b, i_h, i_f, o_b, o_h, o_f,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_I: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    batch, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    keys, asks, width = tl.program_id(2) * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    here, there = batch * i_b + head * i_h, batch * o_b + head * o_h
    both = (keys[:, None] < F) & (asks[None, :] < F)
    w = tl.load(pair + head * pair_h + asks[None, :] * F + keys[:, None], mask=both, other=0.0).to(tl.float32) * scale
    q_tile = _rows(q, here, asks, i_f, F, D, BLOCK_D)
    g_tile = _rows(grad, there, asks, o_f, F, D, BLOCK_D)
    k_tile = _rows(k, here, keys, i_f, F, D, BLOCK_D)
    v_tile = _rows(v, here, keys, i_f, F, D, BLOCK_D)
    at = (batch * tl.num_programs(1) + head) * F + asks
    log, row = tl.load(lse + at, mask=asks < F, other=0.0), tl.load(delta + at, mask=asks < F, other=0.0)
    kq = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION)
    p = tl.where(both, tl.exp(kq * w - log[None, :]), 0.0)
    to, inside = there + keys[:, None] * o_f + width[None, :], (keys[:, None] < F) & (width[None, :] < D)
    tl.store(d_v + to, tl.dot(p.to(g_tile.dtype), g_tile, input_precision=PRECISION), mask=inside)
    d_s = p * (tl.dot(v_tile, tl.trans(g_tile), input_precision=PRECISION) - row[None, :])
    tl.store(d_k + to, tl.dot((d_s * w).to(q_tile.dtype), q_tile, input_precision=PRECISION), mask=inside)


def _tiles(dtype: str, fields: int, width: int) -> Tiles:
    return {
        "D": width, "BLOCK_D": padded(width), "BLOCK_F": padded(fields), "BLOCK_I": 16,
        "num_warps": 4, "num_stages": 1,
    }  # fmt: skip


def _field_major(like_BHFd: Tensor) -> Tensor:
    """[B, H, F, d] over a buffer [F, B, H, d]: the next product takes one GEMM a field without a copy."""
    batch, heads, fields, width = like_BHFd.shape
    return like_BHFd.new_empty(fields, batch, heads, width).permute(1, 2, 0, 3)


class _PairAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pair: Tensor) -> Tensor:
        batch, heads, fields, width = q.shape
        if not (q.stride() == k.stride() == v.stride() and q.stride(3) == 1):
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        pair, out = pair.contiguous(), _field_major(q)
        lse = q.new_empty(batch, heads, fields, dtype=torch.float32)
        _forward[(batch, heads)](
            q, k, v, pair, out, lse, fields, 1 / math.sqrt(width), pair.stride(0) if pair.dim() == 3 else 0,
            *q.stride()[:3], *out.stride()[:3], PRECISION=precision(), **_tiles(TYPES[q.dtype], fields, width),
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, pair, out, lse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, pair, out, lse = ctx.saved_tensors
        batch, heads, fields, width = q.shape
        tiles, scale, pair_h = (
            _tiles(TYPES[q.dtype], fields, width), 1 / math.sqrt(width), pair.stride(0) if pair.dim() == 3 else 0,
        )  # fmt: skip
        d_q, d_k, d_v = (_field_major(q) for _ in range(3))
        grad = grad if grad.stride() == out.stride() else _field_major(q).copy_(grad)
        run, blocks, delta = triton.cdiv(batch, PROGRAMS), triton.cdiv(fields, tiles["BLOCK_I"]), torch.empty_like(lse)
        programs = triton.cdiv(batch, run)
        parts_PHFF = q.new_empty(programs, heads, fields, fields, dtype=torch.float32)
        strides = (*q.stride()[:3], *out.stride()[:3])
        _backward_queries[(programs, heads, blocks)](
            grad, q, k, v, pair, out, lse, delta, d_q, parts_PHFF, batch, fields, run, scale, pair_h, *strides,
            PRECISION=precision(), **tiles,
        )  # fmt: skip
        _backward_keys[(batch, heads, blocks)](
            grad, q, k, v, pair, lse, delta, d_k, d_v, fields, scale, pair_h, *strides, PRECISION=precision(), **tiles
        )
        return d_q, d_k, d_v, parts_PHFF.sum(dim=0 if pair.dim() == 3 else (0, 1)).to(pair.dtype)


def pair_attention(q_BHFd: Tensor, k_BHFd: Tensor, v_BHFd: Tensor, pair_FF: Tensor) -> Tensor:
    """softmax_j((q_i·k_j / √d) · w[i, j]) v, [B, H, F, d]; more than 128 fields or values a head go to ATen."""
    given = cast(q_BHFd, k_BHFd, v_BHFd, pair_FF)
    # offsets inside a sample are 32 bits, and fields may lie a whole batch of Q, K and V apart
    small = q_BHFd.shape[2] <= MOST_FIELDS and q_BHFd.shape[3] <= MOST_WIDTH and q_BHFd.numel() < 1 << 29
    return _PairAttention.apply(*given) if small and takes(*given) else pair_attention_fused(*given)


_INTS = " ".join(["I32"] * 7)
KERNELS = (
    Kernel(
        fn=_forward, args=f"*T *T *T *T *T *fp32 i32 fp32 {_INTS}", dot=True,
        tiles=by_type(_tiles, 39, 32, PRECISION="ieee"),
    ),
    Kernel(
        fn=_backward_queries, args=f"*T *T *T *T *T *T *fp32 *fp32 *T *fp32 i32 i32 i32 fp32 {_INTS}", dot=True,
        tiles=by_type(_tiles, 39, 32, PRECISION="ieee"),
    ),
    Kernel(
        fn=_backward_keys, args=f"*T *T *T *T *T *fp32 *fp32 *T *T i32 fp32 {_INTS}", dot=True,
        tiles=by_type(_tiles, 39, 32, PRECISION="ieee"),
    ),
)  # fmt: skip

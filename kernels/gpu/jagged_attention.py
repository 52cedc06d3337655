"""Causal attention over histories stored one behind the other, on CUDA: flash-style, no work on padding.

A program is a block of one row's queries of one head; it goes over the keys up to its last query, keeping the maximum
and the sum of the softmax. Blocks beyond a row's end return at once. Query i of a row's Q stands at its key i + K - Q,
so S- and NS-tokens need no telling apart. Backward one kernel over blocks of queries, one over blocks of keys.

Dims: B rows, M queries of all rows, N keys of all rows, H heads, d width of a head, R = B + 1 offsets
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctrbench.kernels.gpu.kernel import TYPES, Kernel, Tiles, by_type, cast, padded, precision, put, takes, tile
from ctrbench.kernels.jagged_attention import jagged_attention_plain

MOST_WIDTH = 128


@triton.jit
def _forward(
    q, k, v, out, lse, q_starts, k_starts, scale, H, q_n, kv_n, o_n,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0) // H, tl.program_id(0) % H
    q0, q1 = tl.load(q_starts + row).to(tl.int32), tl.load(q_starts + row + 1).to(tl.int32)
    k0, k1 = tl.load(k_starts + row).to(tl.int32), tl.load(k_starts + row + 1).to(tl.int32)
    first = q0 + tl.program_id(1) * BLOCK_Q
    if first >= q1:
        return
    # a query's own key: the last that it sees
    own = first + tl.arange(0, BLOCK_Q) + (k1 - q1)
    q_tile = tile(q + head * D, first, q1, q_n, D, BLOCK_Q, BLOCK_D)
    top = tl.full((BLOCK_Q,), -1e30, dtype=tl.float32)
    total = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_Q, BLOCK_D), dtype=tl.float32)
    for start in range(k0, tl.minimum(k1, first + BLOCK_Q + k1 - q1), BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k_tile = tile(k + head * D, start, k1, kv_n, D, BLOCK_K, BLOCK_D)
        v_tile = tile(v + head * D, start, k1, kv_n, D, BLOCK_K, BLOCK_D)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale
        s = tl.where((keys[None, :] <= own[:, None]) & (keys[None, :] < k1), s, float("-inf"))
        now = tl.maximum(top, tl.max(s, axis=1))
        p = tl.exp(s - now[:, None])
        less = tl.exp(top - now)
        total = total * less + tl.sum(p, axis=1)
        acc = tl.dot(p.to(v_tile.dtype), v_tile, acc * less[:, None], input_precision=PRECISION)
        top = now
    put(out + head * D, acc / total[:, None], first, q1, o_n, D, BLOCK_Q, BLOCK_D)
    rows = first + tl.arange(0, BLOCK_Q)
    tl.store(lse + rows * H + head, top + tl.log(total), mask=rows < q1)


@triton.jit
def _backward_queries(
    grad, q, k, v, out, lse, delta, d_q, q_starts, k_starts, scale, H, q_n, kv_n, o_n,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0) // H, tl.program_id(0) % H
    q0, q1 = tl.load(q_starts + row).to(tl.int32), tl.load(q_starts + row + 1).to(tl.int32)
    k0, k1 = tl.load(k_starts + row).to(tl.int32), tl.load(k_starts + row + 1).to(tl.int32)
    first = q0 + tl.program_id(1) * BLOCK_Q
    if first >= q1:
        return
    rows = first + tl.arange(0, BLOCK_Q)
    own = rows + (k1 - q1)
    q_tile = tile(q + head * D, first, q1, q_n, D, BLOCK_Q, BLOCK_D)
    g_tile = tile(grad + head * D, first, q1, o_n, D, BLOCK_Q, BLOCK_D)
    o_tile = tile(out + head * D, first, q1, o_n, D, BLOCK_Q, BLOCK_D)
    of_row = tl.sum(g_tile.to(tl.float32) * o_tile.to(tl.float32), axis=1)
    tl.store(delta + rows * H + head, of_row, mask=rows < q1)
    log = tl.load(lse + rows * H + head, mask=rows < q1, other=0.0)
    acc = tl.zeros((BLOCK_Q, BLOCK_D), dtype=tl.float32)
    for start in range(k0, tl.minimum(k1, first + BLOCK_Q + k1 - q1), BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k_tile = tile(k + head * D, start, k1, kv_n, D, BLOCK_K, BLOCK_D)
        v_tile = tile(v + head * D, start, k1, kv_n, D, BLOCK_K, BLOCK_D)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale
        seen = (keys[None, :] <= own[:, None]) & (keys[None, :] < k1)
        p = tl.where(seen, tl.exp(s - log[:, None]), 0.0)
        d_s = p * (tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION) - of_row[:, None])
        acc = tl.dot(d_s.to(k_tile.dtype), k_tile, acc, input_precision=PRECISION)
    put(d_q + head * D, acc * scale, first, q1, o_n, D, BLOCK_Q, BLOCK_D)


# Begins as _backward_queries, with the parts of queries and keys swapped: a program owns the rows that it writes, and
# Triton has no helper that could return early for its caller.
@triton.jit
def _backward_keys(
    grad, q, k, v, lse, delta, d_k, d_v, q_starts, k_starts, scale, H, q_n, kv_n, o_n,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0) // H, tl.program_id(0) % H
    q0, q1 = tl.load(q_starts + row).to(tl.int32), tl.load(q_starts + row + 1).to(tl.int32)
    k0, k1 = tl.load(k_starts + row).to(tl.int32), tl.load(k_starts + row + 1).to(tl.int32)
    first = k0 + tl.program_id(1) * BLOCK_K
    if first >= k1:
        return
    keys = first + tl.arange(0, BLOCK_K)
    k_tile = tile(k + head * D, first, k1, kv_n, D, BLOCK_K, BLOCK_D)
    v_tile = tile(v + head * D, first, k1, kv_n, D, BLOCK_K, BLOCK_D)
    of_k = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    of_v = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    # the first query that sees this block's first key; keys that nobody sees get zeros
    for start in range(tl.maximum(q0, first - (k1 - q1)), q1, BLOCK_Q):
        rows = start + tl.arange(0, BLOCK_Q)
        q_tile = tile(q + head * D, start, q1, q_n, D, BLOCK_Q, BLOCK_D)
        g_tile = tile(grad + head * D, start, q1, o_n, D, BLOCK_Q, BLOCK_D)
        log = tl.load(lse + rows * H + head, mask=rows < q1, other=0.0)
        of_row = tl.load(delta + rows * H + head, mask=rows < q1, other=0.0)
        s = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * scale
        seen = (keys[:, None] <= rows[None, :] + (k1 - q1)) & (keys[:, None] < k1) & (rows[None, :] < q1)
        p = tl.where(seen, tl.exp(s - log[None, :]), 0.0)
        of_v = tl.dot(p.to(g_tile.dtype), g_tile, of_v, input_precision=PRECISION)
        d_s = p * (tl.dot(v_tile, tl.trans(g_tile), input_precision=PRECISION) - of_row[None, :])
        of_k = tl.dot(d_s.to(q_tile.dtype), q_tile, of_k, input_precision=PRECISION)
    put(d_k + head * D, of_k * scale, first, k1, o_n, D, BLOCK_K, BLOCK_D)
    put(d_v + head * D, of_v, first, k1, o_n, D, BLOCK_K, BLOCK_D)


def _tiles(dtype: str, width: int) -> Tiles:
    queries, keys = (16, 32 if width <= 32 else 16) if dtype == "fp32" else (64 if width <= 64 else 32, 32)
    return {
        "D": width, "BLOCK_D": padded(width), "BLOCK_Q": queries, "BLOCK_K": keys, "num_warps": 4, "num_stages": 2,
    }  # fmt: skip


def _dense(x_NHd: Tensor) -> Tensor:
    """Heads side by side, at any distance from token to token: packed projections need no copy."""
    return x_NHd if x_NHd.stride()[1:] == (x_NHd.shape[2], 1) else x_NHd.contiguous()


class _JaggedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, longest: int) -> Tensor:
        q, k, v = _dense(q), _dense(k), _dense(v)
        if k.stride(0) != v.stride(0):
            k, v = k.contiguous(), v.contiguous()
        queries, heads, width = q.shape
        tiles, out = _tiles(TYPES[q.dtype], width), q.new_empty(q.shape)
        lse = q.new_empty(queries, heads, dtype=torch.float32)
        _forward[((len(q_starts) - 1) * heads, triton.cdiv(longest, tiles["BLOCK_Q"]))](
            q, k, v, out, lse, q_starts, k_starts, 1 / math.sqrt(width), heads, q.stride(0), k.stride(0), out.stride(0),
            PRECISION=precision(), **tiles,
        )  # fmt: skip
        ctx.longest = longest
        ctx.save_for_backward(q, k, v, out, lse, q_starts, k_starts)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, out, lse, q_starts, k_starts = ctx.saved_tensors
        heads, tiles, rest = q.shape[1], _tiles(TYPES[q.dtype], q.shape[2]), {"PRECISION": precision()}
        grad, delta = grad.contiguous(), torch.empty_like(lse)
        d_q, d_k, d_v = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
        last = (q_starts, k_starts, 1 / math.sqrt(q.shape[2]), heads, q.stride(0), k.stride(0), out.stride(0))
        rows = (len(q_starts) - 1) * heads
        over_q, over_k = (triton.cdiv(ctx.longest, tiles[name]) for name in ("BLOCK_Q", "BLOCK_K"))
        _backward_queries[(rows, over_q)](grad, q, k, v, out, lse, delta, d_q, *last, **rest, **tiles)
        _backward_keys[(rows, over_k)](grad, q, k, v, lse, delta, d_k, d_v, *last, **rest, **tiles)
        return d_q, d_k, d_v, None, None, None


def jagged_attention(
    q_MHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, q_offsets_R: Tensor, k_offsets_R: Tensor, longest: int
) -> Tensor:
    """softmax over a row's keys up to each query, [M, H, d]; heads wider than 128 go to the padded definition."""
    given = cast(q_MHd, k_NHd, v_NHd)
    if not takes(*given) or q_MHd.shape[2] > MOST_WIDTH or v_NHd.shape != k_NHd.shape:
        return jagged_attention_plain(q_MHd, k_NHd, v_NHd, q_offsets_R, k_offsets_R, longest)
    return _JaggedAttention.apply(*given, q_offsets_R.contiguous(), k_offsets_R.contiguous(), longest)


_LAST = "*i64 *i64 fp32 i32 I32 I32 I32"
KERNELS = tuple(
    Kernel(
        fn=fn, variant=f"d{width}", args=f"{first} {_LAST}", dot=True, tiles=by_type(_tiles, width, PRECISION="ieee")
    )
    for width in (16, 64)
    for fn, first in (
        (_forward, "*T *T *T *T *fp32"),
        (_backward_queries, "*T *T *T *T *T *fp32 *fp32 *T"),
        (_backward_keys, "*T *T *T *T *fp32 *fp32 *T *T"),
    )
)

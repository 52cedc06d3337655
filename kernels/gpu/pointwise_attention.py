"""SiLU attention on CUDA: scores, bias, SiLU, mask and sum in one pass, no matrix of scores in memory.

Backward three kernels: gradients of queries, of keys and values, and of the bias, which sums over the heads.

Dims: B batch, H heads, Q queries, K keys, d width of a head's queries and keys, e of its values
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctrbench.kernels.gpu.kernel import TYPES, Kernel, Tiles, by_type, cast, padded, precision, put, takes, tile
from ctrbench.kernels.pointwise_attention import pointwise_attention_fused

MOST_WIDTH = 128


@triton.jit
def _scores(products, seen, bias, at, rows, keys, Q, K, scale, BIAS: tl.constexpr):
    """(scores, what is seen as 0 and 1) of a block of queries and keys of one sample."""
    inside = (rows[:, None] < Q) & (keys[None, :] < K)
    there = at + rows[:, None] * K + keys[None, :]
    s = products * scale
    if BIAS:
        s += tl.load(bias + there, mask=inside, other=0.0).to(tl.float32)
    return s, tl.load(seen + there, mask=inside, other=0).to(tl.float32)


@triton.jit
def _forward(
    q, k, v, seen, bias, out, H, Q, K, scale, norm, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    BIAS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    first = tl.program_id(1) * BLOCK_Q
    rows = first + tl.arange(0, BLOCK_Q)
    q_tile = tile(q + batch * q_b + head * q_h, first, Q, q_t, D, BLOCK_Q, BLOCK_D)
    acc = tl.zeros((BLOCK_Q, BLOCK_E), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k_tile = tile(k + batch * k_b + head * k_h, start, K, k_t, D, BLOCK_K, BLOCK_D)
        v_tile = tile(v + batch * v_b + head * v_h, start, K, v_t, E, BLOCK_K, BLOCK_E)
        products = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        s, some = _scores(products, seen, bias, batch * Q * K, rows, start + tl.arange(0, BLOCK_K), Q, K, scale, BIAS)
        weights = s * tl.sigmoid(s) * (some / norm)
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc, input_precision=PRECISION)
    put(out + (batch * Q * H + head) * E, acc, first, Q, H * E, E, BLOCK_Q, BLOCK_E)


@triton.jit
def _score_grads(
    q_tile, g_tile, k_tile, v_tile, seen, bias, at, rows, keys, Q, K, scale, norm,
    BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(weights, gradients of the scores), [queries, keys]."""
    products = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
    s, some = _scores(products, seen, bias, at, rows, keys, Q, K, scale, BIAS)
    sig = tl.sigmoid(s)
    some = some / norm
    d_weights = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
    return s * sig * some, d_weights * some * sig * (1.0 + s * (1.0 - sig))


@triton.jit
def _backward_queries(
    grad, q, k, v, seen, bias, d_q, H, Q, K, scale, norm, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    BIAS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    first = tl.program_id(1) * BLOCK_Q
    rows = first + tl.arange(0, BLOCK_Q)
    q_tile = tile(q + batch * q_b + head * q_h, first, Q, q_t, D, BLOCK_Q, BLOCK_D)
    g_tile = tile(grad + (batch * Q * H + head) * E, first, Q, H * E, E, BLOCK_Q, BLOCK_E)
    acc = tl.zeros((BLOCK_Q, BLOCK_D), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k_tile = tile(k + batch * k_b + head * k_h, start, K, k_t, D, BLOCK_K, BLOCK_D)
        v_tile = tile(v + batch * v_b + head * v_h, start, K, v_t, E, BLOCK_K, BLOCK_E)
        _, d_s = _score_grads(
            q_tile, g_tile, k_tile, v_tile, seen, bias, batch * Q * K, rows, start + tl.arange(0, BLOCK_K), Q, K,
            scale, norm, BIAS, PRECISION,
        )  # fmt: skip
        acc = tl.dot(d_s.to(k_tile.dtype), k_tile, acc, input_precision=PRECISION)
    put(d_q + (batch * Q * H + head) * D, acc * scale, first, Q, H * D, D, BLOCK_Q, BLOCK_D)


@triton.jit
def _backward_keys(
    grad, q, k, v, seen, bias, d_k, d_v, H, Q, K, scale, norm, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    BIAS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    first = tl.program_id(1) * BLOCK_K
    keys = first + tl.arange(0, BLOCK_K)
    k_tile = tile(k + batch * k_b + head * k_h, first, K, k_t, D, BLOCK_K, BLOCK_D)
    v_tile = tile(v + batch * v_b + head * v_h, first, K, v_t, E, BLOCK_K, BLOCK_E)
    of_k = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    of_v = tl.zeros((BLOCK_K, BLOCK_E), dtype=tl.float32)
    for start in range(0, Q, BLOCK_Q):
        q_tile = tile(q + batch * q_b + head * q_h, start, Q, q_t, D, BLOCK_Q, BLOCK_D)
        g_tile = tile(grad + (batch * Q * H + head) * E, start, Q, H * E, E, BLOCK_Q, BLOCK_E)
        weights, d_s = _score_grads(
            q_tile, g_tile, k_tile, v_tile, seen, bias, batch * Q * K, start + tl.arange(0, BLOCK_Q), keys, Q, K,
            scale, norm, BIAS, PRECISION,
        )  # fmt: skip
        of_v = tl.dot(tl.trans(weights.to(g_tile.dtype)), g_tile, of_v, input_precision=PRECISION)
        of_k = tl.dot(tl.trans(d_s.to(q_tile.dtype)), q_tile, of_k, input_precision=PRECISION)
    put(d_k + (batch * K * H + head) * D, of_k * scale, first, K, H * D, D, BLOCK_K, BLOCK_D)
    put(d_v + (batch * K * H + head) * E, of_v, first, K, H * E, E, BLOCK_K, BLOCK_E)


@triton.jit
def _backward_bias(
    grad, q, k, v, seen, bias, d_bias, H, Q, K, scale, norm, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    BIAS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    batch, first, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_Q, tl.program_id(2) * BLOCK_K
    rows, keys = first + tl.arange(0, BLOCK_Q), start + tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_Q, BLOCK_K), dtype=tl.float32)
    for head in range(0, H):
        q_tile = tile(q + batch * q_b + head * q_h, first, Q, q_t, D, BLOCK_Q, BLOCK_D)
        g_tile = tile(grad + (batch * Q * H + head) * E, first, Q, H * E, E, BLOCK_Q, BLOCK_E)
        k_tile = tile(k + batch * k_b + head * k_h, start, K, k_t, D, BLOCK_K, BLOCK_D)
        v_tile = tile(v + batch * v_b + head * v_h, start, K, v_t, E, BLOCK_K, BLOCK_E)
        _, d_s = _score_grads(
            q_tile, g_tile, k_tile, v_tile, seen, bias, batch * Q * K, rows, keys, Q, K, scale, norm, BIAS, PRECISION
        )
        acc += d_s
    at = batch * Q * K + rows[:, None] * K + keys[None, :]
    tl.store(d_bias + at, acc, mask=(rows[:, None] < Q) & (keys[None, :] < K))


def _tiles(dtype: str, qk: int, v: int) -> Tiles:
    block = 16 if dtype == "fp32" else 64 if max(qk, v) <= 64 else 32
    return {
        "D": qk, "E": v, "BLOCK_D": padded(qk), "BLOCK_E": padded(v), "BLOCK_Q": block, "BLOCK_K": 32,
        "num_warps": 4, "num_stages": 2,
    }  # fmt: skip


def _token_major(x_BHTd: Tensor) -> Tensor:
    """[B, H, T, d] over a buffer [B, T, H, d]: joining the heads afterwards moves nothing."""
    return x_BHTd.new_empty(x_BHTd.transpose(1, 2).shape).transpose(1, 2)


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor | None, scale: float, norm: float
    ) -> Tensor:
        q, k, v = _dense(q), _dense(k), _dense(v)
        (batch, heads, queries, qk), keys, width = q.shape, k.shape[2], v.shape[3]
        seen = seen.expand(batch, queries, keys).contiguous().view(torch.uint8)
        bias = None if bias is None else bias.expand(batch, queries, keys).contiguous()
        tiles, out = _tiles(TYPES[q.dtype], qk, width), _token_major(q.new_empty(batch, heads, queries, width))
        ctx.rest = (heads, queries, keys, scale, norm, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
        _forward[(batch * heads, triton.cdiv(queries, tiles["BLOCK_Q"]))](
            q, k, v, seen, seen if bias is None else bias, out, *ctx.rest, BIAS=bias is not None,
            PRECISION=precision(), **tiles,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, seen, bias)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, seen, bias = ctx.saved_tensors
        (batch, heads, queries, _), keys = q.shape, k.shape[2]
        tiles = {
            **_tiles(TYPES[q.dtype], q.shape[3], v.shape[3]), "BIAS": bias is not None, "PRECISION": precision(),
        }  # fmt: skip
        grad = grad.transpose(1, 2).contiguous()
        over_q, over_k = triton.cdiv(queries, tiles["BLOCK_Q"]), triton.cdiv(keys, tiles["BLOCK_K"])
        d_q, d_k, d_v = _token_major(q), _token_major(k), _token_major(v)
        given = (grad, q, k, v, seen, seen if bias is None else bias)
        _backward_queries[(batch * heads, over_q)](*given, d_q, *ctx.rest, **tiles)
        _backward_keys[(batch * heads, over_k)](*given, d_k, d_v, *ctx.rest, **tiles)
        d_bias = None
        if bias is not None and ctx.needs_input_grad[4]:
            d_bias = torch.empty_like(bias)
            _backward_bias[(batch, over_q, over_k)](*given, d_bias, *ctx.rest, **tiles)
        return d_q, d_k, d_v, None, d_bias, None, None


def pointwise_attention(
    q_BHQd: Tensor, k_BHKd: Tensor, v_BHKe: Tensor, seen_BQK: Tensor, bias_BQK: Tensor | None, scale: float, norm: float
) -> Tensor:
    """silu(scale q kᵀ + bias) / norm where seen, times v: [B, H, Q, e]; heads wider than 128 go to ATen."""
    q, k, v = cast(q_BHQd, k_BHKd, v_BHKe)
    # one history shared by many queries comes without their batch; a bias need not have it and must be expanded outside
    batch, queries, keys = q.shape[0], q.shape[2], k.shape[2]
    k, v = (t.expand(batch, -1, -1, -1) for t in (k, v))
    bias = None if bias_BQK is None else bias_BQK.expand(batch, queries, keys)
    if not takes(q, k, v) or max(q.shape[3], v.shape[3]) > MOST_WIDTH:
        return pointwise_attention_fused(q, k, v, seen_BQK, bias, scale, norm)
    return _Pointwise.apply(q, k, v, seen_BQK, bias, scale, norm)


_REST = "i32 i32 i32 fp32 fp32 " + " ".join(["I32"] * 9)
KERNELS = tuple(
    Kernel(
        fn=fn, args=f"{first} {_REST}", dot=True, tiles=by_type(_tiles, 32, 32, BIAS=True, PRECISION="ieee")
    )
    for fn, first in (
        (_forward, "*T *T *T *u8 *T *T"),
        (_backward_queries, "*T *T *T *T *u8 *T *T"),
        (_backward_keys, "*T *T *T *T *u8 *T *T *T"),
        (_backward_bias, "*T *T *T *T *u8 *T *T"),
    )
)  # fmt: skip

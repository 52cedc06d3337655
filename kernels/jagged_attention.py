"""Causal attention over histories stored one behind the other, without work on padding.

A row's keys are its S-tokens, oldest first, then its NS-tokens; its queries are the newest of them (a pyramid asks for
few), so query i of Q stands at key i + K - Q and sees that key and all before it.

On CPU rows of the same numbers of queries and keys are brought together by one gather. Long ones go through torch's
flash operator as a batch without padding and, where all tokens ask, without mask. Short ones, filled up to a multiple
of 8 tokens, go through plain products, so many rows at a time as keep their scores in cache. Rows that already lie so
are not moved. What the gather costs is bound by the tokens, what padding costs by the square of the longest row.

Dims: B rows, M queries of all rows, N keys of all rows, H heads, d width of a head, Q queries of a row, K its keys,
R = B + 1 offsets
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ctrbench.kernels.attention import attention_plain, lower_right, visible_pairs
from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu

Impl = Literal["fused", "plain"]

SHORT = 128
"""Keys up to which products in cache beat the flash operator, which spends 64 x 64 x 16 at a quarter of their rate."""
STEP = 8
"""Short rows are filled up to a multiple of this, a vector of the instruction set."""
IN_CACHE = 1 << 18
"""Scores at a time; both measured as in docs/performance/transformer_operators.md."""
_ALL, _FIRST = slice(None), slice(1)

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _padded(x_NHd: Tensor, offsets_R: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """([B, H, longest, d] with each row at the right end, bool [B, longest] of what is real)."""
    lengths_B = offsets_R.diff()
    at_BL = torch.arange(longest, device=x_NHd.device) - (longest - lengths_B).unsqueeze(1)
    real_BL = at_BL >= 0
    flat_BL = (at_BL + offsets_R[:-1].unsqueeze(1)).clamp(min=0)
    x_BLHd = torch.cat([x_NHd, x_NHd.new_zeros(1, *x_NHd.shape[1:])])[torch.where(real_BL, flat_BL, len(x_NHd))]
    return x_BLHd.transpose(1, 2), real_BL


def jagged_attention_plain(
    q_MHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, q_offsets_R: Tensor, k_offsets_R: Tensor, longest: int
) -> Tensor:
    """Plain twin: rows padded at the left to the longest, attention under a mask, padding dropped."""
    longest = max(longest, 1)
    q_BHLd, asks_BL = _padded(q_MHd, q_offsets_R, longest)
    k_BHLd, real_BL = _padded(k_NHd, k_offsets_R, longest)
    v_BHLd, _ = _padded(v_NHd, k_offsets_R, longest)
    seen_B1LL = real_BL.view(-1, 1, 1, longest) & lower_right(longest, longest, q_MHd.device)
    return attention_plain(q_BHLd, k_BHLd, v_BHLd, seen_B1LL).transpose(1, 2)[asks_BL]


class _Group(NamedTuple):
    """Rows of the same numbers of queries and keys, one behind the other; short ones filled up at the right."""

    rows: int
    queries: int
    keys: int
    q_at: int
    k_at: int
    short: bool
    """Goes through products in cache; else through torch's flash operator."""
    behind_b: Tensor | None
    """Keys before the first query, by row; None where all tokens ask and no mask but the triangle is needed."""

    def q(self, x_MHd: Tensor) -> Tensor:
        """The group's queries, [b, H, Q, d], a view."""
        own = x_MHd[self.q_at : self.q_at + self.rows * self.queries]
        return own.view(self.rows, self.queries, *x_MHd.shape[1:]).transpose(1, 2)

    def k(self, x_NHd: Tensor) -> Tensor:
        """Keys or values, [b, H, K, d], a view."""
        own = x_NHd[self.k_at : self.k_at + self.rows * self.keys]
        return own.view(self.rows, self.keys, *x_NHd.shape[1:]).transpose(1, 2)

    def mask(self, like: Tensor, rows: slice = _ALL) -> Tensor:
        """Additive [1 or b, 1, Q, K]: what each query sees. Filling at the right is behind what any real one sees."""
        last_bQ = torch.arange(self.queries).unsqueeze(0)
        if self.behind_b is not None:
            last_bQ = last_bQ + self.behind_b[rows].unsqueeze(1)
        hidden_bQK = torch.arange(self.keys) > last_bQ.unsqueeze(2)
        return torch.zeros(hidden_bQK.shape, dtype=like.dtype).masked_fill_(hidden_bQK, -torch.inf).unsqueeze(1)


class _Moves(NamedTuple):
    """Where tokens go (filling repeats some token), which of it is filling, and back."""

    there: Tensor
    filling: Tensor
    back: Tensor


class _Plan(NamedTuple):
    groups: tuple[_Group, ...]
    q_moves: _Moves | None
    k_moves: _Moves | None


def _moves(offsets_R: np.ndarray, order_B: np.ndarray, room_B: np.ndarray) -> _Moves | None:
    """Rows in this order, each in so much room; None if they lie so."""
    start_B, lengths_B = offsets_R[:-1][order_B], np.diff(offsets_R)[order_B]
    begin_B = np.cumsum(room_B) - room_B
    place = np.arange(room_B.sum()) - np.repeat(begin_B, room_B)
    real = place < np.repeat(lengths_B, room_B)
    there = np.where(real, np.repeat(start_B, room_B) + place, 0)
    if real.all() and (there == np.arange(len(there))).all():
        return None
    back = np.empty(offsets_R[-1], dtype=np.int64)
    back[there[real]] = np.flatnonzero(real)
    return _Moves(*(torch.from_numpy(x) for x in (there, np.flatnonzero(~real), back)))


def _up(lengths: np.ndarray) -> np.ndarray:
    return -(-lengths // STEP) * STEP


@lru_cache(maxsize=4)
def _plan(q_offsets: tuple[int, ...], k_offsets: tuple[int, ...], up_to: int) -> _Plan:
    """Kept for the layers of a model, which ask for the same rows in turn. Short rows have up to `up_to` keys."""
    q_R, k_R = np.asarray(q_offsets), np.asarray(k_offsets)
    queries_B, keys_B = np.diff(q_R), np.diff(k_R)
    wrong_B = (queries_B > keys_B) | (queries_B < 0)
    if wrong_B.any():
        row = int(wrong_B.argmax())
        raise ValueError(f"row {row} has {queries_B[row]} queries and {keys_B[row]} keys; queries are the newest keys")
    short_B = keys_B <= up_to
    room_B2 = np.stack([np.where(short_B, _up(n), n) for n in (queries_B, keys_B)], axis=1)
    kind_B4 = np.column_stack([~short_B, queries_B < keys_B, room_B2])
    order_B = np.lexsort((kind_B4[:, 2], kind_B4[:, 3], kind_B4[:, 1], kind_B4[:, 0]))
    kind_B4, room_B2, behind_B = kind_B4[order_B], room_B2[order_B], (keys_B - queries_B)[order_B]
    ends = [*(np.flatnonzero((np.diff(kind_B4, axis=0) != 0).any(axis=1)) + 1), len(order_B)] if len(order_B) else []
    groups, begin, q_at, k_at = [], 0, 0, 0
    for end in ends:
        (long, tail, queries, keys), rows = (int(n) for n in kind_B4[begin]), int(end - begin)
        if queries:
            behind_b = torch.from_numpy(behind_B[begin:end]) if tail else None
            groups.append(_Group(rows, queries, keys, q_at, k_at, not long, behind_b))
        begin, q_at, k_at = int(end), q_at + rows * queries, k_at + rows * keys
    return _Plan(tuple(groups), _moves(q_R, order_B, room_B2[:, 0]), _moves(k_R, order_B, room_B2[:, 1]))


def _move(x: Tensor, index: Tensor | None) -> Tensor:
    return x if index is None else x.index_select(0, index)


def _chunks(group: _Group, heads: int) -> list[slice]:
    """Rows whose scores fit in cache together."""
    size = max(1, IN_CACHE // (heads * group.queries * group.keys))
    return [slice(at, min(at + size, group.rows)) for at in range(0, group.rows, size)]


def _short(group: _Group, q_bHQd: Tensor, k_bHKd: Tensor, v_bHKd: Tensor, out_bHQd: Tensor) -> list[Tensor]:
    """Writes what short rows take and returns what their gradient needs."""
    heads, scale, kept = q_bHQd.shape[1], 1.0 / math.sqrt(q_bHQd.shape[-1]), []
    for rows in _chunks(group, heads):
        q, k, v = (x[rows].flatten(0, 1) for x in (q_bHQd, k_bHKd, v_bHKd))
        mask = group.mask(q, rows)
        if group.behind_b is None:
            scores = torch.baddbmm(mask[0], q, k.transpose(1, 2), alpha=scale)
        else:
            scores = torch.bmm(q, k.transpose(1, 2)).unflatten(0, (-1, heads)).mul_(scale).add_(mask).flatten(0, 1)
        weights = scores.softmax(dim=-1)
        out_bHQd[rows] = torch.bmm(weights, v).unflatten(0, (-1, heads))
        kept += [q, k, v, weights]
    return kept


def _short_backward(group: _Group, kept: Iterator[Tensor], grad_bHQd: Tensor, found: tuple[Tensor, ...]) -> None:
    """Writes the gradients of queries, keys and values."""
    heads, scale = grad_bHQd.shape[1], 1.0 / math.sqrt(grad_bHQd.shape[-1])
    for rows in _chunks(group, heads):
        q, k, v, weights = (next(kept) for _ in range(4))
        grad = grad_bHQd[rows].flatten(0, 1)
        of_v = torch.bmm(weights.transpose(1, 2), grad)
        of_scores = torch._softmax_backward_data(torch.bmm(grad, v.transpose(1, 2)), weights, -1, weights.dtype)
        of_q = torch.bmm(of_scores, k).mul_(scale)
        of_k = torch.bmm(of_scores.transpose(1, 2), q).mul_(scale)
        for to, part in zip(found, (of_q, of_k, of_v), strict=True):
            to[rows] = part.unflatten(0, (-1, heads))


class _Jagged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_MHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, plan: _Plan) -> Tensor:
        q_there, k_there = (None if m is None else m.there for m in (plan.q_moves, plan.k_moves))
        q_MHd, k_NHd, v_NHd = _move(q_MHd, q_there), _move(k_NHd, k_there), _move(v_NHd, k_there)
        out_MHd, kept = torch.empty_like(q_MHd, memory_format=torch.contiguous_format), []
        for g in plan.groups:
            parts = g.q(q_MHd), g.k(k_NHd), g.k(v_NHd)
            if g.short:
                kept += _short(g, *parts, g.q(out_MHd))
                continue
            mask = None if g.behind_b is None else g.mask(q_MHd, _FIRST)
            out, log = _flash(*parts, 0.0, mask is None, attn_mask=mask)
            g.q(out_MHd).copy_(out)
            kept.append(log)
        ctx.plan = plan
        ctx.save_for_backward(q_MHd, k_NHd, v_NHd, out_MHd, *kept)
        return _move(out_MHd, None if plan.q_moves is None else plan.q_moves.back)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_MHd: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_MHd, k_NHd, v_NHd, out_MHd, *saved = ctx.saved_tensors
        plan, kept = ctx.plan, iter(saved)
        grad_MHd = grad_MHd.contiguous()
        if plan.q_moves is not None:
            # what is filling gets no gradient, and so gives none
            grad_MHd = grad_MHd.index_select(0, plan.q_moves.there).index_fill_(0, plan.q_moves.filling, 0.0)
        every = sum(g.rows * g.keys for g in plan.groups) == len(k_NHd)  # else there are keys that nobody asked about
        of_k, of_v = (
            torch.empty(k_NHd.shape, dtype=k_NHd.dtype) if every else k_NHd.new_zeros(k_NHd.shape) for _ in "kv"
        )
        of_q = torch.empty(q_MHd.shape, dtype=q_MHd.dtype)
        for g in plan.groups:
            found = g.q(of_q), g.k(of_k), g.k(of_v)
            if g.short:
                _short_backward(g, kept, g.q(grad_MHd), found)
                continue
            mask = None if g.behind_b is None else g.mask(q_MHd, _FIRST)
            grads = _flash_backward(
                g.q(grad_MHd), g.q(q_MHd), g.k(k_NHd), g.k(v_NHd), g.q(out_MHd), next(kept), 0.0, mask is None,
                attn_mask=mask,
            )  # fmt: skip
            for to, grad in zip(found, grads, strict=True):
                to.copy_(grad)
        q_back, k_back = (None if m is None else m.back for m in (plan.q_moves, plan.k_moves))
        return _move(of_q, q_back), _move(of_k, k_back), _move(of_v, k_back), None


@torch.compiler.disable
def jagged_attention_grouped(
    q_MHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, q_offsets_R: Tensor, k_offsets_R: Tensor, longest: int
) -> Tensor:
    """Fast path on CPU: rows alike together."""
    up_to = SHORT if q_MHd.dtype.itemsize >= 4 else 0  # weights of half types are kept in float32 by flash alone
    return _Jagged.apply(q_MHd, k_NHd, v_NHd, _plan(tuple(q_offsets_R.tolist()), tuple(k_offsets_R.tolist()), up_to))


@torch.compiler.disable
def jagged_attention_flash(
    q_MHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, q_offsets_R: Tensor, k_offsets_R: Tensor, longest: int
) -> Tensor:
    """The same with every row taken for a long one."""
    return _Jagged.apply(q_MHd, k_NHd, v_NHd, _plan(tuple(q_offsets_R.tolist()), tuple(k_offsets_R.tolist()), 0))


def jagged_attention(
    q_MHd: Tensor,
    k_NHd: Tensor,
    v_NHd: Tensor,
    q_offsets_R: Tensor,
    k_offsets_R: Tensor,
    longest: int,
    impl: Impl = "fused",
) -> Tensor:
    """softmax over a row's keys up to each query, [M, H, d]; not differentiable twice on the fast paths.

    Args:
        q_MHd: queries of all rows, the newest tokens of each.
        k_NHd, v_NHd: keys and values of all tokens, rows in the same order; widths of a head alike.
        q_offsets_R, k_offsets_R: int64; row b's queries are q_offsets[b] .. q_offsets[b + 1], its keys likewise.
        longest: at least the keys of the longest row; a number, so that a GPU need not be asked for it.
        impl: `plain` is the twin that tests compare with.

    Raises:
        ValueError: a row has more queries than keys.
    """
    if impl == "plain":
        return jagged_attention_plain(q_MHd, k_NHd, v_NHd, q_offsets_R, k_offsets_R, longest)
    fast = on_gpu("jagged_attention", q_MHd)
    if fast is None:
        fast = jagged_attention_grouped if q_MHd.device.type == "cpu" else jagged_attention_plain
    return fast(q_MHd, k_NHd, v_NHd, q_offsets_R, k_offsets_R, longest)


def spread(rows: int, longest: int, fill: float) -> Tensor:
    """int64 lengths evenly spread around a mean of fill * longest, the widest spread that fits 0 .. longest."""
    low, high = max(0.0, 2 * fill - 1) * longest, min(1.0, 2 * fill) * longest
    return torch.linspace(low, high, rows).round().long()


def _sizes(shape: Shape) -> tuple[Tensor, Tensor]:
    """(queries, keys) of every row of a benchmarked shape."""
    events = spread(int(shape["batch"]), int(shape["history"]), shape["fill"])
    ns, kept = int(shape.get("ns", 0)), int(shape.get("kept", shape["history"]))
    return events.clamp(max=kept) + ns, events + ns


def jagged_cost(width: int, heads: int, queries: Tensor, keys: Tensor) -> Cost:
    """Visible pairs of all rows; two products over all heads; scale, subtract, exp, divide and sum a score."""
    pairs = sum(visible_pairs(q, k) for q, k in zip(queries.tolist(), keys.tolist(), strict=True))
    return Cost(flops=4.0 * width * pairs, elementwise=5.0 * heads * pairs)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    order = torch.randperm(int(shape["batch"]))
    queries, keys = (n[order] for n in _sizes(shape))
    heads, width = int(shape["heads"]), int(shape["width"])
    q, k, v = (
        torch.randn(int(n.sum()), heads, width, dtype=dtype, device=device, requires_grad=True)
        for n in (queries, keys, keys)
    )
    offsets = (torch.nn.functional.pad(n.cumsum(0), (1, 0)).to(device) for n in (queries, keys))
    return q, k, v, *offsets, int(keys.max())


def _shapes() -> dict[str, Shape]:
    return {
        f"B{b} T{t} fill {fill:.0%} d{d}": {"batch": b, "history": t, "fill": fill, "heads": 4, "width": d}
        for b, t in ((256, 64), (128, 512))
        for fill in (0.2, 0.5, 0.8)
        for d in (16, 64)
    }


OPERATOR = Operator(
    title="Jagged causal attention",
    twin=jagged_attention_plain,
    run=jagged_attention,
    paths={"grouped": jagged_attention_grouped, "flash": jagged_attention_flash},
    inputs=_inputs,
    cost=lambda s: jagged_cost(int(s["heads"] * s["width"]), int(s["heads"]), *_sizes(s)),
    small=(
        {"batch": 4, "history": 3, "fill": 0.5, "heads": 2, "width": 3},
        {"batch": 3, "history": 4, "fill": 0.5, "heads": 1, "width": 2, "kept": 2, "ns": 2},
        {"batch": 3, "history": 4, "fill": 0.5, "heads": 1, "width": 2, "kept": 1},
        {"batch": 2, "history": 3, "fill": 1.0, "heads": 2, "width": 2},
        {"batch": 3, "history": 1, "fill": 0.5, "heads": 1, "width": 2},
    ),
    shapes=_shapes(),
    gpu="jagged_attention",
)

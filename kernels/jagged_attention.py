"""Causal attention over histories stored one behind the other, without work on padding.

A row's keys are its S-tokens, oldest first, then its NS-tokens; its queries are the newest of them (a pyramid asks for
few), so query i of Q stands at key i + K - Q and sees that key and all before it.

On CPU rows of the same numbers of queries and keys are brought together by one gather and go through torch's flash
operator as a batch without padding or, where all tokens ask, mask; rows that already lie so are not moved. What the
gather costs is bound by the tokens, what padding costs by the square of the longest row.

Dims: B rows, M queries of all rows, N keys of all rows, H heads, d width of a head, Q queries of a row, K its keys,
R = B + 1 offsets
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ctrbench.kernels.attention import attention_plain, lower_right, visible_pairs
from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu

Impl = Literal["fused", "plain"]

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
    q_BHLd, asks_BL = _padded(q_MHd, q_offsets_R, longest)
    k_BHLd, real_BL = _padded(k_NHd, k_offsets_R, longest)
    v_BHLd, _ = _padded(v_NHd, k_offsets_R, longest)
    seen_B1LL = real_BL.view(-1, 1, 1, longest) & lower_right(longest, longest, q_MHd.device)
    return attention_plain(q_BHLd, k_BHLd, v_BHLd, seen_B1LL).transpose(1, 2)[asks_BL]


class _Group(NamedTuple):
    """Rows alike, one behind the other."""

    rows: int
    queries: int
    keys: int
    q_at: int
    k_at: int

    def q(self, x_MHd: Tensor) -> Tensor:
        """The group's queries, [b, H, Q, d], a view."""
        own = x_MHd[self.q_at : self.q_at + self.rows * self.queries]
        return own.view(self.rows, self.queries, *x_MHd.shape[1:]).transpose(1, 2)

    def k(self, x_NHd: Tensor) -> Tensor:
        """Keys or values, [b, H, K, d], a view."""
        own = x_NHd[self.k_at : self.k_at + self.rows * self.keys]
        return own.view(self.rows, self.keys, *x_NHd.shape[1:]).transpose(1, 2)

    def mask(self, like: Tensor) -> Tensor | None:
        """Additive [Q, K] where not all tokens ask."""
        if self.queries == self.keys:
            return None
        seen_QK = lower_right(self.queries, self.keys)
        return torch.zeros(seen_QK.shape, dtype=like.dtype).masked_fill_(~seen_QK, -torch.inf)


class _Moves(NamedTuple):
    """Where each token goes, and back."""

    there: Tensor
    back: Tensor


class _Plan(NamedTuple):
    groups: tuple[_Group, ...]
    q_moves: _Moves | None
    k_moves: _Moves | None


def _moves(offsets_R: np.ndarray, order_B: np.ndarray) -> _Moves | None:
    lengths_B = np.diff(offsets_R)[order_B]
    begin_B = np.cumsum(lengths_B) - lengths_B
    there = np.repeat(offsets_R[:-1][order_B] - begin_B, lengths_B) + np.arange(lengths_B.sum())
    back = np.empty_like(there)
    back[there] = np.arange(len(there))
    return _Moves(torch.from_numpy(there), torch.from_numpy(back))


@lru_cache(maxsize=4)
def _plan(q_offsets: tuple[int, ...], k_offsets: tuple[int, ...]) -> _Plan:
    """Kept for the layers of a model, which ask for the same rows in turn."""
    q_R, k_R = np.asarray(q_offsets), np.asarray(k_offsets)
    queries_B, keys_B = np.diff(q_R), np.diff(k_R)
    if (queries_B > keys_B).any() or (queries_B < 0).any():
        row = int(np.flatnonzero((queries_B > keys_B) | (queries_B < 0))[0])
        raise ValueError(f"row {row} has {queries_B[row]} queries and {keys_B[row]} keys; queries are the newest keys")
    order_B = np.lexsort((queries_B, keys_B))
    sizes_B2 = np.stack([queries_B[order_B], keys_B[order_B]], axis=1)
    first = np.flatnonzero(np.r_[True, (np.diff(sizes_B2, axis=0) != 0).any(axis=1)]) if len(order_B) else []
    groups, q_at, k_at = [], 0, 0
    for begin, end in zip(first, [*first[1:], len(order_B)], strict=True):
        queries, keys = (int(n) for n in sizes_B2[begin])
        rows = int(end - begin)
        if queries:
            groups.append(_Group(rows, queries, keys, q_at, k_at))
        q_at, k_at = q_at + rows * queries, k_at + rows * keys
    if (np.diff(order_B) == 1).all():
        return _Plan(tuple(groups), None, None)
    return _Plan(tuple(groups), _moves(q_R, order_B), _moves(k_R, order_B))


def _move(x: Tensor, index: Tensor | None) -> Tensor:
    return x if index is None else x.index_select(0, index)


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    """Blocks [b, H, L, d] of all groups as one flat [., H, d]."""
    flat = [p.transpose(1, 2).flatten(0, 1) for p in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat) if flat else like.new_empty(0, *like.shape[1:])


class _Jagged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_MHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, plan: _Plan) -> Tensor:
        q_there, k_there = (None if m is None else m.there for m in (plan.q_moves, plan.k_moves))
        q_MHd, k_NHd, v_NHd = _move(q_MHd, q_there), _move(k_NHd, k_there), _move(v_NHd, k_there)
        outs, logs = [], []
        for g in plan.groups:
            mask = g.mask(q_MHd)
            out, log = _flash(g.q(q_MHd), g.k(k_NHd), g.k(v_NHd), 0.0, mask is None, attn_mask=mask)
            outs.append(out)
            logs.append(log)
        out_MHd = _joined(outs, q_MHd)
        ctx.plan = plan
        ctx.save_for_backward(q_MHd, k_NHd, v_NHd, out_MHd, *logs)
        return _move(out_MHd, None if plan.q_moves is None else plan.q_moves.back)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_MHd: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_MHd, k_NHd, v_NHd, out_MHd, *logs = ctx.saved_tensors
        plan: _Plan = ctx.plan
        grad_MHd = _move(grad_MHd.contiguous(), None if plan.q_moves is None else plan.q_moves.there)
        found: tuple[list[Tensor], ...] = ([], [], [])
        for g, log in zip(plan.groups, logs, strict=True):
            mask = g.mask(q_MHd)
            grads = _flash_backward(
                g.q(grad_MHd), g.q(q_MHd), g.k(k_NHd), g.k(v_NHd), g.q(out_MHd), log, 0.0, mask is None, attn_mask=mask
            )
            for parts, grad in zip(found, grads, strict=True):
                parts.append(grad)
        return (*_returned(found, plan, q_MHd, k_NHd), None)


def _returned(
    found: tuple[list[Tensor], ...], plan: _Plan, q_MHd: Tensor, k_NHd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in the caller's order; keys that nobody asked about get zeros."""
    q_back, k_back = (None if m is None else m.back for m in (plan.q_moves, plan.k_moves))
    grad_q, grad_k, grad_v = (_joined(parts, k_NHd) for parts in found)
    if len(grad_k) < len(k_NHd):
        asked = torch.cat([torch.arange(g.k_at, g.k_at + g.rows * g.keys) for g in plan.groups] or [torch.arange(0)])
        grad_k, grad_v = (torch.zeros_like(k_NHd).index_copy_(0, asked, t) for t in (grad_k, grad_v))
    return _move(grad_q, q_back), _move(grad_k, k_back), _move(grad_v, k_back)


@torch.compiler.disable
def jagged_attention_grouped(
    q_MHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, q_offsets_R: Tensor, k_offsets_R: Tensor, longest: int
) -> Tensor:
    """Fast path on CPU: rows alike as one batch of torch's flash operator."""
    plan = _plan(tuple(q_offsets_R.tolist()), tuple(k_offsets_R.tolist()))
    return _Jagged.apply(q_MHd, k_NHd, v_NHd, plan)


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
    paths={"grouped": jagged_attention_grouped},
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

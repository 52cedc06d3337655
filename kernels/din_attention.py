"""DIN's whole activation unit over real events (1706.06978 section 4.3): u = sum_j a_j h_j, a = MLP([q; h; q-h; q*h]).

Histories are flat: the events of all rows one after another, with the rows' offsets; padding is never touched.
The first layer is split algebraically (kernels/din_unit.py), so that the four-part input is never built:

    x = (W_q + W_d) q + b, once a row;  + [W_h - W_d, W_p] [h; q * h], an event

`fused` is one autograd node. On a CPU the unit is bound by memory, so rows are worked on in blocks whose intermediates
stay in the cache; only the layers' outputs before their activations reach memory, activations are computed anew where
they are needed. Dice's statistics over all events part the blocks: one sweep a layer forward, one a layer backward.
Between the products of float32 blocks stands C (kernels/cpu/din_blocks.c), one pass where ATen takes up to thirteen;
without a compiler, and for float64, ATen does those steps too.

Dims: B rows, N events of all rows, E events of a block, C width of an event, O and I width of a layer and of its input
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.cpu.first_layer import bag, first_layer, rows_of
from ctrbench.kernels.dice import BlockAct, dice_plain
from ctrbench.kernels.din_unit import unit_concat, unit_cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu

Tensors = tuple[Tensor, ...]
Moments = tuple[tuple[Tensor, Tensor] | None, ...]
BLOCK = 1 << 20
"""Numbers [E, O] of the widest layer in a block: 4 MiB of float32."""


# ------------------------------------------------------------------ plain forms


def din_padded(
    q_BC: Tensor, h_NC: Tensor, offsets_B1: Tensor, weights: Tensors, biases: Tensors,
    alphas: Sequence[Tensor | None], stats: Moments, softmax: bool = False, eps: float = 1e-9,
) -> tuple[Tensor, Moments]:  # fmt: skip
    """Plain twin: padded to the longest history, the [B, T, 4C] input is built. Arguments as of `din_attention`."""
    lengths_B = offsets_B1.diff()
    length = max(1, int(lengths_B.max())) if len(lengths_B) else 1
    mask_BT = torch.arange(length, device=q_BC.device) < lengths_B.unsqueeze(1)
    h_BTC = q_BC.new_zeros(*mask_BT.shape, q_BC.shape[1]).masked_scatter(mask_BT.unsqueeze(2), h_NC)
    x_BTO = unit_concat(q_BC, h_BTC, weights[0], biases[0])
    moments: list[tuple[Tensor, Tensor] | None] = []
    for i, (alpha_O, given) in enumerate(zip(alphas, stats, strict=True)):
        x_BTO, found = _acted(x_BTO, mask_BT, alpha_O, given, eps)
        moments.append(found)
        x_BTO = linear(x_BTO, weights[i + 1], biases[i + 1])
    a_BT = x_BTO.squeeze(2)
    if softmax:
        a_BT = a_BT.masked_fill(~mask_BT, torch.finfo(a_BT.dtype).min).softmax(dim=1)
    return torch.bmm((a_BT * mask_BT).unsqueeze(1), h_BTC).squeeze(1), tuple(moments)


def din_flat(
    q_BC: Tensor, h_NC: Tensor, offsets_B1: Tensor, weights: Tensors, biases: Tensors,
    alphas: Sequence[Tensor | None], stats: Moments, softmax: bool = False, eps: float = 1e-9,
) -> tuple[Tensor, Moments]:  # fmt: skip
    """Real events only, first layer split, differentiated operator by operator: any device and type."""
    rows_N = rows_of(offsets_B1, len(h_NC))
    w_q, w_h, w_d, w_p = weights[0].chunk(4, dim=1)
    q_NC = q_BC.index_select(0, rows_N)
    x_NO = linear(torch.cat([h_NC, q_NC * h_NC], dim=1), torch.cat([w_h - w_d, w_p], dim=1))
    x_NO = x_NO + linear(q_BC, w_q + w_d, biases[0]).index_select(0, rows_N)
    every_N = torch.ones_like(rows_N, dtype=torch.bool)
    moments: list[tuple[Tensor, Tensor] | None] = []
    for i, (alpha_O, given) in enumerate(zip(alphas, stats, strict=True)):
        x_NO, found = _acted(x_NO, every_N, alpha_O, given, eps)
        moments.append(found)
        x_NO = linear(x_NO, weights[i + 1], biases[i + 1])
    a_N = _softmax(x_NO.squeeze(1), rows_N, len(q_BC)) if softmax else x_NO.squeeze(1)
    return torch.zeros_like(q_BC).index_add(0, rows_N, a_N.unsqueeze(1) * h_NC), tuple(moments)


def _acted(
    x: Tensor, mask: Tensor, alpha_O: Tensor | None, given: tuple[Tensor, Tensor] | None, eps: float
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """ReLU, Dice by given statistics, or Dice by those of the rows in `mask`, which come back."""
    if alpha_O is None:
        return relu(x), None
    if given is None:
        out, mean_O, var_O = dice_plain(x, mask, alpha_O, eps)
        return out, (mean_O.detach(), var_O.detach())
    p = torch.sigmoid((x - given[0]) * torch.rsqrt(given[1] + eps))
    return p * x + alpha_O * (1 - p) * x, None


def _softmax(a_N: Tensor, rows_N: Tensor, rows: int) -> Tensor:
    """Softmax over the events of each row."""
    top_B = a_N.detach().new_full((rows,), -torch.inf).scatter_reduce(0, rows_N, a_N.detach(), "amax")
    e_N = (a_N - top_B.index_select(0, rows_N)).exp()
    return e_N / e_N.new_zeros(rows).index_add(0, rows_N, e_N).index_select(0, rows_N)


# ----------------------------------------------------------------- one node


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive rows and their events."""

    rows: slice
    events: slice


def _blocks(offsets_B1: Tensor, events: int, size: int) -> list[_Block]:
    """Whole rows in blocks of about `size` events; nothing for no events."""
    if not events:
        return []
    first = torch.searchsorted(offsets_B1, torch.arange(0, events, max(1, size)))
    first = first[offsets_B1[first] < events]  # empty rows at the end join the last block: none is without events
    edge = torch.cat([first, first.new_tensor([len(offsets_B1) - 1])]).unique_consecutive()
    pairs = list(zip(edge.tolist(), offsets_B1[edge].tolist(), strict=True))
    return [_Block(slice(r0, r1), slice(e0, e1)) for (r0, e0), (r1, e1) in pairwise(pairs)]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """total += left right; not `addmm_`, which the counters of FLOPs do not know."""
    return torch.addmm(total, left, right, out=total)


class _Sweeps:
    """What forward and backward share: blocks, the rows of their events, buffers, the first layer's weights split."""

    def __init__(self, q_BC: Tensor, h_NC: Tensor, offsets_B1: Tensor, weights: Sequence[Tensor]) -> None:
        self.q_BC, self.h_NC, self.offsets_B1 = q_BC.contiguous(), h_NC.contiguous(), offsets_B1
        w_q, w_h, w_d, w_p = weights[0].chunk(4, dim=1)
        self.query_OC, self.pair_O2C = w_q + w_d, torch.cat([w_h - w_d, w_p], dim=1)
        widest = max(2 * h_NC.shape[1], *(len(w) for w in weights[:-1]))
        self.blocks = _blocks(offsets_B1, len(h_NC), BLOCK // widest)
        self.rows_N = rows_of(offsets_B1, len(h_NC))
        self.first = first_layer(h_NC.dtype)
        self.largest = max((b.events.stop - b.events.start for b in self.blocks), default=0) * widest

    def buffers(self, count: int) -> list[Tensor]:
        """Flat, as large as the largest block."""
        return [self.h_NC.new_empty(self.largest) for _ in range(count)]

    def pairs(self, block: _Block, into: Tensor) -> Tensor:
        """[h; q * h] of a block's events, in the buffer."""
        return self.first.pairs(self.q_BC, self.h_NC[block.events], self.rows_N[block.events], into)


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BC: Tensor, h_NC: Tensor, offsets_B1: Tensor, acts: list[BlockAct], softmax: bool, eps: float,
        *params: Tensor,
    ) -> Tensor:  # fmt: skip
        depth = len(acts)
        weights, biases = params[: depth + 1], params[depth + 1 : 2 * depth + 2]
        sweeps = _Sweeps(q_BC, h_NC, offsets_B1, weights)
        blocks, (work,) = sweeps.blocks, sweeps.buffers(1)
        row_BO = torch.addmm(biases[0], q_BC, sweeps.query_OC.t())
        # a tensor a block: the allocator has those at hand, where one of all events is fresh pages at every step
        outs: list[list[Tensor]] = []
        for i, act in enumerate([*acts, None]):
            outs.append([])
            for k, block in enumerate(blocks):
                if i == 0:
                    x_EO = sweeps.pairs(block, work) @ sweeps.pair_O2C.t()
                    sweeps.first.add_rows(row_BO, sweeps.rows_N[block.events], x_EO)
                else:
                    x_EO = torch.addmm(biases[i], acts[i - 1].out(outs[i - 1][k], work), weights[i].t())
                if act is not None:
                    act.see(x_EO)
                outs[i].append(x_EO)
            if act is not None:
                act.close(eps)
        a_N = torch.cat(outs.pop()).squeeze(1) if blocks else h_NC.new_empty(0)
        if softmax:
            a_N = _softmax(a_N, sweeps.rows_N, len(q_BC))
        ctx.sweeps, ctx.acts, ctx.softmax, ctx.outs = sweeps, acts, softmax, outs
        ctx.save_for_backward(a_N, *weights)
        return bag(sweeps.h_NC, offsets_B1, a_N)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, du_BC: Tensor) -> tuple[Tensor | None, ...]:
        sweeps, acts, outs, (a_N, *weights) = ctx.sweeps, ctx.acts, ctx.outs, ctx.saved_tensors
        (dy, *work), events = sweeps.buffers(4), len(sweeps.h_NC)
        du_BC = du_BC.contiguous()
        grads = _scores_grads(sweeps, du_BC, a_N, ctx.softmax)
        dws, dbs = [torch.zeros_like(w) for w in weights], [w.new_zeros(len(w)) for w in weights]
        sums = [w.new_zeros(3, len(w)) for w in weights[:-1]]
        for i in range(len(acts), 0, -1):
            for k, x_EI in enumerate(outs[i - 1]):
                dx_EO, dy_EI = grads[k], dy[: x_EI.numel()].view_as(x_EI)
                if i < len(acts):
                    dx_EO = acts[i].finish(outs[i][k], dx_EO, sums[i], events)
                    torch.mm(dx_EO, weights[i], out=dy_EI)
                else:
                    torch.mul(dx_EO, weights[i], out=dy_EI)
                y_EI, grads[k] = acts[i - 1].back(x_EI, dy_EI, sums[i - 1], work)
                _add_product(dws[i], dx_EO.t(), y_EI)
                dbs[i] += dx_EO.sum(0)
        finished = (acts[0].finish(x_EO, grads[k], sums[0], events) for k, x_EO in enumerate(outs[0]))
        dq_BC, dh_NC, dws[0], dbs[0] = _first_grads(sweeps, finished, a_N, du_BC, work)
        dalphas = [None if a.alpha_O is None else s[0] for a, s in zip(acts, sums, strict=True)]
        return dq_BC, dh_NC, None, None, None, None, *dws, *dbs, *dalphas


def _scores_grads(sweeps: _Sweeps, du_BC: Tensor, a_N: Tensor, softmax: bool) -> list[Tensor]:
    """Gradient of the scores through u = sum of a h, a block [E, 1] each."""
    da_N = torch.empty_like(a_N)
    for block in sweeps.blocks:
        e = block.events
        sweeps.first.scores_back(du_BC, sweeps.h_NC[e], sweeps.rows_N[e], da_N[e])
    if softmax:
        da_N *= a_N
        da_N -= a_N * a_N.new_zeros(len(du_BC)).index_add(0, sweeps.rows_N, da_N).index_select(0, sweeps.rows_N)
    return [da_N[b.events].unsqueeze(1) for b in sweeps.blocks]


def _first_grads(
    sweeps: _Sweeps, finished: Iterator[Tensor], a_N: Tensor, du_BC: Tensor, work: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, of h, and of the first layer's weight and bias, from those of its output, a block each."""
    q_BC, h_NC = sweeps.q_BC, sweeps.h_NC
    dq_BC, dh_NC = torch.empty_like(q_BC), torch.empty_like(h_NC)
    drow_BO, dpair_O2C = q_BC.new_empty(len(q_BC), len(sweeps.query_OC)), torch.zeros_like(sweeps.pair_O2C)
    for block, dx_EO in zip(sweeps.blocks, finished, strict=True):
        e, rows = block.events, block.rows
        pair_E2C = sweeps.pairs(block, work[0])
        _add_product(dpair_O2C, dx_EO.t(), pair_E2C)
        dpair_E2C = torch.mm(dx_EO, sweeps.pair_O2C, out=work[1][: pair_E2C.numel()].view_as(pair_E2C))
        sweeps.first.first_back(
            dpair_E2C, dx_EO, q_BC[rows], h_NC[e], sweeps.offsets_B1[rows.start : rows.stop + 1], a_N[e], du_BC[rows],
            dh_NC[e], dq_BC[rows], drow_BO[rows],
        )  # fmt: skip
    if not sweeps.blocks:
        dq_BC.zero_(), drow_BO.zero_()
    _add_product(dq_BC, drow_BO, sweeps.query_OC)
    dquery_OC, (devent_OC, dproduct_OC) = drow_BO.t() @ q_BC, dpair_O2C.chunk(2, dim=1)
    dweight_O4C = torch.cat([dquery_OC, devent_OC, dquery_OC - devent_OC, dproduct_OC], dim=1)
    return dq_BC, dh_NC, dweight_O4C, drow_BO.sum(0)


def din_fused(
    q_BC: Tensor, h_NC: Tensor, offsets_B1: Tensor, weights: Tensors, biases: Tensors,
    alphas: Sequence[Tensor | None], stats: Moments, softmax: bool = False, eps: float = 1e-9,
) -> tuple[Tensor, Moments]:  # fmt: skip
    """Fast path on CPU: one node, blocks of rows."""
    acts = [BlockAct(a, s) for a, s in zip(alphas, stats, strict=True)]
    u_BC = _Unit.apply(q_BC, h_NC, offsets_B1, acts, softmax, eps, *weights, *biases, *alphas)
    return u_BC, tuple(a.moments for a in acts)


def _fits(x: Tensor, params: Sequence[Tensor | None]) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and all(p is None or p.dtype == x.dtype for p in params)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def din_attention(
    q_BC: Tensor, h_NC: Tensor, offsets_B1: Tensor, weights: Tensors, biases: Tensors,
    alphas: Sequence[Tensor | None], stats: Moments, softmax: bool = False, eps: float = 1e-9,
) -> tuple[Tensor, Moments]:  # fmt: skip
    """The activation unit and its sum over the history; zero for an empty one.

    Args:
        q_BC: target as an event.
        h_NC: real events, row after row.
        offsets_B1: int64 [B + 1]; events of row b are `offsets[b]` to `offsets[b + 1]`.
        weights: of the hidden layers, the first [O, 4C] over [q; h; q-h; q*h], and of the scores, [1, O].
        biases: one a weight.
        alphas: one a hidden layer: alpha [O] of Dice, or None for ReLU.
        stats: one a hidden layer: (mean, variance) to normalise with, or None for those of the N events.
        softmax: over each row's events; else the scores weigh as they are.
        eps: of Dice.

    Returns:
        u_BC, and the (mean, biased variance) that each layer took from the events; no gradient flows from them.
    """
    path = on_gpu("din_attention", q_BC)
    if path is None:
        path = din_fused if _fits(q_BC, (h_NC, *weights, *biases, *alphas)) else din_flat
    found: tuple[Tensor, Moments] = path(q_BC, h_NC, offsets_B1, weights, biases, alphas, stats, softmax, eps)
    return found


def din_cost(width: int, units: Sequence[int], events: float) -> Cost:
    """One row of `events` real events; Dice is priced in kernels/dice.py."""
    first = unit_cost(width, units[0], events, "split")
    rest = sum(2.0 * a * b for a, b in zip(units, [*units[1:], 1], strict=True))
    return first + Cost(flops=events * (rest + 2.0 * width), elementwise=events * 4.0 * sum(units))


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    batch, history, width = (int(shape[n]) for n in ("batch", "history", "width"))
    units = [int(shape[n]) for n in ("first", "second")]
    lengths_B = torch.full((batch,), history)
    if shape["fill"] < 1:  # from none to twice the mean, and one row at the cap: the twin pads to it, as models do
        lengths_B = torch.randint(0, int(2 * history * shape["fill"]) + 1, (batch,)).clamp(max=history)
        lengths_B[0] = history if shape["fill"] else 0
    offsets_B1 = torch.cat([lengths_B.new_zeros(1), lengths_B.cumsum(0)]).to(device)

    def random(*size: int, over: float = 1.0) -> Tensor:
        return (torch.randn(*size, dtype=dtype, device=device) / over**0.5).requires_grad_()

    pairs = [(4 * width, units[0]), (units[0], units[1]), (units[1], 1)]
    dice = shape.get("dice", 1)
    return (
        random(batch, width), random(int(offsets_B1[-1]), width), offsets_B1,
        tuple(random(o, i, over=i) for i, o in pairs), tuple(random(o) for _, o in pairs),
        tuple(random(o) if dice else None for o in units), (None, None), bool(shape.get("softmax", 0)),
    )  # fmt: skip


def _summed(path: Any) -> Any:
    """A path without its moments, from which no gradient flows."""

    def run(*args: Any) -> Tensor:
        u_BC: Tensor = path(*args)[0]
        return u_BC

    return run


def _shape(first: int, second: int, fill: float, dice: int = 1) -> Shape:
    return {"batch": 4096, "history": 50, "width": 32, "first": first, "second": second, "fill": fill, "dice": dice}


_TINY = {"batch": 4, "history": 3, "width": 2, "first": 3, "second": 2, "fill": 0.5}
OPERATOR = Operator(
    title="DIN activation unit on jagged histories",
    twin=_summed(din_padded),
    run=_summed(din_attention),
    paths={"fused": _summed(din_fused), "flat": _summed(din_flat)},
    inputs=_inputs,
    cost=lambda s: (
        din_cost(int(s["width"]), [int(s["first"]), int(s["second"])], s["history"] * s["fill"]) * s["batch"]
    ),
    small=(
        _TINY,
        {**_TINY, "softmax": 1},
        {**_TINY, "dice": 0, "fill": 1.0},
        {**_TINY, "batch": 1, "history": 1, "fill": 1.0, "dice": 0},
        {**_TINY, "fill": 0.0},
    ),
    shapes={
        "B4096 T50 C32 64-32": _shape(64, 32, 1.0),
        "B4096 T50 C32 64-32 fill 50 %": _shape(64, 32, 0.5),
        "B4096 T50 C32 64-32 fill 20 %": _shape(64, 32, 0.2),
        "B4096 T50 C32 80-40": _shape(80, 40, 1.0),
        "B4096 T50 C32 64-32 ReLU": _shape(64, 32, 1.0, dice=0),
    },
    gpu="din_attention",
)

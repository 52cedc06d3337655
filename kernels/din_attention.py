"""DIN's whole activation unit over real events (1706.06978 section 4.3): u = sum_j a_j h_j, a = MLP([q; h; q-h; q*h]).

Histories are flat: the events of all rows one after another, with the rows' offsets; padding is never touched.
The first layer is split algebraically (kernels/din_unit.py), so that the four-part input is never built:

    x = (W_q + W_d) q + b, once a row;  + [W_h - W_d, W_p] [h; q * h], an event

`fused` is one autograd node. On a CPU the unit is bound by memory, so rows are worked on in blocks whose intermediates
stay in the cache; only the layers' outputs before their activations reach memory, activations are computed anew where
they are needed. Dice's statistics over all events part the blocks: one sweep a layer forward, one a layer backward.

Dims: B rows, N events of all rows, E events of a block, C width of an event, O and I width of a layer and of its input
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, linear, relu

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.dice import dice_plain
from ctrbench.kernels.din_unit import unit_concat, unit_cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu

Tensors = tuple[Tensor, ...]
Moments = tuple[tuple[Tensor, Tensor] | None, ...]
BLOCK = 1 << 19
"""Numbers [E, O] of the widest layer in a block: 2 MiB of float32."""


# ------------------------------------------------------------------ plain forms


def din_padded(
    q_BC: Tensor, h_NC: Tensor, offsets_B1: Tensor, weights: Tensors, biases: Tensors,
    alphas: Sequence[Tensor | None], stats: Moments, softmax: bool = False, eps: float = 1e-9,
) -> tuple[Tensor, Moments]:  # fmt: skip
    """Plain twin: padded to the longest history, the [B, T, 4C] input is built. Arguments and result as `din_attention`."""
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
    rows_N = _rows(offsets_B1, len(h_NC))
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


def _rows(offsets_B1: Tensor, events: int) -> Tensor:
    """Row of every event."""
    at_B = torch.arange(len(offsets_B1) - 1, device=offsets_B1.device)
    return at_B.repeat_interleave(offsets_B1.diff(), output_size=events)


def _softmax(a_N: Tensor, rows_N: Tensor, rows: int) -> Tensor:
    """Softmax over the events of each row."""
    top_B = a_N.detach().new_full((rows,), -torch.inf).scatter_reduce(0, rows_N, a_N.detach(), "amax")
    e_N = (a_N - top_B.index_select(0, rows_N)).exp()
    return e_N / e_N.new_zeros(rows).index_add(0, rows_N, e_N).index_select(0, rows_N)


# ----------------------------------------------------------------- one node


class _Act:
    """An activation of one layer on blocks [E, O], in place and by `out=`: Dice, or ReLU where alpha is None.

    Dice as in kernels/dice.py: out = g x, g = alpha + (1 - alpha) p, p = sigmoid(z), z = scale x + shift.
    """

    def __init__(self, alpha_O: Tensor | None, given: tuple[Tensor, Tensor] | None) -> None:
        self.alpha_O, self.given = alpha_O, given
        self.moments: tuple[Tensor, Tensor] | None = None
        self.counts: list[int] = []
        self.means: list[Tensor] = []
        self.vars: list[Tensor] = []

    def see(self, x_EO: Tensor) -> None:
        """A block of the layer's output: ReLU is applied to it, Dice takes its statistics."""
        if self.alpha_O is None:
            x_EO.relu_()
        elif self.given is None:
            mean_O, var_O = torch.batch_norm_update_stats(x_EO, None, None, 0.0)
            self.counts.append(len(x_EO))
            self.means.append(mean_O)
            self.vars.append(var_O)

    def close(self, eps: float) -> None:
        """Statistics of all blocks; they are merged by their counts, as sums of squares would cancel."""
        if self.alpha_O is None:
            return
        mean_O, var_O = self.given or (torch.zeros_like(self.alpha_O), torch.zeros_like(self.alpha_O))
        if self.counts:
            share_K = torch.tensor(self.counts, dtype=torch.float64)
            share_K1 = (share_K / share_K.sum()).unsqueeze(1)
            means_KO, vars_KO = torch.stack(self.means).double(), torch.stack(self.vars).double()
            mean = (share_K1 * means_KO).sum(0)
            var_O = (share_K1 * (vars_KO + (means_KO - mean).square())).sum(0).to(var_O)
            mean_O = mean.to(mean_O)
        self.scale_O = torch.rsqrt(var_O + eps)
        self.shift_O = -mean_O * self.scale_O
        self.rest_O = 1 - self.alpha_O
        self.moments = (mean_O, var_O) if self.given is None else None

    def out(self, x_EO: Tensor, into: Tensor) -> Tensor:
        """Activations of a block, in a flat buffer."""
        if self.alpha_O is None:
            return x_EO
        into_EO = into[: x_EO.numel()].view_as(x_EO)
        torch.addcmul(self.shift_O, x_EO, self.scale_O, out=into_EO).sigmoid_()
        return torch.addcmul(self.alpha_O, self.rest_O, into_EO, out=into_EO).mul_(x_EO)

    def back(self, x_EO: Tensor, dy_EO: Tensor, sums_3O: Tensor, work: Sequence[Tensor]) -> Tensor:
        """Activations of a block; `dy_EO` becomes the gradient of x, but for what flows through mean and variance.

        `sums_3O` gathers the gradient of alpha, s and s z, where s is the gradient of z less its factor 1 - alpha.
        """
        if self.alpha_O is None:
            torch.ops.aten.threshold_backward.grad_input(dy_EO, x_EO, 0, grad_input=dy_EO)
            return x_EO
        z_EO, p_EO, s_EO = (w[: x_EO.numel()].view_as(x_EO) for w in work)
        torch.addcmul(self.shift_O, x_EO, self.scale_O, out=z_EO)
        torch.sigmoid(z_EO, out=p_EO)
        torch.mul(dy_EO, x_EO, out=s_EO)
        s_EO.addcmul_(s_EO, p_EO, value=-1)
        sums_3O[0] += s_EO.sum(0)
        s_EO.mul_(p_EO)
        if self.given is None:
            sums_3O[1] += s_EO.sum(0)
            sums_3O[2] += z_EO.mul_(s_EO).sum(0)
        torch.addcmul(self.alpha_O, self.rest_O, p_EO, out=p_EO)
        dy_EO.mul_(p_EO).addcmul_(s_EO, self.rest_O * self.scale_O)
        return p_EO.mul_(x_EO)

    def finish(self, x_EO: Tensor, dx_EO: Tensor, sums_3O: Tensor, count: int) -> Tensor:
        """Adds what flows through mean and variance, which is linear in x, once the sums are whole."""
        if self.alpha_O is not None and self.given is None:
            through_O = -self.rest_O * self.scale_O / count
            slope_O = through_O * self.scale_O * sums_3O[2]
            dx_EO.addcmul_(x_EO, slope_O).add_(through_O * (sums_3O[1] + self.shift_O * sums_3O[2]))
        return dx_EO


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
    edge = torch.cat([first, first.new_tensor([len(offsets_B1) - 1])]).unique_consecutive()
    pairs = list(zip(edge.tolist(), offsets_B1[edge].tolist(), strict=True))
    return [_Block(slice(r0, r1), slice(e0, e1)) for (r0, e0), (r1, e1) in zip(pairs, pairs[1:], strict=False)]


def _bag(x_NO: Tensor, offsets_B1: Tensor, weight_N: Tensor | None = None) -> Tensor:
    """(Weighted) sum of each row's events: [N, O] -> [B, O]."""
    at_N = torch.arange(len(x_NO), device=x_NO.device)
    return embedding_bag(
        at_N, x_NO, offsets_B1, mode="sum", include_last_offset=True, per_sample_weights=weight_N
    )  # fmt: skip


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """total += left right; not `addmm_`, which the counters of FLOPs do not know."""
    return torch.addmm(total, left, right, out=total)


class _Sweeps:
    """What forward and backward share: blocks, the rows of their events, buffers, the first layer's weights split."""

    def __init__(self, q_BC: Tensor, h_NC: Tensor, offsets_B1: Tensor, weights: Sequence[Tensor]) -> None:
        self.q_BC, self.h_NC, self.offsets_B1 = q_BC, h_NC, offsets_B1
        w_q, w_h, w_d, self.product_OC = weights[0].chunk(4, dim=1)
        self.query_OC, self.event_OC = w_q + w_d, w_h - w_d
        widest = max(h_NC.shape[1], *(len(w) for w in weights[:-1]))
        self.blocks = _blocks(offsets_B1, len(h_NC), BLOCK // widest)
        self.rows_N = _rows(offsets_B1, len(h_NC))
        self.largest = max((b.events.stop - b.events.start for b in self.blocks), default=0) * widest

    def buffers(self, count: int) -> list[Tensor]:
        """Flat, as large as the largest block."""
        return [self.h_NC.new_empty(self.largest) for _ in range(count)]

    def pairs(self, block: _Block, q: Tensor, product: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(q, h, q * h) of a block's events, the first and the last in the buffers."""
        h_EC = self.h_NC[block.events]
        q_EC, product_EC = q[: h_EC.numel()].view_as(h_EC), product[: h_EC.numel()].view_as(h_EC)
        torch.index_select(self.q_BC, 0, self.rows_N[block.events], out=q_EC)
        return q_EC, h_EC, torch.mul(q_EC, h_EC, out=product_EC)


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BC: Tensor, h_NC: Tensor, offsets_B1: Tensor, acts: list[_Act], softmax: bool, eps: float,
        *params: Tensor,
    ) -> Tensor:  # fmt: skip
        depth = len(acts)
        weights, biases = params[: depth + 1], params[depth + 1 : 2 * depth + 2]
        sweeps = _Sweeps(q_BC, h_NC, offsets_B1, weights)
        blocks, work = sweeps.blocks, sweeps.buffers(2)
        row_BO = torch.addmm(biases[0], q_BC, sweeps.query_OC.t())
        # a tensor a block: the allocator has those at hand, where one of all events is fresh pages at every step
        outs: list[list[Tensor]] = []
        for i, act in enumerate([*acts, None]):
            outs.append([])
            for k, block in enumerate(blocks):
                if i == 0:
                    _, h_EC, product_EC = sweeps.pairs(block, *work)
                    x_EO = row_BO.index_select(0, sweeps.rows_N[block.events])
                    _add_product(x_EO, h_EC, sweeps.event_OC.t())
                    _add_product(x_EO, product_EC, sweeps.product_OC.t())
                else:
                    x_EO = torch.addmm(biases[i], acts[i - 1].out(outs[i - 1][k], work[0]), weights[i].t())
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
        return _bag(h_NC, offsets_B1, a_N)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, du_BC: Tensor) -> tuple[Tensor | None, ...]:
        sweeps, acts, outs, (a_N, *weights) = ctx.sweeps, ctx.acts, ctx.outs, ctx.saved_tensors
        work, events = sweeps.buffers(3), len(sweeps.h_NC)
        dh_NC, grads = _pooling_grads(sweeps, du_BC, a_N, ctx.softmax)
        dws, dbs = [torch.zeros_like(w) for w in weights], [w.new_zeros(len(w)) for w in weights]
        sums = [w.new_zeros(3, len(w)) for w in weights[:-1]]
        for i in range(len(acts), 0, -1):
            for k, x_EI in enumerate(outs[i - 1]):
                dx_EO = grads[k]
                if i < len(acts):
                    dx_EO = acts[i].finish(outs[i][k], dx_EO, sums[i], events)
                    dy_EI = dx_EO @ weights[i]
                else:
                    dy_EI = dx_EO * weights[i]
                y_EI = acts[i - 1].back(x_EI, dy_EI, sums[i - 1], work)
                _add_product(dws[i], dx_EO.t(), y_EI)
                dbs[i] += dx_EO.sum(0)
                grads[k] = dy_EI
        for k, x_EO in enumerate(outs[0]):
            acts[0].finish(x_EO, grads[k], sums[0], events)
        dq_BC, dws[0], dbs[0] = _first_grads(sweeps, grads, dh_NC)
        dalphas = [None if a.alpha_O is None else s[0] for a, s in zip(acts, sums, strict=True)]
        return dq_BC, dh_NC, None, None, None, None, *dws, *dbs, *dalphas


def _pooling_grads(sweeps: _Sweeps, du_BC: Tensor, a_N: Tensor, softmax: bool) -> tuple[Tensor, list[Tensor]]:
    """Gradients of u = sum of a h: that of h [N, C], and that of the scores, a block [E, 1] each."""
    dh_NC, da_N = torch.empty_like(sweeps.h_NC), torch.empty_like(a_N)
    for block in sweeps.blocks:
        e = block.events
        du_EC = du_BC.index_select(0, sweeps.rows_N[e])
        torch.sum(torch.mul(du_EC, sweeps.h_NC[e], out=dh_NC[e]), dim=1, out=da_N[e])
        torch.mul(du_EC, a_N[e].unsqueeze(1), out=dh_NC[e])
    if softmax:
        da_N *= a_N
        da_N -= a_N * a_N.new_zeros(len(du_BC)).index_add(0, sweeps.rows_N, da_N).index_select(0, sweeps.rows_N)
    return dh_NC, [da_N[b.events].unsqueeze(1) for b in sweeps.blocks]


def _first_grads(sweeps: _Sweeps, grads: list[Tensor], dh_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, of the first layer's weight and of its bias; that of h is added to `dh_NC`."""
    work = sweeps.buffers(3)
    dq_BC, drow_BO = torch.zeros_like(sweeps.q_BC), sweeps.q_BC.new_zeros(len(sweeps.q_BC), len(sweeps.query_OC))
    devent_OC, dproduct_OC = torch.zeros_like(sweeps.event_OC), torch.zeros_like(sweeps.event_OC)
    for block, dx_EO in zip(sweeps.blocks, grads, strict=True):
        offsets = sweeps.offsets_B1[block.rows.start : block.rows.stop + 1] - block.events.start
        q_EC, h_EC, product_EC = sweeps.pairs(block, *work[:2])
        _add_product(devent_OC, dx_EO.t(), h_EC)
        _add_product(dproduct_OC, dx_EO.t(), product_EC)
        drow_BO[block.rows] = _bag(dx_EO, offsets)
        dp_EC = torch.mm(dx_EO, sweeps.product_OC, out=work[2][: h_EC.numel()].view_as(h_EC))
        _add_product(dh_NC[block.events], dx_EO, sweeps.event_OC).addcmul_(dp_EC, q_EC)
        dq_BC[block.rows] = _bag(dp_EC.mul_(h_EC), offsets)
    _add_product(dq_BC, drow_BO, sweeps.query_OC)
    dquery_OC = drow_BO.t() @ sweeps.q_BC
    return dq_BC, torch.cat([dquery_OC, devent_OC, dquery_OC - devent_OC, dproduct_OC], dim=1), drow_BO.sum(0)


def din_fused(
    q_BC: Tensor, h_NC: Tensor, offsets_B1: Tensor, weights: Tensors, biases: Tensors,
    alphas: Sequence[Tensor | None], stats: Moments, softmax: bool = False, eps: float = 1e-9,
) -> tuple[Tensor, Moments]:  # fmt: skip
    """Fast path on CPU: one node, blocks of rows."""
    acts = [_Act(a, s) for a, s in zip(alphas, stats, strict=True)]
    u_BC = _Unit.apply(q_BC, h_NC.contiguous(), offsets_B1, acts, softmax, eps, *weights, *biases, *alphas)
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
    if shape["fill"] < 1:  # from none to twice the mean
        lengths_B = torch.randint(0, int(2 * history * shape["fill"]) + 1, (batch,)).clamp(max=history)
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
    ),  # fmt: skip
    shapes={
        "B4096 T50 C32 64-32": _shape(64, 32, 1.0),
        "B4096 T50 C32 64-32 fill 50 %": _shape(64, 32, 0.5),
        "B4096 T50 C32 64-32 fill 20 %": _shape(64, 32, 0.2),
        "B4096 T50 C32 80-40": _shape(80, 40, 1.0),
        "B4096 T50 C32 64-32 ReLU": _shape(64, 32, 1.0, dice=0),
    },
    gpu="din_attention",
)

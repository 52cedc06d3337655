"""First layer of DIN's activation unit over [q ; h ; q - h ; q * h] (1706.06978 section 4.3; four parts as FuxiCTR).

The layer's weight is [O, 4C] = [W_q, W_h, W_d, W_p] in every form, so that they are interchangeable:

    concat   W [q; h; q-h; q*h] + b                                     8CO FLOPs an event
    split    (W_q + W_d) q + b, once a row;  [W_h - W_d, W_p] [h; q*h]  4CO an event + 2CO a row
    fold     same row part;  h ((W_h - W_d) + diag(q) W_p)^T            2CO an event + 2CO a row

`fold` builds one [C, O] matrix a row: fewest FLOPs and fastest where C*O is small, but it moves B*C*O values and is
a batched product of many small matrices, so it loses where the unit is wide. Measured, one CPU thread, B=256, T=50,
forward + backward, best of 12: C=48, O=64 concat 19.8 ms, split 10.0, fold 8.0-9.8; C=32, O=64 16.3, 7.6, 4.9-7.0;
C=96, O=512 216, 146-172, 181-310.

Dims: B batch, T history length, C width of an event, O width of the layer
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.linear import linear, linear_plain
from ctrbench.kernels.operator import Operator, Shape

Impl = Literal["fold", "split", "concat"]


def unit_concat(q_BC: Tensor, h_BTC: Tensor, weight_O4C: Tensor, bias_O: Tensor) -> Tensor:
    """Plain twin: the [B, T, 4C] input is built. Returns [B, T, O]."""
    q_BTC = q_BC.unsqueeze(1).expand_as(h_BTC)
    return linear_plain(torch.cat([q_BTC, h_BTC, q_BTC - h_BTC, q_BTC * h_BTC], dim=-1), weight_O4C, bias_O)


def unit_split(q_BC: Tensor, h_BTC: Tensor, weight_O4C: Tensor, bias_O: Tensor) -> Tensor:
    """The query's part is computed once a row, the difference is folded into the weights. Returns [B, T, O]."""
    w_q, w_h, w_d, w_p = weight_O4C.chunk(4, dim=1)
    input_BT2C = torch.cat([h_BTC, q_BC.unsqueeze(1) * h_BTC], dim=-1)
    events_BTO = linear(input_BT2C, torch.cat([w_h - w_d, w_p], dim=1))
    return events_BTO + linear(q_BC, w_q + w_d, bias_O).unsqueeze(1)


def unit_fold(q_BC: Tensor, h_BTC: Tensor, weight_O4C: Tensor, bias_O: Tensor) -> Tensor:
    """The product q * h is folded into one matrix a row as well. Returns [B, T, O]."""
    w_q, w_h, w_d, w_p = weight_O4C.chunk(4, dim=1)
    folded_BCO = torch.addcmul((w_h - w_d).t(), q_BC.unsqueeze(2), w_p.t())
    return torch.baddbmm(linear(q_BC, w_q + w_d, bias_O).unsqueeze(1), h_BTC, folded_BCO)


IMPLS = {"concat": unit_concat, "split": unit_split, "fold": unit_fold}


def unit_layer(q_BC: Tensor, h_BTC: Tensor, weight_O4C: Tensor, bias_O: Tensor, impl: Impl = "fold") -> Tensor:
    """First linear layer of the activation unit, [B, C] and [B, T, C] -> [B, T, O]."""
    return IMPLS[impl](q_BC, h_BTC, weight_O4C, bias_O)


def unit_cost(width: int, out: int, events: float, impl: Impl = "fold") -> Cost:
    """Cost of one sample with `events` events of `width` values; `out` is the layer's width.

    The sums of weights are made once a step, whatever the batch, and are left out.
    """
    product = 2.0 * width * out
    if impl == "concat":
        return Cost(flops=4 * product * events, elementwise=2 * width * events)
    if impl == "split":
        return Cost(flops=2 * product * events + product, elementwise=(width + out) * events)
    return Cost(flops=product * events + product, elementwise=product)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    batch, history, width, out = (int(shape[n]) for n in ("batch", "history", "width", "out"))
    sizes = ((batch, width), (batch, history, width), (out, 4 * width), (out,))
    return tuple(torch.randn(s, dtype=dtype, device=device, requires_grad=True) for s in sizes)


OPERATOR = Operator(
    title="First layer of DIN's activation unit",
    twin=unit_concat,
    run=unit_layer,
    paths={"split": unit_split, "fold": unit_fold},
    inputs=_inputs,
    cost=lambda s: unit_cost(int(s["width"]), int(s["out"]), s["history"]) * s["batch"],
    small=({"batch": 3, "history": 2, "width": 3, "out": 2}, {"batch": 1, "history": 1, "width": 1, "out": 1}),
    shapes={
        "B4096 T50 C32 O64": {"batch": 4096, "history": 50, "width": 32, "out": 64},
        "B256 T50 C96 O512": {"batch": 256, "history": 50, "width": 96, "out": 512},
    },
    no_gpu="the whole unit has one, kernels/gpu/din_attention.py; on padded rows ATen's GEMMs are used as they are",
)

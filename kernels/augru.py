"""Recurrence whose update gate follows an attention weight (DIEN, 1809.03672 section 4.4).

    r = s(x_r + U_r h)   u = s(x_u + U_u h)   n = tanh(x_n + r * (U_n h))   h' = (1 - g) h + g n

with x = W x_t + b; the gate is g = a u (`augru`) or g = a (`agru`). A step of weight 0 leaves the state as it is, which
is how padding is passed over. `aigru` scales the input by a instead, g = u, and needs the mask for that.
torch's GRU is the same with z = 1 - u: its update-gate weights have the other sign.

Dims: B batch, T steps, C input width, H state width
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.linear import linear
from ctrbench.kernels.operator import Operator, Shape

Cell = Literal["augru", "agru", "aigru"]
CELLS: tuple[Cell, ...] = ("augru", "agru", "aigru")


def augru_plain(
    x_BTC: Tensor, a_BT: Tensor, mask_BT: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, cell: Cell
) -> Tensor:
    """Plain twin: sample by sample, step by step. Arguments and result as of `augru`."""
    width, last = w_hh.shape[1], []
    for x_TC, a_T, mask_T in zip(x_BTC, a_BT, mask_BT, strict=True):
        h = x_BTC.new_zeros(width)
        for x, a, real in zip(x_TC, a_T, mask_T, strict=True):
            x_r, x_u, x_n = (w_ih @ (a * x if cell == "aigru" else x) + b_ih).chunk(3)
            h_r, h_u, h_n = (w_hh @ h + b_hh).chunk(3)
            reset, update = torch.sigmoid(x_r + h_r), torch.sigmoid(x_u + h_u)
            new = torch.tanh(x_n + reset * h_n)
            gate = {"augru": a * update, "agru": a * torch.ones_like(update), "aigru": update}[cell]
            h = torch.where(real, (1 - gate) * h + gate * new, h)
        last.append(h)
    return torch.stack(last)


def augru(
    x_BTC: Tensor, a_BT: Tensor, mask_BT: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, cell: Cell
) -> Tensor:
    """Last state [B, H]: the inputs of all steps are one product, the T dependent steps remain.

    Args:
        x_BTC: inputs.
        a_BT: attention weights, 0 on padding.
        mask_BT: real steps, in any place.
        w_ih, w_hh: [3H, C] and [3H, H], gates in the order reset, update, new.
        b_ih, b_hh: [3H].
        cell: where the weight acts.
    """
    width = w_hh.shape[1]
    gate_TB1 = (a_BT if cell != "aigru" else mask_BT.to(a_BT.dtype)).t().unsqueeze(2)
    inputs_TB3H = linear(x_BTC * a_BT.unsqueeze(2) if cell == "aigru" else x_BTC, w_ih, b_ih).transpose(0, 1)
    h_BH = x_BTC.new_zeros(x_BTC.shape[0], width)
    # Gates by split: the gradients of slices are tensors of zeros, filled and added, in every step.
    for x_B3H, gate_B1 in zip(inputs_TB3H.unbind(), gate_TB1.unbind(), strict=True):
        h_B3H = torch.addmm(b_hh, h_BH, w_hh.t())
        (x_B2H, x_BH), (h_B2H, own_BH) = (x.split((2 * width, width), dim=1) for x in (x_B3H, h_B3H))
        reset_BH, update_BH = torch.sigmoid(x_B2H + h_B2H).chunk(2, dim=1)
        new_BH = torch.tanh(torch.addcmul(x_BH, reset_BH, own_BH))
        gate_BH = gate_B1 if cell == "agru" else gate_B1 * update_BH
        h_BH = torch.addcmul(h_BH, gate_BH, new_BH - h_BH)
    return h_BH


def gru_flops(width_in: int, width: int) -> float:
    """Of one step of one sample: three gates on the input and on the state."""
    return 6.0 * width * (width_in + width)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    batch, steps, width = (int(shape[n]) for n in ("batch", "steps", "width"))

    def random(*size: int) -> Tensor:
        return (torch.randn(size, dtype=dtype, device=device) / width**0.5).requires_grad_()

    lengths_B = torch.arange(batch, device=device) % (steps + 1)
    mask_BT = torch.arange(steps, device=device) < lengths_B.unsqueeze(1)
    a_BT = torch.rand(batch, steps, dtype=dtype, device=device) * mask_BT  # 0 on padding, as the contract has it
    weights = (random(3 * width, width), random(3 * width, width), random(3 * width), random(3 * width))
    return random(batch, steps, width), a_BT, mask_BT, *weights, "augru"


OPERATOR = Operator(
    title="GRU with attentional update gate",
    twin=augru_plain,
    run=augru,
    inputs=_inputs,
    cost=lambda s: (
        Cost(flops=gru_flops(int(s["width"]), int(s["width"])), elementwise=9 * s["width"]) * (s["batch"] * s["steps"])
    ),
    small=({"batch": 4, "steps": 3, "width": 2}, {"batch": 2, "steps": 1, "width": 1}),
    shapes={"B256 T50 H32": {"batch": 256, "steps": 50, "width": 32}},
    no_gpu="T dependent steps of small products: launch-bound, CUDA graphs serve it better than a kernel a step",
)

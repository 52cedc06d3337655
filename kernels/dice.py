"""Dice in training, over the valid rows of a padded batch (1706.06978 section 5.2; constants of FuxiCTR).

    out = g x,  g = alpha + (1 - alpha) p,  p = sigmoid(z),  z = (x - mean) / sqrt(var + eps)

mean and var are those of the valid rows; padded rows are mapped with them but do not enter them.

Dims: N rows of any leading shape, O channels
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu

Impl = Literal["fused", "plain"]


def dice_plain(x_NO: Tensor, mask_N: Tensor, alpha_O: Tensor, eps: float = 1e-9) -> tuple[Tensor, Tensor, Tensor]:
    """Plain twin, differentiated operator by operator. Returns out, mean and biased variance."""
    over = tuple(range(x_NO.dim() - 1))
    mask_N1 = mask_N.unsqueeze(-1)
    count = mask_N.sum().clamp(min=1)
    mean_O = (x_NO * mask_N1).sum(over) / count
    var_O = ((x_NO - mean_O).square() * mask_N1).sum(over) / count
    p_NO = torch.sigmoid((x_NO - mean_O) * torch.rsqrt(var_O + eps))
    return p_NO * x_NO + alpha_O * (1 - p_NO) * x_NO, mean_O, var_O


class _Dice(torch.autograd.Function):
    """One node with a hand-made backward and half the time of the plain twin.

    Measured, one CPU thread, [512, 50, 64], forward + backward, best of 8: 16-18 ms of CPU time against 35-36.
    """

    @staticmethod
    def forward(ctx: Any, x_NO: Tensor, mask_N1: Tensor, alpha_O: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        over = tuple(range(x_NO.dim() - 1))
        count = mask_N1.sum().clamp(min=1)
        mean_O = (x_NO * mask_N1).sum(over) / count
        z_NO = x_NO - mean_O
        var_O = z_NO.square().mul_(mask_N1).sum(over) / count
        rstd_O = torch.rsqrt(var_O + eps)
        z_NO.mul_(rstd_O)
        p_NO = z_NO.sigmoid()
        ctx.save_for_backward(x_NO, mask_N1, alpha_O, z_NO, p_NO, rstd_O, count)
        ctx.mark_non_differentiable(mean_O, var_O)
        return torch.addcmul(alpha_O, 1 - alpha_O, p_NO).mul_(x_NO), mean_O, var_O

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor, *_: Tensor) -> tuple[Tensor, None, Tensor, None]:
        x_NO, mask_N1, alpha_O, z_NO, p_NO, rstd_O, count = ctx.saved_tensors
        over = tuple(range(x_NO.dim() - 1))
        t_NO = grad_NO * x_NO
        grad_alpha_O = t_NO.sum(over) - (t_NO * p_NO).sum(over)
        s_NO = torch.ops.aten.sigmoid_backward(t_NO, p_NO)  # gradient of z, less its factor 1 - alpha
        through_var_O, through_mean_O = (s_NO * z_NO).sum(over) / count, s_NO.sum(over) / count
        s_NO.sub_(torch.addcmul(through_mean_O, z_NO, through_var_O).mul_(mask_N1))
        gain_NO = torch.addcmul(alpha_O, 1 - alpha_O, p_NO).mul_(grad_NO)
        return gain_NO.addcmul_(s_NO, (1 - alpha_O) * rstd_O), None, grad_alpha_O, None


def dice_fused(x_NO: Tensor, mask_N: Tensor, alpha_O: Tensor, eps: float = 1e-9) -> tuple[Tensor, Tensor, Tensor]:
    """Fast path. Returns out, mean and biased variance; no gradient flows from the last two."""
    return _Dice.apply(x_NO, mask_N.unsqueeze(-1).to(x_NO.dtype), alpha_O, eps)


def dice(
    x_NO: Tensor, mask_N: Tensor, alpha_O: Tensor, eps: float = 1e-9, impl: Impl = "fused"
) -> tuple[Tensor, Tensor, Tensor]:
    """Dice with the statistics of the rows in `mask_N`: out [N, O], mean [O] and biased variance [O]."""
    if impl == "plain":
        return dice_plain(x_NO, mask_N, alpha_O, eps)
    return (on_gpu("dice", x_NO) or dice_fused)(x_NO, mask_N, alpha_O, eps)


def dice_cost(channels: int, rows: float) -> Cost:
    """No matrix product; ten passes forward over the rows."""
    return Cost(flops=0.0, elementwise=10.0 * channels * rows)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    rows, width = int(shape["rows"]), int(shape["width"])
    mask_N = torch.arange(rows, device=device) % 3 != 1
    x_NO = torch.randn(rows, width, dtype=dtype, device=device, requires_grad=True)
    return x_NO, mask_N, torch.randn(width, dtype=dtype, device=device, requires_grad=True)


OPERATOR = Operator(
    title="Dice over valid rows",
    twin=lambda *args: dice_plain(*args)[0],  # no gradient flows from mean and variance
    run=lambda *args: dice(*args)[0],
    paths={"fused": lambda *args: dice_fused(*args)[0]},
    inputs=_inputs,
    cost=lambda s: dice_cost(int(s["width"]), s["rows"]),
    small=({"rows": 7, "width": 3}, {"rows": 3, "width": 2}),
    shapes={"N204800 O64": {"rows": 204800, "width": 64}, "N4096 O128": {"rows": 4096, "width": 128}},
    gpu="dice",
)

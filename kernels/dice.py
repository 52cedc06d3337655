"""Dice in training, over the valid rows of a padded batch (1706.06978 section 5.2; constants of FuxiCTR).

    out = g x,  g = alpha + (1 - alpha) p,  p = sigmoid(z),  z = (x - mean) / sqrt(var + eps)

mean and var are those of the valid rows; padded rows are mapped with them but do not enter them.

Dims: N rows of any leading shape, E rows of a block, K blocks, O channels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.cpu import din_blocks
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


class BlockAct:
    """An activation of one layer on blocks [E, O], in place and by `out=`: Dice, or ReLU where alpha is None.

    For a node that works on blocks of rows (kernels/din_attention.py): `see` every block, `close`, then `out`; backward
    `back` every block, then `finish`. Names as above, z = scale x + shift.
    """

    def __init__(self, alpha_O: Tensor | None, given: tuple[Tensor, Tensor] | None) -> None:
        self.alpha_O, self.given = alpha_O, given
        self.moments: tuple[Tensor, Tensor] | None = None
        self.counts: list[int] = []
        self.native = alpha_O is not None and alpha_O.dtype == torch.float32 and din_blocks.available()
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
        if self.native:
            torch.ops.ctrbench.dice_out(x_EO, self.scale_O, self.shift_O, self.alpha_O, into_EO)
            return into_EO
        torch.addcmul(self.shift_O, x_EO, self.scale_O, out=into_EO).sigmoid_()
        return torch.addcmul(self.alpha_O, self.rest_O, into_EO, out=into_EO).mul_(x_EO)

    def back(self, x_EO: Tensor, dy_EO: Tensor, sums_3O: Tensor, work: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Activations of a block, in a buffer, and the gradient of x, but for what flows through mean and variance.

        `sums_3O` gathers the gradient of alpha, s and s z, where s is the gradient of z less its factor 1 - alpha.
        """
        if self.alpha_O is None:
            return x_EO, torch.ops.aten.threshold_backward(dy_EO, x_EO, 0)
        if self.native:
            y_EO, parts = work[0][: x_EO.numel()].view_as(x_EO), -(-len(x_EO) // din_blocks.CHUNK)
            sums_K3O = x_EO.new_empty(parts, *sums_3O.shape)
            dx_EO = torch.empty_like(x_EO)
            torch.ops.ctrbench.dice_back(x_EO, self.scale_O, self.shift_O, self.alpha_O, dy_EO, y_EO, dx_EO, sums_K3O)
            sums_3O += sums_K3O.sum(0)
            return y_EO, dx_EO
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
        dx_EO = torch.mul(dy_EO, p_EO).addcmul_(s_EO, self.rest_O * self.scale_O)
        return p_EO.mul_(x_EO), dx_EO

    def finish(self, x_EO: Tensor, dx_EO: Tensor, sums_3O: Tensor, count: int) -> Tensor:
        """Adds what flows through mean and variance, which is linear in x, once the sums are whole."""
        if self.alpha_O is not None and self.given is None:
            through_O = -self.rest_O * self.scale_O / count
            slope_O = through_O * self.scale_O * sums_3O[2]
            base_O = through_O * (sums_3O[1] + self.shift_O * sums_3O[2])
            if self.native:
                torch.ops.ctrbench.dice_finish(x_EO, slope_O, base_O, dx_EO)
            else:
                dx_EO.addcmul_(x_EO, slope_O).add_(base_O)
        return dx_EO


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

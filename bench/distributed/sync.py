"""Statistics of a batch that processes share: Dice and batch norm over all of its rows, not over each process's part.

The classes stand in for those of the models once there is more than one process; a plain training never meets them.

Dims: N rows of any leading shape, of this process; O channels
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ctrbench.legacy_baselines.interest import ActivationUnit, Dice


def synchronise(model: nn.Module) -> None:
    """Makes every layer with statistics of the batch take them over all processes; in place."""
    for module in model.modules():
        for own, shared in _SHARED.items():
            if type(module) is own:
                module.__class__ = shared


class _Summed(torch.autograd.Function):
    """The sum over processes. Each one's loss is moved by everybody's rows, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def moments(x_NO: Tensor, mask_N: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [O], biased variance [O] and count of the rows of all processes; rows outside the mask do not enter."""
    x_NO = x_NO.flatten(0, -2)
    mask_N1 = x_NO.new_ones(len(x_NO), 1) if mask_N is None else mask_N.reshape(-1, 1).to(x_NO.dtype)
    total = _summed(torch.cat([(x_NO * mask_N1).sum(0), mask_N1.sum(0)]))
    count = total[-1].detach()
    mean_O = total[:-1] / count.clamp(min=1)
    # Of distances from the common mean: the mean of squares less the square of the mean would lose digits.
    var_O = _summed(((x_NO - mean_O).square() * mask_N1).sum(0)) / count.clamp(min=1)
    return mean_O, var_O, count


def _summed(own: Tensor) -> Tensor:
    total: Tensor = _Summed.apply(own)
    return total


class SharedDice(Dice):
    """Dice by the statistics of all processes' rows."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As of Dice."""
        if not self.training or x.dtype != self.mean_O.dtype:  # another type comes back here in this one
            return super().forward(x, mask)
        mean_O, var_O, count = moments(x, mask if self.stats == "valid" else None)
        self.learn(mean_O, var_O, count)
        p = torch.sigmoid((x - mean_O) * torch.rsqrt(var_O + self.eps))
        return x * torch.addcmul(self.alpha_O, 1 - self.alpha_O, p)


class SharedUnit(ActivationUnit):
    """An activation unit on padded events in training: the node over flat events keeps its statistics inside."""

    @property
    def takes_flat(self) -> bool:
        return super().takes_flat and not (self.training and any(isinstance(m, Dice) for m in self.hidden))


class SharedBatchNorm(nn.BatchNorm1d):
    """Batch norm over all processes' rows; torch's own refuses CPU tensors."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, O] -> [N, O]."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        mean_O, var_O, count = moments(input)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean_O, self.momentum)
            self.running_var.lerp_(var_O * (count / (count - 1).clamp(min=1)), self.momentum)
        scaled = (input - mean_O) * torch.rsqrt(var_O + self.eps)
        return torch.addcmul(self.bias, self.weight, scaled) if self.affine else scaled


_SHARED: dict[type[nn.Module], type[nn.Module]] = {
    Dice: SharedDice, ActivationUnit: SharedUnit, nn.BatchNorm1d: SharedBatchNorm,
}  # fmt: skip

"""Mean binary cross-entropy of logits, loss and gradient in one node.

    loss = mean(max(x, 0) - x y + log(1 + exp(-|x|))),    d loss / d x = (sigmoid(x) - y) / B

Dims: B batch
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu

Impl = Literal["fused", "plain"]


def bce_plain(logit_B: Tensor, label_B: Tensor) -> Tensor:
    """Plain twin: the definition, by logarithms of the sigmoid, which do not overflow."""
    return -(label_B * logsigmoid(logit_B) + (1 - label_B) * logsigmoid(-logit_B)).mean()


class _Bce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logit_B: Tensor, label_B: Tensor) -> Tensor:
        ctx.save_for_backward(logit_B, label_B)
        return (softplus(logit_B) - label_B * logit_B).mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logit_B, label_B = ctx.saved_tensors
        return torch.sigmoid(logit_B).sub_(label_B).mul_(grad / logit_B.numel()), None


def bce_fused(logit_B: Tensor, label_B: Tensor) -> Tensor:
    """Fast path: softplus(x) - x y, and the gradient by its closed form; labels get none."""
    loss: Tensor = _Bce.apply(logit_B, label_B)
    return loss


def bce(logit_B: Tensor, label_B: Tensor, impl: Impl = "fused") -> Tensor:
    """Mean loss, a scalar; labels from 0 to 1, in the type of the logits."""
    if impl == "plain":
        return bce_plain(logit_B, label_B)
    return (on_gpu("bce", logit_B) or bce_fused)(logit_B, label_B)


def bce_cost() -> Cost:
    """One row, no matrix product."""
    return Cost(flops=0.0, elementwise=6.0)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    rows = int(shape["batch"])
    logit_B = torch.randn(rows, dtype=dtype, device=device, requires_grad=True)
    return logit_B, (torch.arange(rows, device=device) % 2).to(dtype)


OPERATOR = Operator(
    title="BCE with logits",
    twin=bce_plain,
    run=bce,
    paths={"fused": bce_fused},
    inputs=_inputs,
    cost=lambda s: bce_cost() * s["batch"],
    small=({"batch": 5}, {"batch": 1}),
    shapes={"B4096": {"batch": 4096}, "B65536": {"batch": 65536}},
    gpu="bce",
)

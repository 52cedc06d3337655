"""Mean binary cross-entropy of logits.

    loss = mean(max(x, 0) - x y + log(1 + exp(-|x|))),    d loss / d x = (sigmoid(x) - y) / B

Dims: B batch
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape, on_gpu

Impl = Literal["fused", "plain"]


def bce_plain(logit_B: Tensor, label_B: Tensor) -> Tensor:
    """Plain twin: the definition, by logarithms of the sigmoid, which do not overflow."""
    return -(label_B * logsigmoid(logit_B) + (1 - label_B) * logsigmoid(-logit_B)).mean()


def bce(logit_B: Tensor, label_B: Tensor, impl: Impl = "fused") -> Tensor:
    """Mean loss, a scalar; labels from 0 to 1.

    On CPU ATen's: one operator each way. A node of our own around the closed form was slower, two AMD EPYC threads,
    forward + backward in alternation, ATen / node: 0.75 [0.74, 0.75] at 4096 rows, 0.90 [0.88, 0.91] at 65536.
    """
    if impl == "plain":
        return bce_plain(logit_B, label_B)
    on_device = on_gpu("bce", logit_B)
    if on_device is not None:
        loss: Tensor = on_device(logit_B, label_B.to(logit_B.dtype))
        return loss
    return binary_cross_entropy_with_logits(logit_B, label_B)


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
    paths={"aten": binary_cross_entropy_with_logits},
    inputs=_inputs,
    cost=lambda s: bce_cost() * s["batch"],
    small=({"batch": 5}, {"batch": 1}),
    shapes={"B4096": {"batch": 4096}, "B65536": {"batch": 65536}},
    gpu="bce",
)

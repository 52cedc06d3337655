"""One linear map a field, mixed on the fly from shared bases (FAT, 2511.12081 section 3.4).

Dims: F fields, B batch, D input width, E output width, K chosen bases, M bases
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ctrbench.kernels.compose import compose_plain
from ctrbench.kernels.cost import Cost
from ctrbench.kernels.field_linear import field_linear_plain
from ctrbench.kernels.operator import Operator, Shape

Impl = Literal["fused", "plain"]


def mixture_linear_plain(x_FBD: Tensor, share_FK: Tensor, chosen_FK: Tensor, bases_MDE: Tensor) -> Tensor:
    """Plain twin: compose the weight, then apply it."""
    weight_FDE = compose_plain(share_FK, chosen_FK, bases_MDE.flatten(1)).view(-1, *bases_MDE.shape[1:])
    return field_linear_plain(x_FBD, weight_FDE)


def mixture_linear(
    x_FBD: Tensor, share_FK: Tensor, chosen_FK: Tensor, bases_MDE: Tensor, impl: Impl = "fused"
) -> Tensor:
    """The mixture on the fly: every chosen basis is applied to the activations, the outputs are mixed, [F, B, E]."""
    if impl == "plain":
        return mixture_linear_plain(x_FBD, share_FK, chosen_FK, bases_MDE)
    fields, chosen = chosen_FK.shape
    _, width, out = bases_MDE.shape
    weight_FDN = bases_MDE[chosen_FK].transpose(1, 2).reshape(fields, width, chosen * out)
    y_FBKE = torch.bmm(x_FBD, weight_FDN).view(fields, -1, chosen, out)
    return (y_FBKE * share_FK.view(fields, 1, chosen, 1)).sum(dim=2)


def mixture_linear_cost(fields: int, chosen: int, width: int, out: int) -> Cost:
    """One sample: K times the cost of composed weights, plus the mixing of outputs."""
    return Cost(flops=2.0 * fields * chosen * width * out, elementwise=2.0 * fields * chosen * out)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    batch, fields, bases, chosen, width, out = (
        int(shape[n]) for n in ("batch", "fields", "bases", "chosen", "width", "out")
    )
    x_FBD = torch.randn(fields, batch, width, dtype=dtype, device=device, requires_grad=True)
    share_FK = torch.rand(fields, chosen, dtype=dtype, device=device, requires_grad=True)
    chosen_FK = torch.rand(fields, bases, device=device).topk(chosen).indices
    bases_MDE = (torch.randn(bases, width, out, dtype=dtype, device=device) / width**0.5).requires_grad_()
    return x_FBD, share_FK, chosen_FK, bases_MDE


_SMALL = {"batch": 3, "fields": 4, "bases": 5, "chosen": 2, "width": 3, "out": 2}

OPERATOR = Operator(
    title="Field maps mixed on the fly",
    twin=mixture_linear_plain,
    run=mixture_linear,
    inputs=_inputs,
    cost=lambda s: mixture_linear_cost(int(s["fields"]), int(s["chosen"]), int(s["width"]), int(s["out"])) * s["batch"],
    small=(_SMALL,),
    shapes={"B256 F39 D32": {"batch": 256, "fields": 39, "bases": 8, "chosen": 3, "width": 32, "out": 96}},
    no_gpu="an ablation of FAT: its products are those of field_linear with wider weights",
)

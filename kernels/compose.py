"""Weights of every field composed of shared bases (FAT, 2511.12081 section 3.4).

Measured, one CPU thread, 39 sets of 7,168 weights of K=3 out of M=8 (64) bases, forward + backward: the dense product
of a zero-filled [F, M] with the bases 1.0 (3.4) ms, gather and batched product 3.8 (4.0), embedding_bag 2.4 (2.5). Two
Zen 3 threads, 39 sets of 65,536 weights, M=8: the three products 2.1, 2.9 and 2.1 ms in MKL, which is made for fat
products, 1.8, 1.7 and 1.5 in oneDNN; at 16,384 weights .34, .61, .41 and .47, .28, .33.

Dims: F fields, K chosen bases, M bases, N weights of one basis
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.linear import on_cpu_float32
from ctrbench.kernels.operator import Operator, Shape

Impl = Literal["fused", "plain"]


MIN_WEIGHTS = 32_768
"""Weights of a basis from which the products go to oneDNN."""


def compose_plain(share_FK: Tensor, chosen_FK: Tensor, bases_MN: Tensor) -> Tensor:
    """Plain twin: the chosen bases are gathered, then summed with their shares."""
    return (share_FK.unsqueeze(-1) * bases_MN[chosen_FK]).sum(dim=1)


def compose_dense(share_FK: Tensor, chosen_FK: Tensor, bases_MN: Tensor) -> Tensor:
    """Fast path: shares of bases not chosen are exact zeros of a dense product, so nothing is copied K times."""
    dense_FM = share_FK.new_zeros(share_FK.shape[0], bases_MN.shape[0]).scatter(1, chosen_FK, share_FK)
    if bases_MN.shape[1] >= MIN_WEIGHTS and on_cpu_float32(dense_FM, bases_MN):
        return _Product.apply(dense_FM, bases_MN)
    return dense_FM @ bases_MN


class _Product(torch.autograd.Function):
    """[F, M] @ [M, N] by oneDNN, forward and backward."""

    @staticmethod
    def forward(ctx: Any, dense_FM: Tensor, bases_MN: Tensor) -> Tensor:
        ctx.save_for_backward(dense_FM, bases_MN)
        return torch.ops.ctrbench.linear(dense_FM, bases_MN.t(), None)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_FN: Tensor) -> tuple[Tensor | None, Tensor | None]:
        dense_FM, bases_MN = ctx.saved_tensors
        for_shares, for_bases = ctx.needs_input_grad
        grad_FN = grad_FN.contiguous()
        grad_FM = torch.ops.ctrbench.linear_grad_input(grad_FN, bases_MN.t()) if for_shares else None
        # Σ_f dense[f, m] grad[f, n] is the same product with the fields summed over.
        grad_MN = torch.ops.ctrbench.linear_grad_input(dense_FM.t().contiguous(), grad_FN) if for_bases else None
        return grad_FM, grad_MN


def compose(share_FK: Tensor, chosen_FK: Tensor, bases_MN: Tensor, impl: Impl = "fused") -> Tensor:
    """Weights of every field, Σ_k share · basis, [F, N]. The choice gets no gradient, shares and bases do."""
    return (compose_dense if impl == "fused" else compose_plain)(share_FK, chosen_FK, bases_MN)


def compose_cost(fields: int, bases: int, chosen: int, weights: int, *, useful: bool = False) -> Cost:
    """Once a step, whatever the batch: 2FMN executed by the dense product, 2FKN of them useful."""
    return Cost(flops=2.0 * fields * (chosen if useful else bases) * weights, elementwise=0.0)


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    fields, bases, chosen, weights = (int(shape[n]) for n in ("fields", "bases", "chosen", "weights"))
    share_FK = torch.rand(fields, chosen, dtype=dtype, device=device, requires_grad=True)
    chosen_FK = torch.rand(fields, bases, device=device).topk(chosen).indices
    return share_FK, chosen_FK, torch.randn(bases, weights, dtype=dtype, device=device, requires_grad=True)


OPERATOR = Operator(
    title="FAT's composed weights",
    twin=compose_plain,
    run=compose,
    paths={"dense": compose_dense},
    inputs=_inputs,
    cost=lambda s: compose_cost(int(s["fields"]), int(s["bases"]), int(s["chosen"]), int(s["weights"])),
    small=({"fields": 4, "bases": 5, "chosen": 2, "weights": 6}, {"fields": 1, "bases": 1, "chosen": 1, "weights": 1}),
    shapes={
        "F39 M8 N7168": {"fields": 39, "bases": 8, "chosen": 3, "weights": 7168},
        "F39 M8 N65536": {"fields": 39, "bases": 8, "chosen": 3, "weights": 65_536},
    },
    no_gpu="one small cuBLAS product a step, bound by writing its result",
)

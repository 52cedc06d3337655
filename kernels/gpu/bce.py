"""Mean binary cross-entropy of logits on CUDA: loss and gradient in one pass over the logits.

Dims: B batch, P programs
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ctrbench.kernels.gpu.kernel import TYPES, Kernel, Tiles, by_type, takes


@triton.jit
def _forward(logit, label, d_logit, parts, B, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < B
    x = tl.load(logit + rows, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(label + rows, mask=inside, other=0.0).to(tl.float32)
    e = tl.exp(-tl.abs(x))
    one_e = 1.0 + e
    # log(1 + e) loses e where it is small against 1; scaled by e over what was really added, it does not (Kahan)
    log1p = tl.where(one_e == 1.0, e, tl.log(one_e) * (e / tl.where(one_e == 1.0, 1.0, one_e - 1.0)))
    loss = tl.maximum(x, 0.0) - x * y + log1p
    p = tl.where(x >= 0, 1.0, e) / one_e
    tl.store(d_logit + rows, (p - y) / B, mask=inside)
    tl.store(parts + tl.program_id(0), tl.sum(tl.where(inside, loss, 0.0), axis=0))


def _tiles(dtype: str) -> Tiles:
    return {"BLOCK": 1024, "num_warps": 4, "num_stages": 1}


class _Bce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logit_B: Tensor, label_B: Tensor) -> Tensor:
        batch, tiles = logit_B.numel(), _tiles(TYPES[logit_B.dtype])
        grid = (triton.cdiv(batch, tiles["BLOCK"]),)
        d_logit_B, parts_P = torch.empty_like(logit_B), logit_B.new_empty(grid[0], dtype=torch.float32)
        _forward[grid](logit_B, label_B, d_logit_B, parts_P, batch, **tiles)
        ctx.save_for_backward(d_logit_B)
        return (parts_P.sum() / batch).to(logit_B.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (d_logit_B,) = ctx.saved_tensors
        return d_logit_B * grad, None


def bce(logit_B: Tensor, label_B: Tensor) -> Tensor:
    """Mean over the batch, a scalar; labels get no gradient. Logits of another type than the labels go to ATen."""
    if not takes(logit_B, label_B) or label_B.requires_grad or logit_B.shape != label_B.shape:
        return binary_cross_entropy_with_logits(logit_B, label_B)
    return _Bce.apply(logit_B.contiguous(), label_B.contiguous())


KERNELS = (Kernel(fn=_forward, args="*T *T *T *fp32 i32", tiles=by_type(_tiles)),)

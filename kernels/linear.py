"""Linear layer y = x W^T + b whose GEMMs run in the faster CPU library.

ATen hands float32 products on CPU to MKL, which leaves AVX-512 unused on processors that are not Intel's; oneDNN,
shipped inside the same torch, chooses by instruction set. Measured, two AMD EPYC threads, one process, MKL / oneDNN:
4096 x 624 x 400 forward 8.8 / 4.4 ms, input gradient 9.0 / 3.9, weight gradient 9.6 / 5.6; 16384 x 64 x 192 forward
1.9 / 0.8; 256 x 128 x 64 no difference. Without AVX-512 (Zen 3, two threads, twelve shapes from 128 x 400 x 400 to
200,000 x 32 x 64, oneDNN over MKL): forward .60-1.14 of the time, input gradient .57-1.19, weight gradient 1.2-3.9, so
that one goes to oneDNN only with AVX-512. Every model's plain linear layers come through here, so no paradigm gains
from the choice alone; batched products (one weight a field or token) stay in ATen: a loop of oneDNN calls over 39
fields of 512 x 32 x 96 takes 0.96 ms against 0.60.

Dims: M rows, K input width, N output width
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape

Impl = Literal["fast", "plain"]

MIN_MACS = 4 << 20
"""Multiply-adds of a product below which the call costs more than oneDNN saves."""
MIN_WIDTH = 16
"""Narrower products are bound by memory: no difference."""
MIN_WEIGHT_WIDTH = 192
"""Widths from which oneDNN's weight gradient wins: 4096 x 192 x 640 by 1.5-2.2, but 8192 x 512 x 128 loses by 1.4."""
WEIGHT_BY_DNN = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether it can win at all on this CPU."""

_ops = torch.library.Library("ctrbench", "FRAGMENT")
_ops.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_ops.define("linear_grad_input(Tensor grad, Tensor weight) -> Tensor")
_ops.define("linear_grad_weight(Tensor grad, Tensor x, bool bias) -> (Tensor, Tensor)")


def _forward(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x_MK, weight_NK, bias_N, "none", [], "")


def _grad_input(grad_MN: Tensor, weight_NK: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(grad_MN, weight_NK.t(), None, "none", [], "")


def _grad_weight(grad_MN: Tensor, x_MK: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    shape_NK = grad_MN.new_empty(grad_MN.shape[1], x_MK.shape[1])  # of the weight only its shape is read
    grad_NK, grad_N = torch.ops.aten.mkldnn_linear_backward_weights(
        grad_MN.to_mkldnn(), x_MK.to_mkldnn(), shape_NK, bias
    )
    return grad_NK.to_dense(), grad_N.to_dense() if bias else grad_MN.new_empty(0)


_ops.impl("linear", _forward, "CPU")
_ops.impl("linear_grad_input", _grad_input, "CPU")
_ops.impl("linear_grad_weight", _grad_weight, "CPU")


# torch's own counter would take them for zero without a word.
@register_flop_formula(torch.ops.ctrbench.linear)
def _forward_flops(x: list[int], weight: list[int], bias: object, **_: object) -> int:
    return 2 * x[0] * weight[0] * weight[1]


@register_flop_formula(torch.ops.ctrbench.linear_grad_input)
def _grad_input_flops(grad: list[int], weight: list[int], **_: object) -> int:
    return 2 * grad[0] * weight[0] * weight[1]


@register_flop_formula(torch.ops.ctrbench.linear_grad_weight)
def _grad_weight_flops(grad: list[int], x: list[int], bias: bool, **_: object) -> int:
    return 2 * grad[0] * grad[1] * x[1]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return torch.ops.ctrbench.linear(x_MK, weight_NK, bias_N)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_MK, weight_NK = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad_MN = grad_MN.contiguous()
        grad_MK = torch.ops.ctrbench.linear_grad_input(grad_MN, weight_NK) if for_x else None
        if for_weight and WEIGHT_BY_DNN and min(weight_NK.shape) >= MIN_WEIGHT_WIDTH:
            grad_NK, grad_N = torch.ops.ctrbench.linear_grad_weight(grad_MN, x_MK.contiguous(), for_bias)
            return grad_MK, grad_NK, grad_N if for_bias else None
        grad_NK = grad_MN.t() @ x_MK if for_weight else None
        return grad_MK, grad_NK, grad_MN.sum(dim=0) if for_bias else None


def linear_plain(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Plain twin: ATen, any device and type."""
    return functional.linear(x, weight_NK, bias_N)


def on_cpu_float32(x: Tensor, weight: Tensor) -> bool:
    """Whether a product can be handed to oneDNN's float32 operators here."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _worth(x: Tensor, weight_NK: Tensor) -> bool:
    n, k = weight_NK.shape
    return min(n, k) >= MIN_WIDTH and x.numel() * n >= MIN_MACS and on_cpu_float32(x, weight_NK)


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, impl: Impl = "fast") -> Tensor:
    """[..., K] -> [..., N]; the weight may be a transposed view. Not differentiable twice on the fast path."""
    if impl == "plain" or not _worth(x, weight_NK):
        return linear_plain(x, weight_NK, bias_N)
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight_NK, bias_N).view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear_cost(n_in: int, out: int) -> Cost:
    """One row."""
    return Cost(flops=2.0 * n_in * out, elementwise=float(out))


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    rows, width, out = (int(shape[k]) for k in ("rows", "width", "out"))
    x_MK = torch.randn(rows, width, dtype=dtype, device=device, requires_grad=True)
    weight_NK = (torch.randn(out, width, dtype=dtype, device=device) / width**0.5).requires_grad_()
    return x_MK, weight_NK, torch.randn(out, dtype=dtype, device=device, requires_grad=True)


OPERATOR = Operator(
    title="Linear layer",
    twin=linear_plain,
    run=linear,
    inputs=_inputs,
    cost=lambda s: linear_cost(int(s["width"]), int(s["out"])) * s["rows"],
    small=({"rows": 5, "width": 3, "out": 4},),
    shapes={
        "4096x624 -> 400": {"rows": 4096, "width": 624, "out": 400},
        "6400x256 -> 1024": {"rows": 6400, "width": 256, "out": 1024},
        "16384x64 -> 192": {"rows": 16384, "width": 64, "out": 192},
    },
    no_gpu="cuBLAS is the fast path of a lone GEMM; its epilogues belong to the operators that have them",
)

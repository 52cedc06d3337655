"""What a meta trace must see as one operator because a GPU runs it as one: attention and dropout.

Attention on meta takes the math path (24-29 operators), dropout takes four (measures.md section 6). Inside
`gpu_operators()` a scaled-dot-product attention on meta is one `ctrbench::sdpa` forward and one backward, and dropout
is `native_dropout`. Tensors on other devices are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Operators of shapes alone: no device has a kernel of them, so that torch refuses any tensor that is not on meta.
torch.library.define("ctrbench::sdpa", "(Tensor query, Tensor key, Tensor value, Tensor? mask) -> (Tensor, Tensor)")
torch.library.define(
    "ctrbench::sdpa_backward",
    "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, Tensor? mask)"
    " -> (Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("ctrbench::sdpa")
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Shapes of a fused attention: output [..., Lq, Dv] and log-sum-exp [..., Lq] in fp32."""
    return _as_on_gpu(query, value.shape[-1]), query.new_empty(query.shape[:-1], dtype=torch.float32)


def _as_on_gpu(query: Tensor, width: int) -> Tensor:
    """[B, H, L, D] in memory order [B, L, H, D], as the fused kernels write it: what joins the heads copies nothing."""
    if query.dim() != 4:
        return query.new_empty(*query.shape[:-1], width)
    b, h, length, _ = query.shape
    return query.new_empty(b, length, h, width).transpose(1, 2)


@torch.library.register_fake("ctrbench::sdpa_backward")
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradient(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    query, key, value, mask, out, lse = ctx.saved_tensors
    return (*torch.ops.ctrbench.sdpa_backward(grad, query, key, value, out, lse, mask), None)


torch.library.register_autograd("ctrbench::sdpa", _gradient, setup_context=_setup)

_PLAIN = functional.scaled_dot_product_attention


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if query.device.type != "meta" or (attn_mask is not None and attn_mask.requires_grad):
        return _PLAIN(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    out: Tensor = torch.ops.ctrbench.sdpa(query, key, value, attn_mask)[0]
    return out


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if input.device.type != "meta":
        return torch.dropout(input, p, training)
    return torch.native_dropout(input, p, training)[0] if training and p > 0 else input


class _Replace(TorchFunctionMode):
    """Also catches functions that a model imported by name before."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _PLAIN:
            return _attention(*args, **kwargs)
        if func is functional.dropout:
            return _dropout(*args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def gpu_operators() -> Iterator[None]:
    """Attention and dropout on meta count as the one operator that a GPU runs."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with mock.patch.object(functional, "scaled_dot_product_attention", _attention), _Replace():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)

"""Parameter-free token mixing: a transpose of heads and tokens (RankMixer, 2507.15551 section 3.2).

Dims: B batch, T tokens and heads, D width, d = D/T width of a head
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost
from ctrbench.kernels.operator import Operator, Shape


def mix_tokens_plain(x_BTD: Tensor) -> Tensor:
    """Plain twin: token t of the result is head t of every token, in the order of the tokens."""
    tokens, width = x_BTD.shape[1], x_BTD.shape[2] // x_BTD.shape[1]
    heads = [x_BTD[:, :, t * width : (t + 1) * width] for t in range(tokens)]
    return torch.stack([head.reshape(len(x_BTD), -1) for head in heads], dim=1)


def mix_tokens(x_BTD: Tensor) -> Tensor:
    """[B, T, D] -> [B, T, D]; its own inverse. T must divide D."""
    tokens = x_BTD.shape[1]
    return x_BTD.unflatten(2, (tokens, -1)).transpose(1, 2).flatten(2)


def mix_tokens_cost(tokens: int, width: int) -> Cost:
    """One sample: a copy, counted as one operation an element."""
    return Cost(flops=0.0, elementwise=float(tokens * width))


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor]:
    sizes = (int(shape[n]) for n in ("batch", "tokens", "width"))
    return (torch.randn(*sizes, dtype=dtype, device=device, requires_grad=True),)


OPERATOR = Operator(
    title="Token mixing (RankMixer)",
    twin=mix_tokens_plain,
    run=mix_tokens,
    inputs=_inputs,
    cost=lambda s: mix_tokens_cost(int(s["tokens"]), int(s["width"])) * s["batch"],
    small=({"batch": 3, "tokens": 2, "width": 6}, {"batch": 1, "tokens": 1, "width": 2}),
    shapes={
        "B4096 T8 D64": {"batch": 4096, "tokens": 8, "width": 64},
        "B512 T16 D768": {"batch": 512, "tokens": 16, "width": 768},
    },
    no_gpu="one strided copy, which torch's own kernel makes at the bandwidth of memory",
)

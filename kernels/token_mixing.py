"""Parameter-free token mixing: a transpose of heads and tokens (RankMixer, 2507.15551 section 3.2).

Dims: B batch, T tokens and heads, D width, d = D/T width of a head
"""

from __future__ import annotations

import torch
from torch import Tensor


def mix_tokens_plain(x_BTD: Tensor) -> Tensor:
    """Plain twin: token t of the result is head t of every token, in the order of the tokens."""
    tokens, width = x_BTD.shape[1], x_BTD.shape[2] // x_BTD.shape[1]
    heads = [x_BTD[:, :, t * width : (t + 1) * width] for t in range(tokens)]
    return torch.stack([head.reshape(len(x_BTD), -1) for head in heads], dim=1)


def mix_tokens(x_BTD: Tensor) -> Tensor:
    """[B, T, D] -> [B, T, D]; its own inverse. T must divide D."""
    tokens = x_BTD.shape[1]
    return x_BTD.unflatten(2, (tokens, -1)).transpose(1, 2).flatten(2)

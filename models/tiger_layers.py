"""Layers of a T5-style encoder and decoder, as TIGER has them (2305.05065; rules of T5, 1910.10683).

RMS norm before every part, no biases, scores without 1/sqrt(d), a bias a head for the bucketed distance that the layers
of a stack share.

Dims: B batch, Q queries, K keys, D width, H heads, d width of a head
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from ctrbench.kernels.attention import attention
from ctrbench.kernels.linear import Linear

BUCKETS, FARTHEST, EPS = 32, 128, 1e-6
Past = tuple[Tensor, Tensor]
"""Keys and values [B, H, K, d] of tokens that were run before."""


def distance_buckets(distance: Tensor, both_sides: bool) -> Tensor:
    """Bucket of key place - query place: half of the buckets exact, the others in equal steps of its logarithm up to
    `FARTHEST`. Looking to both sides each has half of the buckets; else later keys fall into bucket 0.
    """
    buckets = BUCKETS // 2 if both_sides else BUCKETS
    offset = (distance > 0).long() * buckets if both_sides else torch.zeros_like(distance)
    far = distance.abs() if both_sides else (-distance).clamp(min=0)
    exact = buckets // 2
    step = (far.clamp(min=1).double() / exact).log() / math.log(FARTHEST / exact) * (buckets - exact)
    return offset + torch.where(far < exact, far, (exact + step.long()).clamp(max=buckets - 1))


class DistanceBias(nn.Module):
    """[H, Q, K] for queries at places `start` and on, keys from 0."""

    def __init__(self, heads: int, both_sides: bool) -> None:
        super().__init__()
        self.both_sides = both_sides
        self.table = nn.Embedding(BUCKETS, heads)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, queries: int, keys: int, start: int = 0) -> Tensor:
        at = torch.arange(max(queries + start, keys), device=self.table.weight.device)
        distance_QK = at[:keys] - at[start : start + queries].unsqueeze(1)
        return self.table(distance_buckets(distance_QK, self.both_sides)).permute(2, 0, 1)


class Norm(nn.Module):
    """RMS norm with a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain_D = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, x.shape[-1:], self.gain_D, EPS)


class Attention(nn.Module):
    """Attention over given keys, or over the tokens' own, without scaling of the scores."""

    def __init__(self, width: int, heads: int, head: int) -> None:
        super().__init__()
        self.heads, self.head = heads, head
        self.query = Linear(width, heads * head, bias=False)
        self.key_value = Linear(width, 2 * heads * head, bias=False)
        self.out = Linear(heads * head, width, bias=False)

    def keys(self, x_BKD: Tensor) -> Past:
        """Keys and values of tokens."""
        k, v = self.key_value(x_BKD).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x_BQD: Tensor, past: Past, bias: Tensor) -> Tensor:
        """`bias` is added to the scores and holds the mask, broadcastable to [B, H, Q, K]."""
        q_BHQd = self.query(x_BQD).unflatten(2, (self.heads, -1)).transpose(1, 2) * math.sqrt(self.head)
        return self.out(attention(q_BHQd, *past, bias).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """W2 relu(W1 x)."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.up, self.down = Linear(width, hidden, bias=False), Linear(hidden, width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(self.up(x).relu()))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward part, each behind a norm and with a residual."""

    def __init__(self, width: int, heads: int, head: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.attention, self.feed = Attention(width, heads, head), FeedForward(width, hidden, dropout)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, bias: Tensor) -> Tensor:
        normed = self.norm1(x_BND)
        x_BND = x_BND + self.drop(self.attention(normed, self.attention.keys(normed), bias))
        return x_BND + self.drop(self.feed(self.norm2(x_BND)))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's output, feed-forward part."""

    def __init__(self, width: int, heads: int, head: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = Norm(width), Norm(width), Norm(width)
        self.attention, self.cross = Attention(width, heads, head), Attention(width, heads, head)
        self.feed, self.drop = FeedForward(width, hidden, dropout), nn.Dropout(dropout)

    def forward(
        self, x_BQD: Tensor, bias: Tensor, memory: Past, memory_bias: Tensor, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        """(output, keys and values of all tokens until now).

        Args:
            x_BQD: tokens that ask; as many rows as the memory, or a multiple, those of one memory side by side.
            bias: of the distances, with the mask, over `past` and the tokens.
            memory: keys and values of the encoder's output for this layer (`cross.keys`).
            memory_bias: its mask.
            past: keys and values of the tokens before.
        """
        normed = self.norm1(x_BQD)
        own = self.attention.keys(normed)
        if past is not None:
            own = torch.cat([past[0], own[0]], dim=2), torch.cat([past[1], own[1]], dim=2)
        x_BQD = x_BQD + self.drop(self.attention(normed, own, bias))
        # Beams of a user ask his one memory together, as more queries of one row.
        asked = self.norm2(x_BQD).view(memory[0].shape[0], -1, x_BQD.shape[2])
        x_BQD = x_BQD + self.drop(self.cross(asked, memory, memory_bias)).view_as(x_BQD)
        return x_BQD + self.drop(self.feed(self.norm3(x_BQD))), own

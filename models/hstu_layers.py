"""Layers of HSTU: gated pointwise attention and its relative bias (2402.17152; `meta-recsys/generative-recommenders`).

Dims: B batch, N tokens, M candidates, D width, H heads, Q queries, K keys
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from ctrbench.kernels.linear import Linear, linear
from ctrbench.kernels.pointwise_attention import pointwise_attention, pointwise_cost

Flavour = Literal["research", "production"]
Bias = Literal["pos_time", "pos", "none"]
Past = tuple[Tensor, Tensor]
"""Keys and values [B, H, K, .] of tokens that were run before."""
BUCKETS, BUCKET_LOG, EPS = 128, 0.301, 1e-6


@dataclass(frozen=True, slots=True)
class Places:
    """Where tokens stand: what masks and biases need to know of them."""

    ordinal_BN: Tensor
    """int64; all targets have that of the place behind the newest event."""
    time_BN: Tensor
    """int64 seconds."""
    next_BN: Tensor
    """Time of the event that follows, of the request for the newest event and for targets."""
    bucket_BNN: Tensor | None = None
    """Bucketed time from each key to each query's next event, worked out once for all layers; else each does it."""

    def bucketed(self) -> Places:
        """The same places with `bucket_BNN`, for tokens that see none but each other."""
        return replace(self, bucket_BNN=time_buckets(self.next_BN.unsqueeze(2) - self.time_BN.unsqueeze(1)))


class RelativeBias(nn.Module):
    """A weight for the distance in places, and one for the bucketed time from a key to the query's next event.

    Shared by all heads of a layer.

    Args:
        kind: which of both.
        longest: most places between two tokens.
    """

    def __init__(self, kind: Bias, longest: int) -> None:
        super().__init__()
        self.longest = longest
        self.places = nn.Parameter(0.02 * torch.randn(2 * longest + 1)) if kind != "none" else None
        self.times = nn.Parameter(0.02 * torch.randn(BUCKETS + 1)) if kind == "pos_time" else None

    def forward(self, of: Places, to: Places) -> Tensor | None:
        """[B, Q, K]."""
        if self.places is None:
            return None
        bias_BQK = self.places[to.ordinal_BN.unsqueeze(1) - of.ordinal_BN.unsqueeze(2) + self.longest]
        if self.times is None:
            return bias_BQK
        bucket_BQK = of.bucket_BNN if of is to else None
        if bucket_BQK is None:
            bucket_BQK = time_buckets(of.next_BN.unsqueeze(2) - to.time_BN.unsqueeze(1))
        return bias_BQK + self.times[bucket_BQK]


def time_buckets(seconds: Tensor) -> Tensor:
    """min(128, floor(ln(max(1, |seconds|)) / 0.301))."""
    return (torch.log(seconds.abs().clamp(min=1).double()) / BUCKET_LOG).long().clamp(max=BUCKETS)


class HstuLayer(nn.Module):
    """[U, V, Q, K] = SiLU(LN(X) W); Y = Linear(U * LN(A V)) + X with A = SiLU(Q Kᵀ + bias) / norm.

    `production`: LN with affine, W with bias, SiLU on U alone, scores over the root of the head's width, no relative
    bias, output from [U ; O ; U * LN(O)].

    Args:
        width: D.
        heads: H.
        qk: width of a head's queries and keys.
        v: width of its values.
        norm: the constant N.
        flavour: see above.
        bias: relative bias of the research flavour.
        concat_ua: output from [U ; LN(O) ; U * LN(O)] in the research flavour too.
        dropout: on what goes into the output's linear layer.
    """

    def __init__(
        self, width: int, heads: int, qk: int, v: int, norm: int, *, flavour: Flavour = "research",
        bias: Bias = "pos_time", concat_ua: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.qk, self.v, self.norm = heads, qk, v, float(norm)
        self.research, self.concat = flavour == "research", concat_ua or flavour == "production"
        self.scale = 1.0 if self.research else 1.0 / math.sqrt(qk)
        self.input_norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=not self.research)
        self.uvqk = Linear(width, 2 * heads * (v + qk), bias=not self.research)
        self.output_norm = nn.LayerNorm(heads * v, eps=EPS, elementwise_affine=not self.research)
        self.out = Linear((3 if self.concat else 1) * heads * v, width, bias=self.research)
        self.bias = RelativeBias(bias if self.research else "none", norm)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, seen_BNN: Tensor, places: Places) -> tuple[Tensor, Past]:
        """(Y [B, N, D], own keys and values).

        Args:
            x_BND: tokens.
            seen_BNN: bool, who sees whom.
            places: of the tokens.
        """
        u, q, k, v = self._project(x_BND)
        o = pointwise_attention(q, k, v, seen_BNN, self.bias(places, places), self.scale, self.norm)
        return self._gate(u, o, x_BND), (k, v)

    def keys_values(self, x_BND: Tensor) -> Past:
        """Keys and values alone."""
        normed_BND, split = self.input_norm(x_BND), self.heads * self.v
        k, v = (
            linear(normed_BND, self.uvqk.weight[at], None if self.uvqk.bias is None else self.uvqk.bias[at])
            for at in (slice(2 * split + self.heads * self.qk, None), slice(split, 2 * split))
        )
        k, v = ((silu(t) if self.research else t).unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (k, v))
        return k, v

    def extend(self, x_BQD: Tensor, seen_BQK: Tensor, at: Places, past: Past, places: Places) -> Tensor:
        """Y [B, Q, D] of some tokens, which stand `at`, on keys and values of all, which stand at `places`."""
        u, q, _, _ = self._project(x_BQD)
        o = pointwise_attention(q, *past, seen_BQK, self.bias(at, places), self.scale, self.norm)
        return self._gate(u, o, x_BQD)

    def score(self, x_1MD: Tensor, at: Places, past: Past, before: Places) -> Tensor:
        """Y [1, M, D] of candidates that share one history: each sees all of it and itself.

        Args:
            x_1MD: candidates.
            at: of any of them, [1, 1]: all stand in one place.
            past: keys and values of user and events, all real.
            before: their places.
        """
        u, q, k, v = self._project(x_1MD)
        all_111 = torch.ones(1, 1, 1, dtype=torch.bool, device=x_1MD.device)
        o = pointwise_attention(q, *past, all_111, self.bias(at, before), self.scale, self.norm)
        own = (q * k).sum(dim=3, keepdim=True) * self.scale
        bias_111 = self.bias(at, at)
        own = own if bias_111 is None else own + bias_111
        return self._gate(u, o + silu(own) / self.norm * v, x_1MD)

    def _project(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(gate [B, N, H*v], queries, keys, values [B, H, N, .])."""
        widths = [self.heads * n for n in (self.v, self.v, self.qk, self.qk)]
        mixed = self.uvqk(self.input_norm(x_BND))
        u, v, q, k = (silu(mixed) if self.research else mixed).split(widths, dim=2)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return u if self.research else silu(u), q, k, v

    def _gate(self, u: Tensor, o_BHNv: Tensor, x_BND: Tensor) -> Tensor:
        o = o_BHNv.transpose(1, 2).flatten(2)
        gated = u * self.output_norm(o)
        if self.concat:
            shown = layer_norm(o, o.shape[-1:], eps=EPS) if self.research else o
            gated = torch.cat([u, shown, gated], dim=2)
        return self.out(self.drop(gated)) + x_BND


def seen(real_BN: Tensor, targets: int) -> Tensor:
    """bool [B, N + M, N + M]: events see the user, those before and themselves; the user sees all events; a target sees
    all of them and itself.
    """
    n = real_BN.shape[1]
    whole = torch.ones(n + targets, n + targets, dtype=torch.bool, device=real_BN.device).tril()
    whole[0, :n] = True
    whole[n:, n:] = torch.eye(targets, dtype=torch.bool, device=real_BN.device)
    return whole & torch.nn.functional.pad(real_BN, (0, targets), value=True).unsqueeze(1)


def layer_flops(width: int, heads: int, qk: int, v: int, tokens: float, pairs: float, concat: bool) -> float:
    """One layer on one sample, attention over `pairs` of query and key."""
    maps = 2.0 * width * heads * (2 * v + 2 * qk) + 2.0 * (3 if concat else 1) * heads * v * width
    return tokens * maps + pointwise_cost(heads, qk, v, pairs, 1).flops

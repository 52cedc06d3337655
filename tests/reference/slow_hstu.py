"""A layer of HSTU by its formulas, a token at a time: what the twins of the ranker and the retriever share."""

from __future__ import annotations

import math

import torch
from tests.reference.slow import Parameters, layer_norm, linear, silu
from torch import Tensor

from ctrbench.models.hstu import HstuConfig
from ctrbench.models.hstu_layers import Places


def hstu_parts(p: Parameters, name: str, c: HstuConfig, x: Tensor) -> list[Tensor]:
    """U, V, Q, K."""
    norm = f"{name}.input_norm"
    mixed = linear(p, f"{name}.uvqk", layer_norm(x, p.get(f"{norm}.weight"), p.get(f"{norm}.bias"), 1e-6))
    u, v, q, k = mixed.split([c.heads * n for n in (c.v, c.v, c.qk, c.qk)])
    return [silu(t) for t in (u, v, q, k)] if c.flavour == "research" else [silu(u), v, q, k]


def hstu_row(
    p: Parameters, name: str, c: HstuConfig, longest: int, x: Tensor, i: int, seen: list[int],
    made: dict[int, list[Tensor]], places: Places, b: int,
) -> Tensor:  # fmt: skip
    """Token i of row b behind the layer, from the tokens `seen`."""
    u, _, q, _ = made[i]
    o = []
    for h in range(c.heads):
        total = x.new_zeros(c.v)
        for j in seen:
            _, v, _, k = made[j]
            score = q[h * c.qk : (h + 1) * c.qk] @ k[h * c.qk : (h + 1) * c.qk]
            if c.flavour == "production":
                score = score / math.sqrt(c.qk)
            elif c.rab != "none":
                apart = int(places.ordinal_BN[b, j] - places.ordinal_BN[b, i])
                score = score + p[f"{name}.bias.places"][apart + longest]
                if c.rab == "pos_time":
                    gap = abs(int(places.next_BN[b, i] - places.time_BN[b, j]))
                    score = score + p[f"{name}.bias.times"][min(128, math.floor(math.log(max(1, gap)) / 0.301))]
            total = total + silu(score) / longest * v[h * c.v : (h + 1) * c.v]
        o.append(total)
    joined, norm = torch.cat(o), f"{name}.output_norm"
    gated = u * layer_norm(joined, p.get(f"{norm}.weight"), p.get(f"{norm}.bias"), 1e-6)
    if c.flavour == "production":
        gated = torch.cat([u, joined, gated])
    elif c.concat_ua:
        gated = torch.cat([u, layer_norm(joined, None, None, 1e-6), gated])
    return x + linear(p, f"{name}.out", gated)

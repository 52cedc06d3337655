"""Transformer block over field tokens and the hypernetwork that writes its weights (FAT, 2511.12081).

Shared by `fat` (own weights a field) and the control `shared_fields` (one set for all fields).

Dims: F fields, B batch, D width, H heads, M bases, K chosen bases, k width of a meta-embedding, N weights of a basis
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ctrbench.kernels.attention import attention
from ctrbench.kernels.compose import compose
from ctrbench.kernels.field_linear import field_linear
from ctrbench.kernels.linear import linear
from ctrbench.kernels.mixture_linear import mixture_linear
from ctrbench.kernels.pair_attention import pair_attention

Residual = Literal["paper", "pre2", "post2"]
BasisInit = Literal["xavier", "n002"]


@dataclass(frozen=True, slots=True)
class Mixture:
    """A weight a field that is mixed from bases while it is applied."""

    share_FK: Tensor
    chosen_FK: Tensor
    bases_MDE: Tensor


Weight = Tensor | Mixture
"""[D, E] for all fields, [F, D, E] a field, or a mixture of bases."""


@dataclass(frozen=True, slots=True)
class FieldWeights:
    """Weights of one block."""

    qkv: tuple[Weight, ...]
    """One fused weight of 3D columns, or Q, K and V apart."""
    up: Weight
    down: Weight
    out: Weight | None


def apply_weight(x_FBD: Tensor, weight: Weight) -> Tensor:
    """[F, B, D] -> [F, B, E]."""
    if isinstance(weight, Mixture):
        return mixture_linear(x_FBD, weight.share_FK, weight.chosen_FK, weight.bases_MDE)
    return field_linear(x_FBD, weight) if weight.dim() == 3 else linear(x_FBD, weight.t())


class FieldBlock(nn.Module):
    """Attention over fields and a SiLU feed-forward part, with the weights given at each call.

    Layouts: `paper` Z + FFN(LN1(Attn(LN0 Z))), one residual around both parts as the quoted equation; `pre2` and
    `post2` have two residuals with the norm before or after each part. No part has a bias.

    Raises:
        ValueError: heads do not divide the width, or `prenorm` is off where no norm precedes attention.
    """

    def __init__(self, width: int, heads: int, residual: Residual = "paper", prenorm: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width {width}; choose a divisor")
        if residual == "post2" and not prenorm:
            raise ValueError("prenorm=False has no meaning with residual=post2, where LN0 follows attention; drop it")
        self.heads, self.residual = heads, residual
        self.norm0 = nn.LayerNorm(width) if prenorm else nn.Identity()
        self.norm1 = nn.LayerNorm(width)

    def forward(self, z_FBD: Tensor, weights: FieldWeights, pair_FF: Tensor | None) -> Tensor:
        """One block, [F, B, D] -> [F, B, D]; `pair_FF` [F, F] or [H, F, F], None for plain attention."""
        # Row-major for the attention: the scores of a row are then contiguous, which pays for the copy.
        qkv_BFE = self.project(z_FBD, weights).transpose(0, 1).contiguous()
        return self.finish(z_FBD, self.attend(qkv_BFE, weights, pair_FF), weights)

    def finish(self, z_FBD: Tensor, attended_FBD: Tensor, weights: FieldWeights) -> Tensor:
        """What follows the attention part, residuals included."""
        if self.residual == "paper":
            return z_FBD + self._feed(self.norm1(attended_FBD), weights)
        if self.residual == "pre2":
            z_FBD = z_FBD + attended_FBD
            return z_FBD + self._feed(self.norm1(z_FBD), weights)
        z_FBD = self.norm0(z_FBD + attended_FBD)
        return self.norm1(z_FBD + self._feed(z_FBD, weights))

    def project(self, z_FBD: Tensor, weights: FieldWeights) -> Tensor:
        """Q, K and V side by side of what enters the attention part, [F, B, 3D]; field by field."""
        x_FBD = z_FBD if self.residual == "post2" else self.norm0(z_FBD)
        parts = [apply_weight(x_FBD, w) for w in weights.qkv]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def attend(self, qkv_BFE: Tensor, weights: FieldWeights, pair_FF: Tensor | None) -> Tensor:
        """Attention over projected fields without residual, [B, F, 3D] -> [F, B, D]."""
        batch, fields, width = *qkv_BFE.shape[:2], qkv_BFE.shape[2] // 3
        q_BHFd, k_BHFd, v_BHFd = qkv_BFE.view(batch, fields, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if pair_FF is None:
            out_BHFd = attention(q_BHFd, k_BHFd, v_BHFd)
        else:
            out_BHFd = pair_attention(q_BHFd, k_BHFd, v_BHFd, pair_FF)
        out_FBD = out_BHFd.permute(2, 0, 1, 3).reshape(fields, batch, width)
        return out_FBD if weights.out is None else apply_weight(out_FBD, weights.out)

    @staticmethod
    def _feed(x_FBD: Tensor, weights: FieldWeights) -> Tensor:
        return apply_weight(silu(apply_weight(x_FBD, weights.up)), weights.down)


class Hypernetwork(nn.Module):
    """Writes the weights of one block for every field from M shared bases (section 3.4).

    r = φ_f R_P picks the top K bases of each projection P; their softmax over the K scores mixes them. Routing sees
    the field only, never the sample. Q, K, V, the two feed-forward maps and, if asked, the output map have a router
    each.

    Args:
        width: D.
        hidden: width of the feed-forward part.
        bases: M.
        meta: k.
        chosen: K.
        out_proj: also write an output projection of attention.
        init: `xavier` uniform a basis, or `n002` N(0, 0.02).
        composed: write [F, D, E] weights; else leave the mixture to be applied on the fly.
        shared_qkv: one Q, K and V for all fields instead, an ablation; the other maps are written.
    """

    def __init__(
        self, width: int, hidden: int, bases: int, meta: int, chosen: int, *,
        out_proj: bool = False, init: BasisInit = "xavier", composed: bool = True, shared_qkv: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 1 <= chosen <= bases:
            raise ValueError(f"top_k={chosen} bases of {bases}: choose 1 <= top_k <= bases")
        self.chosen, self.composed = chosen, composed
        maps = ([] if shared_qkv else ["q", "k", "v"]) + ["up", "down"] + (["out"] if out_proj else [])
        self.qkv_DE = shared_qkv_of(width) if shared_qkv else None
        shapes = {"up": (width, hidden), "down": (hidden, width)}
        self.bases = nn.ParameterDict()
        for name in maps:  # one by one: a whole dict would be sorted, and routers go by this order
            self.bases[name] = nn.Parameter(torch.empty(bases, *shapes.get(name, (width, width))))
        self.router_PkM = nn.Parameter(torch.empty(len(maps), meta, bases))
        for basis_MDE in self.bases.values():
            if init == "n002":
                nn.init.normal_(basis_MDE, std=0.02)
            else:
                bound = math.sqrt(6.0 / (basis_MDE.shape[1] + basis_MDE.shape[2]))
                nn.init.uniform_(basis_MDE, -bound, bound)
        nn.init.normal_(self.router_PkM, std=1 / math.sqrt(meta))

    def route(self, meta_Fk: Tensor) -> tuple[Tensor, Tensor]:
        """(shares, indices) of the chosen bases, each [P, F, K]; the choice itself gets no gradient."""
        top = torch.matmul(meta_Fk, self.router_PkM).topk(self.chosen, dim=-1)
        return top.values.softmax(dim=-1), top.indices

    def forward(self, meta_Fk: Tensor, composed: bool | None = None) -> FieldWeights:
        """Weights of every field, in the form that was asked for at construction or here."""
        composed = self.composed if composed is None else composed
        share_PFK, index_PFK = self.route(meta_Fk)
        weights: dict[str, Weight] = {}
        for i, (name, bases_MDE) in enumerate(self.bases.items()):
            if composed:
                flat_FN = compose(share_PFK[i], index_PFK[i], bases_MDE.flatten(1))
                weights[name] = flat_FN.view(-1, *bases_MDE.shape[1:])
            else:
                weights[name] = Mixture(share_PFK[i], index_PFK[i], bases_MDE)
        if self.qkv_DE is not None:
            return FieldWeights((self.qkv_DE,), weights["up"], weights["down"], weights.get("out"))
        q, k, v = weights["q"], weights["k"], weights["v"]
        qkv: tuple[Weight, ...] = (q, k, v)
        if isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor):
            qkv = (torch.cat([q, k, v], dim=-1),)
        return FieldWeights(qkv, weights["up"], weights["down"], weights.get("out"))


def shared_qkv_of(width: int) -> nn.Parameter:
    """One [D, 3D] for all fields, started as a basis is."""
    bound = math.sqrt(3.0 / width)
    return nn.Parameter(torch.empty(width, 3 * width).uniform_(-bound, bound))


class FreeWeights(nn.Module):
    """Weights of one block learnt field by field, without bases: the ablation of the hypernetwork."""

    def __init__(self, fields: int, width: int, hidden: int, *, out_proj: bool, shared_qkv: bool) -> None:
        super().__init__()

        def own(*shape: int) -> nn.Parameter:
            bound = math.sqrt(6.0 / (shape[0] + shape[1]))
            return nn.Parameter(torch.empty(fields, *shape).uniform_(-bound, bound))

        self.qkv = shared_qkv_of(width) if shared_qkv else nn.Parameter(
            torch.cat([own(width, width).detach() for _ in range(3)], dim=-1)
        )  # fmt: skip
        self.up_FDE, self.down_FED = own(width, hidden), own(hidden, width)
        self.out_FDD = own(width, width) if out_proj else None

    def forward(self, meta_Fk: Tensor) -> FieldWeights:
        """Weights of every field; the meta-embedding is not read."""
        return FieldWeights((self.qkv,), self.up_FDE, self.down_FED, self.out_FDD)


class FieldInput(nn.Module):
    """Field vectors [B, F, E] to field-major tokens [F, B, D], by a linear map a field where E differs from D."""

    def __init__(self, fields: int, dim: int, width: int) -> None:
        super().__init__()
        self.map_FED = None
        if dim != width:
            self.map_FED = nn.Parameter(torch.empty(fields, dim, width))
            nn.init.normal_(self.map_FED, std=1 / math.sqrt(dim))

    def forward(self, fields_BFE: Tensor) -> Tensor:
        x_FBE = fields_BFE.transpose(0, 1).contiguous()
        return x_FBE if self.map_FED is None else field_linear(x_FBE, self.map_FED)


class SumHead(nn.Module):
    """logit = Linear(Σ_f Z_f), [F, B, D] -> [B]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, z_FBD: Tensor) -> Tensor:
        return self.linear(z_FBD.sum(dim=0)).squeeze(-1)


def block_flops(fields: int, width: int, hidden: int, *, out_proj: bool = False) -> float:
    """One block and sample, 2F(3d² + 2d·dff) + 4F²d (+ 2Fd² with an output projection); models.md section 2."""
    weights = 3 * width**2 + 2 * width * hidden + (width**2 if out_proj else 0)
    return float(2 * fields * weights + 4 * fields**2 * width)

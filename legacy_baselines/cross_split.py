"""A cross network of DCN-v2 served with its first layer parted, for `dcn_v2` and the composite ranker.

Columns are ordered user's side first, so that the user's x0 multiplies by a view: it is never copied to a candidate.
From the second layer on x_l is of both sides and every candidate runs whole layers; full matrices do better in a
request of many candidates, whose users' columns fold away (cross_fold.py).

Dims: R requests, C candidates of each, N = R*C candidates, K width of the network, U its columns of the user's side, I
those of the candidate, P width of a layer's first product, M width of a readout, n, m as in cross_fold.py
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctrbench.kernels.cross import cross_cost
from ctrbench.kernels.cross_mixture import mixture_inner
from ctrbench.kernels.linear import linear
from ctrbench.legacy_baselines.cross_fold import Folded, FoldedCross, fold_flops
from ctrbench.legacy_baselines.serving_split import SplitLinear
from ctrbench.models.serving import Sides


@dataclass(frozen=True, slots=True)
class Layer:
    """h of x_{l+1} = x0 * h(x_l) + x_l: a product with x_l, and what follows it."""

    weight_PK: Tensor
    bias_P: Tensor | None
    inner: Callable[[Tensor, float], Tensor]
    """([N, P], what to add) -> [N, K]; may hand back its argument."""


def _same(product_NK: Tensor, more: float) -> Tensor:
    return product_NK.add_(more) if more else product_NK


def _experts(cross: Any, at: int, order: Tensor) -> Layer:
    """A mixture layer: into the experts and the gate in one product."""
    gate, v_KRN = cross.gates[min(at, len(cross.gates) - 1)].weight.detach(), cross.v_KRN[at].detach()
    experts, rank, width = v_KRN.shape
    u_NKR, bias_N = cross.u_NKR[at].detach()[order], cross.b_N[at].detach()[order]

    def inner(product_NP: Tensor, more: float) -> Tensor:
        into_NE, gate_NK = product_NP.split([experts * rank, experts], dim=1)
        return mixture_inner(into_NE, gate_NK.softmax(dim=1), u_NKR, cross.c_KRR[at], bias_N + more, cross.act)

    return Layer(torch.cat([v_KRN.reshape(-1, width), gate]), None, inner)


@dataclass(frozen=True, slots=True)
class CrossShare:
    """The user's side of a cross network."""

    user_RU: Tensor
    first_RP: Tensor
    """Share of the first layer's product."""
    folded: list[Folded] = field(default_factory=list)
    """The maps of the folded network, once a request has asked for enough candidates."""


class SplitCross:
    """A cross network and a linear readout of its output.

    Args:
        cross: `CrossNet` or `MixtureCrossNet`.
        sides: which fields are whose; columns behind the fields are the candidate's.
        readout_MK: its columns in the order of the network.
        bias_M: of the readout, or None.
    """

    def __init__(self, cross: Any, sides: Sides, readout_MK: Tensor, bias_M: Tensor | None) -> None:
        dim, width, device = sides.embedder.dim, readout_MK.shape[1], readout_MK.device
        slots = torch.tensor([*sides.user_slots, *sides.item_slots], device=device)
        fields = (slots.unsqueeze(1) * dim + torch.arange(dim, device=device)).flatten()
        order = torch.cat([fields, torch.arange(len(fields), width, device=device)])
        self.user = len(sides.user_slots) * dim
        mixed = hasattr(cross, "gates")
        if mixed:
            layers = [_experts(cross, i, order) for i in range(len(cross.b_N))]
        else:
            layers = [Layer(w.weight.detach()[order], w.bias.detach()[order], _same) for w in cross.layers]
        self.first, self.inner = SplitLinear(layers[0].weight_PK, layers[0].bias_P, sides), layers[0].inner
        self.layers = [Layer(w.weight_PK[:, order], w.bias_P, w.inner) for w in layers[1:]]
        self.readout_MK, self.bias_M = readout_MK.detach()[:, order], bias_M
        self.folded: FoldedCross | None = None
        self.fold_from = math.inf
        if not mixed:
            square = [(w.weight.detach()[order][:, order], w.bias.detach()[order]) for w in cross.layers]
            self.folded = FoldedCross(square, self.readout_MK, bias_M, self.user)
            self.fold_from = fold_from(self.user, width - self.user, len(layers), len(readout_MK))

    def share(self, user_RU: Tensor) -> CrossShare:
        """The user's side of some requests."""
        return CrossShare(user_RU, self.first.user(user_RU))

    def readout(self, share: CrossShare, own_NI: Tensor) -> Tensor:
        """The readout of x_L, [N, M], of the candidates' columns of x0."""
        if self.folded is None or len(own_NI) < self.fold_from * len(share.user_RU):
            return linear(self._cross(share, own_NI), self.readout_MK, self.bias_M)
        if not share.folded:
            share.folded.append(self.folded.fold(share.user_RU))
        return self.folded.score(share.folded[0], own_NI)

    def _cross(self, share: CrossShare, own_NI: Tensor) -> Tensor:
        """x_L [N, K], columns of the user's side first."""
        x0 = partial(self._times, share.user_RU.unsqueeze(1), own_NI)
        x_NK = x0(self.inner(self.first.join(share.first_RP, own_NI), 1.0))  # x0 h + x0
        for layer in self.layers:
            x_NK = x_NK.add_(x0(layer.inner(linear(x_NK, layer.weight_PK, layer.bias_P), 0.0)))
        return x_NK

    def _times(self, user_R1U: Tensor, own_NI: Tensor, h_NK: Tensor) -> Tensor:
        """x0 * h, in the place of h."""
        h_RCK = h_NK.view(len(user_R1U), -1, h_NK.shape[1])
        h_RCK[..., : self.user].mul_(user_R1U)
        h_NK[:, self.user :].mul_(own_NI)
        return h_NK


def fold_from(user: int, own: int, layers: int, readout: int) -> float:
    """Candidates of a request from which folding executes fewer FLOPs; infinite where it never does."""
    (once, each), (fold_once, fold_each) = (
        full_flops(user, own, layers, readout),
        fold_flops(user, own, layers, readout),
    )
    return (fold_once - once) / (each - fold_each) if each > fold_each else math.inf


def full_flops(user: int, own: int, layers: int, readout: int) -> tuple[float, float]:
    """(once a request, a candidate) FLOPs of full layers, the first one parted, and the readout."""
    width = user + own
    return 2.0 * width * user, 2.0 * width * own + (layers - 1) * cross_cost(width).flops + 2.0 * width * readout

"""Serving of DCN-v2: the first cross layer and the MLP's first layer are parted between user and candidates.

Columns are ordered user's side first, so that the user's x0 multiplies by a view: it is never copied to a candidate.
From the second layer on x_l is of both sides and every candidate runs whole layers (full matrices can do better:
dcn_v2_fold.py).

Dims: R requests, C candidates of each, N = R*C candidates, K = F*D width of the network, U its columns of the user's
side, I those of the candidate, P width of a layer's first product, M width of a readout
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.cross import cross_cost
from ctrbench.kernels.cross_mixture import mixture_cost, mixture_inner
from ctrbench.kernels.linear import linear
from ctrbench.legacy_baselines.dcn_v2_fold import Folded, FoldedCross, fold_flops
from ctrbench.legacy_baselines.serving_readout import readout_flops, readouts
from ctrbench.legacy_baselines.serving_split import SplitLinear, side_widths
from ctrbench.models.requests import Requests
from ctrbench.models.serving import REUSE, ServingForm, Sides


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
class CrossContext:
    """What a request computes once."""

    user_RU: Tensor
    first_RP: Tensor
    """Share of the first layer's product."""
    straight_RM: Tensor | None
    folded: list[Folded] = field(default_factory=list)
    """The maps of the folded network, once a request has asked for enough candidates."""


class CrossForm:
    """DCN-v2 with its first layers parted."""

    def __init__(self, model: Any) -> None:
        self.sides, cross = Sides(model.embedder), model.cross
        width, dim = model.embedder.num_fields * model.embedder.dim, model.embedder.dim
        slots = torch.tensor([*self.sides.user_slots, *self.sides.item_slots], device=model.head.weight.device)
        order = (slots.unsqueeze(1) * dim + torch.arange(dim, device=slots.device)).flatten()
        self.user = len(self.sides.user_slots) * dim
        if hasattr(cross, "gates"):
            layers = [_experts(cross, i, order) for i in range(len(cross.b_N))]
        else:
            layers = [Layer(w.weight.detach()[order], w.bias.detach()[order], _same) for w in cross.layers]
        first = layers[0]
        self.first, self.inner = SplitLinear(first.weight_PK, first.bias_P, self.sides), first.inner
        self.layers = [Layer(w.weight_PK[:, order], w.bias_P, w.inner) for w in layers[1:]]
        mlps = dict(model.mlps.items())
        self.crossed, self.straight = readouts(mlps, model.head, width, model.head.in_features // max(1, len(mlps)))
        self.readout_MK = self.crossed.weight_MK[:, order]
        self.folded, self.fold_from = None, math.inf
        if not hasattr(cross, "gates"):
            square = [(w.weight.detach()[order][:, order], w.bias.detach()[order]) for w in cross.layers]
            self.folded = FoldedCross(square, self.readout_MK, self.crossed.bias_M, self.user)
            self.fold_from = fold_from(self.user, width - self.user, len(layers), len(self.readout_MK))
        straight = self.straight
        self.part = None if straight is None else SplitLinear(straight.weight_MK, straight.bias_M, self.sides)
        self.bias = model.head.bias

    def context(self, users: Batch) -> CrossContext:
        """The user's columns and their share of the first layers."""
        user_RU = self.sides.user(users).fields_RUW.flatten(1)
        return CrossContext(user_RU, self.first.user(user_RU), None if self.part is None else self.part.user(user_RU))

    def score(self, context: CrossContext, requests: Requests) -> Tensor:
        """logit_N."""
        own_NI = self.sides.items(requests).flatten(1)
        logit_N = self.bias + self.crossed.logit(self._crossed(context, own_NI, requests.count))
        if self.straight is None or self.part is None or context.straight_RM is None:
            return logit_N
        return logit_N + self.straight.logit(self.part.join(context.straight_RM, own_NI))

    def _crossed(self, context: CrossContext, own_NI: Tensor, count: int) -> Tensor:
        """The readout of x_L, [N, M]."""
        if self.folded is None or count < self.fold_from:
            return linear(self._cross(context, own_NI), self.readout_MK, self.crossed.bias_M)
        if not context.folded:
            context.folded.append(self.folded.fold(context.user_RU))
        return self.folded.score(context.folded[0], own_NI)

    def _cross(self, context: CrossContext, own_NI: Tensor) -> Tensor:
        """x_L [N, K], columns of the user's side first."""
        x0 = partial(self._times, context.user_RU.unsqueeze(1), own_NI)
        x_NK = x0(self.inner(self.first.join(context.first_RP, own_NI), 1.0))  # x0 h + x0
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
    (once, each), (fold_once, fold_each) = _full(user, own, layers, readout), fold_flops(user, own, layers, readout)
    return (fold_once - once) / (each - fold_each) if each > fold_each else math.inf


def _full(user: int, own: int, layers: int, readout: int) -> tuple[float, float]:
    """(once a request, a candidate) FLOPs of full layers, the first one parted, and the readout."""
    width = user + own
    return 2.0 * width * user, 2.0 * width * own + (layers - 1) * cross_cost(width).flops + 2.0 * width * readout


def serving(model: nn.Module, schema: FeatureSchema) -> Mapping[str, ServingForm]:
    """Forms of DCN-v2."""
    return {REUSE: CrossForm(model)}


def request_flops(
    config: Any, schema: FeatureSchema, lengths: Mapping[str, int] | None = None, count: int = 1
) -> tuple[float, float]:
    """(once a request, a candidate) FLOPs that `reuse` executes; history lengths do not matter."""
    user, own = side_widths(schema, config.dim)
    width, layers = user + own, config.cross_layers
    crossed, each = readout_flops(config.mlp if "stacked" in config.structure else ())
    if config.form == "full":
        fold = count >= fold_from(user, own, layers, crossed)
        once, cross = (fold_flops if fold else _full)(user, own, layers, crossed)
        # A folded request has made the first layer's share as well: its candidates are not known before.
        once += 2.0 * width * user if fold else 0.0
    else:
        product, layer = config.experts * (config.rank + 1), mixture_cost(width, config.rank, config.experts).flops
        once = 2.0 * user * product
        cross = layers * layer - once + 2.0 * width * crossed
    each += cross
    if "parallel" in config.structure:
        straight, more = readout_flops(config.mlp)
        once, each = once + 2.0 * user * straight, each + 2.0 * own * straight + more
    return once, each

"""Serving of DCN-v2: the cross network as cross_split.py says, the parallel MLP's first layer parted.

Dims: R requests, N candidates, U columns of the user's side, I those of the candidate, M width of a readout
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.cross_mixture import mixture_cost
from ctrbench.legacy_baselines.cross_fold import fold_flops
from ctrbench.legacy_baselines.cross_split import CrossShare, SplitCross, fold_from, full_flops
from ctrbench.legacy_baselines.serving_readout import readout_flops, readouts
from ctrbench.legacy_baselines.serving_split import SplitLinear, side_widths
from ctrbench.models.requests import Requests
from ctrbench.models.serving import REUSE, ServingForm, Sides


@dataclass(frozen=True, slots=True)
class CrossContext:
    """What a request computes once."""

    cross: CrossShare
    straight_RM: Tensor | None
    """Share of the parallel MLP's first layer."""


class CrossForm:
    """DCN-v2 with its first layers parted."""

    def __init__(self, model: Any) -> None:
        self.sides, mlps = Sides(model.embedder), dict(model.mlps.items())
        width = model.embedder.num_fields * model.embedder.dim
        self.crossed, self.straight = readouts(mlps, model.head, width, model.head.in_features // max(1, len(mlps)))
        self.cross = SplitCross(model.cross, self.sides, self.crossed.weight_MK, self.crossed.bias_M)
        straight = self.straight
        self.part = None if straight is None else SplitLinear(straight.weight_MK, straight.bias_M, self.sides)
        self.bias = model.head.bias

    def context(self, users: Batch) -> CrossContext:
        """The user's columns and their share of the first layers."""
        user_RU = self.sides.user(users).fields_RUW.flatten(1)
        return CrossContext(self.cross.share(user_RU), None if self.part is None else self.part.user(user_RU))

    def score(self, context: CrossContext, requests: Requests) -> Tensor:
        """logit_N."""
        own_NI = self.sides.items(requests).flatten(1)
        logit_N: Tensor = self.bias + self.crossed.logit(self.cross.readout(context.cross, own_NI))
        if self.straight is None or self.part is None or context.straight_RM is None:
            return logit_N
        return logit_N + self.straight.logit(self.part.join(context.straight_RM, own_NI))


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
        once, cross = (fold_flops if fold else full_flops)(user, own, layers, crossed)
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

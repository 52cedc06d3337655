"""Serving of the composite ranker: histories as in DIN, first layers of cross network and towers parted.

Interests are the candidate's: they stand among its columns.

Dims: R requests, N candidates, U columns of the user's side, I those of the candidate, M width of the head's first
layer, O output width of a tower's first layer
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.linear import linear
from ctrbench.legacy_baselines.cross_fold import fold_flops
from ctrbench.legacy_baselines.cross_split import CrossShare, SplitCross, fold_from, full_flops
from ctrbench.legacy_baselines.din_serving import History, InterestServing, unit_flops
from ctrbench.legacy_baselines.serving_split import SplitLinear, first_of, side_widths
from ctrbench.models.blocks import mlp_flops
from ctrbench.models.requests import Requests
from ctrbench.models.serving import REUSE, ServingForm, Sides


@dataclass(frozen=True, slots=True)
class CompositeContext:
    """What a request computes once."""

    histories: list[list[History]]
    cross: CrossShare
    towers: list[Tensor]
    """Shares [R, O] of the towers' first layers."""


class CompositeForm:
    """The click of the composite ranker; other heads are not run."""

    def __init__(self, model: Any) -> None:
        self.sides = Sides(model.embedder)
        self.attention = InterestServing(model.attention, self.sides)
        weight_MK, bias_M = first_of(model.heads[0])
        width = model.cross.layers[0].in_features
        self.cross = SplitCross(model.cross, self.sides, weight_MK[:, :width], bias_M.detach())
        self.after_MO = weight_MK.detach()[:, width:]
        self.firsts = [SplitLinear(*first_of(tower), self.sides) for tower in model.towers]
        self.rests = [nn.Sequential(*list(tower)[1:]) for tower in model.towers]
        self.head = nn.Sequential(*list(model.heads[0])[1:])

    def context(self, users: Batch) -> CompositeContext:
        """Shares of the histories and of the first layers."""
        user = self.sides.user(users)
        user_RU = user.fields_RUW.flatten(1)
        towers = [first.user(user_RU) for first in self.firsts]
        return CompositeContext(self.attention.histories(user), self.cross.share(user_RU), towers)

    def score(self, context: CompositeContext, requests: Requests) -> Tensor:
        """logit_N."""
        items_NJD = self.sides.items(requests)
        interests_NE = self.attention.interests(context.histories, items_NJD)
        own_NI = torch.cat([items_NJD.flatten(1), interests_NE], dim=1)
        hidden_NM = self.cross.readout(context.cross, own_NI)
        towers = zip(self.firsts, self.rests, context.towers, strict=True)
        outs = [rest(first.join(user_RO, own_NI)) for first, rest, user_RO in towers]
        if outs:
            hidden_NM = hidden_NM + linear(torch.cat(outs, dim=1), self.after_MO)
        out: Tensor = self.head(hidden_NM).squeeze(1)
        return out


def serving(model: nn.Module, schema: FeatureSchema) -> Mapping[str, ServingForm]:
    """Forms of the composite ranker."""
    return {REUSE: CompositeForm(model)}


def request_flops(
    config: Any, schema: FeatureSchema, lengths: Mapping[str, int] | None = None, count: int = 1
) -> tuple[float, float]:
    """(once a request, a candidate) FLOPs that `reuse` executes.

    `lengths` are true lengths of histories, or of a view, `<history>_<view>` as `Composite.attention.views` names it;
    without the latter, all events of the history count as if they were of every view.
    """
    known = lengths or {}
    user, own = side_widths(schema, config.dim, pooled=False)
    own += len(config.histories) * len(schema.sequences) * config.dim
    head: list[int] = [*config.head, 1]
    fold = count >= fold_from(user, own, config.cross_layers, head[0])
    once, each = (fold_flops if fold else full_flops)(user, own, config.cross_layers, head[0])
    once += 2.0 * (user + own) * user if fold else 0.0  # the share that short requests take
    each += 2.0 * sum(hidden[-1] for hidden in config.towers) * head[0] + mlp_flops(head[0], head[1:])
    for hidden in config.towers:
        once, each = once + 2.0 * user * hidden[0], each + mlp_flops(own, hidden)
    for history, fields in schema.histories.items():
        for view in config.histories:
            top = min(config.recent, fields[0].max_length) if view == "recent" else fields[0].max_length
            shared, more = unit_flops(
                config, schema, history, known.get(f"{history}_{view}", min(top, known.get(history, top)))
            )
            once, each = once + shared, each + more
    return once, each

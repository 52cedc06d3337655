"""Serving of DIN: one history for all candidates, only its real events computed, the tower's first layer parted.

The activation unit's first layer sees an event through W_h - W_d, which no candidate changes, and through W_p (q * h).
The first part is hoisted; the second is one product of the history's [T, Q] with all candidates' [Q, C*O], where Q
leaves out the columns whose query is no candidate's (the action's). Folding both parts into [E, C*O] costs the same
FLOPs a column, so hoisting saves only by Q < E; in time it saves the building of the wider matrix, for one pass more
over the result. Measured, CPU time of this layer, one thread, T=50, median of 40 in alternation, hoisted /
folded / product [C*T, Q] built and hoisted: E=48, Q=32, O=64, C=128 1.0 / 2.0 / 1.3 ms, C=512 2.4 / 7.6 / 4.1;
E=96, Q=64, O=512, C=128 8.1 / 33 / 8.2, C=512 34 / 140 / 33. Working on some candidates at a time, so that [T, C, O]
stays in the cache, saves more than sharing does: of a whole request's time at C=512 over that of unshared rows, 0.70
without it and, by `CELLS`, 0.33 (2^16), 0.29 (2^18) and 0.56 (2^20), one run each; 2^18 again, later: 0.36.

Dims: R requests, C candidates of each, N = R*C candidates, U fields of the user's side, J item fields, D embedding
width, T real events of one request, E width of an event, Q its columns with a candidate's value as query, O width of a
layer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.linear import linear
from ctrbench.legacy_baselines.interest import ActivationUnit, Interests
from ctrbench.legacy_baselines.serving_split import SplitLinear, first_of, side_widths
from ctrbench.models.blocks import mlp_flops
from ctrbench.models.requests import Requests
from ctrbench.models.serving import REUSE, ServingForm, Sides, UserSide

CELLS = 1 << 18
"""Numbers [T, C, O] of the unit's first layer that are worked on at once; more would leave the cache."""


@dataclass(frozen=True, slots=True)
class History:
    """A history's share of an activation unit, for one request."""

    events_TE: Tensor
    asked_TQ: Tensor
    """Columns of the events that meet a candidate's value."""
    share_TO: Tensor
    """What no candidate changes in the unit's first layer, bias included."""


class UnitServing:
    """One activation unit, the candidates of a request against one history.

    The first layer W [q ; h ; q - h ; q * h] + b parts into the history's share and, for a candidate,
    (W_q + W_d) q + W_p (q * h).

    Args:
        unit: the model's.
        own: columns of an event whose query is the candidate's; the query of all others is the request's.
    """

    def __init__(self, unit: ActivationUnit, own: Sequence[int]) -> None:
        first, *rest = unit.hidden
        assert isinstance(first, nn.Linear)
        w_q, w_h, w_d, self.product_OE = first.weight.detach().chunk(4, dim=1)
        self.event_OE, self.query_OE, self.bias_O = w_h - w_d, w_q + w_d, first.bias.detach()
        self.own = list(own)
        self.fixed = [i for i in range(w_q.shape[1]) if i not in self.own]
        self.query_OQ, self.product_OQ = self.query_OE[:, self.own], self.product_OE[:, self.own]
        self.rest, self.score, self.softmax = nn.Sequential(*rest), unit.score, unit.softmax

    def history(self, events_TE: Tensor, fixed_q: Tensor) -> History:
        """The share of a history; `fixed_q` is the query in the columns that are not the candidate's."""
        weight_OE = self.event_OE.clone()
        weight_OE[:, self.fixed] += self.product_OE[:, self.fixed] * fixed_q
        bias_O = self.bias_O + self.query_OE[:, self.fixed] @ fixed_q
        return History(events_TE, events_TE[:, self.own].contiguous(), linear(events_TE, weight_OE, bias_O))

    def interests(self, history: History, query_CQ: Tensor) -> Tensor:
        """u_CE."""
        events_TE = history.events_TE
        if not len(events_TE):
            return events_TE.new_zeros(len(query_CQ), events_TE.shape[1])
        step = max(1, CELLS // history.share_TO.numel())
        weights_TC = torch.cat([self._weights(history, q_CQ) for q_CQ in query_CQ.split(step)], dim=1)
        return weights_TC.t() @ events_TE

    def _weights(self, history: History, query_CQ: Tensor) -> Tensor:
        """a_TC."""
        (events, width), count = history.share_TO.shape, len(query_CQ)
        folded_QCO = query_CQ.t().unsqueeze(2) * self.product_OQ.t().unsqueeze(1)
        x_TCO = (history.asked_TQ @ folded_QCO.flatten(1)).view(events, count, width)
        x_TCO += history.share_TO.unsqueeze(1)
        x_TCO += linear(query_CQ, self.query_OQ)
        a_TC = self.score(self.rest(x_TCO.flatten(0, 1))).view(events, count)
        return a_TC.softmax(dim=0) if self.softmax else a_TC


class InterestServing:
    """All units of a model."""

    def __init__(self, attention: Interests, sides: Sides) -> None:
        self.views, self.sides, self.query = attention.views, sides, attention.query
        dim = sides.embedder.dim
        # the numbers of learned vectors come after those of the categorical fields, as dense fields' slots do
        place = {slot: i for i, slot in enumerate(sides.item_slots) if slot < attention.query.fields}
        self.items: dict[str, list[int]] = {}
        self.fixed: dict[str, list[int]] = {}
        own: dict[str, list[int]] = {}
        for history, slots in attention.query.slots.items():
            self.items[history] = [place[s] for s in slots if s in place]
            self.fixed[history] = [s for s in slots if s not in place]
            own[history] = [i * dim + d for i, s in enumerate(slots) if s in place for d in range(dim)]
        self.units = []
        for view, unit in zip(self.views, attention.units, strict=True):
            assert isinstance(unit, ActivationUnit)
            self.units.append(UnitServing(unit, own[view.history]))

    def histories(self, user: UserSide) -> list[list[History]]:
        """Shares of every request, a list a view."""
        out = []
        for view, unit in zip(self.views, self.units, strict=True):
            events = view.select(user.events[view.history])
            fixed_Rq = self._fixed(user.fields_RUW, view.history)
            out.append([
                unit.history(values_TE[mask_T], fixed_q)
                for values_TE, mask_T, fixed_q in zip(events.values_BTE, events.mask_BT, fixed_Rq, strict=True)
            ])  # fmt: skip
        return out

    def _fixed(self, fields_RUD: Tensor, history: str) -> Tensor:
        """The query's columns that no candidate changes: a field of the user's side, or a learned vector."""
        fields, free_QD, parts = self.query.fields, self.query.free_QD, [fields_RUD[:, 0, :0]]
        for slot in self.fixed[history]:
            if slot < fields:
                parts.append(fields_RUD[:, self.sides.user_slots.index(slot)])
            else:
                assert free_QD is not None
                parts.append(free_QD[slot - fields].expand(len(fields_RUD), -1))
        return torch.cat(parts, dim=1)

    def interests(self, histories: list[list[History]], items_NJD: Tensor) -> Tensor:
        """Interests of all views side by side, as `Interests` gives them; N rows."""
        out = []
        for view, unit, per_request in zip(self.views, self.units, histories, strict=True):
            query_RCQ = items_NJD[:, self.items[view.history]].flatten(1).view(len(per_request), -1, len(unit.own))
            out.append(torch.cat([unit.interests(h, q) for h, q in zip(per_request, query_RCQ, strict=True)]))
        return torch.cat(out, dim=1)


@dataclass(frozen=True, slots=True)
class DinContext:
    """What a request computes once."""

    histories: list[list[History]]
    hidden_RO: Tensor
    """The user's share of the tower's first layer."""


class DinForm:
    """DIN with shared histories and a parted tower."""

    def __init__(self, model: Any) -> None:
        self.sides = Sides(model.embedder)
        self.attention = InterestServing(model.attention, self.sides)
        self.first = SplitLinear(*first_of(model.tower), self.sides)
        self.rest = nn.Sequential(*list(model.tower)[1:])

    def context(self, users: Batch) -> DinContext:
        """Shares of the histories and of the user's fields."""
        user = self.sides.user(users)
        return DinContext(self.attention.histories(user), self.first.user(user.fields_RUW.flatten(1)))

    def score(self, context: DinContext, requests: Requests) -> Tensor:
        """logit_N."""
        items_NJD = self.sides.items(requests)
        interests_NE = self.attention.interests(context.histories, items_NJD)
        own_NK = torch.cat([items_NJD.flatten(1), interests_NE], dim=1)
        return self.rest(self.first.join(context.hidden_RO, own_NK)).squeeze(1)


def serving(model: nn.Module, schema: FeatureSchema) -> Mapping[str, ServingForm]:
    """Forms of DIN."""
    return {REUSE: DinForm(model)}


def unit_flops(config: Any, schema: FeatureSchema, history: str, events: float) -> tuple[float, float]:
    """(once a request, a candidate) FLOPs of a unit over `events` real events."""
    fields, out = schema.histories[history], config.attention[0]
    items = {f.name for f in schema.categorical if f.role == "item"}
    width, own = len(fields) * config.dim, sum(f.target in items for f in fields) * config.dim
    once = 2.0 * events * width * out + 2.0 * (width - own) * out
    rest = mlp_flops(out, config.attention[1:], 1)
    query = 2.0 * own * out if events else 0.0
    return once, events * (2.0 * own * out + rest + 2.0 * width) + query


def request_flops(
    config: Any, schema: FeatureSchema, lengths: Mapping[str, int] | None = None, count: int = 1
) -> tuple[float, float]:
    """(once a request, a candidate) FLOPs that `reuse` executes; `lengths` are true lengths, full ones without."""
    user, own = side_widths(schema, config.dim, pooled=False)
    widths: list[int] = [*config.mlp, 1]
    own += len(schema.sequences) * config.dim
    once, each = 2.0 * user * widths[0], mlp_flops(own, widths)
    for history, fields in schema.histories.items():
        top = fields[0].max_length
        shared, more = unit_flops(config, schema, history, min(top, (lengths or {}).get(history, top)))
        once, each = once + shared, each + more
    return once, each

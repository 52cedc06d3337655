"""HSTU across requests of one user (models.md section 6): events that were there before keep what they gave.

An event's row depends on the user's fields, the events up to it and the time of its successor; the newest has the time
of the request for that and is computed again, so is the user's row, which sees all events. So of all old events but the
newest, what the first layer makes of them stays as it was, and with it keys and values of two layers; above, events
have seen the user's new row, and all is computed again. Ordinals count from the oldest event: a window that has moved
is a new one. Never an approximation.

Dims: L user and events, M of them that are computed again, D token width, K facts of an event
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.models.blocks import Embedded
from ctrbench.models.histories import merge_by_time
from ctrbench.models.hstu import Hstu
from ctrbench.models.hstu_layers import Past, Places, seen
from ctrbench.models.hstu_serving import History, HstuContext, HstuServing, packed, real_row
from ctrbench.models.kv_store import KVStore
from ctrbench.models.onetrans_timeline import common
from ctrbench.models.requests import Requests


@dataclass(frozen=True, slots=True)
class HstuStates:
    """What is kept of a user."""

    facts_LK: Tensor
    """int64: history, time and ids of each event that it was computed from."""
    user_1UD: Tensor
    """The user's fields."""
    history: History
    second_1LD: Tensor | None
    """Inputs of the second layer; None where a model has no third."""

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        kept = [self.facts_LK, self.user_1UD, *(() if self.second_1LD is None else (self.second_1LD,))]
        return self.history.nbytes + sum(t.nbytes for t in kept)


class HstuSessions:
    """Serves requests of known users.

    Args:
        model: in eval mode; its weights must not change while states of it are kept.
        schema: of the requests.
        store: of the users' states.

    Attributes:
        reused: how often states of a user were `grown` or computed `cold`.
    """

    def __init__(self, model: Hstu, schema: FeatureSchema, store: KVStore[HstuStates]) -> None:
        self.form, self.store = HstuServing(model, schema), store
        self.tokens = model.tokens
        self.reused: Counter[str] = Counter()

    @torch.no_grad()
    def context(self, user: Hashable, users: Batch) -> HstuContext:
        """The user's side of one request, from what is kept and what is new.

        Args:
            user: names the user; states are only taken where fields and events are those that they were computed from.
            users: one row.

        Raises:
            ValueError: not one row.
        """
        if users.size != 1:
            raise ValueError(f"a session is of one user: got {users.size} rows; use one call a user")
        embedded = self.form.model.embedder(users)
        states = self._states(self.store.get(user), real_row(embedded, 0), users.time_B)
        self.store.put(user, states)
        share_1D = self.form.map.user(embedded.fields_BFD[:, self.form.sides.user_slots])
        return HstuContext((states.history,), share_1D, users.time_B)

    @torch.no_grad()
    def score(self, context: HstuContext, requests: Requests) -> Tensor:
        """logit_N of the candidates."""
        return self.form.score(context, requests)

    def _states(self, old: HstuStates | None, row: Embedded, time_1: Tensor) -> HstuStates:
        facts_LK, user_1UD = facts(row), row.fields_BFD[:, self.tokens.user]
        kept = 0
        if old is not None and torch.equal(old.user_1UD, user_1UD):
            kept = max(0, common(old.facts_LK, facts_LK) - 1)
        self.reused["grown" if kept else "cold"] += 1
        x_1LD, real_1L, places = self.tokens.before(row, time_1)
        again = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(1 + kept, x_1LD.shape[1])])
        at = Places(*(t[:, again] for t in (places.ordinal_BN, places.time_BN, places.next_BN)))
        seen_1ML = places.ordinal_BN.unsqueeze(1) <= at.ordinal_BN.unsqueeze(2)
        seen_1ML[:, 0] = True
        layers, x_1MD = self.form.layers, x_1LD[:, again]
        pasts: list[Past] = []
        for i, layer in enumerate(layers[: 2 if len(layers) == 2 else 1]):
            k, v = layer.keys_values(x_1MD)
            if old is not None and kept:
                k, v = (_join(n, o, kept, 2) for n, o in zip((k, v), old.history.pasts[i], strict=True))
            pasts.append((k, v))
            if i == 0 and len(layers) > 1:
                x_1MD = layer.extend(x_1MD, seen_1ML, at, (k, v), places)
        second_1LD = None
        if len(layers) > 2:
            before = None if old is None else old.second_1LD
            second_1LD = x_1LD = x_1MD if before is None or not kept else _join(x_1MD, before, kept, 1)
            seen_1LL, together = seen(real_1L, 0), places.bucketed()
            for layer in layers[1:-1]:
                x_1LD, own = layer(x_1LD, seen_1LL, together)
                pasts.append(own)
            pasts.append(layers[-1].keys_values(x_1LD))
        return HstuStates(facts_LK, user_1UD, History(packed(pasts), places), second_1LD)


def _join(new: Tensor, old: Tensor, kept: int, dim: int) -> Tensor:
    """The user's new row, the oldest `kept` events as they were, the events that were computed again."""
    return torch.cat([new.narrow(dim, 0, 1), old.narrow(dim, 1, kept), new.narrow(dim, 1, new.shape[dim] - 1)], dim=dim)


def facts(row: Embedded) -> Tensor:
    """(history, time, ids) [L, K] of the real events of one row, merged by time."""
    width = 2 + max(len(e.ids) for e in row.events.values())
    parts = []
    for i, e in enumerate(row.events.values()):
        columns = [torch.full_like(e.times_BT, i), e.times_BT, *e.ids.values()]
        columns += [torch.zeros_like(e.times_BT)] * (width - len(columns))
        parts.append(torch.stack(columns, dim=2))
    events = row.events.values()
    merged_1LK, _ = merge_by_time(parts, [e.times_BT for e in events], [e.mask_BT for e in events])
    return merged_1LK[0]

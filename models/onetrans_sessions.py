"""OneTrans across requests of one user (models.md section 3): states are kept and go on when events arrive.

`exact` reuses what is provably what a cold computation gives. A token's states depend on itself and on what it sees:
the tokens before it that are still in its layer. So all tokens up to the first event that differs from what was there
keep keys and values of every layer up to the one behind the first that drops S-tokens; in that layer the old ones ask
again, above it all is new. An ordinal counts from the oldest event kept: when the window slides, every event moves and
nothing is reused; where events carry their distance in time, or nothing, keys and values of the first layer stay.
`streaming` keeps all states as they were computed when their event arrived and drops the oldest: an approximation.

Dims: S real S-tokens, K facts of an event
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.models.kv_store import KVStore
from ctrbench.models.onetrans import OneTrans
from ctrbench.models.onetrans_serving import OneTransContext, OneTransServing, UserStates
from ctrbench.models.onetrans_timeline import PLACE, Timeline, common, timeline
from ctrbench.models.requests import Requests, requests_of, take_users, without_newest
from ctrbench.models.serving import serve

Mode = Literal["off", "exact", "streaming"]


class OneTransSessions:
    """Serves requests of known users.

    Args:
        model: in eval mode; its weights must not change while states of it are kept.
        schema: of the requests.
        mode: what is reused; `off` keeps nothing.
        store: of the users' states.

    Attributes:
        reused: how often states of a user were `same`, `grown` by new events, `slid` (first layer alone) or `cold`.
        present, computed: S-tokens of all contexts, and those of them that went through layers again.

    Raises:
        ValueError: a model whose S side depends on the candidate (`mask=full`), or without histories.
    """

    def __init__(self, model: OneTrans, schema: FeatureSchema, mode: Mode, store: KVStore[UserStates]) -> None:
        if not schema.histories or model.config.mask != "causal":
            raise ValueError(
                f"sessions need a history and mask=causal; got {len(schema.histories)} histories and "
                f"mask={model.config.mask}"
            )
        self.form = OneTransServing(model, schema)
        self.tokens, self.mode, self.store = model.event_tokens, mode, store
        self.reused: Counter[str] = Counter()
        self.present = self.computed = 0

    @torch.no_grad()
    def context(self, user: Hashable, users: Batch) -> OneTransContext:
        """The user's side of one request, from what is kept and the events that are new.

        Args:
            user: names the user; states are only taken where the events are those that they were computed from.
            users: one row.

        Raises:
            ValueError: not one row.
        """
        if users.size != 1:
            raise ValueError(f"a session is of one user: got {users.size} rows; use one call a user and `together`")
        side = self.form.sides.user(users)
        line = timeline(self.tokens, side.events, 0)
        old = None if self.mode == "off" else self.store.get(user)
        states = self._states(old, line)
        if self.mode != "off" and states is not old:
            self.store.put(user, states)
        return OneTransContext((states,), self.form.fields.user(side.fields_RUW))

    def together(self, contexts: Sequence[OneTransContext]) -> OneTransContext:
        """The context of several requests."""
        parts = zip(*(c.fields for c in contexts), strict=True)
        fields = tuple(None if p[0] is None else torch.cat([t for t in p if t is not None]) for p in parts)
        return OneTransContext(tuple(s for c in contexts for s in c.states), fields)

    @torch.no_grad()
    def score(self, context: OneTransContext, requests: Requests) -> Tensor:
        """logit_N of the candidates."""
        return self.form.score(context, requests)

    def _states(self, old: UserStates | None, line: Timeline) -> UserStates:
        if old is None or not len(old.facts_SK):
            how, states = "cold", None
        elif self.mode == "streaming":
            how, states = self._stream(old, line)
        else:
            how, states = self._extend(old, line)
        self.reused[how] += 1
        if states is None:
            states = self.form.grow(line, self.form.tokens(line), redo=self._redo(line))
        self.present += line.size
        if states is not old:
            self.computed += states.appended - old.appended if old is not None and how == "grown" else line.size
        return states

    def _redo(self, line: Timeline) -> int | None:
        return self.form.redo(line.size) if self.mode == "exact" else None

    def _extend(self, old: UserStates, line: Timeline) -> tuple[str, UserStates | None]:
        """`exact`; None where nothing can be reused."""
        before, redo, last = len(old.facts_SK), self._redo(line), len(self.form.layers) - 1
        same = common(old.facts_SK, line.facts_SK)
        if same == before == line.size:
            return "same", old
        # with fewer events than before the pyramid's windows would reach back beyond what was kept
        if same and line.size >= before and redo in (last, old.redo):
            return "grown", self.form.grow(
                line, self.form.tokens(line, line.size - same), old, lost=before - same, redo=redo
            )  # fmt: skip
        # the oldest event of a window that has moved has nothing before it: its place is another one
        gone = shift(old.facts_SK[1:], line.facts_SK[1:])
        return ("cold", None) if gone is None else ("slid", self._slide(old, line, gone + 1))

    def _slide(self, old: UserStates, line: Timeline, gone: int) -> UserStates:
        """All but the oldest and the new events keep the keys and values of the first layer."""
        s_1SD, kept = self.form.tokens(line), len(old.facts_SK) - gone
        fresh_1MD = torch.cat([s_1SD[:, :1], s_1SD[:, 1 + kept :]], dim=1)
        k, v = (
            torch.cat([n[:, :, :1], o[:, :, gone:], n[:, :, 1:]], dim=2)
            for o, n in zip(old.pasts[0], self.form.layers[0].keys_values(fresh_1MD), strict=True)
        )
        return self.form.grow(line, s_1SD, first=(k, v), redo=self._redo(line))

    def _stream(self, old: UserStates, line: Timeline) -> tuple[str, UserStates | None]:
        """`streaming`; None where the kept events do not go on in the new ones."""
        columns = [i for i in range(old.facts_SK.shape[1]) if i != PLACE]
        gone = shift(old.facts_SK[:, columns], line.facts_SK[:, columns])
        if gone is None:
            return "cold", None
        new = line.size - (len(old.facts_SK) - gone)
        if not new and not gone:
            return "same", old
        return "grown", self.form.grow(line, self.form.tokens(line, new), old)


@dataclass(frozen=True, slots=True)
class Drift:
    """Scores of the same candidates on cold states and on kept ones."""

    cold_N: Tensor
    """Logits of a cold computation, C a row."""
    kept: Mapping[int, tuple[Tensor, Tensor]]
    """Events appended since the states were cold -> (places in `cold_N`, logits on kept states); rows whose history is
    too short have none."""


def drift(
    model: OneTrans, schema: FeatureSchema, users: Batch, items: Batch, steps: Sequence[int] = (1, 2, 4, 8, 16, 32)
) -> Drift:
    """How far `streaming` moves scores: each row's history without its newest k events is encoded cold, the k events
    arrive one by one, then the candidates are scored.

    Args:
        model: in eval mode.
        schema: of the rows.
        users: R rows. Histories may be longer than the model's window, and should be by the largest step: a row cut to
            the window has fewer events in its earlier windows than the user had.
        items: R*C rows with the candidates; the rows themselves for C = 1.
        steps: values of k.
    """
    asked, kept = requests_of(schema, users, items), {}
    sessions = OneTransSessions(model, schema, "streaming", KVStore(1 << 40))
    cold_N = torch.cat([serve(sessions.form, _one(schema, asked, r)) for r in range(asked.size)])
    for k in steps:
        places, logits = [], []
        for r in range(asked.size):
            one = _one(schema, asked, r)
            if sum(len(t) for t in one.users.event_times.values()) <= k:
                continue
            sessions.store.drop(r)
            contexts = [sessions.context(r, without_newest(schema, one.users, left)) for left in range(k, -1, -1)]
            logits.append(sessions.score(contexts[-1], one))
            places.append(torch.arange(r * asked.count, (r + 1) * asked.count))
        if places:
            kept[k] = torch.cat(places), torch.cat(logits)
    return Drift(cold_N, kept)


def _one(schema: FeatureSchema, asked: Requests, row: int) -> Requests:
    return asked.candidates(row * asked.count, (row + 1) * asked.count, take_users(schema, asked.users, row))


def shift(old_SK: Tensor, new_SK: Tensor) -> int | None:
    """Oldest events of `old_SK` to leave out so that all others begin `new_SK`; None where no number does."""
    if not len(new_SK):
        return None
    for gone in (old_SK == new_SK[0]).all(dim=1).nonzero().flatten().tolist():
        kept = len(old_SK) - gone
        if kept <= len(new_SK) and torch.equal(old_SK[gone:], new_SK[:kept]):
            return int(gone)
    return None

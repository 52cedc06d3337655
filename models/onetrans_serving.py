"""How OneTrans is served (2510.26104 section 3.5): S-tokens through all layers once a request, candidates against them.

Only real events are computed, request after request, so that no request pays for the padding of a window or of its
neighbours. Of the last layer S-tokens need keys and values alone.

Dims: R requests, C candidates of each, N = R*C rows, S real S-tokens of one user, M of them that are new, T NS-tokens,
K inputs and O outputs of a first layer, D token width, H heads, d head width, J item fields, U user's fields, E
embedding width, Q tokens that ask
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.linear import linear
from ctrbench.models.blocks import MLP
from ctrbench.models.onetrans_timeline import Timeline, timeline, tokens_of
from ctrbench.models.onetrans_tokens import AutoFields, GroupFields
from ctrbench.models.requests import Requests
from ctrbench.models.serving import REUSE, EmbeddedOnce, ServingForm, Sides, split_columns

if TYPE_CHECKING:
    from ctrbench.models.onetrans import OneTrans
    from ctrbench.models.onetrans_blocks import OneTransLayer


Past = tuple[Tensor, Tensor]
"""Keys and values [1, H, S, d] of one layer."""


@dataclass(frozen=True, slots=True)
class UserStates:
    """What the S side of one user leaves for candidates, and for events that arrive later."""

    facts_SK: Tensor
    """Of the events that it was computed from."""
    pasts: tuple[Past, ...]
    """Of each layer, of its newest tokens."""
    redo: int
    """Layer in which old tokens must ask again when events arrive: the keys that they see have moved on."""
    asking_1QD: Tensor | None
    """Inputs of the tokens that ask there; None where nothing is asked again."""
    appended: int
    """Events that arrived since all of it was computed at once."""

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        kept = [self.facts_SK, *(t for past in self.pasts for t in past)]
        return sum(t.nbytes for t in (*kept, *(() if self.asking_1QD is None else (self.asking_1QD,))))


@dataclass(frozen=True, slots=True)
class OneTransContext:
    """The user's side of R requests."""

    states: tuple[UserStates, ...]
    fields: tuple[Tensor | None, ...]
    """The user's share of each part of the NS tokenizer, [R, O] or [R, D]; see `SplitTokens`."""

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(s.nbytes for s in self.states) + sum(t.nbytes for t in self.fields if t is not None)


class _Part:
    """One MLP on some fields, its first layer split into the user's columns and the candidate's."""

    def __init__(self, mlp: MLP, fields: Sequence[int], sides: Sides) -> None:
        first, *rest = mlp
        assert isinstance(first, nn.Linear)
        self.bias_O, self.rest = first.bias.detach(), nn.Sequential(*rest)
        user, item = sides.user_slots, sides.item_slots
        self.users, self.items = (
            [user.index(f) for f in fields if f in user],
            [item.index(f) for f in fields if f in item],
        )
        mine = [i for i, f in enumerate(fields) if f in user]
        other = [i for i, f in enumerate(fields) if f in item]
        self.user_OK = split_columns(first.weight.detach(), mine, sides.embedder.dim)
        self.item_OK = split_columns(first.weight.detach(), other, sides.embedder.dim)

    def user(self, fields_RUE: Tensor) -> Tensor | None:
        if not self.users:
            return None
        share_RO = linear(fields_RUE[:, self.users].flatten(1), self.user_OK, self.bias_O)
        return share_RO if self.items else self.rest(share_RO)

    def join(self, share_RO: Tensor | None, items_NJE: Tensor) -> Tensor:
        if share_RO is not None:
            share_RO = share_RO.repeat_interleave(len(items_NJE) // len(share_RO), dim=0)
        if not self.items:
            assert share_RO is not None
            return share_RO
        hidden_NO = linear(items_NJE[:, self.items].flatten(1), self.item_OK)
        return self.rest(hidden_NO + (self.bias_O if share_RO is None else share_RO))


class SplitTokens:
    """The NS tokenizer taken apart: what a first layer makes of the user's fields is computed once a request."""

    def __init__(self, tokens: AutoFields | GroupFields, sides: Sides) -> None:
        if isinstance(tokens, AutoFields):
            self.count, mlps, groups = tokens.tokens, [tokens.mlp], [list(range(sides.embedder.num_fields))]
        else:
            self.count, mlps, groups = 0, [cast(MLP, m) for m in tokens.mlps], tokens.groups
        self.parts = [_Part(m, g, sides) for m, g in zip(mlps, groups, strict=True)]

    def user(self, fields_RUE: Tensor) -> tuple[Tensor | None, ...]:
        """Of each part: its token where it holds no candidate's field, else its share of the first layer."""
        return tuple(p.user(fields_RUE) for p in self.parts)

    def join(self, shares: Sequence[Tensor | None], items_NJE: Tensor) -> Tensor:
        """NS-tokens [N, tokens, D] of all candidates."""
        out = [p.join(share_RO, items_NJE) for p, share_RO in zip(self.parts, shares, strict=True)]
        return out[0].view(len(items_NJE), self.count, -1) if self.count else torch.stack(out, dim=1)


class OneTransServing:
    """The form `reuse`."""

    def __init__(self, model: OneTrans, schema: FeatureSchema) -> None:
        self.model, self.schema = model, schema
        self.sides = Sides(model.embedder)
        self.fields = SplitTokens(cast("AutoFields | GroupFields", model.field_tokens), self.sides)
        self.layers = list(cast("Iterable[OneTransLayer]", model.layers))

    def context(self, users: Batch) -> OneTransContext:
        """S-tokens of every request through all layers."""
        user = self.sides.user(users)
        lines = [timeline(self.model.event_tokens, user.events, r) for r in range(users.size)]
        return OneTransContext(tuple(self.grow(n, self.tokens(n)) for n in lines), self.fields.user(user.fields_RUW))

    def score(self, context: OneTransContext, requests: Requests) -> Tensor:
        """NS-tokens of every candidate through all layers."""
        n_NTD = self.fields.join(context.fields, self.sides.items(requests))
        for layer, *pasts in zip(self.layers, *(s.pasts for s in context.states), strict=True):
            n_NTD = layer.score(n_NTD, pasts)
        out: Tensor = self.model.head(n_NTD)
        return out

    def redo(self, size: int) -> int:
        """The layer behind the first one that drops some of `size` S-tokens, the last layer if that comes first.

        Keys and values of an old token are what they were up to here: all it sees below is still there.
        """
        dropping = (i for i, layer in enumerate(self.layers) if layer.kept < size)
        return min(next(dropping, len(self.layers)) + 1, len(self.layers) - 1)

    def tokens(self, line: Timeline, new: int | None = None) -> Tensor:
        """The newest S-tokens [1, M, D] of a user, all if not told how many."""
        return tokens_of(self.model.event_tokens, line, line.size if new is None else new)

    def grow(
        self, line: Timeline, s_1MD: Tensor, old: UserStates | None = None, *, lost: int = 0, redo: int | None = None,
        first: Past | None = None,
    ) -> UserStates:  # fmt: skip
        """States of a user.

        Args:
            line: all events.
            s_1MD: tokens of the newest, those that are in no old state.
            old: states of the others; None computes all.
            lost: how many of the newest tokens of `old` are no longer among the events.
            redo: layer above which all is computed afresh (`self.redo`); not given, no token asks again.
            first: keys and values of the first layer, where they are known; s_1MD is of all events then.
        """
        last = len(self.layers) - 1
        redo = last if redo is None else redo
        pasts: list[Past] = []
        inside, asking, appended = line.size, None, 0 if old is None else old.appended + s_1MD.shape[1]
        for i, layer in enumerate(self.layers):
            k, v = first if first is not None and i == 0 else layer.keys_values(s_1MD)
            if old is not None and i <= redo:
                k, v = (_newest(torch.cat([_less(o, lost), n], dim=2), inside, 2) for o, n in
                        zip(old.pasts[i], (k, v), strict=True))  # fmt: skip
            pasts.append((k.contiguous(), v.contiguous()))
            if i == last:
                break
            if i == redo:
                if old is not None and old.asking_1QD is not None:
                    s_1MD = torch.cat([_less(old.asking_1QD, lost, 1), s_1MD], dim=1)
                s_1MD = asking = _newest(s_1MD, layer.kept, 1).contiguous()
            s_1MD = layer.extend(_newest(s_1MD, layer.kept, 1), *pasts[-1])
            inside = min(inside, layer.kept)
        return UserStates(line.facts_SK, tuple(pasts), redo, asking, appended)


def _newest(x: Tensor, count: int, dim: int) -> Tensor:
    return x.narrow(dim, max(0, x.shape[dim] - count), min(count, x.shape[dim]))


def _less(x: Tensor, lost: int, dim: int = 2) -> Tensor:
    return x.narrow(dim, 0, max(0, x.shape[dim] - lost))


def forms(model: nn.Module, schema: FeatureSchema) -> dict[str, ServingForm]:
    """Where events see candidates (`mask=full`), or there are none, only the embeddings can be shared."""
    one = cast("OneTrans", model)
    shared = bool(schema.histories) and one.config.mask == "causal"
    return {REUSE: OneTransServing(one, schema) if shared else EmbeddedOnce(model, schema)}

"""Retrieval and ranking one after the other on one user's keys and values (claim S14).

The backbone is LUM's user model: of the models here it alone has both heads, and both are trained (claim S21). Its
answers are compared with the tokens of the whole catalogue, which retrieves; a ranker reads them, which ranks. Both ask
their questions behind the same history. Sharing is exact with the same weights, window and places alone: a stage that
reads fewer events counts their places from another one, and all its keys and values differ.

Dims: R requests, V items of the catalogue, K items retrieved, U questions, J item fields, I dense item fields, D width
of the user model
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.models.lum import LumRanker
from ctrbench.models.lum_backbone import UserModel
from ctrbench.models.lum_history import Kept
from ctrbench.models.lum_rows import Sequences
from ctrbench.models.lum_serving import GroupQuery, LumContext
from ctrbench.models.requests import Requests, full_rows


@dataclass(frozen=True, slots=True)
class Shelf:
    """Items that can be retrieved, with all that a ranker reads of a candidate."""

    ids_JV: Tensor
    """int64 ids of the categorical item fields in schema order."""
    dense_VI: Tensor
    missing_VI: Tensor

    def requests(self, users: Batch, at_RK: Tensor) -> Requests:
        """Requests of users for the items at these places."""
        at_N = at_RK.flatten()
        return Requests(users, self.ids_JV[:, at_N], self.dense_VI[at_N], self.missing_VI[at_N])


class Retrieved(NamedTuple):
    """The best items of each request, best first."""

    at_RK: Tensor
    """Their places on the shelf."""
    score_RK: Tensor


class Served(NamedTuple):
    """What both stages give."""

    found: Retrieved
    logit_RK: Tensor
    """Of the retrieved items, in their order."""


@dataclass(frozen=True, slots=True)
class UserCache:
    """One user-side computation for both stages."""

    kept: Kept
    asked_RU: Tensor
    """Conditions that retrieval asks: that of the newest event, and the common ones."""

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.kept.nbytes


class TwoStages:
    """Retrieval over a shelf, then ranking of what was found.

    Args:
        model: LUM's ranker in eval mode; its target is items.
        schema: of the requests.
        shelf: what can be retrieved; the tokens of its items are worked out here, once for these weights.
        window: newest events that are read; as many as the model reads if not given.

    Raises:
        ValueError: semantic IDs, whose retrieval is a search and no comparison with item tokens.
    """

    def __init__(self, model: LumRanker, schema: FeatureSchema, shelf: Shelf, window: int | None = None) -> None:
        if not isinstance(model.user_model, UserModel):
            raise ValueError("two stages: target=sid retrieves by beam search; use lum.target=item")
        self.model, self.schema, self.shelf, self.user = model, schema, shelf, model.user_model
        self.window = self.user.reads if window is None else window
        self.group = GroupQuery(model, schema)
        with torch.no_grad():
            self.token_VD = self._ready(self.group.reader.items(shelf.ids_JV[self.group.item]))

    def _ready(self, vectors: Tensor) -> Tensor:
        return normalize(vectors, dim=-1) if self.user.similarity == "cosine" else vectors

    def _sequences(self, users: Batch) -> Sequences:
        """The newest events in the window; places start at the oldest of them."""
        whole = self.model.lum.sequences(users)
        ids = {n: ids_RL[:, -self.window :] for n, ids_RL in whole.ids.items()}
        return self.user.sequences(ids, whole.segment_RL[:, -self.window :] > 0)

    def _asked(self, users: Batch, sequences: Sequences) -> Tensor:
        if not self.model.lum.config.condition:
            return torch.zeros(users.size, 1, dtype=torch.long, device=users.label_B.device)
        newest_R1 = sequences.ids[self.user.fields.cond][:, -1:]
        common_U = self.model.lum.common(newest_R1.device)
        # a user without events has no newest one: padding is the condition that no item has
        return torch.cat([newest_R1, common_U.expand(users.size, -1)], dim=1)

    def cache(self, users: Batch) -> UserCache:
        """The user's side: the history through the backbone."""
        sequences = self._sequences(users)
        return UserCache(self.group.reader.history(sequences), self._asked(users, sequences))

    def retrieve(self, cache: UserCache, k: int) -> Retrieved:
        """The k items that fit their best answer best."""
        answer_RUD = self._ready(self.group.reader.answers(cache.kept, cache.asked_RU))
        score_RV = (answer_RUD @ self.token_VD.t()).amax(dim=1)
        score_RK, at_RK = score_RV.topk(k, dim=1)
        return Retrieved(at_RK, score_RK)

    def rank(self, cache: UserCache, users: Batch, at_RK: Tensor) -> Tensor:
        """logit_RK of items of the shelf: their conditions asked behind the same history, then the host."""
        context = LumContext(cache.kept, self.group.host.context(users))
        return self.group.score(context, self.shelf.requests(users, at_RK)).view(at_RK.shape)

    @torch.no_grad()
    def shared(self, users: Batch, k: int) -> Served:
        """Both stages on one cache."""
        cache = self.cache(users)
        found = self.retrieve(cache, k)
        return Served(found, self.rank(cache, users, found.at_RK))

    @torch.no_grad()
    def apart(self, users: Batch, k: int) -> Served:
        """Each stage on a cache of its own, as two services would."""
        found = self.retrieve(self.cache(users), k)
        return Served(found, self.rank(self.cache(users), users, found.at_RK))

    @torch.no_grad()
    def alone(self, users: Batch, at_RK: Tensor) -> tuple[Tensor, Tensor]:
        """(scores, logits) [R, K] of items by each head's own forward, which shares and keeps nothing."""
        sequences = self._sequences(users)
        answer_RUD = self.user.answers(sequences, self._asked(users, sequences))[0]
        token_RKD = self.user.items(self.shelf.ids_JV[self.group.item][at_RK.flatten()]).unflatten(0, at_RK.shape)
        score_RK = self.user.score(answer_RUD, token_RKD).amax(dim=1)
        logit_N: Tensor = self.model(full_rows(self.schema, self.shelf.requests(users, at_RK)))
        return score_RK, logit_N.view(at_RK.shape)

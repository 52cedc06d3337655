"""How LUM is served (2502.08309 sections 4.2 and 4.4): group query, one by one, answers from a store.

`reuse` runs the user's history once and asks every different condition of the request once behind it; `one_by_one`
runs the history again for every condition of every candidate; `kept` runs only what a history has grown by since the
user's last request; `stored` looks answers up, so that step 3 alone is left.
All share step 3: the host in its own best form.

Dims: R requests, C candidates of each, N = R*C candidates, U different conditions of a request, M = R*U answers,
Q questions of a candidate, P pairs of candidate and question, L events, D width of the user model
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.models.kv_store import KVStore
from ctrbench.models.lum_history import Kept, reader_of, side_by_side
from ctrbench.models.lum_host import Host
from ctrbench.models.lum_rows import Sequences
from ctrbench.models.lum_store import Answers, Remembered, digest_of, ids_of, real_events, version_of
from ctrbench.models.requests import Requests, item_fields
from ctrbench.models.serving import REUSE, ServingForm

if TYPE_CHECKING:
    from ctrbench.models.lum import LumRanker

ONE_BY_ONE, STORED, KEPT = "one_by_one", "stored", "kept"
BUDGET = 1 << 28
"""Bytes of a store that no one else brings."""
PASSES_AT_ONCE = 64
"""Histories that `one_by_one` runs side by side."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What the candidates of R requests ask of their users."""

    cond_RU: Tensor
    """The different conditions of a request; a row that has fewer repeats one."""
    at_NQ: Tensor
    """Place among the M answers of each question of a candidate, its own condition first."""


def different(cond_RK: Tensor) -> tuple[Tensor, Tensor]:
    """(different conditions of each row [R, U], place [R, K] of each condition among all R*U)."""
    found = [torch.unique(cond_K, return_inverse=True) for cond_K in cond_RK]
    most = max(len(known) for known, _ in found)
    cond_RU = torch.stack([torch.cat([known, known[:1].expand(most - len(known))]) for known, _ in found])
    return cond_RU, torch.stack([at_K + row * most for row, (_, at_K) in enumerate(found)])


@dataclass(frozen=True, slots=True)
class LumContext:
    """The user's side of R requests."""

    kept: Kept | None
    """The history in the user model; None where it is run for each question, or not at all."""
    host: Any


class GroupQuery:
    """The history once a request, its conditions once each behind it."""

    def __init__(self, model: LumRanker, schema: FeatureSchema) -> None:
        self.lum, self.schema, self.config = model.lum, schema, model.lum.config
        self.reader, self.host = reader_of(model.user_model), Host(model)
        names = [f.name for f in item_fields(schema)]
        self.item, self.cond = names.index(self.lum.fields.item_target), names.index(self.lum.fields.cond_target)

    def context(self, users: Batch) -> LumContext:
        """Keys and values of the histories, and the host's user side."""
        return LumContext(self.reader.history(self.sequences(users)), self.host.context(users))

    def sequences(self, users: Batch) -> Sequences:
        """The events that the user model reads; of one user without padding, which needs no index of it."""
        if users.size > 1:
            return self.lum.sequences(users)
        user = self.lum.user
        ids = {n: users.ids[n].values()[-user.reads :].unsqueeze(0) for n in user.names}
        return user.sequences(ids, torch.ones_like(ids[self.lum.fields.item], dtype=torch.bool))

    def score(self, context: LumContext, requests: Requests) -> Tensor:
        """Answers to what the candidates ask, then step 3."""
        asked = self.questions(requests)
        assert context.kept is not None
        answer_MD = self.reader.answers(context.kept, asked.cond_RU).flatten(0, 1)
        return self.step_three(context, requests, asked, answer_MD)

    def questions(self, requests: Requests) -> Questions:
        """Each candidate's own condition and the common ones."""
        own_RC = requests.ids_JN[self.cond].view(requests.size, -1)
        if not self.config.condition:
            rows_R = torch.arange(requests.size, device=own_RC.device)
            return Questions(torch.zeros_like(own_RC[:, :1]), rows_R.repeat_interleave(requests.count).unsqueeze(1))
        common_RK = self.lum.common(own_RC.device).expand(requests.size, -1)
        cond_RU, at_RK = different(torch.cat([own_RC, common_RK], dim=1))
        own_RC1, common_R1K = at_RK[:, : requests.count].unsqueeze(2), at_RK[:, None, requests.count :]
        at_RCQ = torch.cat([own_RC1, common_R1K.expand(-1, requests.count, -1)], dim=2)
        return Questions(cond_RU, at_RCQ.flatten(0, 1))

    def step_three(self, context: LumContext, requests: Requests, asked: Questions, answer_MD: Tensor) -> Tensor:
        """Item tokens and matches of the candidates, and the host."""
        item_N = requests.ids_JN[self.item]
        item_ND, match_NQ = self.reader.items(item_N), None
        if self.config.use != "direct":
            cond_NQ = asked.cond_RU.flatten()[asked.at_NQ]
            match_NQ = self.reader.match(context.kept, answer_MD[asked.at_NQ], cond_NQ, item_ND, item_N)
        return self.host.score(context.host, requests, answer_MD, asked.at_NQ, item_ND, match_NQ)


class OneByOne(GroupQuery):
    """Every condition of every candidate in a pass of its own over the history: what group query saves."""

    def context(self, users: Batch) -> LumContext:
        """The host's user side alone."""
        return LumContext(None, self.host.context(users))

    def score(self, context: LumContext, requests: Requests) -> Tensor:
        """A pass a question, some side by side, then step 3."""
        asked, sequences = self.questions(requests), self.sequences(requests.users)
        queries, item_N = asked.at_NQ.shape[1], requests.ids_JN[self.item]
        item_ND = self.reader.items(item_N)
        answers, matches = [], []
        for pair_P in torch.arange(asked.at_NQ.numel(), device=item_N.device).split(PASSES_AT_ONCE):
            of_P = pair_P // queries
            kept = self.reader.history(sequences.take(of_P // requests.count))
            cond_P1 = asked.cond_RU.flatten()[asked.at_NQ.flatten()[pair_P]].unsqueeze(1)
            answers.append(self.reader.answers(kept, cond_P1))
            if self.config.use != "direct":
                matches.append(self.reader.match(kept, answers[-1], cond_P1, item_ND[of_P], item_N[of_P]))
        at_NQ = torch.arange(asked.at_NQ.numel(), device=item_N.device).view(-1, queries)
        match_NQ = torch.cat(matches).view(-1, queries) if matches else None
        return self.host.score(context.host, requests, torch.cat(answers).squeeze(1), at_NQ, item_ND, match_NQ)


class Stored(GroupQuery):
    """Answers from a store; those it lacks are worked out as `reuse` does and put there."""

    def __init__(self, model: LumRanker, schema: FeatureSchema, store: KVStore[Answers] | None = None) -> None:
        super().__init__(model, schema)
        self.store = store if store is not None else KVStore(BUDGET)
        self.version, self.stale = version_of(model.user_model), 0
        """Users found whose answers were of other weights or events, and not served."""

    def context(self, users: Batch) -> LumContext:
        """The host's user side alone."""
        return LumContext(None, self.host.context(users))

    def score(self, context: LumContext, requests: Requests) -> Tensor:
        """Answers looked up or worked out, then step 3."""
        asked, sequences = self.questions(requests), self.sequences(requests.users)
        rows = enumerate(zip(requests.users.user_B.tolist(), self._newest(requests.users), strict=True))
        answers = [self._answers(real_events(sequences, r), user, time, asked.cond_RU[r]) for r, (user, time) in rows]
        return self.step_three(context, requests, asked, torch.cat(answers))

    def _newest(self, users: Batch) -> list[int]:
        """Time of each user's newest event; 0 without any."""
        lengths = users.ids[self.lum.fields.item].lengths().tolist()
        times = users.event_times[self.lum.fields.history].split(lengths)
        return [int(t[-1]) if len(t) else 0 for t in times]

    def _answers(self, one: Sequences, user: int, time: int, cond_U: Tensor) -> Tensor:
        """Answers [U, D] of one user."""
        known, stamp = self.store.get(user), (self.version, time, digest_of(one))
        if known is not None and known.stamp != stamp:
            self.stale, known = self.stale + 1, None
        if known is None:
            known = Answers(stamp, cond_U[:0], self.lum.user.norm.weight.new_empty(0, self.config.width))
        lacking_K = cond_U[~torch.isin(cond_U, known.cond_K)].unique()
        if len(lacking_K):
            fresh_KD = self.reader.answers(self.reader.history(one), lacking_K.unsqueeze(0))[0]
            known = known.joined(lacking_K, fresh_KD)
            self.store.put(user, known)
        return known.take(cond_U)


class KeptHistories(GroupQuery):
    """`reuse` with keys and values kept between requests: of a history that only grew its new events alone are run.

    Exact: as soon as an event leaves the window the history no longer starts with the same events, and is run anew.
    """

    def __init__(self, model: LumRanker, schema: FeatureSchema, store: KVStore[Remembered] | None = None) -> None:
        super().__init__(model, schema)
        self.store, self.version = store if store is not None else KVStore(BUDGET), version_of(model.user_model)

    def context(self, users: Batch) -> LumContext:
        """Keys and values, as far as they are kept, and the host's user side."""
        sequences, ids = self.sequences(users), users.user_B.tolist()
        kept = [self._history(real_events(sequences, row), user) for row, user in enumerate(ids)]
        return LumContext(side_by_side(kept), self.host.context(users))

    def _history(self, one: Sequences, user: int) -> Kept:
        known, ids_FL = self.store.get(user), ids_of(one)
        if known is not None and known.version == self.version and known.begins(ids_FL):
            old = known.ids_FL.shape[1]
            if old == ids_FL.shape[1]:
                return known.kept
            if self.config.condition and old:  # without conditions the token behind the newest event changes with it
                new = Sequences({n: t[:, old:] for n, t in one.ids.items()}, one.segment_RL[:, old:],
                                one.place_RL[:, old:])  # fmt: skip
                kept = self.reader.history(new, known.kept)
                self.store.put(user, Remembered(self.version, ids_FL, kept))
                return kept
        kept = self.reader.history(one)
        self.store.put(user, Remembered(self.version, ids_FL, kept))
        return kept


def forms(model: nn.Module, schema: FeatureSchema) -> Mapping[str, ServingForm]:
    """`reuse`, `one_by_one`, `kept` and, where answers alone tell how well an item fits, `stored`.

    On semantic IDs the match is asked of the model item by item: with `use` other than `direct` nothing can be stored.
    """
    ranker = cast("LumRanker", model)
    config = ranker.lum.config
    made: dict[str, ServingForm] = {
        REUSE: GroupQuery(ranker, schema), ONE_BY_ONE: OneByOne(ranker, schema), KEPT: KeptHistories(ranker, schema),
    }  # fmt: skip
    if config.target == "item" or config.use == "direct":
        made[STORED] = Stored(ranker, schema)
    return made

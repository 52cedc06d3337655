"""Answers of LUM's user model that serving keeps of its users (2502.08309 section 4.4): never a stale one.

Dims: K conditions that are kept of a user, U conditions asked, L events, D width of an answer
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctrbench.models.embedding import dense_parameters, embedding_tables
from ctrbench.models.lum_rows import Sequences

Stamp = tuple[str, int, str]
"""Model version, time of the newest event, and digest of the events that the model reads: two events of one second have
the same time."""


def version_of(model: nn.Module) -> str:
    """Digest of all weights, tables included."""
    found = hashlib.blake2b(digest_size=8)
    tables = embedding_tables(model)
    aside = {id(b) for t in tables for b in t.buffers()}  # the operator's own and its optimizer's
    weights = [*dense_parameters(model), *(b for b in model.buffers() if id(b) not in aside)]
    for t in (*weights, *(w for table in tables for w in table.weights().values())):
        found.update(t.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def events_of(sequences: Sequences) -> str:
    """Digest of one user's events."""
    parts = [sequences.segment_RL, *sequences.ids.values()]
    return hashlib.blake2b(torch.stack(parts).cpu().numpy().tobytes(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Answers:
    """What is kept of one user."""

    stamp: Stamp
    cond_K: Tensor
    """int64, sorted."""
    answer_KD: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of answers and conditions."""
        return self.cond_K.nbytes + self.answer_KD.nbytes

    def take(self, cond_U: Tensor) -> Tensor:
        """Answers [U, D] to conditions that are all kept."""
        return self.answer_KD[torch.searchsorted(self.cond_K, cond_U)]


class AnswerStore:
    """Answers by user, under a budget: who was asked about longest ago goes first.

    A user's answers share a stamp: with new weights or a new event all of them go.

    Args:
        budget: bytes of answers and conditions; a user who alone exceeds it is not kept.

    Attributes:
        hits, misses: users found, and not found or of another stamp.
    """

    def __init__(self, budget: int = 1 << 28) -> None:
        if budget < 0:
            raise ValueError(f"budget={budget}: bytes of the store, 0 or more")
        self.budget, self.nbytes, self.hits, self.misses = budget, 0, 0, 0
        self.users: OrderedDict[int, Answers] = OrderedDict()

    def __len__(self) -> int:
        return len(self.users)

    @property
    def bytes_per_user(self) -> float:
        """Mean over the users that are kept; 0 without any."""
        return self.nbytes / len(self.users) if self.users else 0.0

    def get(self, user: int, stamp: Stamp) -> Answers | None:
        """What is kept of a user under this stamp."""
        known = self.users.get(user)
        if known is None or known.stamp != stamp:
            self.misses += 1
            return None
        self.hits += 1
        self.users.move_to_end(user)
        return known

    def put(self, user: int, stamp: Stamp, cond_K: Tensor, answer_KD: Tensor) -> Answers:
        """Adds answers of a user, over those of another stamp, and gives all that are known of the user now."""
        old = self.users.pop(user, None)
        if old is not None:
            self.nbytes -= old.nbytes
            if old.stamp == stamp:
                cond_K, answer_KD = torch.cat([old.cond_K, cond_K]), torch.cat([old.answer_KD, answer_KD])
        order_K = torch.argsort(cond_K)
        made = Answers(stamp, cond_K[order_K], answer_KD[order_K])
        if made.nbytes <= self.budget:
            self.users[user] = made
            self.nbytes += made.nbytes
        while self.nbytes > self.budget:
            self.nbytes -= self.users.popitem(last=False)[1].nbytes
        return made

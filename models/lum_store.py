"""What serving keeps of LUM's users between requests (2502.08309 section 4.4), and how it tells what is stale.

Dims: K conditions that are kept of a user, U conditions asked, F event fields, L events, D width of an answer
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctrbench.models.embedding import dense_parameters, embedding_tables
from ctrbench.models.lum_history import Kept
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


def real_events(sequences: Sequences, row: int) -> Sequences:
    """One user's events without padding."""
    at_L = (sequences.segment_RL[row] > 0).nonzero().squeeze(1)
    ids = {n: ids_RL[row : row + 1, at_L] for n, ids_RL in sequences.ids.items()}
    return Sequences(ids, sequences.segment_RL[row : row + 1, at_L], sequences.place_RL[row : row + 1, at_L])


def digest_of(sequences: Sequences) -> str:
    """Digest of one user's events."""
    return hashlib.blake2b(ids_of(sequences).cpu().numpy().tobytes(), digest_size=8).hexdigest()


def ids_of(sequences: Sequences) -> Tensor:
    """Event ids [F, L] of one user."""
    return torch.stack([ids_1L[0] for ids_1L in sequences.ids.values()])


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers that are kept of one user, all under one stamp."""

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

    def joined(self, cond_K: Tensor, answer_KD: Tensor) -> Answers:
        """With answers to other conditions."""
        cond_K, answer_KD = torch.cat([self.cond_K, cond_K]), torch.cat([self.answer_KD, answer_KD])
        order_K = torch.argsort(cond_K)
        return Answers(self.stamp, cond_K[order_K], answer_KD[order_K])


@dataclass(frozen=True, slots=True)
class Remembered:
    """Keys and values of one user's history, and the events that they were made of."""

    version: str
    ids_FL: Tensor
    kept: Kept

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return self.kept.nbytes + self.ids_FL.nbytes

    def begins(self, ids_FL: Tensor) -> bool:
        """Whether a history starts with these events: nothing has left the window since."""
        known = self.ids_FL.shape[1]
        return known <= ids_FL.shape[1] and torch.equal(ids_FL[:, :known], self.ids_FL)

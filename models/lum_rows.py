"""Rows of LUM's user model: users' events side by side, what the loss predicts, and how users are packed into rows.

Dims: R rows, L events of a row, N real events of a batch, U different items of a batch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sequences:
    """Rows for step 1; several users may share a row (packing)."""

    ids: Mapping[str, Tensor]
    """Event field -> int64 [R, L], 0 on padding."""
    segment_RL: Tensor
    """1, 2, ... numbers the users of a row, 0 is padding."""
    place_RL: Tensor
    """Ordinal of the event among those of its user."""

    @property
    def size(self) -> int:
        """Rows."""
        return int(self.segment_RL.shape[0])

    def take(self, rows: Tensor) -> Sequences:
        """Some rows."""
        return Sequences({k: v[rows] for k, v in self.ids.items()}, self.segment_RL[rows], self.place_RL[rows])

    def one_more(self) -> Sequences:
        """With one more, unknown event after the newest: rows of one user each, the newest event at the right end."""
        next_R1 = (self.segment_RL > 0).sum(dim=1, keepdim=True)
        ids = {k: torch.cat([v, torch.zeros_like(next_R1)], dim=1) for k, v in self.ids.items()}
        segment_RL = torch.cat([self.segment_RL, torch.ones_like(next_R1)], dim=1)
        return Sequences(ids, segment_RL, torch.cat([self.place_RL, next_R1], dim=1))


class Targets(NamedTuple):
    """What the loss predicts, and among what."""

    real_N: Tensor
    """Places of the real events among all R*L."""
    item_U: Tensor
    """The different items of the batch."""
    index_N: Tensor
    """Of each event's item among them."""
    count_U: Tensor


def targets_of(sequences: Sequences, item: str) -> Targets:
    """Targets of a batch; its shapes depend on the ids, so that a trace on meta needs them from a real batch."""
    real_N = (sequences.segment_RL > 0).flatten().nonzero().squeeze(1)
    items_N = sequences.ids[item].flatten()[real_N]
    return Targets(real_N, *torch.unique(items_N, return_inverse=True, return_counts=True))


def decoder_flops(
    dim: int, width: int, layers: int, side: int, events: float, pairs: float, per_event: int = 2
) -> float:
    """Forward FLOPs of tokens and decoder layers (models.md section 4): token maps, 24d² a token, 4d a pair of tokens.

    Args:
        dim, width, layers, side: embedding width, token width d, decoder layers, side fields of an item token.
        events: of `per_event` tokens each, 1 without conditions.
        pairs: of tokens that attention works on, per layer.
    """
    maps = 2.0 * dim * width * (per_event + side) * events
    return maps + layers * (24.0 * width * width * per_event * events + 4.0 * width * pairs)


def loss_flops(dim: int, width: int, items: int, events: int) -> float:
    """Forward FLOPs of InfoNCE: the maps of the batch's different items, and each event against all of them."""
    return 2.0 * width * items * (dim + events)


def pack(lengths: Sequence[int], row: int) -> list[list[int]]:
    """Groups of sequences that share a row of `row` events: longest first, each into the first row with room."""
    groups: list[list[int]] = []
    room: list[int] = []
    open_from = 0  # rows before it are full
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not 1 <= lengths[i] <= row:
            raise ValueError(f"sequence {i} has {lengths[i]} events, a row holds 1..{row}; cut it first")
        at = next((r for r in range(open_from, len(room)) if room[r] >= lengths[i]), len(room))
        if at == len(room):
            groups.append([])
            room.append(row)
        groups[at].append(i)
        room[at] -= lengths[i]
        while open_from < len(room) and room[open_from] == 0:
            open_from += 1
    return groups

"""Histories of a batch: padded, flat, and how one becomes the other.

Dims: B batch, N events of all rows, T padded history length, C fields of one event, D embedding width, E = C*D
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Events:
    """One padded history; the newest event is at the right end (left padding), padding rows are zero."""

    values_BTE: Tensor
    """[B, T, C*D], the event's fields side by side in schema order."""
    ids: Mapping[str, Tensor]
    """Field name -> padded ids [B, T], 0 on padding."""
    times_BT: Tensor
    """int64 seconds, 0 on padding."""
    mask_BT: Tensor
    """bool, True on real events."""


@dataclass(frozen=True, slots=True)
class FlatEvents:
    """The real events of one history, row after row."""

    values_NE: Tensor
    """[N, C*D], the event's fields side by side in schema order."""
    offsets_B1: Tensor
    """int64 [B + 1]; events of row b are `offsets[b]` to `offsets[b + 1]`."""


@dataclass(frozen=True, slots=True)
class Histories(Mapping[str, Events]):
    """Histories by name as flat events, padded only when asked for.

    A dataclass, so that who walks what a block hands out finds its tensors.
    """

    rows: Mapping[str, Tensor]
    """History -> [N, C*D] of all events that were looked up."""
    offsets: Mapping[str, Tensor]
    """History -> int64 [B + 1] into them."""
    longest: Mapping[str, int]
    """History -> events of a row that are kept, the newest."""
    pad: Callable[[str, Tensor], Events]
    _padded: dict[str, Events] = field(default_factory=dict, init=False, repr=False, compare=False)

    def flat(self, history: str) -> FlatEvents:
        """Real events only."""
        return newest_flat(self.rows[history], self.offsets[history], self.longest[history])

    def __getitem__(self, history: str) -> Events:
        if history not in self._padded:
            self._padded[history] = self.pad(history, self.rows[history])
        return self._padded[history]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def left_pad_index(lengths_B: Tensor, offsets_B1: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Where each cell of a left-padded [B, T] table finds its event in the flat list, and which cells are real.

    Histories longer than `length` keep their newest events.
    """
    back_T = torch.arange(length, 0, -1, device=lengths_B.device)
    mask_BT = back_T <= lengths_B.unsqueeze(1)
    index_BT = (offsets_B1[1:].unsqueeze(1) - back_T).clamp(min=0)
    return index_BT * mask_BT, mask_BT


def newest_flat(values_NE: Tensor, offsets_B1: Tensor, length: int) -> FlatEvents:
    """Flat events of histories of which those longer than `length` keep their newest."""
    lengths_B = offsets_B1.diff()
    if values_NE.is_meta or not len(lengths_B) or int(lengths_B.max()) <= length:
        return FlatEvents(values_NE, offsets_B1)
    last_N = offsets_B1[1:].repeat_interleave(lengths_B, output_size=len(values_NE))
    kept_N = last_N - torch.arange(len(values_NE), device=values_NE.device) <= length
    kept_B1 = torch.cat([offsets_B1[:1] * 0, lengths_B.clamp(max=length).cumsum(0)])
    return FlatEvents(values_NE[kept_N], kept_B1)


def take_padded(flat_N: Tensor, index_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Gathers flat events [N, ...] into [B, T, ...], zero on padding; an empty list gives all zeros."""
    if flat_N.shape[0] == 0:
        return flat_N.new_zeros(*index_BT.shape, *flat_N.shape[1:])
    taken = flat_N.index_select(0, index_BT.flatten()).view(*index_BT.shape, *flat_N.shape[1:])
    return taken * mask_BT.view(*mask_BT.shape, *[1] * (flat_N.dim() - 1)).to(taken.dtype)

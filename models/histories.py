"""Histories to one token sequence: event positions, merging by time or by intent.

Every sequence is left-padded: its newest token is at the right end. Positions belong to the event (its ordinal or
its distance in time from the event before it), never to its place in the padded window.

Dims: B batch, T padded history length, S padded length of the merged sequence, D token width
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import FIRST_ID, Batch, FeatureSchema

Positions = Literal["learned_from_start", "time_bucket", "none"]
TIME_BUCKETS = 32
"""Powers of two of seconds; one more bucket for the first event."""


def history_lengths(schema: FeatureSchema) -> dict[str, int]:
    """Padded length of every history."""
    return {h: fields[0].max_length for h, fields in schema.histories.items()}


def require_history(schema: FeatureSchema, model: str) -> None:
    """Raises:
    ValueError: where a schema has no behaviour history, or a mirrored field is not a categorical one.
    """
    if not schema.sequences:
        raise ValueError(f"{model}: schema {schema.name!r} has no sequence field; use data of the sequence track")
    names = {f.name for f in schema.categorical}
    for f in schema.sequences:
        if f.target and f.target not in names:
            raise ValueError(f"{model}: sequence field {f.name!r} mirrors {f.target!r}, which is no categorical field")


def no_padding(batch: Batch, schema: FeatureSchema) -> bool:
    """Whether the host knows every history of the batch to be full; then no mask is needed. Never asks the device."""
    known = batch.host.get("lengths")
    if not isinstance(known, Mapping):
        return False
    return all(h in known and min(known[h], default=0) >= top for h, top in history_lengths(schema).items())


def ordinals(mask_BT: Tensor) -> Tensor:
    """Place of each event counted from the oldest one kept; 0 on padding."""
    return (mask_BT.cumsum(dim=1) - 1).clamp(min=0)


def questioned(length: int) -> int:
    """Most events to show a model that has learned to predict the next one from rows of `length` events.

    Such a row asks for its last event after the others; behind a full row no answer was ever trained.
    """
    return max(1, length - 1)


def gap_buckets(times_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """floor(log2(1 + seconds since the event before)) under `TIME_BUCKETS`; the first event has a bucket of its own."""
    gap_BT = (times_BT[:, 1:] - times_BT[:, :-1]).clamp(min=0)
    bucket_BT = torch.log2(1.0 + gap_BT.double()).long().clamp(max=TIME_BUCKETS - 1)
    bucket_BT = torch.nn.functional.pad(bucket_BT, (1, 0), value=TIME_BUCKETS)
    first_BT = torch.nn.functional.pad(~mask_BT[:, :-1], (1, 0), value=True)
    return bucket_BT.masked_fill(first_BT, TIME_BUCKETS)


class TargetEvents(nn.Module):
    """The candidate as an event of each history: its own vectors where an event field mirrors one (`Field.target`).

    An event field without such a target, e.g. the action taken, has no value at serving: one learned vector stands for
    it.

    Args:
        schema: fields.
        dim: embedding width.
        std: start of the learned vectors, that of the table rows they stand for.
    """

    def __init__(self, schema: FeatureSchema, dim: int, std: float = 0.01) -> None:
        super().__init__()
        slot = {f.name: i for i, f in enumerate(schema.categorical)}
        self.slots: dict[str, list[int]] = {}  # history -> for each part of its event, a field or, beyond, a free row
        self.fields, free = len(slot), 0
        for history, fields in schema.histories.items():
            self.slots[history] = []
            for f in fields:
                self.slots[history].append(slot[f.target] if f.target else self.fields + free)
                free += f.target is None
        self.free_QD = nn.Parameter(torch.randn(free, dim) * std) if free else None

    def forward(self, fields_BFD: Tensor, history: str) -> Tensor:
        """[B, F, D] -> [B, C*D], fields side by side as in `Events.values_BTE`."""
        rows = []
        for i in self.slots[history]:
            if i < self.fields:
                rows.append(fields_BFD[:, i])
            else:
                assert self.free_QD is not None
                rows.append(self.free_QD[i - self.fields].expand(fields_BFD.shape[0], -1))
        return torch.cat(rows, dim=1)


class EventPositions(nn.Module):
    """Learned position vectors of one kind, [B, T] facts -> [B, T, D]."""

    def __init__(self, kind: Positions, length: int, width: int) -> None:
        super().__init__()
        self.kind: Positions = kind
        rows = {"learned_from_start": length, "time_bucket": TIME_BUCKETS + 1, "none": 0}[kind]
        self.table = nn.Embedding(rows, width) if rows else None
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=0.02)

    def index(self, times_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Row of the table for each event, 0 where there is none."""
        if self.kind == "none":
            return torch.zeros_like(times_BT)
        return ordinals(mask_BT) if self.kind == "learned_from_start" else gap_buckets(times_BT, mask_BT)

    def forward(self, tokens_BTD: Tensor, index_BT: Tensor) -> Tensor:
        """Tokens with their positions added."""
        return tokens_BTD if self.table is None else tokens_BTD + self.table(index_BT)


def take_order(tokens_BSD: Tensor, mask_BS: Tensor, key_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Stable sort of tokens and mask by `key_BS`; padding first."""
    padding = torch.iinfo(key_BS.dtype).min
    order_BS = torch.argsort(key_BS.masked_fill(~mask_BS, padding), dim=1, stable=True)
    return tokens_BSD.gather(1, order_BS.unsqueeze(-1).expand_as(tokens_BSD)), mask_BS.gather(1, order_BS)


def merge_by_time(tokens: Sequence[Tensor], times: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(tokens [B, S, D], mask [B, S]), oldest first; at equal times the earlier history of the schema comes first."""
    if len(tokens) == 1:
        return tokens[0], masks[0]
    return take_order(torch.cat(list(tokens), dim=1), torch.cat(list(masks), dim=1), torch.cat(list(times), dim=1))


def merge_by_intent(
    tokens_BSD: Tensor, mask_BS: Tensor, group_BS: Tensor, separators_ND: Tensor
) -> tuple[Tensor, Tensor]:
    """Groups 0 .. N one after another with N separators between them, whether a group is empty or not.

    Inside a group the order of `tokens_BSD` is kept. Returns tokens [B, S + N, D] and their mask.
    """
    batch, count = tokens_BSD.shape[0], separators_ND.shape[0]
    slots_BN = torch.arange(count, device=group_BS.device).expand(batch, -1) * 2 + 1
    return take_order(
        torch.cat([tokens_BSD, separators_ND.expand(batch, -1, -1)], dim=1),
        torch.cat([mask_BS, mask_BS.new_ones(batch, count)], dim=1),
        torch.cat([group_BS * 2, slots_BN], dim=1),
    )


def action_field(schema: FeatureSchema, history: str) -> str | None:
    """Field of the history whose name ends with `action`; None if it has none."""
    return next((f.name for f in schema.histories[history] if f.name.endswith("action")), None)


def action_groups(ids_BT: Tensor, rows: int) -> Tensor:
    """Group of each event by its action id: strongest action (largest id) first, unknown ids with the weakest."""
    return (rows - 1) - ids_BT.clamp(min=FIRST_ID)

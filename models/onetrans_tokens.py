"""Tokenizers of OneTrans (2510.26104 section 3.2): events to S-tokens, all other fields to NS-tokens.

Dims: B batch, F fields, E width of an event, S sequence tokens, N NS-tokens, D token width
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import FIRST_ID, FeatureSchema
from ctrbench.models.blocks import MLP, mlp_flops
from ctrbench.models.events import Events
from ctrbench.models.histories import (
    EventPositions,
    Positions,
    action_field,
    action_groups,
    history_lengths,
    merge_by_intent,
    merge_by_time,
)

Fusion = Literal["time", "intent"]
Activation = Literal["gelu", "silu", "relu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU, "relu": nn.ReLU}


def separators(schema: FeatureSchema, fusion: Fusion) -> int:
    """[SEP] tokens between groups: histories if there are several, else the actions of the only one.

    Raises:
        ValueError: one history without an action field cannot be grouped by intent.
    """
    if fusion == "time" or not schema.histories:
        return 0
    if len(schema.histories) > 1:
        return len(schema.histories) - 1
    history = next(iter(schema.histories))
    action = action_field(schema, history)
    if action is None:
        raise ValueError(
            f"fusion=intent: history {history!r} of schema {schema.name!r} is the only one and has no field whose name "
            "ends with `action` to group by; use fusion=time"
        )
    return schema[schema[action].table].cardinality - FIRST_ID - 1


class EventTokens(nn.Module):
    """Events of all histories to one left-padded sequence of S-tokens.

    One MLP a history; then `time` adds a vector a history and merges by time, `intent` puts groups one after another
    with learned [SEP] tokens between them: histories in schema order, or the actions of one history, strongest first.
    """

    def __init__(
        self, schema: FeatureSchema, widths: Mapping[str, int], width: int, fusion: Fusion, positions: Positions,
        activation: Activation,
    ) -> None:  # fmt: skip
        super().__init__()
        self.schema, self.fusion = schema, fusion
        lengths = history_lengths(schema)
        self.mlps = nn.ModuleDict(
            {h: MLP(e, (width,), width, activation=ACTIVATIONS[activation]) for h, e in widths.items()}
        )
        self.positions = EventPositions(positions, max(lengths.values()), width)
        count = separators(schema, fusion)
        self.types_HD = nn.Parameter(0.02 * torch.randn(len(lengths), width)) if fusion == "time" else None
        self.separators_ND = nn.Parameter(0.02 * torch.randn(count, width)) if count else None

    def forward(self, events: Mapping[str, Events]) -> tuple[Tensor, Tensor]:
        """(s_BSD, valid_BS)."""
        tokens = [self.one(h, e.values_BTE, self.positions.index(e.times_BT, e.mask_BT)) for h, e in events.items()]
        return self.merge(tokens, events, self.separators_ND)

    def one(self, history: str, values_BTE: Tensor, index_BT: Tensor) -> Tensor:
        """Tokens [B, T, D] of events of one history at their positions, not merged yet."""
        token_BTD = self.positions(self.mlps[history](values_BTE), index_BT)
        return token_BTD if self.types_HD is None else token_BTD + self.types_HD[list(self.mlps).index(history)]

    def merge(
        self, tokens: Sequence[Tensor], events: Mapping[str, Events], separators_ND: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(one sequence [B, S, D] of what each history has an event, its mask)."""
        masks = [e.mask_BT for e in events.values()]
        if separators_ND is None:
            return merge_by_time(tokens, [e.times_BT for e in events.values()], masks)
        group_BS = torch.cat(self._groups(events), dim=1)
        return merge_by_intent(torch.cat(list(tokens), dim=1), torch.cat(masks, dim=1), group_BS, separators_ND)

    def _groups(self, events: Mapping[str, Events]) -> list[Tensor]:
        if len(events) > 1:
            return [e.mask_BT.new_full(e.mask_BT.shape, i, dtype=torch.long) for i, e in enumerate(events.values())]
        history, e = next(iter(events.items()))
        action = action_field(self.schema, history)
        assert action is not None
        return [action_groups(e.ids[action], self.schema[self.schema[action].table].cardinality)]


def field_groups(schema: FeatureSchema, groups: tuple[tuple[str, ...], ...]) -> list[list[int]]:
    """Places in `Embedded.fields_BFD` of each hand-made group; without groups, one a role.

    Raises:
        ValueError: groups that do not hold every field without history exactly once.
    """
    fields = [*schema.categorical, *schema.dense]
    if not groups:
        roles = dict.fromkeys(f.role for f in schema.fields if f.kind != "sequence")
        return [[i for i, f in enumerate(fields) if f.role == role] for role in roles]
    place = {f.name: i for i, f in enumerate(fields)}
    named = [n for g in groups for n in g]
    if sorted(named) != sorted(place):
        wrong = sorted(set(named) ^ set(place)) or sorted({n for n in named if named.count(n) > 1})
        raise ValueError(f"groups: every field without history belongs to exactly one group; check {', '.join(wrong)}")
    return [[place[n] for n in g] for g in groups]


class AutoFields(nn.Module):
    """All fields through one MLP whose output is cut into N tokens, [B, F, E] -> [B, N, D]."""

    def __init__(self, inputs: int, tokens: int, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.tokens = tokens
        self.mlp = MLP(inputs, (hidden,), tokens * width, activation=ACTIVATIONS[activation])

    def forward(self, fields_BFE: Tensor) -> Tensor:
        return self.mlp(fields_BFE.flatten(1)).view(fields_BFE.shape[0], self.tokens, -1)


class GroupFields(nn.Module):
    """One MLP and one token a group of fields, [B, F, E] -> [B, N, D]."""

    def __init__(self, groups: list[list[int]], dim: int, width: int, activation: Activation) -> None:
        super().__init__()
        self.groups = groups
        self.mlps = nn.ModuleList(
            MLP(len(g) * dim, (width,), width, activation=ACTIVATIONS[activation]) for g in groups
        )

    def forward(self, fields_BFE: Tensor) -> Tensor:
        parts = [m(fields_BFE[:, g].flatten(1)) for m, g in zip(self.mlps, self.groups, strict=True)]
        return torch.stack(parts, dim=1)


def event_flops(schema: FeatureSchema, dim: int, width: int, lengths: Mapping[str, float]) -> float:
    """MLPs over `lengths` events of each history."""
    return sum(lengths[h] * mlp_flops(len(fs) * dim, (width,), width) for h, fs in schema.histories.items())

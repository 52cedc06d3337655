"""The S-tokens of one user as facts, before anything is computed of them: what tells whether kept states still hold.

Dims: S real S-tokens of one user, M of them that are new, E events of all histories, K facts of an event, T events of
one history, D token width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ctrbench.models.events import Events
from ctrbench.models.onetrans_tokens import EventTokens

PLACE = 2
"""Column of `Timeline.facts_SK` that says where an event stands."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The S-tokens of one user in their order, before anything is computed of them."""

    facts_SK: Tensor
    """int64: history (-1 for a separator), time, row of the position table, ids of the event's fields.

    All that a token is made of: equal facts are equal tokens, of one model.
    """
    source_S: Tensor
    """Place of each token among the events of all histories, one history after another, then the separators."""
    values: Mapping[str, Tensor]
    """History -> vectors of its events [n, E]."""

    @property
    def size(self) -> int:
        """S."""
        return len(self.source_S)


def timeline(tokens: EventTokens, events: Mapping[str, Events], row: int) -> Timeline:
    """The real events of one row of padded histories, merged."""
    real, facts = {}, []
    width = 3 + max(len(e.ids) for e in events.values())
    for i, (h, e) in enumerate(events.items()):
        at = slice(e.mask_BT.shape[1] - int(e.mask_BT[row].sum()), None)
        ids = {name: v[row : row + 1, at] for name, v in e.ids.items()}
        cut = Events(e.values_BTE[row : row + 1, at], ids, e.times_BT[row : row + 1, at], e.mask_BT[row : row + 1, at])
        times_1T = cut.times_BT
        place_1T = tokens.positions.index(times_1T, cut.mask_BT) if times_1T.numel() else times_1T
        columns = [torch.full_like(times_1T, i), times_1T, place_1T, *ids.values()]
        columns += [torch.zeros_like(times_1T)] * (width - len(columns))
        facts.append(torch.stack(columns, dim=2)[0])
        real[h] = cut
    separators = 0 if tokens.separators_ND is None else len(tokens.separators_ND)
    between_NK = facts[0].new_zeros(separators, width)
    between_NK[:, 0], between_NK[:, 1] = -1, torch.arange(separators)
    facts_EK = torch.cat([*facts, between_NK])
    index_E = torch.arange(len(facts_EK), device=facts_EK.device)
    sizes = [len(f) for f in facts]
    parts = index_E.view(1, -1, 1).split([*sizes, separators], dim=1)
    merged_1S1, _ = tokens.merge(parts[:-1], real, None if tokens.separators_ND is None else parts[-1][0])
    source_S = merged_1S1.flatten()
    return Timeline(facts_EK[source_S], source_S, {h: e.values_BTE[0] for h, e in real.items()})


def tokens_of(tokens: EventTokens, line: Timeline, new: int) -> Tensor:
    """The newest `new` S-tokens [1, M, D]."""
    source_M, place_M = line.source_S[line.size - new :], line.facts_SK[line.size - new :, PLACE]
    parts, where, begin = [], [], 0
    for h, values_TE in line.values.items():
        end = begin + len(values_TE)
        mine = ((source_M >= begin) & (source_M < end)).nonzero().flatten()
        parts.append(tokens.one(h, values_TE[source_M[mine] - begin], place_M[mine]))
        where.append(mine)
        begin = end
    if tokens.separators_ND is not None:
        where.append((source_M >= begin).nonzero().flatten())
        parts.append(tokens.separators_ND[source_M[where[-1]] - begin])
    s_MD = torch.cat(parts)
    return s_MD.new_empty(s_MD.shape).index_copy(0, torch.cat(where), s_MD).unsqueeze(0)


def common(old_SK: Tensor, new_SK: Tensor) -> int:
    """Events at the beginning that are the same in both."""
    count = min(len(old_SK), len(new_SK))
    differs = (old_SK[:count] != new_SK[:count]).any(dim=1).nonzero()
    return int(differs[0]) if len(differs) else count

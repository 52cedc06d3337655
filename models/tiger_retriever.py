"""TIGER as a retriever: learns the next item's semantic ID at events drawn of each user, proposes what a beam finds.

Dims: B users, T padded history length, R events drawn a user, H items that the encoder reads, N drawn events in all,
L codes of an item
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ctrbench.datasets.schema import FeatureSchema
from ctrbench.models.item_codes import ItemCodes
from ctrbench.models.lum_backbone import event_fields
from ctrbench.models.retriever import Asked, Catalogue, Histories
from ctrbench.models.tiger_net import Tiger, TigerConfig


def draw(real_BT: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(places [B, R], which were drawn [B, R]): events with one before them, each at most once, by torch's generator.

    Args:
        real_BT: which events are real.
        count: R, less where histories are shorter.
    """
    fit_BT = real_BT & (real_BT.cumsum(dim=1) > 1)
    chance_BT = torch.rand(real_BT.shape, device=real_BT.device).masked_fill(~fit_BT, -1.0)
    chance_BR, place_BR = chance_BT.topk(min(count, real_BT.shape[1]), dim=1)
    return place_BR, chance_BR >= 0


class TigerRetriever(nn.Module):
    """Semantic IDs of the catalogue and the network over them.

    Raises:
        ValueError: no history with an item, or semantic IDs that cannot be made of the content.
    """

    def __init__(
        self, config: TigerConfig, schema: FeatureSchema, catalogue: Catalogue, device: str | None = None
    ) -> None:
        super().__init__()
        self.config, self.item = config, event_fields(schema).item
        self.codes = ItemCodes(catalogue.items, config.sids).take(catalogue, grow=True)
        self.facts = self.codes.facts
        with torch.device(device) if device else nullcontext():
            self.net = Tiger(config, self.codes.vocabulary)
        self.codes.to(self.net.tokens.weight.device)

    def loss(self, histories: Histories) -> Tensor:
        """Mean cross-entropy of the codes of `targets` events a user, each from the items before it."""
        item_BT, real_BT = self._read(histories)
        place_BR, drawn_BR = draw(real_BT, self.config.targets)
        user_N, place_N = drawn_BR.nonzero()[:, 0], place_BR[drawn_BR]
        if not len(place_N):
            return self.net.tokens.weight.sum() * 0.0
        read = self.config.history  # so many padded places before the first event: no window begins before them
        before_NH = place_N.unsqueeze(1) + torch.arange(read, device=place_N.device)
        item_NH = pad(item_BT, (read, 0))[user_N.unsqueeze(1), before_NH]
        real_NH = pad(real_BT, (read, 0))[user_N.unsqueeze(1), before_NH]
        codes_VL = self.codes.codes_VL
        next_NL = codes_VL[item_BT[user_N, place_N]]
        return self.net.loss(histories.user_B[user_N], codes_VL[item_NH], real_NH, next_NL)

    @torch.no_grad()
    def scores(self, histories: Histories, asked: Asked) -> Tensor:
        """Log-probability [B, V] of the items that the beams end at, -inf for the rest."""
        read = self.config.history  # padded to it, so that nothing depends on the longest history of a batch
        item_BT, real_BT = (pad(t, (read, 0))[:, -read:] for t in self._read(histories))
        codes_BTL = self.codes.codes_VL[item_BT]
        found = self.net.search(histories.user_B, codes_BTL, real_BT, self.codes.trie, self.config.beams)
        return self.codes.scores(found)

    def _read(self, histories: Histories) -> tuple[Tensor, Tensor]:
        """(items, which are real and have an ID)."""
        item_BT = histories.ids[self.item]
        return item_BT, histories.real_BT & self.codes.known_V[item_BT]

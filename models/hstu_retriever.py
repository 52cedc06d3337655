"""HSTU that retrieves: items in, at every place the next item out, by sampled softmax (2402.17152; the public code).

Tokens are item vectors plus learned places; answers and items are compared by cosine over a temperature. Nothing but
items and times is read: neither actions nor conditions nor users.

Dims: B users, T padded history length, N = T - 1 places that predict, K negatives, V items, D width
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from ctrbench.datasets.schema import FIRST_ID, FeatureSchema
from ctrbench.models.histories import ordinals, questioned
from ctrbench.models.hstu_layers import HstuLayer, Places
from ctrbench.models.lum_backbone import event_fields
from ctrbench.models.retriever import Asked, Catalogue, Histories, RetrieverSpec

if TYPE_CHECKING:
    from ctrbench.models.hstu import HstuConfig

NEGATIVES, TAU = 128, 0.05
"""Of the public runs on MovieLens-1M."""


class HstuRetriever(nn.Module):
    """Item vectors, places, layers.

    Args:
        config: width, layers, heads and choices; `dim` is not used, item vectors are as wide as tokens.
        schema: for the item field and the longest history.
        catalogue: of the items.
        device: `meta` builds shapes only.
        negatives: K, uniform over the catalogue, drawn once a user for all its places.
    """

    def __init__(
        self, config: HstuConfig, schema: FeatureSchema, catalogue: Catalogue, device: str | None = None,
        negatives: int = NEGATIVES,
    ) -> None:  # fmt: skip
        super().__init__()
        roles = event_fields(schema)
        self.item, self.negatives = roles.item, negatives
        longest = schema.histories[roles.history][0].max_length
        self.reads = questioned(longest)
        with torch.device(device) if device else nullcontext():
            # Dense, under the optimizer of all weights, as in the public code. The rankers' tables (row-wise Adagrad)
            # learn faster in the first two epochs (docs/retrieval.md); beyond them they were not compared.
            self.vectors = nn.Embedding(catalogue.items, config.width)
            self.places = nn.Embedding(longest, config.width)
            for table in (self.vectors, self.places):
                nn.init.normal_(table.weight, std=0.02)
            self.drop = nn.Dropout(config.dropout)
            self.layers = nn.ModuleList(
                HstuLayer(config.width, config.heads, config.qk, config.v, longest, flavour=config.flavour,
                          bias=config.rab, concat_ua=config.concat_ua, dropout=config.dropout)
                for _ in range(config.layers)
            )  # fmt: skip

    def encode(self, histories: Histories, next_B: Tensor) -> Tensor:
        """Answers [B, T, D] of length 1, each of an event and those before it; `next_B` is when the newest is asked."""
        real_BT, time_BT = histories.real_BT, histories.time_BT
        x_BTD = self.vectors(histories.ids[self.item]) * self.vectors.embedding_dim**0.5
        x_BTD = self.drop(x_BTD + self.places(ordinals(real_BT))) * real_BT.unsqueeze(2)
        length = real_BT.shape[1]
        # Distances are all that layers need of places, and alike in all rows: real events stand side by side.
        at = Places(
            torch.arange(length, device=real_BT.device).unsqueeze(0), time_BT,
            torch.cat([time_BT[:, 1:], next_B.unsqueeze(1)], dim=1),
        ).bucketed()  # fmt: skip
        seen_BTT = torch.ones(length, length, dtype=torch.bool, device=real_BT.device).tril() & real_BT.unsqueeze(1)
        for layer in self.layers:
            x_BTD, _ = layer(x_BTD, seen_BTT, at)
        return normalize(x_BTD, dim=2)

    def draw(self, users: int) -> Tensor:
        """Negatives [B, K]: ids of items, uniform, with repetition."""
        return torch.randint(FIRST_ID, self.vectors.num_embeddings, (users, self.negatives))

    def loss(self, histories: Histories, negative_BK: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of the next item against the user's negatives, over all places with a known next item.

        `negative_BK` are drawn unless given; one that is the positive itself does not count.
        """
        item_BT = histories.ids[self.item]
        drawn_BK = self.draw(len(item_BT)).to(item_BT.device) if negative_BK is None else negative_BK
        answer_BND = self.encode(histories, histories.time_BT[:, -1])[:, :-1]
        wanted_BN = item_BT[:, 1:]
        rows_BMD = normalize(self.vectors(torch.cat([wanted_BN, drawn_BK], dim=1)), dim=2)
        right_BND, wrong_BKD = rows_BMD.split([wanted_BN.shape[1], drawn_BK.shape[1]], dim=1)
        right_BN = (answer_BND * right_BND).sum(dim=2) / TAU
        wrong_BNK = answer_BND @ wrong_BKD.transpose(1, 2) / TAU
        wrong_BNK = wrong_BNK.masked_fill(wanted_BN.unsqueeze(2) == drawn_BK.unsqueeze(1), -torch.inf)
        loss_BN = torch.cat([right_BN.unsqueeze(2), wrong_BNK], dim=2).logsumexp(dim=2) - right_BN
        counted_BN = histories.real_BT[:, :-1] & (wanted_BN >= FIRST_ID)
        return (loss_BN * counted_BN).sum() / counted_BN.sum().clamp(min=1)

    @torch.no_grad()
    def scores(self, histories: Histories, asked: Asked) -> Tensor:
        """Cosine of the newest event's answer, at the time that is asked for, with every item: [B, V].

        The newest events are shown, as many as an answer of training has before it.
        """
        answer_BD = self.encode(histories.newest(self.reads), asked.time_B)[:, -1]
        scores_BV = answer_BD @ normalize(self.vectors.weight, dim=1).T
        return pad(scores_BV[:, FIRST_ID:], (FIRST_ID, 0), value=-torch.inf)


def build(config: Any, schema: FeatureSchema, catalogue: Catalogue, device: str | None = None) -> HstuRetriever:
    """The retriever of an `HstuConfig`.

    Raises:
        ValueError: no history with an item and a condition.
    """
    return HstuRetriever(config, schema, catalogue, device)


RETRIEVER = RetrieverSpec(build=build, conditioned=False)

"""The user models of LUM that retrieve: asked under the condition of the event looked for (2502.08309 section 4.1).

Dims: B users, T padded history length, R rows, L events of a row, V items, d width
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ctrbench.datasets.schema import FeatureSchema
from ctrbench.models.item_codes import ItemCodes
from ctrbench.models.lum_backbone import UserModel, event_fields
from ctrbench.models.lum_rows import Sequences
from ctrbench.models.lum_sid import SidUserModel
from ctrbench.models.retriever import Asked, Catalogue, Histories, RetrieverSpec

if TYPE_CHECKING:
    from ctrbench.models.lum import LumConfig


def shown(user: UserModel | SidUserModel, histories: Histories) -> Sequences:
    """The newest events, as many as a question may have before it."""
    newest = histories.newest(user.reads)
    return user.sequences(newest.ids, newest.real_BT)


class LumRetriever(nn.Module):
    """The user model alone: its own loss, one user a row, and its answer against the tokens of all items."""

    def __init__(
        self, config: LumConfig, schema: FeatureSchema, catalogue: Catalogue, device: str | None = None
    ) -> None:
        super().__init__()
        roles = event_fields(schema, config.cond)
        with torch.device(device) if device else nullcontext():
            self.user = UserModel(
                roles, schema, dim=config.dim, width=config.width, layers=config.layers, heads=config.heads,
                length=schema.histories[roles.history][0].max_length, similarity=config.similarity, tau=config.tau,
                logq=config.logq, positions=config.positions, tables=replace(config.tables, l2=0.0),
                device=str(torch.get_default_device()),
            )  # fmt: skip

    def loss(self, histories: Histories) -> Tensor:
        """Mean InfoNCE of every event under its condition against the different items of the batch."""
        return self.user.loss(self.user.sequences(histories.ids, histories.real_BT))

    def scores(self, histories: Histories, asked: Asked) -> Tensor:
        """Similarity of the answer to the asked condition with every item token: [B, V]."""
        return self.user.scores(shown(self.user, histories), asked.cond_B)


class SidRetriever(nn.Module):
    """The user model on semantic IDs, asked under the condition of the event looked for."""

    def __init__(
        self, config: LumConfig, schema: FeatureSchema, catalogue: Catalogue, device: str | None = None
    ) -> None:
        super().__init__()
        codes = ItemCodes(catalogue.items, config.sids).take(catalogue, grow=True)
        self.facts = codes.facts
        with torch.device(device) if device else nullcontext():
            self.user = SidUserModel(config, schema, codes)
        codes.to(self.user.head.weight.device)

    def sequences(self, histories: Histories) -> Sequences:
        """The events as training reads them, cut into rows that it has positions for, the newest at the end.

        Events of items without an ID are left out. Rows that hold no event at all stay, so that users keep their place:
        rows [B * pieces, L], the newest piece of every user first.
        """
        length = self.user.length
        pieces = max(1, -(-histories.real_BT.shape[1] // length))
        short = pieces * length - histories.real_BT.shape[1]

        def cut(t_BT: Tensor) -> Tensor:
            return pad(t_BT, (short, 0)).unflatten(1, (pieces, length)).flip(1).transpose(0, 1).flatten(0, 1)

        return self.user.sequences({n: cut(histories.ids[n]) for n in self.user.names}, cut(histories.real_BT))

    def loss(self, histories: Histories) -> Tensor:
        """Mean cross-entropy of the codes of every event under its condition."""
        rows = self.sequences(histories)
        return self.user.loss(rows.take((rows.segment_RL > 0).any(dim=1)))

    def scores(self, histories: Histories, asked: Asked) -> Tensor:
        """Log-probability [B, V] of the items that the beams end at, -inf for the rest."""
        return self.user.scores(shown(self.user, histories), asked.cond_B)


def build(
    config: LumConfig, schema: FeatureSchema, catalogue: Catalogue, device: str | None = None
) -> LumRetriever | SidRetriever:
    """The retriever of a `LumConfig`; options of steps 2 and 3 are not used.

    Raises:
        ValueError: no history with an item and a condition, an option that does not fit, or IDs that cannot be made.
    """
    if not config.condition:
        raise ValueError("condition=false: this retriever is asked under conditions; suite=ablation trains one without")
    made = SidRetriever if config.target == "sid" else LumRetriever
    return made(config, schema, catalogue, device)


RETRIEVER = RetrieverSpec(build=build, conditioned=True)

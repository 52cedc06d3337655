"""The user model of LUM that retrieves: asked under the condition of the event looked for (2502.08309 section 4.1).

Dims: B users, T padded history length, V items, d width
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ctrbench.datasets.schema import FIRST_ID, FeatureSchema
from ctrbench.models.histories import ordinals
from ctrbench.models.lum_backbone import UserModel, event_fields
from ctrbench.models.lum_rows import Sequences
from ctrbench.models.lum_sid import SidRetriever
from ctrbench.models.retriever import Asked, Catalogue, Histories, RetrieverSpec

if TYPE_CHECKING:
    from ctrbench.models.lum import LumConfig


class LumRetriever(nn.Module):
    """The user model alone: its own loss, one user a row, and its answer against the tokens of all items."""

    def __init__(
        self, config: LumConfig, schema: FeatureSchema, catalogue: Catalogue, device: str | None = None
    ) -> None:
        super().__init__()
        roles = event_fields(schema, config.cond)
        self.items = catalogue.items
        with torch.device(device) if device else nullcontext():
            self.user = UserModel(
                roles, schema, dim=config.dim, width=config.width, layers=config.layers, heads=config.heads,
                length=schema.histories[roles.history][0].max_length, similarity=config.similarity, tau=config.tau,
                logq=config.logq, positions=config.positions, tables=replace(config.tables, l2=0.0),
                device=str(torch.get_default_device()),
            )  # fmt: skip

    def sequences(self, histories: Histories) -> Sequences:
        """The events as the user model reads them, one user a row."""
        real_BT = histories.real_BT
        return Sequences({n: histories.ids[n] for n in self.user.names}, real_BT.long(), ordinals(real_BT))

    def loss(self, histories: Histories) -> Tensor:
        """Mean InfoNCE of every event under its condition against the different items of the batch."""
        return self.user.loss(self.sequences(histories))

    @torch.no_grad()
    def scores(self, histories: Histories, asked: Asked) -> Tensor:
        """Similarity of the answer to the asked condition with every item token: [B, V]."""
        answer_Bd = self.user.answers(self.sequences(histories), asked.cond_B.unsqueeze(1))[0][:, 0]
        every_Vd = self.user.items(torch.arange(self.items, device=answer_Bd.device))
        return pad(self.user.score(answer_Bd, every_Vd)[:, FIRST_ID:], (FIRST_ID, 0), value=-torch.inf)


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

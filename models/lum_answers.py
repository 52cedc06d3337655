"""Step 2 of LUM inside a ranker: group queries of a batch, computed or looked up (2502.08309 sections 4.2 and 4.4).

Dims: B batch, T history length, Q queries, d width of the user model, N rows
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import FIRST_ID, Batch, FeatureSchema
from ctrbench.models.embedding import dense_parameters
from ctrbench.models.events import left_pad_index, take_padded
from ctrbench.models.item_codes import ItemCodes
from ctrbench.models.lum_backbone import Read, UserModel, event_fields
from ctrbench.models.lum_joint import joint_loss
from ctrbench.models.lum_rows import Sequences
from ctrbench.models.lum_sid import SidUserModel

if TYPE_CHECKING:
    from ctrbench.models.lum import LumConfig


@dataclass(frozen=True, slots=True)
class Store:
    """Answers of a frozen user model, computed once for every row that a training will ask for."""

    answers_NQx: np.ndarray
    """float32, usually a file mapped into memory; only the rows of `spans` hold anything. x: the d values of an answer,
    then how well the row's item fits it."""
    spans: tuple[tuple[int, int], ...]
    """Numbers of the rows that were answered, [begin, end)."""

    def take(self, row_B: Tensor) -> Tensor:
        """Answers and matches [B, Q, d + 1].

        Raises:
            IndexError: a row that was never answered.
        """
        number_B = row_B.numpy()
        known_B = np.zeros(len(number_B), bool)
        for begin, end in self.spans:
            known_B |= (number_B >= begin) & (number_B < end)
        if not known_B.all():
            raise IndexError(f"row {number_B[~known_B][0]} is outside the stored answers {self.spans}")
        return torch.from_numpy(self.answers_NQx[number_B])


def user_model(config: LumConfig, schema: FeatureSchema, device: str) -> UserModel | SidUserModel:
    """What step 1 trains."""
    fields = event_fields(schema, config.cond)
    if config.target == "sid":
        items = schema[schema[fields.item].table].cardinality
        return SidUserModel(config, schema, ItemCodes(items, config.sids)).to(device)
    return UserModel(
        fields, schema, dim=config.dim, width=config.width, layers=config.layers, heads=config.heads,
        length=schema.histories[fields.history][0].max_length, similarity=config.similarity, tau=config.tau,
        logq=config.logq, positions=config.positions, tables=replace(config.tables, l2=0.0), device=device,
        condition=config.condition,
    )  # fmt: skip


class UserAnswers(nn.Module):
    """Step 2 inside a ranker: history and conditions of a batch to answers, frozen or not."""

    def __init__(self, config: LumConfig, schema: FeatureSchema, device: str) -> None:
        super().__init__()
        self.config, self.schema = config, schema
        self.store: Store | None = None
        """Answers to look up instead of computing them: the same values (a frozen user model only)."""
        self._read: tuple[Read, Sequences, Batch] | None = None
        self.fields = event_fields(schema, config.cond)
        self.length = schema.histories[self.fields.history][0].max_length
        rows = schema[schema[self.fields.cond].table].cardinality
        if config.queries - 1 > rows - FIRST_ID:
            raise ValueError(f"queries={config.queries}: field {self.fields.cond!r} has {rows - FIRST_ID} conditions")
        self.user = user_model(config, schema, device)
        self.train_user(not config.frozen)

    def train_user(self, on: bool) -> None:
        """Whether gradients reach the user model's dense weights (its tables follow the graph)."""
        for p in dense_parameters(self.user):
            p.requires_grad_(on)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Answers [B, Q, d], the target's item token [B, d], how well the target fits each answer [B, Q]."""
        with torch.no_grad() if self.config.frozen else nullcontext():
            item_B = batch.ids[self.fields.item_target].values()
            if self.store is not None and self.config.frozen and batch.row_B is not None:
                stored_BQx = self.store.take(batch.row_B)
                return stored_BQx[:, :, :-1], self.user.items(item_B), stored_BQx[:, :, -1]
            read, sequences = self.read(batch)
            if self.training and self.config.objective == "joint":
                self._read = read, sequences, batch
            return read.answers_BQd, read.item_Bd, read.match_BQ

    def read(self, batch: Batch) -> tuple[Read, Sequences]:
        """What the user model makes of a batch: its histories, asked about its targets."""
        sequences = self.sequences(batch)
        return self.user.read(sequences, self.conditions(batch), batch.ids[self.fields.item_target].values()), sequences

    def joint_loss(self) -> Tensor:
        """Weighted InfoNCE on the histories of the training batch read last.

        Raises:
            RuntimeError: without one since the last call.
        """
        if self._read is None:
            raise RuntimeError("joint objective: run the model's forward in training mode before its extra loss")
        assert isinstance(self.user, UserModel)
        (read, sequences, batch), self._read = self._read, None
        most = self.config.pretrain_batch
        return self.config.joint_weight * joint_loss(self.user, read, sequences, batch.user_B, batch.time_B, most)

    def sequences(self, batch: Batch) -> Sequences:
        """The newest events of every row's history, at the right end."""
        first = batch.ids[self.fields.item]
        index_BT, mask_BT = left_pad_index(first.lengths(), first.offsets(), self.user.reads)
        ids = {n: take_padded(batch.ids[n].values(), index_BT, mask_BT) for n in self.user.names}
        return self.user.sequences(ids, mask_BT)

    def conditions(self, batch: Batch) -> Tensor:
        """Condition ids [B, Q]: the target's own, then the common ones."""
        own_B = batch.ids[self.fields.cond_target].values()
        return torch.cat([own_B.unsqueeze(1), self.common(own_B.device).expand(own_B.shape[0], -1)], dim=1)

    def common(self, device: torch.device) -> Tensor:
        """Condition ids [Q - 1] asked whatever the target: vocabularies are sorted, the first ids are most frequent."""
        return torch.arange(FIRST_ID, FIRST_ID + self.config.queries - 1, device=device)

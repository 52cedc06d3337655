"""Blocks that several models share: feature embedding, histories, MLP.

Dims: B batch, F fields, I dense fields, D embedding width, T padded history length, C fields of one event
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.linear import Linear
from ctrbench.models.embedding import EmbeddingTables, TableConfig
from ctrbench.models.events import Events, Histories, left_pad_index, take_padded


@dataclass(frozen=True, slots=True)
class Embedded:
    """What the embedding stage hands to a model."""

    fields_BFD: Tensor
    """Categorical fields, then dense fields, then (pooled mode) one mean-pooled token a sequence field."""
    linear_B: Tensor | None
    """First-order sum, without bias; None unless asked for."""
    events: Mapping[str, Events]
    """Empty in pooled mode."""


class FeatureEmbedder(nn.Module):
    """Turns a batch into field vectors and padded histories.

    Args:
        schema: fields, in batch order.
        dim: embedding width D.
        tables: storage and optimizer of the tables.
        sequences: `pooled` averages each sequence field into one more field (models without a sequence module);
            `events` keeps them as padded histories, `flat` as real events that are padded only when asked for.
        linear: also a first-order weight per id and per dense field (LR, FM, DeepFM); it rides in the row as
            one more column, so that one lookup serves both.
        dense: embed the dense fields too; without, a model takes them from the batch itself.
        missing_vector: learn one vector a dense field for missing values (else missing adds nothing).
        device: where to build; torch's default device if not given, so that `with torch.device("meta")` around a
            model's `build` gives shapes only.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        dim: int,
        tables: TableConfig,
        *,
        sequences: Literal["pooled", "events", "flat"] = "pooled",
        linear: bool = False,
        dense: bool = True,
        missing_vector: bool = True,
        device: str | None = None,
    ) -> None:
        super().__init__()
        device = device or str(torch.get_default_device())
        self.schema, self.dim, self.sequences, self.linear = schema, dim, sequences, linear
        features: dict[str, list[str]] = {t: [] for t in schema.tables}
        for f in schema.of_kind("categorical", "sequence"):
            features[f.table].append(f.name)
        width = dim + int(linear)
        self.pooled = sequences == "pooled" or not schema.sequences
        self.l2 = 0.0 if tables.l2_by_count else tables.l2
        """Weight decay of the dense fields' vectors: as embeddings they are penalised with the rows."""
        if tables.l2 and tables.l2_rows == "batch_rows" and sequences == "pooled" and schema.sequences:
            raise ValueError(
                f"l2 on batch_rows: schema {schema.name!r} has histories, and a mean of rows does not show the rows; "
                "use l2=0, or embedding=per_table with table_optimizer=adam and l2_rows=full_table"
            )
        config_type = EmbeddingBagConfig if self.pooled else EmbeddingConfig
        self.tables = (
            EmbeddingTables(
                [
                    config_type(name=t, embedding_dim=width, num_embeddings=schema.tables[t], feature_names=features[t])
                    for t in schema.tables
                ],
                tables,
                device,
                [f.name for f in schema.of_kind("categorical", "sequence")],
            )
            if schema.tables
            else None
        )
        n_dense = len(schema.dense) if dense else 0
        self.numeric_ID = nn.Parameter(torch.empty(n_dense, width, device=device)) if n_dense else None
        self.missing_ID = (
            nn.Parameter(torch.zeros(n_dense, width, device=device)) if n_dense and missing_vector else None
        )
        if self.numeric_ID is not None:
            nn.init.normal_(self.numeric_ID, std=tables.init_std)

    @property
    def num_fields(self) -> int:
        """F of `Embedded.fields_BFD`."""
        extra = len(self.schema.sequences) if self.sequences == "pooled" else 0
        n_dense = 0 if self.numeric_ID is None else len(self.numeric_ID)
        return len(self.schema.categorical) + n_dense + extra

    @property
    def vectors(self) -> list[nn.Parameter]:
        """Learned vectors of the dense fields."""
        return [p for p in (self.numeric_ID, self.missing_ID) if p is not None]

    @property
    def event_width(self) -> dict[str, int]:
        """Width C*D of an event, by history."""
        return {h: len(fs) * self.dim for h, fs in self.schema.histories.items()}

    def forward(self, batch: Batch) -> Embedded:
        """Field vectors of every row."""
        return self.embedded(*self.rows(batch))

    def embedded(self, fields_BFW: Tensor, events: Mapping[str, Events]) -> Embedded:
        """What a model gets of looked-up rows; W is D, and one more where there are first-order weights."""
        if not self.linear:
            return Embedded(fields_BFW, None, events)
        fields_BFD, first_BF1 = fields_BFW.split((self.dim, 1), dim=2)
        return Embedded(fields_BFD, first_BF1.sum(dim=(1, 2)), events)

    def rows(self, batch: Batch) -> tuple[Tensor, Mapping[str, Events]]:
        """(fields [B, F, W], histories) as they were looked up."""
        parts: list[Tensor] = []
        events: Mapping[str, Events] = {}
        n_cat = len(self.schema.categorical)
        if self.tables is not None:
            looked_up = self.tables(batch.ids)
            if isinstance(looked_up, KeyedTensor):
                rows_BFW = looked_up.values().view(batch.size, -1, self.tables.stored)[..., : self.tables.width]
                parts.append(rows_BFW[:, :n_cat])
                if self.sequences == "pooled" and self.schema.sequences:
                    lengths_BS = batch.ids.lengths().view(-1, batch.size)[n_cat:].t()
                    parts.append(rows_BFW[:, n_cat:] / lengths_BS.clamp(min=1).unsqueeze(-1))
            else:
                rows = [looked_up[f.name].values() for f in self.schema.categorical]
                if rows:
                    parts.append(torch.stack(rows, dim=1)[..., : self.tables.width])
                events = self._histories(looked_up, batch)
        if self.numeric_ID is not None:
            parts.insert(1 if n_cat else 0, self.dense_rows(batch.dense_BI, batch.missing_BI))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], events

    def dense_rows(self, dense_BI: Tensor, missing_BI: Tensor, which: Sequence[int] | None = None) -> Tensor:
        """Vectors [B, I, W] of dense fields, all or those at some places."""
        assert self.numeric_ID is not None

        def chosen(vectors_ID: nn.Parameter) -> Tensor:  # no slice of all: its backward is a kernel of its own
            return vectors_ID if which is None else vectors_ID[list(which)]

        numeric_BIW = dense_BI.unsqueeze(-1) * chosen(self.numeric_ID)
        if self.missing_ID is not None:
            numeric_BIW = numeric_BIW + missing_BI.unsqueeze(-1) * chosen(self.missing_ID)
        return numeric_BIW

    def _histories(self, looked_up: Mapping[str, JaggedTensor], batch: Batch) -> Mapping[str, Events]:
        values = {
            h: torch.cat([looked_up[f.name].values()[..., : self.dim] for f in fields], dim=-1)
            for h, fields in self.schema.histories.items()
        }
        first = {h: looked_up[fields[0].name] for h, fields in self.schema.histories.items()}

        def pad(history: str, values_NE: Tensor) -> Events:
            fields, at = self.schema.histories[history], first[history]
            index_BT, mask_BT = left_pad_index(at.lengths(), at.offsets(), fields[0].max_length)
            return Events(
                take_padded(values_NE, index_BT, mask_BT),
                {f.name: take_padded(batch.ids[f.name].values(), index_BT, mask_BT) for f in fields},
                take_padded(batch.event_times[history], index_BT, mask_BT),
                mask_BT,
            )

        if self.sequences == "events":
            return {h: pad(h, values_NE) for h, values_NE in values.items()}
        longest = {h: fields[0].max_length for h, fields in self.schema.histories.items()}
        return Histories(values, {h: j.offsets().long() for h, j in first.items()}, longest, pad)


class MLP(nn.Sequential):
    """Linear, BN, activation, dropout per hidden layer; then a linear output if `out` is given.

    Shapes [B, n_in] -> [B, hidden[-1]] or [B, out].
    """

    def __init__(
        self,
        n_in: int,
        hidden: Sequence[int],
        out: int | None = None,
        *,
        batch_norm: bool = False,
        dropout: float = 0.0,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        layers: list[nn.Module] = []
        for n in hidden:
            layers.append(Linear(n_in, n))
            if batch_norm:
                layers.append(nn.BatchNorm1d(n))
            layers.append(activation())
            if dropout:
                layers.append(nn.Dropout(dropout))
            n_in = n
        if out is not None:
            layers.append(Linear(n_in, out))
        super().__init__(*layers)


def mlp_flops(n_in: int, hidden: Sequence[int], out: int | None = None) -> float:
    """2 per multiply-add of the linear layers (models.md section 1); [n_in] -> hidden -> out."""
    widths = [n_in, *hidden, *([] if out is None else [out])]
    return float(sum(2 * a * b for a, b in itertools.pairwise(widths)))

"""DLRM: dense features through a bottom MLP, inner products of all pairs of vectors, a top MLP (1906.00091).

Dims: B batch, F vectors that meet, D embedding width, I dense fields, P pairs
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.dot_interaction import dot_interaction, pairs_of
from ctrbench.legacy_baselines.bars import criteo_x1_run
from ctrbench.models.blocks import MLP, FeatureEmbedder, mlp_flops
from ctrbench.models.cards import fixed, shared_rows, switched
from ctrbench.models.embedding import TableConfig
from ctrbench.models.spec import FidelityCard, Flops, ModelSpec, Preset, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class DLRMConfig:
    """Defaults are the `small` preset: wider than the design's least (8, 64-32), so that the baseline is not weak."""

    dim: int = 16
    """Embedding width, and output of the bottom MLP."""
    bottom: tuple[int, ...] = (64,)
    """Hidden widths of the bottom MLP."""
    top: tuple[int, ...] = (128, 64)
    """Hidden widths of the top MLP."""
    interaction: Literal["dot", "cat"] = "dot"
    """`cat` hands the vectors themselves to the top MLP: no interaction."""
    bn: bool = False
    """Batch norm between each hidden linear layer and its activation."""
    bottom_dropout: float = 0.0
    dropout: float = 0.0
    """Of the top MLP."""
    missing_vector: bool = True
    """The bottom MLP also reads which dense values are missing."""
    tables: TableConfig = field(default_factory=TableConfig)

    def __post_init__(self) -> None:
        if self.interaction not in ("dot", "cat"):
            raise ValueError(f"interaction={self.interaction!r}: use dot or cat")


class Interaction(nn.Module):
    """[B, F, D] -> [B, P] or, without interaction, [B, F*D]."""

    def __init__(self, kind: Literal["dot", "cat"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, vectors_BFD: Tensor) -> Tensor:
        return dot_interaction(vectors_BFD) if self.kind == "dot" else vectors_BFD.flatten(1)


class DLRM(nn.Module):
    """logit = top([pairs ; z]) with z = bottom(dense); without dense fields there is no z."""

    phases: Mapping[Stage, tuple[str, ...]] = {
        "embedding": ("embedder",), "interaction": ("bottom", "interaction"), "dense": ("top",),
    }  # fmt: skip

    def __init__(self, config: DLRMConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        if not _top_width(config, schema):
            raise ValueError(f"dlrm: schema {schema.name!r} has one field, and a pair needs two; use interaction=cat")
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(schema, config.dim, config.tables, dense=False)
            self.missing = config.missing_vector
            self.bottom = (
                MLP(_dense_width(config, schema), config.bottom, config.dim, batch_norm=config.bn,
                    dropout=config.bottom_dropout)
                if schema.dense else nn.Identity()
            )  # fmt: skip
            self.interaction = Interaction(config.interaction)
            self.top = MLP(_top_width(config, schema), config.top, 1, batch_norm=config.bn, dropout=config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        vectors_BFD = self.embedder(batch).fields_BFD
        if isinstance(self.bottom, nn.Identity):
            return self.top(self.interaction(vectors_BFD)).squeeze(1)
        dense_BI = torch.cat([batch.dense_BI, batch.missing_BI], dim=1) if self.missing else batch.dense_BI
        z_BD = self.bottom(dense_BI)
        met = self.interaction(torch.cat([vectors_BFD, z_BD.unsqueeze(1)], dim=1))
        return self.top(torch.cat([met, z_BD], dim=1) if self.interaction.kind == "dot" else met).squeeze(1)


def _dense_width(config: DLRMConfig, schema: FeatureSchema) -> int:
    return len(schema.dense) * (2 if config.missing_vector else 1)


def _vectors(schema: FeatureSchema) -> int:
    return len(schema.categorical) + len(schema.sequences) + bool(schema.dense)


def _top_width(config: DLRMConfig, schema: FeatureSchema) -> int:
    if config.interaction == "cat":
        return _vectors(schema) * config.dim
    return pairs_of(_vectors(schema)) + config.dim * bool(schema.dense)


def card(config: DLRMConfig) -> FidelityCard:
    """What follows the paper under `config`."""
    return FidelityCard(
        model="dlrm",
        paper="1906.00091",
        rows=(
            switched(config, "interaction", "dot", "inner products of all pairs, beside the bottom MLP's output",
                     "2.1.3", "the strict upper triangle of one batched product", "faithful"),
            fixed("bottom MLP on the dense features", "faithful", "2.1.3",
                  "last layer linear, as FuxiCTR; a schema without dense fields has none"),
            fixed("widths of both MLPs", "unknown", "n/k", "", f"bottom={config.bottom}, top={config.top}"),
            switched(config, "bn", False, "MLPs without normalisation", "n/k", "BARS' runs use batch norm in both"),
            *shared_rows(config, f"dim={config.dim}, bottom={config.bottom}, top={config.top}"),
        ),
    )  # fmt: skip


def flops(config: DLRMConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """MLPs and the product of all vectors with all (`full`), of which the pairs i < j are useful (`visible`).

    History lengths do not matter: pooling is a gather.
    """
    mlps = mlp_flops(_top_width(config, schema), config.top, 1)
    if schema.dense:
        mlps += mlp_flops(_dense_width(config, schema), config.bottom, config.dim)
    if config.interaction == "cat":
        return Flops(mlps, mlps)
    fields = _vectors(schema)
    return Flops(mlps + 2.0 * fields * fields * config.dim, mlps + 2.0 * pairs_of(fields) * config.dim)


def published() -> tuple[Preset, ...]:
    """BARS' Criteo_x1 run."""
    config = DLRMConfig(
        dim=10, bottom=(400, 400, 400), top=(400, 400, 400), bn=True, bottom_dropout=0.1, dropout=0.2,
        missing_vector=False,
    )  # fmt: skip
    return criteo_x1_run(config, 21_664_241)


SPEC = ModelSpec(  # spelt out in every model file: each is read alone
    name="dlrm",
    title="DLRM",
    family="legacy",
    paper="1906.00091",
    tracks=("tabular", "sequence"),
    config=DLRMConfig,
    build=DLRM,
    card=card,
    flops=flops,
    published=published,
)

"""DNN: an MLP on the embedded fields and nothing else, the network that every other legacy model adds to.

Dims: B batch, F fields, D embedding width
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ctrbench.datasets.published_schemas import criteo_x1
from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.legacy_baselines.serving_split import request_flops, split_forms
from ctrbench.models.blocks import MLP, FeatureEmbedder, mlp_flops
from ctrbench.models.embedding import TableConfig
from ctrbench.models.spec import CardRow, FidelityCard, Flops, ModelSpec, Preset, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class DNNConfig:
    """Defaults are the `small` preset: wider than the design's least (8, 64-32), so that the baseline is not weak."""

    dim: int = 16
    """Embedding width."""
    mlp: tuple[int, ...] = (128, 64)
    """Hidden widths."""
    bn: bool = False
    """Batch norm between each hidden linear layer and its activation."""
    dropout: float = 0.0
    missing_vector: bool = True
    """Learn one vector a dense field for missing values."""
    tables: TableConfig = field(default_factory=TableConfig)


class DNN(nn.Module):
    """logit = MLP(flatten E)."""

    phases: Mapping[Stage, tuple[str, ...]] = {"embedding": ("embedder",), "dense": ("tower",)}

    def __init__(self, config: DNNConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(schema, config.dim, config.tables, missing_vector=config.missing_vector)
            n_in = self.embedder.num_fields * config.dim
            self.tower = MLP(n_in, config.mlp, 1, batch_norm=config.bn, dropout=config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        return self.tower(self.embedder(batch).fields_BFD.flatten(1)).squeeze(1)


def card(config: DNNConfig) -> FidelityCard:
    """No paper defines this model; its form is that of the benchmark's runs."""
    return FidelityCard(
        model="dnn",
        paper="BARS, reczoo/BARS (DNN)",
        rows=(
            CardRow(mechanism="one MLP on the flattened embeddings", status="adapted", section="DNN_criteo_x1 log",
                    switch=f"mlp={config.mlp}, bn={config.bn}",
                    note="the log's 21,818,362 parameters are those of two MLPs of 400x3; one is built here"),
            CardRow(mechanism="sizes", status="adapted", section="n/k", switch=f"dim={config.dim}, mlp={config.mlp}",
                    note="small preset is sized for a CPU, and kept above the design's least so as not to be weak"),
            CardRow(mechanism="numeric fields", status="adapted", section="n/k",
                    switch=f"missing_vector={config.missing_vector}",
                    note="value times one learned vector (FuxiCTR); missing values may have their own vector"),
            CardRow(mechanism="behaviour history", status="adapted", section="n/k",
                    note="each sequence field enters mean-pooled as one more field"),
            CardRow(mechanism="optimizer", status="adapted", section="n/k",
                    switch=f"tables.optimizer={config.tables.optimizer}",
                    note="Adam on dense weights, the tables' own optimizer"),
        ),
    )  # fmt: skip


def flops(config: DNNConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """The MLP's. History lengths do not matter: pooling is a gather."""
    total = mlp_flops(len(schema.fields) * config.dim, config.mlp, 1)
    return Flops(total, total)


def published() -> tuple[Preset, ...]:
    """BARS' Criteo_x1 run with one MLP: 21,340,761 parameters, no anchor."""
    config = DNNConfig(dim=10, mlp=(400, 400, 400), dropout=0.1, missing_vector=False)
    note = (
        "BARS Criteo_x1 sizes; no anchor for the count: the log's 21,818,362 hold a second MLP of 400x3; rows per "
        "field spread by us, their sum is published"
    )
    return (Preset(label="criteo_x1", config=config, schema=criteo_x1(), note=note),)


SPEC = ModelSpec(
    name="dnn",
    title="DNN",
    family="legacy",
    paper="BARS, reczoo/BARS (DNN)",
    tracks=("tabular", "sequence"),
    config=DNNConfig,
    build=DNN,
    card=card,
    flops=flops,
    published=published,
    serving=split_forms(),
    request_flops=request_flops,
)

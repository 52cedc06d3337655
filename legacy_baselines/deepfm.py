"""DeepFM: a factorisation machine and an MLP on one shared embedding (1703.04247).

Dims: B batch, F fields, D embedding width
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.fm import Impl
from ctrbench.legacy_baselines.bars import criteo_x1_run
from ctrbench.legacy_baselines.fm import FmTerm
from ctrbench.legacy_baselines.serving_split import request_flops, split_forms
from ctrbench.models.blocks import MLP, FeatureEmbedder, mlp_flops
from ctrbench.models.cards import field_rows
from ctrbench.models.embedding import TableConfig
from ctrbench.models.spec import CardRow, FidelityCard, Flops, ModelSpec, Preset, Stage, Status


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepFMConfig:
    """Defaults are the `small` preset: wider than the design's least (8, 64-32), so that the baseline is not weak."""

    dim: int = 16
    """Embedding width; one more column carries the first-order weight."""
    mlp: tuple[int, ...] = (128, 64)
    """Hidden widths of the deep part."""
    bn: bool = False
    """Batch norm between each hidden linear layer and its activation."""
    dropout: float = 0.0
    fm_impl: Impl = "sum"
    """`sum` is linear in the number of fields, `pairs` multiplies every pair out; same result."""
    missing_vector: bool = True
    """Learn one vector a dense field for missing values."""
    tables: TableConfig = field(default_factory=TableConfig)


class DeepFM(nn.Module):
    """logit = first-order sum + FM(E) + MLP(flatten E); the only bias is the MLP's last."""

    phases: Mapping[Stage, tuple[str, ...]] = {"embedding": ("embedder",), "interaction": ("fm",), "dense": ("tower",)}

    def __init__(self, config: DeepFMConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(
                schema, config.dim, config.tables, linear=True, missing_vector=config.missing_vector
            )
            self.fm = FmTerm(config.fm_impl)
            n_in = self.embedder.num_fields * config.dim
            self.tower = MLP(n_in, config.mlp, 1, batch_norm=config.bn, dropout=config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        embedded = self.embedder(batch)
        assert embedded.linear_B is not None
        deep_B = self.tower(embedded.fields_BFD.flatten(1)).squeeze(1)
        return embedded.linear_B + self.fm(embedded.fields_BFD) + deep_B


def card(config: DeepFMConfig) -> FidelityCard:
    """What follows the paper under `config`."""
    bn: Status = "adapted" if config.bn else "faithful"
    return FidelityCard(
        model="deepfm",
        paper="1703.04247",
        rows=(
            CardRow(mechanism="FM and MLP read one embedding", status="faithful", section="2.1"),
            CardRow(mechanism="first-order sum plus all pairwise inner products", status="faithful", section="2.1",
                    switch=f"fm_impl={config.fm_impl}", note="both forms give the same value"),
            CardRow(mechanism="MLP without normalisation", status=bn, section="2.1", switch=f"bn={config.bn}",
                    note="BARS' runs use batch norm; the paper names only dropout"),
            CardRow(mechanism="sizes", status="adapted", section="3", switch=f"dim={config.dim}, mlp={config.mlp}",
                    note="small preset is sized for a CPU, and kept above the design's least so as not to be weak"),
            *field_rows(config),
        ),
    )  # fmt: skip


def flops(config: DeepFMConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """The MLP's; the FM term has no matrix product. History lengths do not matter: pooling is a gather."""
    total = mlp_flops(len(schema.fields) * config.dim, config.mlp, 1)
    return Flops(total, total)


def published() -> tuple[Preset, ...]:
    """BARS' Criteo_x1 run."""
    config = DeepFMConfig(dim=10, mlp=(400, 400, 400), bn=True, dropout=0.1, missing_vector=False)
    return criteo_x1_run(config, 23_429_477)


SPEC = ModelSpec(  # spelt out in every model file: each is read alone
    name="deepfm",
    title="DeepFM",
    family="legacy",
    paper="1703.04247",
    tracks=("tabular", "sequence"),
    config=DeepFMConfig,
    build=DeepFM,
    card=card,
    flops=flops,
    published=published,
    serving=split_forms(pairs=True),
    request_flops=request_flops,
)

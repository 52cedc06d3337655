"""DCN: rank-one cross layers beside or below an MLP (1708.05123).

Dims: B batch, N = F*D width of the flattened fields, L cross layers, M width of the head's input
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.cross_vector import Impl, cross_vector, cross_vector_cost
from ctrbench.kernels.linear import Linear
from ctrbench.legacy_baselines.bars import criteo_x1_run
from ctrbench.legacy_baselines.dcn_serving import request_flops, serving
from ctrbench.models.blocks import MLP, FeatureEmbedder, mlp_flops
from ctrbench.models.embedding import TableConfig
from ctrbench.models.spec import CardRow, FidelityCard, Flops, ModelSpec, Preset, Stage, Status

Structure = Literal["parallel", "stacked", "cross_only"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DCNConfig:
    """Defaults are the `small` preset: wider than the design's least (8, 64-32), so that the baseline is not weak."""

    dim: int = 16
    """Embedding width."""
    cross_layers: int = 3
    structure: Structure = "parallel"
    """`stacked` runs the MLP on the cross output, `cross_only` has no MLP."""
    mlp: tuple[int, ...] = (128, 64)
    """Hidden widths of the MLP."""
    bn: bool = False
    """Batch norm between each hidden linear layer and its activation."""
    dropout: float = 0.0
    cross_impl: Impl = "fold"
    """`plain` runs layer by layer as printed, `fold` all layers at once; same result."""
    missing_vector: bool = True
    """Learn one vector a dense field for missing values."""
    tables: TableConfig = field(default_factory=TableConfig)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("structure", ("parallel", "stacked", "cross_only")), ("cross_impl", ("fold", "plain")),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: use one of {', '.join(allowed)}")
        if self.cross_layers < 1:
            raise ValueError(f"cross_layers={self.cross_layers}: a cross network needs at least one layer")


class VectorCrossNet(nn.Module):
    """L rank-one cross layers, [B, N] -> [B, N] (section 2.2).

    Args:
        width: N.
        layers: L.
        impl: fast path or plain twin.
    """

    def __init__(self, width: int, layers: int, impl: Impl = "fold") -> None:
        super().__init__()
        self.impl: Impl = impl
        # As a linear layer with one output: uniform over +-1/sqrt(N).
        self.weight_LN = nn.Parameter(torch.empty(layers, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias_LN = nn.Parameter(torch.zeros(layers, width))

    def forward(self, x0_BN: Tensor) -> Tensor:
        return cross_vector(x0_BN, self.weight_LN, self.bias_LN, self.impl)


class DCN(nn.Module):
    """logit = Linear of the cross output, of the MLP on it, or of cross and MLP output side by side."""

    phases: Mapping[Stage, tuple[str, ...]]

    def __init__(self, config: DCNConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        self.structure = config.structure
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(schema, config.dim, config.tables, missing_vector=config.missing_vector)
            width = self.embedder.num_fields * config.dim
            self.cross = VectorCrossNet(width, config.cross_layers, config.cross_impl)
            self.mlp = (
                MLP(width, config.mlp, batch_norm=config.bn, dropout=config.dropout) if _has_mlp(config) else None
            )
            self.head = Linear(_head_width(config, width), 1)
            self.phases = {
                "embedding": ("embedder",), "interaction": ("cross",),
                "dense": (*(("mlp",) if self.mlp is not None else ()), "head"),
            }  # fmt: skip

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        x0_BN = self.embedder(batch).fields_BFD.flatten(1)
        out_BM = self.cross(x0_BN)
        if self.mlp is not None and self.structure == "parallel":
            out_BM = torch.cat([out_BM, self.mlp(x0_BN)], dim=1)
        elif self.mlp is not None:
            out_BM = self.mlp(out_BM)
        return self.head(out_BM).squeeze(1)


def _has_mlp(config: DCNConfig) -> bool:
    return config.structure != "cross_only"


def _head_width(config: DCNConfig, width: int) -> int:
    deep = (config.mlp[-1] if config.mlp else width) if _has_mlp(config) else 0
    return deep + (0 if config.structure == "stacked" else width)


def card(config: DCNConfig) -> FidelityCard:
    """What follows the paper under `config`."""
    layout: Status = "faithful" if config.structure == "parallel" else "adapted"
    return FidelityCard(
        model="dcn",
        paper="1708.05123",
        rows=(
            CardRow(mechanism="rank-one cross layer", status="faithful", section="2.2",
                    switch=f"cross_impl={config.cross_impl}", note="both forms give the same value"),
            CardRow(mechanism="cross and MLP side by side under one linear layer", status=layout, section="2.4",
                    switch=f"structure={config.structure}"),
            CardRow(mechanism="batch norm in the MLP", status="unknown", section="n/k", switch=f"bn={config.bn}",
                    note="off as in BARS' runs; what the paper's experiments used is not established here"),
            CardRow(mechanism="sizes", status="adapted", section="n/k",
                    switch=f"dim={config.dim}, cross_layers={config.cross_layers}, mlp={config.mlp}",
                    note="one width for all fields; small preset kept above the design's least so as not to be weak"),
            CardRow(mechanism="numeric fields", status="adapted", section="2.1",
                    switch=f"missing_vector={config.missing_vector}",
                    note="value times one learned vector (FuxiCTR), not the raw value beside the embeddings"),
            CardRow(mechanism="behaviour history", status="adapted", section="n/k",
                    note="each sequence field enters mean-pooled as one more field"),
            CardRow(mechanism="optimizer", status="adapted", section="n/k",
                    switch=f"tables.optimizer={config.tables.optimizer}",
                    note="Adam on dense weights, the tables' own optimizer inside their backward"),
        ),
    )  # fmt: skip


def flops(config: DCNConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Dot products of the cross layers, MLP and head. History lengths do not matter: pooling is a gather."""
    width = len(schema.fields) * config.dim
    deep = mlp_flops(width, config.mlp) if _has_mlp(config) else 0.0
    total = cross_vector_cost(width, config.cross_layers).flops + deep + 2.0 * _head_width(config, width)
    return Flops(total, total)


def published() -> tuple[Preset, ...]:
    """BARS' Criteo_x1 run."""
    config = DCNConfig(dim=10, cross_layers=3, mlp=(400, 400, 400), dropout=0.1, missing_vector=False)
    return criteo_x1_run(config, 21_343_491)


SPEC = ModelSpec(  # spelt out in every model file: each is read alone
    name="dcn",
    title="DCN",
    family="legacy",
    paper="1708.05123",
    tracks=("tabular", "sequence"),
    config=DCNConfig,
    build=DCN,
    card=card,
    flops=flops,
    published=published,
    serving=serving,
    request_flops=request_flops,
)

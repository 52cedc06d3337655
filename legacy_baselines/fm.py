"""FM: a linear model plus the inner products of all pairs of feature vectors (Rendle, ICDM 2010).

Dims: B batch, F fields, D embedding width
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.fm import Impl, fm
from ctrbench.legacy_baselines.bars import criteo_x1_run
from ctrbench.legacy_baselines.serving_split import split_forms
from ctrbench.models.blocks import FeatureEmbedder
from ctrbench.models.cards import fixed, shared_rows
from ctrbench.models.embedding import TableConfig
from ctrbench.models.spec import FidelityCard, Flops, ModelSpec, Preset, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class FMConfig:
    """Defaults are the `small` preset: wider than the design's least (8), so that the baseline is not weak."""

    dim: int = 16
    """Embedding width; one more column carries the first-order weight."""
    impl: Impl = "sum"
    """`sum` is linear in the number of fields, `pairs` multiplies every pair out; same result."""
    missing_vector: bool = True
    """Learn one vector a dense field for missing values."""
    tables: TableConfig = field(default_factory=TableConfig)


class FmTerm(nn.Module):
    """Pairwise interactions, [B, F, D] -> [B]."""

    def __init__(self, impl: Impl) -> None:
        super().__init__()
        self.impl: Impl = impl

    def forward(self, fields_BFD: Tensor) -> Tensor:
        return fm(fields_BFD, self.impl)


class FM(nn.Module):
    """logit = b + first-order sum + FM(E)."""

    phases: Mapping[Stage, tuple[str, ...]] = {"embedding": ("embedder",), "interaction": ("fm",)}

    def __init__(self, config: FMConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(
                schema, config.dim, config.tables, linear=True, missing_vector=config.missing_vector
            )
            self.fm = FmTerm(config.impl)
            self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        embedded = self.embedder(batch)
        assert embedded.linear_B is not None
        return self.bias + embedded.linear_B + self.fm(embedded.fields_BFD)


def card(config: FMConfig) -> FidelityCard:
    """What follows the paper under `config`."""
    return FidelityCard(
        model="fm",
        paper="Rendle, ICDM 2010",
        rows=(
            fixed("bias, first-order sum and all pairwise inner products", "faithful", "III.A",
                  "both forms give the same value", f"impl={config.impl}"),
            fixed("regulariser", "unknown", "n/k", "none by default; l2 on the rows is a setting of the run"),
            *shared_rows(config, f"dim={config.dim}"),
        ),
    )  # fmt: skip


def flops(config: FMConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """No matrix product: the term is element-wise work."""
    return Flops(0.0, 0.0)


def published() -> tuple[Preset, ...]:
    """BARS' Criteo_x1 run."""
    config = FMConfig(dim=10, missing_vector=False)
    return criteo_x1_run(config, 22_949_477)


SPEC = ModelSpec(
    name="fm",
    title="FM",
    family="legacy",
    paper="Rendle, ICDM 2010",
    tracks=("tabular", "sequence"),
    config=FMConfig,
    build=FM,
    card=card,
    flops=flops,
    published=published,
    serving=split_forms(pairs=True),
)

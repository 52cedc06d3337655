"""LR: logistic regression, a weight a feature and a bias; the floor that every interaction model must beat.

Dims: B batch, F fields
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.legacy_baselines.bars import criteo_x1_run
from ctrbench.models.blocks import FeatureEmbedder
from ctrbench.models.cards import fixed, shared_rows, switched
from ctrbench.models.embedding import TableConfig
from ctrbench.models.spec import FidelityCard, Flops, ModelSpec, Preset, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class LRConfig:
    """Defaults are the `small` preset; a linear model has no sizes."""

    bias: bool = True
    missing_vector: bool = True
    """Learn one weight a dense field for missing values."""
    tables: TableConfig = field(default_factory=TableConfig)


class LR(nn.Module):
    """logit = b + sum of the weights of the row's features."""

    phases: Mapping[Stage, tuple[str, ...]] = {"embedding": ("embedder",)}

    def __init__(self, config: LRConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(schema, 1, config.tables, missing_vector=config.missing_vector)
            self.bias = nn.Parameter(torch.zeros(())) if config.bias else None

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        logit_B = self.embedder(batch).fields_BFD.sum(dim=(1, 2))
        return logit_B if self.bias is None else logit_B + self.bias


def card(config: LRConfig) -> FidelityCard:
    """A textbook model; its form is that of the benchmark's runs."""
    return FidelityCard(
        model="lr",
        paper="BARS, reczoo/BARS (LR)",
        rows=(
            fixed("linear sum over features", "faithful", "LR_criteo_x1 log"),
            switched(config, "bias", True, "bias", "LR_criteo_x1 log", at="faithful"),
            *shared_rows(config, "a weight a feature"),
        ),
    )


def flops(config: LRConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """No matrix product."""
    return Flops(0.0, 0.0)


def published() -> tuple[Preset, ...]:
    """BARS' Criteo_x1 run."""
    return criteo_x1_run(LRConfig(missing_vector=False), 2_086_317)


SPEC = ModelSpec(
    name="lr",
    title="LR",
    family="legacy",
    paper="BARS, reczoo/BARS (LR)",
    tracks=("tabular", "sequence"),
    config=LRConfig,
    build=LR,
    card=card,
    flops=flops,
    published=published,
)

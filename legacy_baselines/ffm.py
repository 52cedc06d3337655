"""FFM: every feature has a vector for each other field, and a pair meets with the two made for each other
(Juan et al., RecSys 2016).

Dims: B batch, F fields, S = F - 1 slots of a field, D width of a slot
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.ffm import ffm, ffm_cost
from ctrbench.legacy_baselines.bars import criteo_x1_run
from ctrbench.models.blocks import FeatureEmbedder
from ctrbench.models.cards import fixed, shared_rows
from ctrbench.models.embedding import TableConfig
from ctrbench.models.spec import FidelityCard, Flops, ModelSpec, Preset, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class FFMConfig:
    """Defaults are the `small` preset."""

    dim: int = 4
    """Width of a slot: a feature has F - 1 of them in one row, and one more column for its first-order weight."""
    missing_vector: bool = True
    """Learn one vector a dense field for missing values."""
    tables: TableConfig = field(default_factory=TableConfig)


class FfmTerm(nn.Module):
    """Field-aware pairs, [B, F, S*D] -> [B]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, rows_BFE: Tensor) -> Tensor:
        return ffm(rows_BFE.unflatten(2, (-1, self.dim)))


class FFM(nn.Module):
    """logit = b + first-order sum + sum over pairs i < j of <v_{i,j}, v_{j,i}>."""

    phases: Mapping[Stage, tuple[str, ...]] = {"embedding": ("embedder",), "interaction": ("ffm",)}

    def __init__(self, config: FFMConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        slots = len(schema.fields) - 1
        if not slots:
            raise ValueError(f"ffm: schema {schema.name!r} has one field, and a pair needs two")
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(
                schema, slots * config.dim, config.tables, linear=True, missing_vector=config.missing_vector
            )
            self.ffm = FfmTerm(config.dim)
            self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        embedded = self.embedder(batch)
        assert embedded.linear_B is not None
        return self.bias + embedded.linear_B + self.ffm(embedded.fields_BFD)


def card(config: FFMConfig) -> FidelityCard:
    """What follows the paper under `config`."""
    return FidelityCard(
        model="ffm",
        paper="Juan et al., RecSys 2016",
        rows=(
            fixed("a vector for every other field, pairs meet with the two made for each other", "faithful", "3"),
            fixed("first-order sum and bias", "adapted", "3",
                  "the paper leaves them out of its formula; BARS' run has them"),
            fixed("one width for all pairs of fields", "adapted", "n/k", "as BARS' run; first-order weights beside",
                  f"dim={config.dim}"),
            fixed("instance normalisation, early stopping", "adapted", "3.1",
                  "rows are not normalised; training stops as all models' does"),
            *shared_rows(config, f"dim={config.dim}"),
        ),
    )  # fmt: skip


def flops(config: FFMConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Explicit products of all pairs. History lengths do not matter: pooling is a gather."""
    total = ffm_cost(len(schema.fields), config.dim).flops
    return Flops(total, total)


def published() -> tuple[Preset, ...]:
    """BARS' Criteo_x1 run."""
    config = FFMConfig(dim=5, missing_vector=False)
    return criteo_x1_run(config, 398_486_357)


SPEC = ModelSpec(  # spelt out in every model file: each is read alone
    name="ffm",
    title="FFM",
    family="legacy",
    paper="Juan et al., RecSys 2016",
    tracks=("tabular", "sequence"),
    config=FFMConfig,
    build=FFM,
    card=card,
    flops=flops,
    published=published,
)

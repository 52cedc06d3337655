"""Wide & Deep: a linear model that memorises and an MLP that generalises, one logit (1606.07792).

Dims: B batch, F fields, D embedding width
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.legacy_baselines.bars import criteo_x1_run
from ctrbench.legacy_baselines.serving_split import request_flops, split_forms
from ctrbench.models.blocks import MLP, FeatureEmbedder, mlp_flops
from ctrbench.models.cards import fixed, shared_rows, switched
from ctrbench.models.embedding import TableConfig
from ctrbench.models.spec import FidelityCard, Flops, ModelSpec, Preset, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class WideDeepConfig:  # the options of DNN, whose network the deep part is
    """Defaults are the `small` preset: wider than the design's least (8, 64-32), so that the baseline is not weak."""

    dim: int = 16
    """Embedding width; one more column carries the wide part's weight."""
    mlp: tuple[int, ...] = (128, 64)
    """Hidden widths of the deep part."""
    bn: bool = False
    """Batch norm between each hidden linear layer and its activation."""
    dropout: float = 0.0
    missing_vector: bool = True
    """Learn one vector a dense field for missing values."""
    tables: TableConfig = field(default_factory=TableConfig)


class WideDeep(nn.Module):
    """logit = first-order sum + MLP(flatten E); the only bias is the MLP's last."""

    phases: Mapping[Stage, tuple[str, ...]] = {"embedding": ("embedder",), "dense": ("tower",)}

    def __init__(self, config: WideDeepConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(
                schema, config.dim, config.tables, linear=True, missing_vector=config.missing_vector
            )
            n_in = self.embedder.num_fields * config.dim
            self.tower = MLP(n_in, config.mlp, 1, batch_norm=config.bn, dropout=config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        embedded = self.embedder(batch)
        assert embedded.linear_B is not None
        return embedded.linear_B + self.tower(embedded.fields_BFD.flatten(1)).squeeze(1)


def card(config: WideDeepConfig) -> FidelityCard:
    """What follows the paper under `config`."""
    return FidelityCard(
        model="wide_deep",
        paper="1606.07792",
        rows=(
            fixed("wide and deep part trained jointly on the sum of their logits", "faithful", "3.3"),
            fixed("crosses of the wide part", "adapted", "3.1", "none: hand-made crosses are work on the data set"),
            fixed("optimizers", "adapted", "3.3",
                  "the same for both parts; the paper has FTRL with L1 for the wide one and AdaGrad for the deep one"),
            switched(config, "bn", False, "MLP without normalisation", "3.2", "BARS' runs use batch norm", "faithful"),
            *shared_rows(config, f"dim={config.dim}, mlp={config.mlp}"),
        ),
    )  # fmt: skip


def flops(config: WideDeepConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """The MLP's. History lengths do not matter: pooling is a gather."""
    total = mlp_flops(len(schema.fields) * config.dim, config.mlp, 1)
    return Flops(total, total)


def published() -> tuple[Preset, ...]:
    """BARS' Criteo_x1 run."""
    config = WideDeepConfig(dim=10, mlp=(400, 400, 400), bn=True, dropout=0.1, missing_vector=False)
    return criteo_x1_run(config, 23_429_477)


SPEC = ModelSpec(  # spelt out in every model file: each is read alone
    name="wide_deep",
    title="Wide & Deep",
    family="legacy",
    paper="1606.07792",
    tracks=("tabular", "sequence"),
    config=WideDeepConfig,
    build=WideDeep,
    card=card,
    flops=flops,
    published=published,
    serving=split_forms(),
    request_flops=request_flops,
)

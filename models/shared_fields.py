"""Control: FAT's layout with one weight set for all fields and no pair modulation (claim S18).

Field tokens, bias, norms, residuals, head and embedding are FAT's own parts; only what FAT adds is missing, so a
difference between the two is due to that.

Dims: B batch, F fields, D width
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ctrbench.datasets.published_schemas import criteo_x1
from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.models.blocks import FeatureEmbedder
from ctrbench.models.embedding import TableConfig
from ctrbench.models.field_blocks import FieldBlock, FieldInput, FieldWeights, Residual, SumHead, block_flops
from ctrbench.models.spec import CardRow, FidelityCard, Flops, ModelSpec, Preset, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedFieldsConfig:
    """Defaults are FAT's `small` preset as far as it applies."""

    dim: int = 32
    """Embedding width."""
    width: int = 0
    """Token width d; 0 takes `dim`, another value adds a linear map a field."""
    hidden: int = 64
    """Width of the feed-forward part."""
    heads: int = 4
    layers: int = 2
    residual: Residual = "paper"
    """FAT's layouts."""
    tables: TableConfig = field(default_factory=TableConfig)

    @property
    def d(self) -> int:
        """Token width."""
        return self.width or self.dim


class SharedBlock(nn.Module):
    """A field block with its own weights, the same for every field, [F, B, D] -> [F, B, D]."""

    def __init__(self, width: int, hidden: int, heads: int, residual: Residual) -> None:
        super().__init__()
        self.block = FieldBlock(width, heads, residual)
        self.qkv_DE = nn.Parameter(torch.cat([nn.init.xavier_uniform_(torch.empty(width, width)) for _ in range(3)], 1))
        self.up_DE = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, hidden)))
        self.down_DE = nn.Parameter(nn.init.xavier_uniform_(torch.empty(hidden, width)))

    def forward(self, z_FBD: Tensor) -> Tensor:
        return self.block(z_FBD, FieldWeights((self.qkv_DE,), self.up_DE, self.down_DE, None), None)


class SharedFields(nn.Module):
    """Field tokens through blocks with shared weights; logit from the sum of tokens.

    Raises:
        ValueError: heads do not divide the width.
    """

    def __init__(self, config: SharedFieldsConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(schema, config.dim, config.tables)
            self.inputs = FieldInput(self.embedder.num_fields, config.dim, config.d)
            self.bias_FD = nn.Parameter(torch.zeros(self.embedder.num_fields, config.d))
            self.layers = nn.ModuleList(
                SharedBlock(config.d, config.hidden, config.heads, config.residual) for _ in range(config.layers)
            )
            self.head = SumHead(config.d)
        self.phases: Mapping[Stage, tuple[str, ...]] = {
            "embedding": ("embedder",),
            "interaction": tuple(f"layers.{i}" for i in range(config.layers)),
            "dense": ("inputs", "head"),
        }

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        z_FBD = self.inputs(self.embedder(batch).fields_BFD) + self.bias_FD.unsqueeze(1)
        for layer in self.layers:
            z_FBD = layer(z_FBD)
        return self.head(z_FBD)


def card(config: SharedFieldsConfig) -> FidelityCard:
    """A control has no paper to follow: the rows say what it keeps of FAT and what it leaves out."""
    return FidelityCard(
        model="shared_fields",
        paper="none (control)",
        rows=(
            CardRow(mechanism="field tokens, bias, norms, residual layout, sum head as in our FAT", status="faithful",
                    section="n/k", switch=f"residual={config.residual}", note="the same code"),
            CardRow(mechanism="one weight set for all fields", status="adapted", section="n/k",
                    note="on purpose: FAT writes one for every field"),
            CardRow(mechanism="plain attention, no pair weights", status="adapted", section="n/k", note="on purpose"),
            CardRow(mechanism="sizes", status="unknown", section="n/k",
                    switch=f"dim={config.dim}, width={config.width}, hidden={config.hidden}, heads={config.heads}, "
                    f"layers={config.layers}", note="FAT's, whose sizes no source gives"),
        ),
    )  # fmt: skip


def flops(config: SharedFieldsConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """FAT's count: sharing weights saves parameters, not products. Pooled histories: lengths do not matter."""
    fields, d = len(schema.fields), config.d
    total = config.layers * block_flops(fields, d, config.hidden) + 2 * d
    total += 2 * fields * config.dim * d if config.dim != d else 0
    return Flops(float(total), float(total))


def published() -> tuple[Preset, ...]:
    """The widths of FAT's sweep."""
    note = "point of the sweep of widths used for FAT, whose sizes no source gives"
    return tuple(
        Preset(label=f"d{d}", config=SharedFieldsConfig(dim=d, hidden=4 * d, heads=8), schema=criteo_x1(), note=note)
        for d in (128, 256, 512, 1024)
    )


SPEC = ModelSpec(
    name="shared_fields",
    title="Shared-weight field tokens (control)",
    family="transformer",
    control=True,
    paper="none (control)",
    tracks=("tabular", "sequence"),
    config=SharedFieldsConfig,
    build=SharedFields,
    card=card,
    flops=flops,
    published=published,
)

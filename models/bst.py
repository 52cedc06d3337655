"""BST: a transformer layer over the history with the candidate as its last event, then a tower (1905.06874).

Dims: B batch, T history length, S = T + 1 tokens, C width of an event, H heads
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from ctrbench.datasets.published_schemas import taobao_like
from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.attention import attention
from ctrbench.kernels.linear import Linear
from ctrbench.models.blocks import MLP, FeatureEmbedder, mlp_flops
from ctrbench.models.cards import fixed, switched
from ctrbench.models.embedding import TableConfig
from ctrbench.models.events import Events
from ctrbench.models.histories import TIME_BUCKETS, TargetEvents, history_lengths, require_history
from ctrbench.models.spec import FidelityCard, Flops, ModelSpec, Preset, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class BSTConfig:
    """Defaults are the `small` preset."""

    dim: int = 16
    """Embedding width; tokens are as wide as an event, fields times `dim`."""
    heads: int = 2
    layers: int = 1
    mlp: tuple[int, ...] = (128, 64)
    """Hidden widths of the tower."""
    dropout: float = 0.0
    positions: Literal["time", "none"] = "time"
    """`time`: a vector for the distance to the impression, in powers of two of seconds."""
    pool: Literal["concat", "mean", "target"] = "concat"
    """What of the tokens reaches the tower: all side by side, their mean, or the candidate's."""
    tables: TableConfig = field(default_factory=TableConfig)

    def __post_init__(self) -> None:
        for name, allowed in (("positions", ("time", "none")), ("pool", ("concat", "mean", "target"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: use {', '.join(allowed)}")


class BSTLayer(nn.Module):
    """S' = LN(S + drop(MHA(S))); LN(S' + drop(W2 LeakyReLU(W1 S'))), [B, S, C] -> [B, S, C].

    Raises:
        ValueError: heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width {width} of an event; choose a divisor")
        self.heads = heads
        self.qkv, self.out = Linear(width, 3 * width), Linear(width, width)
        self.up, self.down = Linear(width, width), Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BSC: Tensor, seen_BS: Tensor) -> Tensor:
        """`seen_BS` marks real tokens; the candidate is one, so no query is blind."""
        q_BHSd, k_BHSd, v_BHSd = self.qkv(x_BSC).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out_BHSd = attention(q_BHSd, k_BHSd, v_BHSd, seen_BS[:, None, None])
        x_BSC = self.norm1(x_BSC + self.drop(self.out(out_BHSd.transpose(1, 2).flatten(2))))
        return self.norm2(x_BSC + self.drop(self.down(leaky_relu(self.up(x_BSC)))))


class Sequence(nn.Module):
    """One history and the candidate through the layers, pooled."""

    def __init__(self, width: int, config: BSTConfig) -> None:
        super().__init__()
        self.pool = config.pool
        # one row more for the candidate itself, which is at no distance
        self.positions = nn.Embedding(TIME_BUCKETS + 1, width) if config.positions == "time" else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)
        self.layers = nn.ModuleList(BSTLayer(width, config.heads, config.dropout) for _ in range(config.layers))

    def forward(self, events: Events, target_BC: Tensor, time_B: Tensor) -> Tensor:
        """[B, S*C] or [B, C]; padding gives zeros."""
        x_BSC = torch.cat([events.values_BTE, target_BC.unsqueeze(1)], dim=1)
        seen_BS = torch.nn.functional.pad(events.mask_BT, (0, 1), value=True)
        if self.positions is not None:
            x_BSC = x_BSC + self.positions(distance_buckets(events.times_BT, time_B))
        for layer in self.layers:
            x_BSC = layer(x_BSC, seen_BS)
        if self.pool == "target":
            return x_BSC[:, -1]
        x_BSC = x_BSC * seen_BS.unsqueeze(2)
        return x_BSC.flatten(1) if self.pool == "concat" else x_BSC.sum(dim=1) / seen_BS.sum(dim=1, keepdim=True)


def distance_buckets(times_BT: Tensor, time_B: Tensor) -> Tensor:
    """floor(log2(1 + seconds to the impression)) under `TIME_BUCKETS`, [B, T + 1]; the candidate has the last row."""
    distance_BT = (time_B.unsqueeze(1) - times_BT).clamp(min=0)
    bucket_BT = torch.log2(1.0 + distance_BT.double()).long().clamp(max=TIME_BUCKETS - 1)
    return torch.nn.functional.pad(bucket_BT, (0, 1), value=TIME_BUCKETS)


class BST(nn.Module):
    """Fields and one pooled sequence a history, through a tower of LeakyReLU layers."""

    def __init__(self, config: BSTConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        require_history(schema, "bst")
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(schema, config.dim, config.tables, sequences="events")
            self.target = TargetEvents(schema, config.dim)
            self.sequences = nn.ModuleDict({h: Sequence(w, config) for h, w in self.embedder.event_width.items()})
            self.tower = MLP(_tower_width(config, schema), config.mlp, 1, dropout=config.dropout,
                             activation=nn.LeakyReLU)  # fmt: skip
        self.phases: Mapping[Stage, tuple[str, ...]] = {
            "embedding": ("embedder",), "interaction": tuple(f"sequences.{h}" for h in self.sequences),
            "dense": ("tower",),
        }  # fmt: skip

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        embedded = self.embedder(batch)
        fields_BFD = embedded.fields_BFD
        pooled = [
            sequence(embedded.events[h], self.target(fields_BFD, h), batch.time_B)
            for h, sequence in self.sequences.items()
        ]
        return self.tower(torch.cat([fields_BFD.flatten(1), *pooled], dim=1)).squeeze(1)


def _tower_width(config: BSTConfig, schema: FeatureSchema) -> int:
    lengths = history_lengths(schema)
    tokens = {h: lengths[h] + 1 if config.pool == "concat" else 1 for h in lengths}
    events = sum(tokens[h] * len(fields) for h, fields in schema.histories.items())
    return (len(schema.categorical) + len(schema.dense) + events) * config.dim


def card(config: BSTConfig) -> FidelityCard:
    """What follows the paper under `config`."""
    return FidelityCard(
        model="bst",
        paper="1905.06874",
        rows=(
            fixed("the candidate joins its history as one more token", "faithful", "2.1"),
            fixed("self-attention and LeakyReLU network, norm behind both residuals", "faithful", "2.2"),
            switched(config, "layers", 1, "one layer", "3.2", "more did not help there", "faithful"),
            switched(config, "positions", "time", "position: distance in time to the impression", "2.1",
                     "in powers of two of seconds, added to the token", "faithful"),
            switched(config, "pool", "concat", "all tokens side by side into the tower", "2.3", at="faithful"),
            fixed("candidate's event fields without a value", "adapted", "n/k",
                  "e.g. the action taken: one learned vector each"),
            fixed("sizes", "adapted", "3.2", "small preset sized for a CPU; the paper's tower is 1024-512-256, 8 heads",
                  f"dim={config.dim}, heads={config.heads}, mlp={config.mlp}"),
            fixed("optimizer", "adapted", "3.2", "Adam on dense weights, where the paper has Adagrad",
                  f"tables.optimizer={config.tables.optimizer}"),
        ),
    )  # fmt: skip


def flops(config: BSTConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """12C² a token and layer, attention over S = T + 1 tokens, the tower; `visible` counts real tokens alone."""
    full = visible = mlp_flops(_tower_width(config, schema), config.mlp, 1)
    padded = history_lengths(schema)
    for history, fields in schema.histories.items():
        width, top = len(fields) * config.dim, padded[history]
        full += config.layers * _layer_flops(width, top + 1)
        visible += config.layers * _layer_flops(width, min(top, (lengths or {}).get(history, top)) + 1)
    return Flops(full, visible)


def _layer_flops(width: int, tokens: float) -> float:
    return 12.0 * width * width * tokens + 4.0 * width * tokens * tokens


def published() -> tuple[Preset, ...]:
    """The paper's tower, heads and length; its widths are not known to us."""
    config = BSTConfig(dim=64, heads=8, mlp=(1024, 512, 256))
    note = "1905.06874: 20 events, 8 heads, tower 1024-512-256, one layer; embedding width ours"
    return (Preset(label="taobao_20", config=config, schema=taobao_like(20), note=note),)


SPEC = ModelSpec(
    name="bst",
    title="BST",
    family="transformer",
    paper="1905.06874",
    tracks=("sequence",),
    config=BSTConfig,
    build=BST,
    card=card,
    flops=flops,
    published=published,
    skip_reason={"tabular": "no behaviour history in the data"},
)

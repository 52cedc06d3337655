"""FAT, the Field-Aware Transformer: every field owns its weights, written from a few shared bases (2511.12081).

Composed weights depend on no sample: in training they are written once a step (`flops_per_step`, see
`composition_flops`), in eval mode without gradients once in all, until a parameter changes. Writing to a parameter's
`.data` goes unseen by autograd's version counter and so by that cache: call `train()` after it.

Dims: B batch, F fields, D width, H heads, k width of a meta-embedding
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ctrbench.datasets.published_schemas import criteo_x1
from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.compose import compose_cost
from ctrbench.models.blocks import FeatureEmbedder
from ctrbench.models.embedding import TableConfig
from ctrbench.models.fat_card import card
from ctrbench.models.fat_serving import request_flops, serving
from ctrbench.models.field_blocks import (
    BasisInit,
    FieldBlock,
    FieldInput,
    FieldWeights,
    FreeWeights,
    Hypernetwork,
    Residual,
    SumHead,
    block_flops,
)
from ctrbench.models.spec import Flops, ModelSpec, Preset, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class FatConfig:
    """Defaults are the `small` preset."""

    dim: int = 32
    """Embedding width."""
    width: int = 0
    """Token width d; 0 takes `dim`, another value adds a linear map a field."""
    hidden: int = 64
    """Width dff of the feed-forward part."""
    heads: int = 4
    layers: int = 2
    bases: int = 8
    """M; bases save parameters only while M is below the number of fields."""
    meta: int = 16
    """Width k of a field's meta-embedding."""
    top_k: int = 3
    """Bases K mixed for a field."""
    weights: Literal["composed", "on_the_fly"] = "composed"
    """`on_the_fly` applies every chosen basis to the activations: same values, K times the FLOPs a sample."""
    residual: Residual = "paper"
    """`paper` is the quoted equation, `pre2` and `post2` have a residual around each part."""
    prenorm: bool = True
    """LN0 before attention."""
    pair_init: Literal["one", "paper"] = "one"
    """1 + N(0, .01), or the literal N(0, .01), under which attention starts uniform."""
    pair_scope: Literal["layer", "head", "model"] = "layer"
    """Who owns a matrix of pair weights; `head` means each head of each layer."""
    basis_scope: Literal["layer", "model"] = "layer"
    """Who owns bases and routers."""
    out_proj: Literal["none", "shared", "field"] = "none"
    """Output projection of attention; `field` writes it from bases like the rest."""
    bias_site: Literal["input", "layer"] = "input"
    """Field bias once at the input, or one at every layer's input."""
    basis_init: BasisInit = "xavier"
    sequence: Literal["pooled"] = "pooled"
    """How a behaviour history enters: each sequence field mean-pooled into one more field token."""
    pairs: bool = True
    """Scores times a weight of the field pair; without, plain attention (ablation)."""
    qkv: Literal["own", "shared"] = "own"
    """Q, K and V of each field, or one for all (ablation)."""
    hypernetwork: bool = True
    """Weights from bases; without, each field learns its own (ablation)."""
    tables: TableConfig = field(default_factory=TableConfig)

    @property
    def d(self) -> int:
        """Token width."""
        return self.width or self.dim


class Fat(nn.Module):
    """Field tokens through blocks whose weights a hypernetwork writes; logit from the sum of tokens.

    Raises:
        ValueError: heads do not divide the width, top_k exceeds the bases, or residual and prenorm contradict.
    """

    def __init__(self, config: FatConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        self.config = config
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(schema, config.dim, config.tables, sequences=config.sequence)
            fields, d = self.embedder.num_fields, config.d
            self.inputs = FieldInput(fields, config.dim, d)
            sites = 1 if config.bias_site == "input" else config.layers
            self.bias_SFD = nn.Parameter(torch.zeros(sites, fields, d))
            self.meta_Fk = nn.Parameter(torch.randn(fields, config.meta), requires_grad=config.hypernetwork)
            heads = (config.heads,) if config.pair_scope == "head" else ()
            count = (1 if config.pair_scope == "model" else config.layers) if config.pairs else 0
            mean = float(config.pair_init == "one")
            self.pairs = nn.ParameterList(mean + 0.01 * torch.randn(*heads, fields, fields) for _ in range(count))
            self.hypernetworks = nn.ModuleList(
                _writer(config, fields) for _ in range(1 if config.basis_scope == "model" else config.layers)
            )
            self.out_maps = nn.ParameterList(
                nn.init.xavier_uniform_(torch.empty(d, d))
                for _ in range(config.layers if config.out_proj == "shared" else 0)
            )
            self.layers = nn.ModuleList(
                FieldBlock(d, config.heads, config.residual, config.prenorm) for _ in range(config.layers)
            )
            self.head = SumHead(d)
        self.phases: Mapping[Stage, tuple[str, ...]] = {
            "embedding": ("embedder",),
            "interaction": (
                *(f"hypernetworks.{i}" for i in range(len(self.hypernetworks))),
                *(f"layers.{i}" for i in range(config.layers)),
            ),
            "dense": ("inputs", "head"),
        }
        self._composition = composition_flops(config, schema)
        self._cache: tuple[tuple[int, ...], list[FieldWeights]] | None = None

    @property
    def flops_per_step(self) -> Flops:
        """Writing the weights; nothing in eval mode, where they were written before."""
        kept = not self.training and self.config.weights == "composed"
        return Flops(0.0, 0.0) if kept else self._composition

    def field_weights(self) -> list[FieldWeights]:
        """Weights of every block; cached in eval mode without gradients as long as no parameter changes."""
        if self.training or torch.is_grad_enabled() or self.config.weights == "on_the_fly":
            return self._write()
        version = tuple(p._version for p in (self.meta_Fk, *self.out_maps, *self.hypernetworks.parameters()))
        if self._cache is None or self._cache[0] != version:
            self._cache = (version, self._write())
        return self._cache[1]

    def _write(self) -> list[FieldWeights]:
        written: list[FieldWeights] = [net(self.meta_Fk) for net in self.hypernetworks]
        written = [written[i % len(written)] for i in range(self.config.layers)]
        if not self.out_maps:
            return written
        return [FieldWeights(w.qkv, w.up, w.down, m) for w, m in zip(written, self.out_maps, strict=True)]

    def train(self, mode: bool = True) -> Self:
        """Also forgets the cached weights."""
        self._cache = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._cache = None
        return super()._apply(fn, recurse)

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        weights = self.field_weights()
        z_FBD = self.inputs(self.embedder(batch).fields_BFD)
        for i, layer in enumerate(self.layers):
            if i < len(self.bias_SFD):
                z_FBD = z_FBD + self.bias_SFD[i].unsqueeze(1)
            z_FBD = layer(z_FBD, weights[i], self.pairs[i % len(self.pairs)] if len(self.pairs) else None)
        return self.head(z_FBD)


def _writer(config: FatConfig, fields: int) -> nn.Module:
    """What gives a block its weights."""
    own_out, shared = config.out_proj == "field", config.qkv == "shared"
    if not config.hypernetwork:
        return FreeWeights(fields, config.d, config.hidden, out_proj=own_out, shared_qkv=shared)
    return Hypernetwork(
        config.d, config.hidden, config.bases, config.meta, config.top_k, out_proj=own_out, init=config.basis_init,
        composed=config.weights == "composed", shared_qkv=shared,
    )  # fmt: skip


def flops(config: FatConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Blocks, field map and head of one sample; no mask, and pooled histories are gathers, so lengths do not matter.

    Writing the weights is not in it: `composition_flops` counts that once a step.
    """
    fields, d = len(schema.fields), config.d
    block = block_flops(fields, d, config.hidden, out_proj=config.out_proj != "none")
    if config.weights == "on_the_fly" and config.hypernetwork:
        block += 2 * fields * _written(config) * (config.top_k - 1)
    total = config.layers * block + 2 * d + (2 * fields * config.dim * d if config.dim != d else 0)
    return Flops(float(total), float(total))


def _written(config: FatConfig) -> int:
    """Weights that a hypernetwork writes for a field."""
    squares = (0 if config.qkv == "shared" else 3) + (config.out_proj == "field")
    return squares * config.d**2 + 2 * config.d * config.hidden


def composition_flops(config: FatConfig, schema: FeatureSchema) -> Flops:
    """Writing the weights, once a step whatever the batch: `full` as executed, `visible` useful.

    Useful is 2FK(3d² + 2d·dff) + 10FkM a written block; the dense product that runs (see `compose_dense`) takes M
    in the place of K. On the fly only the routers run.
    """
    if not config.hypernetwork:
        return Flops(0.0, 0.0)
    fields, weights = len(schema.fields), _written(config)
    maps = (2 if config.qkv == "shared" else 5) + (config.out_proj == "field")
    router = 2.0 * maps * fields * config.meta * config.bases
    blocks = 1 if config.basis_scope == "model" else config.layers
    if config.weights == "on_the_fly":
        return Flops(blocks * router, blocks * router)
    full, useful = (compose_cost(fields, config.bases, config.top_k, weights, useful=u).flops for u in (False, True))
    return Flops(blocks * (full + router), blocks * (useful + router))


def published() -> tuple[Preset, ...]:
    """A sweep of widths: no source gives FAT's sizes. d=128 is one re-implementation's defaults, with M=64."""
    note = "point of a sweep of widths, dff=4d: no source gives FAT's sizes; "
    out = []
    for d in (128, 256, 512, 1024):
        config = FatConfig(dim=d, hidden=4 * d, heads=8, layers=2, bases=64 if d == 128 else 16, meta=64, top_k=3)
        own = "defaults of one re-implementation" if d == 128 else "16 bases, fewer than the 39 fields"
        out.append(Preset(label=f"d{d}", config=config, schema=criteo_x1(), note=note + own))
    return tuple(out)


SPEC = ModelSpec(
    name="fat",
    title="FAT",
    family="transformer",
    paper="2511.12081",
    tracks=("tabular", "sequence"),
    config=FatConfig,
    build=Fat,
    card=card,
    flops=flops,
    published=published,
    serving=serving,
    request_flops=request_flops,
)

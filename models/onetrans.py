"""OneTrans: one causal transformer over behaviour events and all other features (2510.26104 v3).

S-tokens (events) share one weight set, every NS-token (other features) owns one; a pyramid lets ever fewer of the
newest S-tokens ask. Padding S-tokens see only themselves and nobody sees them. What the last layer computes for
S-tokens reaches no output unless a later layer reads it: its shared query and feed-forward weights get no gradient.

Dims: B batch, S sequence tokens, N NS-tokens, Q queries, I all tokens, D width, H heads, d head width
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ctrbench.datasets.published_schemas import taobao_like
from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.models.blocks import FeatureEmbedder, mlp_flops
from ctrbench.models.embedding import TableConfig
from ctrbench.models.histories import Positions, history_lengths, no_padding
from ctrbench.models.onetrans_blocks import (
    Head,
    NormScope,
    OneTransHead,
    OneTransLayer,
    OutProj,
    Pyramid,
    block_flops,
    causal_mask,
    kept_tokens,
)
from ctrbench.models.onetrans_card import card
from ctrbench.models.onetrans_serving import forms
from ctrbench.models.onetrans_tokens import (
    Activation,
    AutoFields,
    EventTokens,
    Fusion,
    GroupFields,
    event_flops,
    field_groups,
    separators,
)
from ctrbench.models.spec import Flops, ModelSpec, Preset, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class OneTransConfig:  # options of its own paper; like FatConfig in form alone
    """Defaults are the `small` preset; L_S is the padded length of the histories (and [SEP] tokens)."""

    dim: int = 16
    """Embedding width."""
    width: int = 32
    """Token width d."""
    layers: int = 3
    heads: int = 4
    l_ns: int = 4
    """NS-tokens of `ns=auto`; `ns=group` makes one a group."""
    ffn_mult: int = 4
    """Hidden width of the feed-forward part over d."""
    ns: Literal["auto", "group"] = "auto"
    """One MLP over all fields cut into tokens, or one MLP a hand-made group."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Field names of each group for `ns=group`; empty makes one group a role."""
    ns_hidden: Literal["d", "full"] = "d"
    """Hidden width of the `auto` MLP: d, or L_NS·d."""
    fusion: Fusion = "time"
    """Histories merged by time, or grouped by intent with [SEP] between."""
    pyramid: Pyramid = "full_first"
    """Queries fall linearly from L_S to L_NS, from the first layer at full length or already shrunk; or stay."""
    round: int = 1
    """Kept tokens are rounded up to a multiple of this (32 in the paper)."""
    mask: Literal["causal", "full"] = "causal"
    pos: Positions = "learned_from_start"
    act: Activation = "gelu"
    out_proj: OutProj = "shared"
    """Output projection of attention: one for all tokens, S shared and own a NS-token, or none."""
    norm: NormScope = "shared"
    """Gain of the RMS norms: one for all tokens, or own a NS-token."""
    ns_weights: Literal["own", "shared"] = "own"
    """Maps of each NS-token, or those of S-tokens for all (ablation)."""
    head: Head = "flatten"
    """How NS-tokens meet the head."""
    tables: TableConfig = field(default_factory=TableConfig)


class OneTrans(nn.Module):
    """Two tokenizers, a stack of mixed layers and a head. Without histories it runs on NS-tokens alone (`ns_only`).

    Raises:
        ValueError: heads do not divide the width, groups do not fit the schema, or intent has nothing to group by.
    """

    def __init__(self, config: OneTransConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        self.config, self.schema = config, schema
        l_s, l_ns = sequence_tokens(config, schema), ns_tokens(config, schema)
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(schema, config.dim, config.tables, sequences="events")
            if l_s:
                self.event_tokens = EventTokens(
                    schema, self.embedder.event_width, config.width, config.fusion, config.pos, config.act
                )
            self.field_tokens = _field_tokens(config, schema)
            self.layers = nn.ModuleList(
                OneTransLayer(
                    config.width, config.heads, l_ns, kept, ffn_mult=config.ffn_mult, act=config.act, norm=config.norm,
                    out_proj=config.out_proj, causal=config.mask == "causal", sequence=l_s > 0,
                    tied=config.ns_weights == "shared",
                )
                for kept in kept_tokens(config.pyramid, config.layers, l_s, l_ns, config.round)
            )  # fmt: skip
            self.head = OneTransHead(config.width, l_ns, config.head)
        self.phases: Mapping[Stage, tuple[str, ...]] = {
            "embedding": ("embedder",),
            "interaction": tuple(f"layers.{i}" for i in range(config.layers)),
            "dense": (*(("event_tokens",) if l_s else ()), "field_tokens", "head"),
        }

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        embedded = self.embedder(batch)
        n_BND = self.field_tokens(embedded.fields_BFD)
        s_BSD, mask = None, None
        if embedded.events:
            s_BSD, valid_BS = self.event_tokens(embedded.events)
            if not no_padding(batch, self.schema):
                mask = causal_mask(valid_BS, n_BND.shape[1], self.config.mask == "causal", n_BND.dtype)
        for layer in self.layers:
            s_BSD, n_BND = layer(s_BSD, n_BND, mask)
        return self.head(n_BND)


def _field_tokens(config: OneTransConfig, schema: FeatureSchema) -> nn.Module:
    if config.ns == "group":
        return GroupFields(field_groups(schema, config.groups), config.dim, config.width, config.act)
    inputs = (len(schema.categorical) + len(schema.dense)) * config.dim
    return AutoFields(inputs, config.l_ns, config.width, _ns_hidden(config), config.act)


def _ns_hidden(config: OneTransConfig) -> int:
    return config.width * (config.l_ns if config.ns_hidden == "full" else 1)


def sequence_tokens(config: OneTransConfig, schema: FeatureSchema) -> int:
    """L_S: padded events of all histories and [SEP] tokens."""
    return sum(history_lengths(schema).values()) + separators(schema, config.fusion)


def ns_tokens(config: OneTransConfig, schema: FeatureSchema) -> int:
    """L_NS."""
    return config.l_ns if config.ns == "auto" else len(field_groups(schema, config.groups))


def flops(config: OneTransConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Tokenizers, blocks (see `onetrans_blocks.block_flops`) and head of one sample.

    `full` is the padded rectangle that dense kernels execute, whatever the lengths; `visible` the real tokens.
    """
    padded = history_lengths(schema)
    real = padded if lengths is None else {h: min(lengths[h], t) for h, t in padded.items()}
    d, l_s, l_ns = config.width, sequence_tokens(config, schema), ns_tokens(config, schema)
    if config.ns == "auto":
        inputs = (len(schema.categorical) + len(schema.dense)) * config.dim
        fixed = mlp_flops(inputs, (_ns_hidden(config),), l_ns * d)
    else:
        fixed = sum(mlp_flops(len(g) * config.dim, (d,), d) for g in field_groups(schema, config.groups))
    fixed += mlp_flops((l_ns if config.head == "flatten" else 1) * d, (d,), 1)
    kept = kept_tokens(config.pyramid, config.layers, l_s, l_ns, config.round)
    valid = sum(real.values()) + separators(schema, config.fusion)
    blocks = block_flops(
        d,
        kept,
        l_s,
        l_ns,
        valid,
        ffn_mult=config.ffn_mult,
        out_proj=config.out_proj != "none",
        causal=config.mask == "causal",
    )
    full, useful = (event_flops(schema, config.dim, d, n) for n in (padded, real))
    return Flops(full + fixed, useful + fixed) + blocks


def request_flops(
    config: OneTransConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None, count: int = 1
) -> tuple[float, float]:
    """FLOPs that `reuse` of serving executes: (once a request, for each candidate); of `lengths` events, or all."""
    padded, d, l_ns = history_lengths(schema), config.width, ns_tokens(config, schema)
    real = padded if lengths is None else {h: min(lengths[h], t) for h, t in padded.items()}
    item = [f.role == "item" for f in (*schema.categorical, *schema.dense)]
    groups = [list(range(len(item)))] if config.ns == "auto" else field_groups(schema, config.groups)
    hidden, out = (_ns_hidden(config), l_ns * d) if config.ns == "auto" else (d, d)
    user, candidate = (
        event_flops(schema, config.dim, d, real),
        mlp_flops((l_ns if config.head == "flatten" else 1) * d, (d,), 1),
    )
    for group in groups:
        own = sum(item[i] for i in group)
        user += 2.0 * (len(group) - own) * config.dim * hidden + (0 if own else 2.0 * hidden * out)
        candidate += (2.0 * own * config.dim * hidden + 2.0 * hidden * out) if own else 0
    asking = ((4 if config.out_proj != "none" else 2) + 4 * config.ffn_mult) * d**2
    inside = sum(real.values()) + separators(schema, config.fusion)
    for i, kept in enumerate(
        kept_tokens(config.pyramid, config.layers, sequence_tokens(config, schema), l_ns, config.round)
    ):
        q = min(kept, inside) if i < config.layers - 1 else 0
        user += 4.0 * d**2 * inside + asking * q + 4.0 * d * q * inside
        candidate += (4.0 * d**2 + asking) * l_ns + 4.0 * d * l_ns * (inside + l_ns)
        inside = q
    return user, candidate


def published() -> tuple[Preset, ...]:
    """OneTrans-S and -L (section 4.1); features, embedding width and the heads of L are ours."""
    note = "layers, width, lengths and tokens of the paper; feature set and embedding width ours"
    small = OneTransConfig(dim=64, width=256, layers=6, heads=4, l_ns=12)
    large = OneTransConfig(dim=64, width=384, layers=8, heads=6, l_ns=16)
    return (
        Preset(label="S", config=small, schema=taobao_like(1190), note=note),
        Preset(label="L", config=large, schema=taobao_like(1500), note=note + "; 6 heads as Primus"),
    )


SPEC = ModelSpec(
    name="onetrans",
    title="OneTrans",
    family="transformer",
    paper="2510.26104",
    tracks=("sequence",),
    config=OneTransConfig,
    build=OneTrans,
    card=card,
    flops=flops,
    published=published,
    serving=forms,
    request_flops=request_flops,
    skip_reason={"tabular": "no S-tokens; variant ns_only enters no verdict"},
)

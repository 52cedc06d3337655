"""Control: a plain pre-norm GPT decoder over the events, then one token for all other fields (claim S20).

What any language-model block costs and reaches in this harness; every figure is read against it. Nothing is tuned to
CTR: LayerNorm, fused QKV, GELU feed-forward of ratio 4, learned positions, biases, logit from the last token.

Dims: B batch, T events, S all tokens (T + 1), D width, H heads, d head width
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ctrbench.datasets.published_schemas import taobao_like
from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.attention import attention, visible_pairs
from ctrbench.kernels.linear import Linear, linear
from ctrbench.models.blocks import Embedded, FeatureEmbedder
from ctrbench.models.embedding import TableConfig
from ctrbench.models.histories import history_lengths, merge_by_time, no_padding, ordinals
from ctrbench.models.onetrans_blocks import causal_mask
from ctrbench.models.spec import CardRow, FidelityCard, Flops, ModelSpec, Preset, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class GptBlockConfig:
    """Defaults are the `small` preset."""

    dim: int = 16
    """Embedding width."""
    width: int = 32
    """Token width d."""
    layers: int = 2
    heads: int = 2
    tables: TableConfig = field(default_factory=TableConfig)


class GptTokens(nn.Module):
    """Events (one linear map a history, merged by time) and one token for all other fields, with learned positions."""

    def __init__(self, schema: FeatureSchema, widths: Mapping[str, int], dim: int, width: int) -> None:
        super().__init__()
        self.events = nn.ModuleDict({h: Linear(e, width) for h, e in widths.items()})
        self.fields = Linear((len(schema.categorical) + len(schema.dense)) * dim, width)
        self.positions = nn.Embedding(sum(history_lengths(schema).values()) + 1, width)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, embedded: Embedded) -> tuple[Tensor, Tensor]:
        """(tokens [B, S, D], which are real [B, S]), left-padded."""
        x_BSD = self.fields(embedded.fields_BFD.flatten(1)).unsqueeze(1)
        valid_BS = torch.ones(x_BSD.shape[:2], dtype=torch.bool, device=x_BSD.device)
        if embedded.events:
            events = embedded.events
            tokens = [self.events[h](e.values_BTE) for h, e in events.items()]
            history_BTD, real_BT = merge_by_time(
                tokens, [e.times_BT for e in events.values()], [e.mask_BT for e in events.values()]
            )
            x_BSD, valid_BS = torch.cat([history_BTD, x_BSD], dim=1), torch.cat([real_BT, valid_BS], dim=1)
        return x_BSD + self.positions(ordinals(valid_BS)), valid_BS


class GptLayer(nn.Module):
    """Pre-norm decoder layer, [B, S, D] -> [B, S, D].

    Raises:
        ValueError: heads do not divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width {width}; choose a divisor")
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = Linear(width, 3 * width), Linear(width, width)
        self.up, self.down = Linear(width, 4 * width), Linear(4 * width, width)

    def forward(self, x_BSD: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` is added to the scores and holds the triangle; None is causal without padding."""
        return self.after(x_BSD, attention(*self.parts(x_BSD), mask, causal=mask is None))

    def parts(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [B, H, S, d]."""
        q_BHSd, k_BHSd, v_BHSd = self.qkv(self.norm1(x_BSD)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q_BHSd, k_BHSd, v_BHSd

    def memory(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values alone: all that later tokens need of these in the last layer."""
        width, bias_E = x_BSD.shape[2], self.qkv.bias
        kv_BSE = linear(self.norm1(x_BSD), self.qkv.weight[width:], bias_E[width:])
        k_BHSd, v_BHSd = kv_BSE.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k_BHSd, v_BHSd

    def after(self, x_BSD: Tensor, out_BHSd: Tensor) -> Tensor:
        """What follows the attention whose result is given."""
        x_BSD = x_BSD + self.out(out_BHSd.transpose(1, 2).flatten(2))
        return x_BSD + self.down(gelu(self.up(self.norm2(x_BSD))))


class LastToken(nn.Module):
    """Final norm and linear layer of the last token, [B, S, D] -> [B]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), Linear(width, 1)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.linear(self.norm(x_BSD[:, -1])).squeeze(1)


class GptBlock(nn.Module):
    """Tokens, decoder layers, logit of the last token."""

    def __init__(self, config: GptBlockConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        self.schema = schema
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(schema, config.dim, config.tables, sequences="events")
            self.tokens = GptTokens(schema, self.embedder.event_width, config.dim, config.width)
            self.layers = nn.ModuleList(GptLayer(config.width, config.heads) for _ in range(config.layers))
            self.head = LastToken(config.width)
        self.phases: Mapping[Stage, tuple[str, ...]] = {
            "embedding": ("embedder",),
            "interaction": tuple(f"layers.{i}" for i in range(config.layers)),
            "dense": ("tokens", "head"),
        }

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        x_BSD, valid_BS = self.tokens(self.embedder(batch))
        mask = None if no_padding(batch, self.schema) else causal_mask(valid_BS, 0, True, x_BSD.dtype)
        for layer in self.layers:
            x_BSD = layer(x_BSD, mask)
        return self.head(x_BSD)


def card(config: GptBlockConfig) -> FidelityCard:
    """A control has no paper to follow."""
    return FidelityCard(
        model="gpt_block",
        paper="none (control)",
        rows=(
            CardRow(mechanism="pre-norm causal decoder: fused QKV, GELU ratio 4, learned positions", status="faithful",
                    section="n/k", note="the common form; no choice of it is tuned to CTR"),
            CardRow(mechanism="inputs", status="adapted", section="n/k",
                    note="event vectors through one linear map; all other fields in one last token"),
            CardRow(mechanism="objective", status="adapted", section="n/k",
                    note="one logit from the last token, no next-token loss"),
            CardRow(mechanism="sizes", status="unknown", section="n/k",
                    switch=f"width={config.width}, layers={config.layers}, heads={config.heads}", note="ours"),
        ),
    )  # fmt: skip


def flops(config: GptBlockConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """24d² a token and layer, attention over S = T + 1 tokens, the two token maps and the last token's logit.

    `full` is the padded square, `visible` the real tokens under the triangle.
    """
    d, padded = config.width, history_lengths(schema)
    real = padded if lengths is None else {h: min(lengths[h], t) for h, t in padded.items()}
    fixed = 2.0 * (len(schema.categorical) + len(schema.dense)) * config.dim * d + 2 * d

    def count(events: Mapping[str, int], causal: bool) -> float:
        tokens = sum(events.values()) + 1
        maps = sum(2 * events[h] * len(fs) * config.dim * d for h, fs in schema.histories.items())
        pairs = visible_pairs(tokens, tokens) if causal else tokens**2
        return fixed + maps + config.layers * (24 * d * d * tokens + 4 * d * pairs)

    return Flops(count(padded, False), count(real, True))


def published() -> tuple[Preset, ...]:
    """A sweep of widths, 8 layers over 1024 events: the normaliser of S20, no one's published model."""
    return tuple(
        Preset(label=f"d{d}", config=GptBlockConfig(dim=64, width=d, layers=8, heads=d // 64), schema=taobao_like(1024),
               note="point of a sweep of widths, 8 layers, 1024 events, heads of 64: a control, sizes ours")
        for d in (256, 512, 1024, 2048)
    )  # fmt: skip


SPEC = ModelSpec(
    name="gpt_block",
    title="Plain GPT block (control)",
    family="transformer",
    control=True,
    paper="none (control)",
    tracks=("sequence",),
    config=GptBlockConfig,
    build=GptBlock,
    card=card,
    flops=flops,
    published=published,
    skip_reason={"tabular": "no event sequence to decode"},
)

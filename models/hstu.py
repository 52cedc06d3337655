"""HSTU: history and candidate through gated attention without softmax; the candidate's row is the logit (2402.17152).

Tokens: one of the user's fields, the events, then the candidates. A candidate sees all before it and itself, never
another one, and all stand in one place, so that any number of them may share a history (M-FALCON).

Dims: B batch, T padded history length, M candidates, N = 1 + T + M tokens, D width
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ctrbench.datasets.published_schemas import taobao_like
from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.linear import Linear
from ctrbench.models.blocks import Embedded, FeatureEmbedder
from ctrbench.models.embedding import TableConfig
from ctrbench.models.histories import TargetEvents, history_lengths, merge_by_time, ordinals, require_history
from ctrbench.models.hstu_card import card
from ctrbench.models.hstu_layers import Bias, Flavour, HstuLayer, Places, layer_flops, seen
from ctrbench.models.hstu_retriever import RETRIEVER
from ctrbench.models.hstu_serving import forms, request_flops
from ctrbench.models.spec import Flops, ModelSpec, Preset, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class HstuConfig:
    """Defaults are the `small` preset."""

    dim: int = 16
    """Embedding width."""
    width: int = 32
    """Token width d."""
    layers: int = 2
    heads: int = 2
    qk: int = 16
    """Width of a head's queries and keys."""
    v: int = 16
    """Width of a head's values."""
    flavour: Flavour = "research"
    rab: Bias = "pos_time"
    """Relative bias of the research flavour; `production` adds positions to its inputs."""
    concat_ua: bool = False
    stoch_alpha: float = 0.0
    """Above 0: in training a history of n events is cut to its newest N^(alpha/2) with probability 1 - N^alpha / n²."""
    dropout: float = 0.0
    tables: TableConfig = field(default_factory=TableConfig)

    def __post_init__(self) -> None:
        for name, allowed in (("flavour", ("research", "production")), ("rab", ("pos_time", "pos", "none"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: use {', '.join(allowed)}")
        if not 0 <= self.stoch_alpha <= 2:
            raise ValueError(f"stoch_alpha={self.stoch_alpha}: must be between 0 (off) and 2")


class HstuTokens(nn.Module):
    """The user's fields to one token, events and candidate to one each, by the same map; the candidate's other fields
    are added to it.
    """

    def __init__(self, schema: FeatureSchema, widths: Mapping[str, int], config: HstuConfig, longest: int) -> None:
        super().__init__()
        d, dim = config.width, config.dim
        fields = [*schema.categorical, *schema.dense]
        self.user = [i for i, f in enumerate(fields) if f.role == "user"]
        self.rest = [i for i, f in enumerate(fields) if f.role != "user"]
        self.events = nn.ModuleDict({h: Linear(e, d) for h, e in widths.items()})
        self.prefix, self.target_fields = Linear(len(self.user) * dim, d), Linear(len(self.rest) * dim, d)
        self.target = TargetEvents(schema, dim)
        self.positions = nn.Embedding(longest, d) if config.flavour == "production" else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)

    def before(self, embedded: Embedded, time_B: Tensor) -> tuple[Tensor, Tensor, Places]:
        """(user and events [B, 1 + T, D], which are real, their places)."""
        events = embedded.events
        tokens = [self.events[h](e.values_BTE) for h, e in events.items()]
        times = [e.times_BT for e in events.values()]
        x_BTD, real_BT = merge_by_time(tokens, times, [e.mask_BT for e in events.values()])
        stamps, _ = merge_by_time([t.unsqueeze(2) for t in times], times, [e.mask_BT for e in events.values()])
        time_BT = stamps.squeeze(2)
        user_BD = self.prefix(embedded.fields_BFD[:, self.user].flatten(1))
        # the user stands before the oldest event, and at its time
        now_B1 = time_B.unsqueeze(1)
        first_B1 = torch.cat([torch.where(real_BT, time_BT, now_B1), now_B1], dim=1).amin(dim=1, keepdim=True)
        time_BN = torch.cat([first_B1, time_BT], dim=1)
        ordinal_BN = torch.nn.functional.pad(ordinals(real_BT) + 1, (1, 0))
        after_BN = torch.cat([time_BN[:, 1:], now_B1], dim=1)
        # before a left-padded history comes padding: the user's next event is the oldest real one
        after_BN = torch.cat([first_B1, after_BN[:, 1:]], dim=1)
        x_BND = torch.cat([user_BD.unsqueeze(1), x_BTD], dim=1)
        if self.positions is not None:
            x_BND = x_BND + self.positions(ordinal_BN)
        return x_BND, torch.nn.functional.pad(real_BT, (1, 0), value=True), Places(ordinal_BN, time_BN, after_BN)

    def candidates(self, embedded: Embedded, real_BN: Tensor, time_B: Tensor) -> tuple[Tensor, Places]:
        """([B, 1, D], their places): behind the newest event, at the time of the request."""
        parts = [m(self.target(embedded.fields_BFD, h)) for h, m in self.events.items()]
        rest_BD = self.target_fields(embedded.fields_BFD[:, self.rest].flatten(1))
        x_B1D = (rest_BD + torch.stack(parts).sum(dim=0)).unsqueeze(1)
        place_B1, time_B1 = real_BN.sum(dim=1, keepdim=True), time_B.unsqueeze(1)
        if self.positions is not None:
            x_B1D = x_B1D + self.positions(place_B1)
        return x_B1D, Places(place_B1, time_B1, time_B1)


class Hstu(nn.Module):
    """Tokens, layers, norm and linear layer of the candidate's row."""

    def __init__(self, config: HstuConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        require_history(schema, "hstu")
        self.alpha = config.stoch_alpha
        self.longest = sum(history_lengths(schema).values()) + 2
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(schema, config.dim, config.tables, sequences="events")
            self.tokens = HstuTokens(schema, self.embedder.event_width, config, self.longest)
            self.layers = nn.ModuleList(
                HstuLayer(config.width, config.heads, config.qk, config.v, self.longest, flavour=config.flavour,
                          bias=config.rab, concat_ua=config.concat_ua, dropout=config.dropout)
                for _ in range(config.layers)
            )  # fmt: skip
            self.head = nn.Sequential(nn.LayerNorm(config.width), Linear(config.width, 1))
        self.phases: Mapping[Stage, tuple[str, ...]] = {
            "embedding": ("embedder",),
            "interaction": tuple(f"layers.{i}" for i in range(config.layers)),
            "dense": (
                "tokens.prefix",
                "tokens.target_fields",
                *(f"tokens.events.{h}" for h in schema.histories),
                "head",
            ),
        }

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        embedded = self.embedder(batch)
        x_BND, real_BN, places = self.tokens.before(embedded, batch.time_B)
        if self.training and self.alpha:
            real_BN = shorten(real_BN, self.alpha)
        target_B1D, at = self.tokens.candidates(embedded, real_BN, batch.time_B)
        x_BND = torch.cat([x_BND, target_B1D], dim=1)
        joined = Places(*(torch.cat(pair, dim=1) for pair in zip(_of(places), _of(at), strict=True)))
        seen_BNN = seen(real_BN, 1)
        for layer in self.layers:
            x_BND, _ = layer(x_BND, seen_BNN, joined)
        return self.head(x_BND[:, -1]).squeeze(1)


def _of(places: Places) -> tuple[Tensor, Tensor, Tensor]:
    return places.ordinal_BN, places.time_BN, places.next_BN


def shorten(real_BN: Tensor, alpha: float) -> Tensor:
    """Stochastic length: of a history of n events under N at most, the newest N^(alpha/2) with probability
    1 - N^alpha / n². The user's token in front stays.
    """
    longest = real_BN.shape[1] - 1
    kept = max(1, int(longest ** (alpha / 2)))
    n_B = real_BN[:, 1:].sum(dim=1)
    chance_B = 1 - longest**alpha / n_B.clamp(min=1).square()
    cut_B = (n_B > kept) & (torch.rand(n_B.shape, device=n_B.device) < chance_B)
    newest_N = torch.arange(longest + 1, device=n_B.device) > longest - kept
    newest_N[0] = True
    return real_BN & (newest_N | ~cut_B.unsqueeze(1))


def flops(config: HstuConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Maps, layers and head; `full` is the padded square, `visible` the pairs that the mask leaves of real tokens."""
    d, dim, padded = config.width, config.dim, history_lengths(schema)
    real = padded if lengths is None else {h: min(lengths[h], t) for h, t in padded.items()}
    fields = len(schema.categorical) + len(schema.dense)
    concat = config.concat_ua or config.flavour == "production"
    sizes = (d, config.heads, config.qk, config.v)

    def count(events: Mapping[str, int], masked: bool) -> float:
        n = sum(events.values())
        maps = sum(2.0 * (events[h] + 1) * len(fs) * dim * d for h, fs in schema.histories.items())
        pairs = n * (n + 1) / 2 + n + (n + 1) + (n + 2) if masked else (n + 2.0) ** 2
        layer = layer_flops(*sizes, n + 2, pairs, concat)
        return 2.0 * fields * dim * d + maps + config.layers * layer + 2.0 * d

    return Flops(count(padded, False), count(real, True))


def published() -> tuple[Preset, ...]:
    """Sizes of the public configurations, on the features of Taobao for want of theirs."""
    sizes = {"ml20m": (256, 4, 4, 64), "ml20m_large": (256, 16, 8, 32)}
    note = "width, blocks, heads as in the public gin file of MovieLens-20M; features and 200 events of Taobao's kind"
    return tuple(
        Preset(label=label, schema=taobao_like(200), note=note,
               config=HstuConfig(dim=64, width=d, layers=layers, heads=heads, qk=w, v=w))
        for label, (d, layers, heads, w) in sizes.items()
    )  # fmt: skip


SPEC = ModelSpec(  # spelt out in every model file: each is read alone
    name="hstu",
    title="HSTU",
    family="transformer",
    paper="2402.17152",
    tracks=("sequence",),
    config=HstuConfig,
    build=Hstu,
    card=card,
    flops=flops,
    published=published,
    retriever=RETRIEVER,
    serving=forms,
    request_flops=request_flops,
    skip_reason={"tabular": "no behaviour history in the data"},
)

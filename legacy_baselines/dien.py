"""DIEN: interests extracted from the history by a GRU and evolved towards the target by a second one whose update gate
follows attention (1809.03672).

Dims: B batch, T history length, C width of an event and of every state, E width of all interests together
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ctrbench.datasets.published_schemas import taobao_ad_x1
from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.augru import CELLS, Cell, augru, gru_flops
from ctrbench.kernels.linear import Linear
from ctrbench.legacy_baselines.interest import (
    ActivationUnit,
    Interests,
    UnitConfig,
    View,
    layers,
    masked_softmax,
    weights_flops,
)
from ctrbench.models.blocks import FeatureEmbedder, mlp_flops
from ctrbench.models.cards import fixed, switched
from ctrbench.models.embedding import TableConfig
from ctrbench.models.histories import require_history
from ctrbench.models.spec import FidelityCard, Flops, ModelSpec, Preset, Stage

ATTENTIONS = ("din", "bilinear", "dot")


@dataclass(frozen=True, kw_only=True, slots=True)
class DIENConfig(UnitConfig):
    """Defaults are the `small` preset: wider than the design's least (8, 64-32), so that the baseline is not weak."""

    dim: int = 16
    """Embedding width."""
    mlp: tuple[int, ...] = (128, 64)
    """Hidden widths of the tower."""
    dropout: float = 0.0
    tower_act: Literal["dice", "relu"] = "dice"
    softmax: bool = True
    att: Literal["din", "bilinear", "dot"] = "din"
    """How a state meets the target: DIN's unit, q W s, or q s."""
    cell: Cell = "augru"
    """Where the attention weight acts in the second GRU."""
    aux: float = 0.0
    """Weight of the auxiliary loss."""
    missing_vector: bool = True
    """Learn one vector a dense field for missing values."""
    tables: TableConfig = field(default_factory=TableConfig)

    def __post_init__(self) -> None:
        UnitConfig.__post_init__(self)  # slots: the class that zero-argument super() remembers is not this one
        for name, allowed in (("att", ATTENTIONS), ("cell", CELLS), ("tower_act", ("dice", "relu"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: use {', '.join(allowed)}")
        if self.aux < 0:
            raise ValueError(f"aux={self.aux}: must not be negative")


class EvolvingInterest(nn.Module):
    """Last state of the second GRU over the states of the first, [B, C].

    Args:
        width: C, of events, states and target.
        config: sizes and switches.
    """

    def __init__(self, width: int, config: DIENConfig) -> None:
        super().__init__()
        self.extraction = nn.GRU(width, width, batch_first=True)
        self.att, self.cell, self.softmax = config.att, config.cell, config.softmax
        self.unit = ActivationUnit(width, config) if config.att == "din" else None
        self.meet_CC = nn.Parameter(torch.randn(width, width) / width**0.5) if config.att == "bilinear" else None
        second = nn.GRUCell(width, width)  # its start and its shapes; the recurrence is ours
        self.w_ih, self.w_hh, self.b_ih, self.b_hh = second.weight_ih, second.weight_hh, second.bias_ih, second.bias_hh
        self.keep_loss = config.aux > 0
        self.auxiliary: Tensor | None = None
        """Auxiliary loss of the last forward in training."""

    def forward(self, q_BC: Tensor, events_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """Zero where the history is empty, whatever stands on padding."""
        events_BTC, mask_BT = to_front(events_BTC, mask_BT)
        states_BTC, _ = self.extraction(events_BTC)  # padding comes last: no real state has seen it
        if self.keep_loss and self.training:
            self.auxiliary = auxiliary_loss(states_BTC, events_BTC, mask_BT)
        a_BT = self._weights(q_BC, states_BTC, mask_BT)
        return augru(states_BTC, a_BT, mask_BT, self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.cell)

    def _weights(self, q_BC: Tensor, states_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        if self.unit is not None:
            return self.unit.weights(q_BC, states_BTC, mask_BT)
        seen_BC = q_BC if self.meet_CC is None else q_BC @ self.meet_CC
        a_BT = torch.bmm(states_BTC, seen_BC.unsqueeze(2)).squeeze(2)
        return masked_softmax(a_BT, mask_BT) if self.softmax else a_BT * mask_BT


def to_front(events_BTC: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Left-padded events moved to the front, padding behind them."""
    steps = mask_BT.shape[1]
    at_T = torch.arange(steps, device=mask_BT.device)
    lengths_B1 = mask_BT.sum(dim=1, keepdim=True)
    from_BT = (at_T + steps - lengths_B1) % steps
    return events_BTC.gather(1, from_BT.unsqueeze(2).expand_as(events_BTC)), at_T < lengths_B1


def auxiliary_loss(states_BTC: Tensor, events_BTC: Tensor, mask_BT: Tensor) -> Tensor:
    """A state should tell the event that follows it from another user's event in that place (section 4.2).

    Mean of -log s(s_t e_{t+1}) - log(1 - s(s_t e'_{t+1})) over the places that are real for both users; the other user
    is the one a random number of rows further on. Zero if there is no such place.
    """
    rows = states_BTC.shape[0]
    shift = int(torch.randint(1, max(2, rows), (1,), device="cpu"))
    real_BT = mask_BT[:, 1:] & mask_BT.roll(shift, 0)[:, 1:]
    next_BTC = events_BTC[:, 1:]
    scores = [(states_BTC[:, :-1] * e_BTC).sum(dim=2) for e_BTC in (next_BTC, next_BTC.roll(shift, 0))]
    lost_BT = -logsigmoid(scores[0]) - logsigmoid(-scores[1])
    return (lost_BT * real_BT).sum() / real_BT.sum().clamp(min=1)


class DIEN(nn.Module):
    """Fields and one evolved interest a history, through a tower."""

    phases: Mapping[Stage, tuple[str, ...]] = {
        "embedding": ("embedder",), "interaction": ("interests",), "dense": ("tower",),
    }  # fmt: skip

    def __init__(self, config: DIENConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        require_history(schema, "dien")
        self.aux = config.aux
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(
                schema, config.dim, config.tables, sequences="events", missing_vector=config.missing_vector
            )
            views = [View(h, h) for h in schema.histories]
            self.interests = Interests(schema, config.dim, config, views, EvolvingInterest)
            n_in = self.embedder.num_fields * config.dim + sum(self.embedder.event_width.values())
            hidden = layers((n_in, *config.mlp), replace(config, act=config.tower_act), config.dropout)
            self.tower = nn.Sequential(*hidden, Linear((n_in, *config.mlp)[-1], 1))

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        embedded = self.embedder(batch)
        interests_BE = self.interests(embedded)
        return self.tower(torch.cat([embedded.fields_BFD.flatten(1), interests_BE], dim=1)).squeeze(1)

    def extra_loss(self) -> Tensor:
        """Weighted auxiliary loss of the last forward in training, a scalar."""
        kept = [unit.auxiliary for unit in self.interests.units if isinstance(unit, EvolvingInterest)]
        found = [loss for loss in kept if loss is not None]
        return self.aux * torch.stack(found).mean() if found else torch.zeros(())


def card(config: DIENConfig) -> FidelityCard:
    """What follows the paper under `config`."""
    return FidelityCard(
        model="dien",
        paper="1809.03672",
        rows=(
            fixed("interests extracted by a GRU over the history", "faithful", "4.2"),
            switched(config, "cell", "augru", "attention in the update gate of a second GRU", "4.4", at="faithful"),
            switched(config, "softmax", True, "weights by softmax over the history", "4.4", at="faithful"),
            switched(config, "att", "bilinear", "how a state meets the target", "4.4",
                     "the paper's is bilinear, as FuxiCTR's default; the benchmark's runs have DIN's unit", "faithful"),
            fixed("auxiliary loss", "faithful" if config.aux else "adapted", "4.2",
                  "off as in BARS' run; on, the state times the event, negatives are other users' events in the same "
                  "place", f"aux={config.aux}"),
            fixed("negative sampling of the auxiliary loss", "unknown", "4.2",
                  "ours takes the events of one other user of the batch, drawn anew at every step"),
            fixed("Dice", "adapted", "n/k", "as in DIN, statistics over real events",
                  f"act={config.act}, tower_act={config.tower_act}"),
            fixed("query for event fields without a target", "adapted", "n/k",
                  "e.g. the action taken: one learned vector each stands in the query"),
            fixed("sizes", "unknown", "n/k", "states as wide as events",
                  f"dim={config.dim}, attention={config.attention}, mlp={config.mlp}"),
            fixed("optimizer", "adapted", "n/k",
                  "Adam on dense weights, the tables' own optimizer inside their backward",
                  f"tables.optimizer={config.tables.optimizer}"),
        ),
    )  # fmt: skip


def flops(config: DIENConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Both GRUs and the attention on T events (`full`) or on the true length (`visible`), and the tower."""
    n_in = (len(schema.categorical) + len(schema.dense) + len(schema.sequences)) * config.dim
    full = visible = mlp_flops(n_in, config.mlp, 1)
    for history, fields in schema.histories.items():
        width, top = len(fields) * config.dim, fields[0].max_length
        full += _evolution_flops(width, top, config)
        visible += _evolution_flops(width, min(top, (lengths or {}).get(history, top)), config)
    return Flops(full, visible)


def _evolution_flops(width: int, events: float, config: DIENConfig) -> float:
    met = {"din": weights_flops(width, events, config), "dot": 2.0 * width * events,
           "bilinear": 2.0 * width * (events + width)}[config.att]  # fmt: skip
    return 2 * gru_flops(width, width) * events + met


def published() -> tuple[Preset, ...]:
    """BARS' TaobaoAd_x1 run: 441,217 parameters more than the plain DNN."""
    config = DIENConfig(
        dim=32, attention=(512, 256), attention_dropout=0.4, mlp=(512, 256, 128), missing_vector=False,
        tower_act="relu", unit="concat",
    )  # fmt: skip
    note = "BARS TaobaoAd_x1 log: DNN 41,934,977 parameters, DIEN +441,217"
    return (Preset(label="taobao_ad", config=config, schema=taobao_ad_x1(), note=note),)


SPEC = ModelSpec(  # spelt out in every model file: each is read alone
    name="dien",
    title="DIEN",
    family="legacy",
    paper="1809.03672",
    tracks=("sequence",),
    config=DIENConfig,
    build=DIEN,
    card=card,
    flops=flops,
    published=published,
    skip_reason={"tabular": "no behaviour history in the data"},
)

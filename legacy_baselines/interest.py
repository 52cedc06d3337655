"""Interests of a user: histories weighted by the target through activation units (DIN, 1706.06978 sections 4.3, 5.2).

Dims: B batch, T history length, C width of an event (fields of the event times D), D embedding width,
O width of a layer, Q event fields without a target, E width of all interests together
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from ctrbench.datasets.schema import FeatureSchema
from ctrbench.kernels.dice import dice
from ctrbench.kernels.din_attention import din_attention
from ctrbench.kernels.din_unit import IMPLS, Impl, unit_cost, unit_layer
from ctrbench.kernels.linear import Linear
from ctrbench.models.blocks import Embedded, mlp_flops
from ctrbench.models.events import Events, FlatEvents, Histories
from ctrbench.models.histories import TargetEvents

DiceStats = Literal["valid", "all"]
Unit = Literal["jagged"] | Impl
UNITS: tuple[str, ...] = ("jagged", *IMPLS)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitConfig:
    """An activation unit and its activations; the attention part of DIN and of the composite ranker."""

    attention: tuple[int, ...] = (64, 32)
    """Hidden widths of the unit."""
    act: Literal["dice", "relu"] = "dice"
    """In the unit and, in DIN, in the tower."""
    dice_stats: DiceStats = "valid"
    """Events over which Dice normalises in training: `valid` leaves padding out, `all` is what FuxiCTR does."""
    softmax: bool = False
    """Normalise the weights over the history; the paper does not, to keep the strength of an interest."""
    attention_dropout: float = 0.0
    unit: Unit = "fold"
    """Same result in every form. `jagged` works on real events only, as one node (kernels/din_attention.py), where
    the unit sees whole histories and has neither dropout nor `dice_stats=all`; elsewhere it is `split` on padded
    rows. The others are forms of the first layer on padded rows (kernels/din_unit.py)."""

    def __post_init__(self) -> None:
        if not self.attention:
            raise ValueError("attention=(): the activation unit needs at least one hidden width")
        for name, allowed in (("act", ("dice", "relu")), ("dice_stats", ("valid", "all")), ("unit", UNITS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: use {' or '.join(allowed)}")

    @property
    def real_events_only(self) -> bool:
        """Whether training works on real events only; without dropout, which the node lacks, and on whole histories."""
        flat_dice = self.act == "relu" or self.dice_stats == "valid"
        return self.unit == "jagged" and flat_dice and not self.attention_dropout


class Dice(nn.Module):
    """p x + alpha (1 - p) x with p = sigmoid(BN(x)), BN without affine (1706.06978 section 5.2; constants of FuxiCTR).

    Args:
        width: channels.
        stats: with `valid`, rows outside the mask do not enter the batch statistics.
    """

    momentum, eps = 0.01, 1e-9

    def __init__(self, width: int, stats: DiceStats = "valid") -> None:
        super().__init__()
        self.stats: DiceStats = stats
        self.alpha_O = nn.Parameter(torch.zeros(width))
        self.mean_O: Tensor
        self.var_O: Tensor
        self.register_buffer("mean_O", torch.zeros(width))
        self.register_buffer("var_O", torch.ones(width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[..., O] -> [..., O]; `mask` [...] marks valid rows."""
        if x.dtype != self.mean_O.dtype:  # bfloat16 has too few digits for statistics and what is left beside a mean
            return self.forward(x.to(self.mean_O.dtype), mask).to(x.dtype)
        alpha_O = self.alpha_O.to(x.dtype)
        if self.training and mask is not None and self.stats == "valid":
            return self._over_valid(x, mask, alpha_O)
        flat = x.flatten(0, -2)
        # A batch of one row has no variance to learn from: the running one serves.
        train = self.training and flat.shape[0] > 1
        scaled = batch_norm(flat, self.mean_O, self.var_O, None, None, train, self.momentum, self.eps).view(x.shape)
        return x * torch.addcmul(alpha_O, 1 - alpha_O, torch.sigmoid(scaled))

    def _over_valid(self, x: Tensor, mask: Tensor, alpha_O: Tensor) -> Tensor:
        out, mean_O, var_O = dice(x, mask, alpha_O, self.eps)
        self.learn(mean_O, var_O, mask.sum())
        return out

    @torch.no_grad()
    def learn(self, mean_O: Tensor, var_O: Tensor, events: Tensor) -> None:
        """Moves the running statistics towards those of `events` events, of which the variance is biased."""
        step = self.momentum * (events > 1)  # nothing to learn from one event or none
        self.mean_O.lerp_(mean_O.to(self.mean_O.dtype), step)
        self.var_O.lerp_((var_O * (events / (events - 1).clamp(min=1))).to(self.var_O.dtype), step)


def layers(widths: Sequence[int], config: UnitConfig, dropout: float) -> nn.ModuleList:
    """Linear, activation, dropout per hidden layer, as a list so that Dice can be handed a mask."""
    out = nn.ModuleList()
    for a, b in pairwise(widths):
        out += [Linear(a, b), Dice(b, config.dice_stats) if config.act == "dice" else nn.ReLU()]
        out += [nn.Dropout(dropout)] if dropout else []
    return out


class ActivationUnit(nn.Module):
    """u = sum_j a_j h_j with a_j = MLP([q; h_j; q - h_j; q * h_j]) (section 4.3).

    Args:
        width: C.
        config: sizes and switches.
    """

    def __init__(self, width: int, config: UnitConfig) -> None:
        super().__init__()
        self.impl: Impl = "split" if config.unit == "jagged" else config.unit
        self.softmax = config.softmax
        self.jagged = config.unit == "jagged" and (config.act == "relu" or config.dice_stats == "valid")
        self.dropout = config.attention_dropout > 0
        self.hidden = layers((4 * width, *config.attention), config, config.attention_dropout)
        self.score = Linear(config.attention[-1], 1)

    def forward(self, q_BC: Tensor, events_BTC: Tensor | FlatEvents, mask_BT: Tensor | None = None) -> Tensor:
        """u_BC; zero where the history is empty, whatever stands on padding. Flat events have no mask."""
        if isinstance(events_BTC, FlatEvents):
            return self._flat(q_BC, events_BTC)
        assert mask_BT is not None
        return torch.bmm(self.weights(q_BC, events_BTC, mask_BT).unsqueeze(1), events_BTC).squeeze(1)

    @property
    def takes_flat(self) -> bool:
        """Whether flat events give what padded ones give."""
        return self.jagged and not (self.training and self.dropout) and not torch.compiler.is_compiling()

    def _flat(self, q_BC: Tensor, events: FlatEvents) -> Tensor:
        linears = [*(m for m in self.hidden if isinstance(m, nn.Linear)), self.score]
        acts = [m if isinstance(m, Dice) else None for m in self.hidden if isinstance(m, Dice | nn.ReLU)]
        given = [None if a is None or a.training else (a.mean_O, a.var_O) for a in acts]
        u_BC, moments = din_attention(
            q_BC, events.values_NE, events.offsets_B1, tuple(m.weight for m in linears), tuple(m.bias for m in linears),
            tuple(None if a is None else a.alpha_O for a in acts), tuple(given), self.softmax, Dice.eps,
        )  # fmt: skip
        for act, found in zip(acts, moments, strict=True):
            if act is not None and found is not None:
                act.learn(*found, events.offsets_B1[-1])
        return u_BC

    def weights(self, q_BC: Tensor, events_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """a_BT; zero on padding."""
        first, *rest = self.hidden
        assert isinstance(first, nn.Linear)
        x_BTO = unit_layer(q_BC, events_BTC, first.weight, first.bias, self.impl)
        for layer in rest:
            x_BTO = layer(x_BTO, mask_BT) if isinstance(layer, Dice) else layer(x_BTO)
        a_BT = self.score(x_BTO).squeeze(-1)
        return masked_softmax(a_BT, mask_BT) if self.softmax else a_BT * mask_BT


def masked_softmax(a_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Softmax over the real events; all zero where there is none."""
    return a_BT.masked_fill(~mask_BT, torch.finfo(a_BT.dtype).min).softmax(dim=1) * mask_BT


def whole(events: Events) -> Events:
    """All of a history."""
    return events


@dataclass(frozen=True, slots=True)
class View:
    """A history as one unit sees it."""

    name: str
    history: str
    select: Callable[[Events], Events] = whole


class Interests(nn.Module):
    """One activation unit (or another one of the same face) a view, with the target as query; interests side by side.

    The query is the target as an event (`TargetEvents`).
    """

    def __init__(
        self,
        schema: FeatureSchema,
        dim: int,
        config: UnitConfig,
        views: Sequence[View],
        unit: Callable[[int, Any], nn.Module] = ActivationUnit,
    ) -> None:
        super().__init__()
        self.views = tuple(views)
        self.query = TargetEvents(schema, dim)
        self.units = nn.ModuleList(unit(len(schema.histories[v.history]) * dim, config) for v in views)

    def forward(self, embedded: Embedded) -> Tensor:
        """u_BE."""
        queries = {h: self.query(embedded.fields_BFD, h) for h in dict.fromkeys(v.history for v in self.views)}
        out = []
        for view, unit in zip(self.views, self.units, strict=True):
            histories = embedded.events
            if (
                isinstance(unit, ActivationUnit) and unit.takes_flat
                and view.select is whole and isinstance(histories, Histories)
            ):  # fmt: skip
                out.append(unit(queries[view.history], histories.flat(view.history)))
                continue
            events = view.select(histories[view.history])
            out.append(unit(queries[view.history], events.values_BTE, events.mask_BT))
        return torch.cat(out, dim=1) if len(out) > 1 else out[0]


def interest_flops(width: int, events: float, config: UnitConfig) -> float:
    """One unit over `events` events of `width` values: T (attention MLP + 2C), less what the form saves."""
    return weights_flops(width, events, config) + events * 2.0 * width


def weights_flops(width: int, events: float, config: UnitConfig) -> float:
    """The weights of one unit alone."""
    first, *rest = config.attention
    form: Impl = "split" if config.unit == "jagged" else config.unit
    return unit_cost(width, first, events, form).flops + events * mlp_flops(first, rest, 1)

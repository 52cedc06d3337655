"""Composite legacy ranker: DIN over one to four histories, DCN-v2 and towers on top; what industry really runs.

The opponent of transformer rankers in their own papers ('DCNv2+DIN', 2510.26104 section 4). Its histories are views of
the data's own events (all, liked, disliked, recent), each with its own activation unit, as a production ranker keeps
one sequence an action.

Dims: B batch, T history length, N width of fields and interests side by side, K tasks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ctrbench.datasets.published_schemas import taobao_ad_x1
from ctrbench.datasets.schema import FIRST_ID, Batch, FeatureSchema
from ctrbench.kernels.cross import cross_cost
from ctrbench.legacy_baselines.composite_serving import request_flops, serving
from ctrbench.legacy_baselines.dcn_v2 import CrossNet
from ctrbench.legacy_baselines.interest import Interests, UnitConfig, View, interest_flops, whole
from ctrbench.models.blocks import MLP, FeatureEmbedder, mlp_flops
from ctrbench.models.embedding import TableConfig
from ctrbench.models.events import Events
from ctrbench.models.histories import require_history
from ctrbench.models.spec import CardRow, FidelityCard, Flops, ModelSpec, Preset, Stage

History = Literal["all", "liked", "disliked", "recent"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompositeConfig(UnitConfig):
    """Defaults are the `small` preset."""

    dim: int = 16
    """Embedding width."""
    histories: tuple[History, ...] = ("liked", "disliked")
    """Views of every history of the data, one to four, each with its own activation unit."""
    action: str = "hist_action"
    """Event field that tells liked from disliked; only read where `histories` names one of them."""
    liked_ids: tuple[int, ...] = (FIRST_ID + 1,)
    """Ids of `action` that count as liked; every other real value counts as disliked."""
    recent: int = 10
    """Newest events in the `recent` view."""
    cross_layers: int = 2
    towers: tuple[tuple[int, ...], ...] = ((128, 64),)
    """Hidden widths of the MLPs that run beside the cross network; empty for none."""
    tasks: int = 1
    """Heads on the shared representation. The first is the click; the batch has no other label to train more on."""
    head: tuple[int, ...] = ()
    """Hidden widths of every head."""
    dropout: float = 0.0
    missing_vector: bool = True
    """Learn one vector a dense field for missing values."""
    tables: TableConfig = field(default_factory=TableConfig)

    def __post_init__(self) -> None:
        UnitConfig.__post_init__(self)  # slots: the class that zero-argument super() remembers is not this one
        known = ("all", "liked", "disliked", "recent")
        if not 1 <= len(self.histories) <= 4 or len(set(self.histories)) < len(self.histories):
            raise ValueError(f"histories={self.histories}: name one to four different ones of {', '.join(known)}")
        if unknown := set(self.histories) - set(known):
            raise ValueError(f"histories={self.histories}: unknown {sorted(unknown)}; choose of {', '.join(known)}")
        if self.tasks < 1 or self.recent < 1 or not all(self.towers):
            raise ValueError(
                f"tasks={self.tasks}, recent={self.recent}, towers={self.towers}: at least 1, 1 and one width a tower"
            )


def by_action(events: Events, action: str, ids: tuple[int, ...], liked: bool) -> Events:
    """Events whose action is among `ids`, or is not; the others become padding."""
    action_BT = events.ids[action]
    hit_BT = torch.zeros_like(events.mask_BT)
    for i in ids:
        hit_BT = hit_BT | (action_BT == i)
    return replace(events, mask_BT=events.mask_BT & (hit_BT if liked else ~hit_BT))


def newest(events: Events, count: int) -> Events:
    """The last `count` columns: histories are padded on the left."""
    return Events(
        events.values_BTE[:, -count:], {k: v[:, -count:] for k, v in events.ids.items()},
        events.times_BT[:, -count:], events.mask_BT[:, -count:],
    )  # fmt: skip


class Parallel(nn.ModuleList):
    """Modules on the same input, outputs side by side; none gives back an empty [B, 0]."""

    def forward(self, x_BN: Tensor) -> Tensor:
        return torch.cat([x_BN[:, :0], *(m(x_BN) for m in self)], dim=1) if len(self) != 1 else self[0](x_BN)


class Composite(nn.Module):
    """x = [fields ; interests]; logit = head([CrossNet(x) ; tower_1(x) ; ...])."""

    phases: Mapping[Stage, tuple[str, ...]]

    def __init__(self, config: CompositeConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        require_history(schema, "composite")
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(
                schema, config.dim, config.tables, missing_vector=config.missing_vector,
                sequences="flat" if config.unit == "jagged" else "events",
            )  # fmt: skip
            self.attention = Interests(schema, config.dim, config, views(config, schema))
            width = _width(config, schema)
            self.cross = CrossNet(width, config.cross_layers)
            self.towers = Parallel(MLP(width, hidden, dropout=config.dropout) for hidden in config.towers)
            self.heads = Parallel(MLP(_shared(config, width), config.head, 1) for _ in range(config.tasks))
            self.phases = {
                "embedding": ("embedder",), "interaction": ("attention", "cross"), "dense": ("towers", "heads"),
            }  # fmt: skip

    def forward(self, batch: Batch) -> Tensor:
        """logit_B of the click."""
        return self.logits(batch)[:, 0]

    def logits(self, batch: Batch) -> Tensor:
        """logit_BK of every task."""
        embedded = self.embedder(batch)
        x_BN = torch.cat([embedded.fields_BFD.flatten(1), self.attention(embedded)], dim=1)
        return self.heads(torch.cat([self.cross(x_BN), self.towers(x_BN)], dim=1))


def views(config: CompositeConfig, schema: FeatureSchema) -> list[View]:
    """The views of every history, in the order of the config.

    Raises:
        ValueError: where a view needs the action field and a history has none.
    """
    out = []
    for history, fields in schema.histories.items():
        if {"liked", "disliked"} & set(config.histories) and config.action not in {f.name for f in fields}:
            raise ValueError(
                f"composite: histories={config.histories} needs event field {config.action!r}, which history "
                f"{history!r} lacks; set composite.action to one of {[f.name for f in fields]} or "
                "composite.histories to all,recent"
            )
        select: dict[str, Callable[[Events], Events]] = {
            "all": whole,
            "liked": partial(by_action, action=config.action, ids=config.liked_ids, liked=True),
            "disliked": partial(by_action, action=config.action, ids=config.liked_ids, liked=False),
            "recent": partial(newest, count=config.recent),
        }
        out += [View(f"{history}_{name}", history, select[name]) for name in config.histories]
    return out


def _width(config: CompositeConfig, schema: FeatureSchema) -> int:
    """N: every field once, every event field once a view."""
    events = len(config.histories) * len(schema.sequences)
    return (len(schema.categorical) + len(schema.dense) + events) * config.dim


def _shared(config: CompositeConfig, width: int) -> int:
    return width + sum(hidden[-1] for hidden in config.towers)


def card(config: CompositeConfig) -> FidelityCard:
    """No single paper defines this model; rows say from where each part is."""
    return FidelityCard(
        model="composite",
        paper="2510.26104 (as its baseline 'DCNv2+DIN')",
        rows=(
            CardRow(mechanism="DIN and DCN-v2 in one ranker", status="unknown", section="n/k",
                    note="papers name the pair but not its wiring: interests join the fields below the cross network"),
            CardRow(mechanism="cross layer", status="faithful", section="2008.13535 3.2",
                    switch=f"cross_layers={config.cross_layers}"),
            CardRow(mechanism="activation unit", status="adapted", section="1706.06978 4.3",
                    switch=f"unit={config.unit}, softmax={str(config.softmax).lower()}, act={config.act}, "
                           f"dice_stats={config.dice_stats}",
                    note="see the card of din; Dice in the units only, towers are ReLU"),
            CardRow(mechanism="histories", status="adapted", section="n/k",
                    switch=f"histories={','.join(config.histories)}",
                    note="views of the same events by action and recency; industry stores one sequence an action"),
            CardRow(mechanism="towers and task heads", status="unknown", section="n/k",
                    switch=f"towers={config.towers}, tasks={config.tasks}, head={config.head}",
                    note="only the first head is trained: the batch has one label"),
            CardRow(mechanism="sizes", status="unknown", section="n/k",
                    switch=f"dim={config.dim}, attention={config.attention}",
                    note="no source gives them; published sizes are a sweep of widths"),
        ),
    )  # fmt: skip


def flops(config: CompositeConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Units on T events (`full`), cross network, towers, heads.

    `visible` takes the true length; how many events were liked is not known here, so that views by action count as
    if the whole history were theirs.
    """
    width = _width(config, schema)
    shared = _shared(config, width)
    dense = config.cross_layers * cross_cost(width).flops + sum(mlp_flops(width, hidden) for hidden in config.towers)
    full = visible = dense + config.tasks * mlp_flops(shared, config.head, 1)
    for history, fields in schema.histories.items():
        event = len(fields) * config.dim
        for name in config.histories:
            top = fields[0].max_length if name != "recent" else min(config.recent, fields[0].max_length)
            full += interest_flops(event, top, config)
            visible += interest_flops(event, min(top, (lengths or {}).get(history, top)), config)
    return Flops(full, visible)


def published() -> tuple[Preset, ...]:
    """A sweep of widths on TaobaoAd_x1's features: no source gives one size."""
    note = "one point of a sweep, no source gives a size; TaobaoAd_x1 features, action = behaviour type"
    base = CompositeConfig(
        histories=("all", "liked", "disliked", "recent"), action="btag_his", act="relu", unit="split", cross_layers=3,
        missing_vector=False,
    )  # fmt: skip
    sizes: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...] = (
        (16, (128, 64), (256, 128)), (32, (256, 128), (512, 256, 128)), (64, (512, 256), (1024, 512, 256)),
        (128, (512, 256), (2048, 1024, 512)),
    )  # fmt: skip
    return tuple(
        Preset(
            label=f"d{dim}",
            config=replace(base, dim=dim, attention=attention, towers=(tower,)),
            schema=taobao_ad_x1(),
            note=note,
        )
        for dim, attention, tower in sizes
    )


SPEC = ModelSpec(  # spelt out in every model file: each is read alone
    name="composite",
    title="Composite (DCN-v2 + DIN)",
    family="legacy",
    paper="2510.26104, as baseline",
    tracks=("sequence",),
    config=CompositeConfig,
    build=Composite,
    card=card,
    flops=flops,
    published=published,
    serving=serving,
    request_flops=request_flops,
    skip_reason={"tabular": "no behaviour history in the data"},
)

"""What LUM's user model is told: its options, and which event fields of a history are item, condition and the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ctrbench.datasets.schema import FeatureSchema
from ctrbench.models.embedding import TableConfig
from ctrbench.models.residual_codes import SidOptions

Similarity = Literal["cosine", "dot"]
Positions = Literal["token", "pair"]
Target = Literal["item", "sid"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UserModelConfig:
    """Sizes and choices of the user model; defaults are LUM's `small` preset."""

    dim: int = 16
    """Embedding width of the user model's own tables."""
    width: int = 32
    """Token width d."""
    layers: int = 2
    heads: int = 4
    cond: str = ""
    """Event field that conditions; empty takes the item-side one with the smallest table."""
    similarity: Similarity = "cosine"
    tau: float = 0.07
    """Temperature of InfoNCE."""
    logq: bool = False
    """Correct the in-batch items for their frequency."""
    positions: Positions = "token"
    condition: bool = True
    """A condition token before each item; without, items alone: each predicts the next one (ablation)."""
    tables: TableConfig = field(default_factory=TableConfig)


@dataclass(frozen=True, kw_only=True)
class SidTarget(SidOptions):
    """What LUM's first step predicts."""

    target: Target = "item"
    """`sid`: the codes of the item's semantic ID, one by one (models.md section 4.1)."""
    beams: int = 50
    """Of a retrieval with `target=sid`; as many as there are items scores all of them."""

    def __post_init__(self) -> None:
        if self.target not in ("item", "sid") or self.beams < 1:
            raise ValueError(f"target={self.target!r}: choose item or sid; beams={self.beams}: at least 1")


@dataclass(frozen=True, slots=True)
class EventFields:
    """Which event fields of a history are item, condition and side information of the item token (e.g. the action)."""

    history: str
    item: str
    cond: str
    side: tuple[str, ...]
    item_target: str
    """Categorical field that `item` mirrors."""
    cond_target: str


def event_fields(schema: FeatureSchema, cond: str = "") -> EventFields:
    """Roles of the event fields: the item has the largest table of those that mirror an item-side field.

    Args:
        schema: data of the sequence track.
        cond: event field that conditions; empty takes the item-side one with the smallest table.

    Raises:
        ValueError: no history, or none with an item and a condition.
    """
    for history, fields in schema.histories.items():
        sides = [f for f in fields if f.target and schema[f.target].role == "item"]
        if len(sides) < 2:
            continue
        sides.sort(key=lambda f: schema[f.table].cardinality)
        item, chosen = sides[-1], cond or sides[0].name
        if chosen not in {f.name for f in sides[:-1]}:
            raise ValueError(f"cond={cond!r}: choose one of {', '.join(f.name for f in sides[:-1])}")
        target = schema[chosen].target
        assert item.target is not None
        assert target is not None
        side = tuple(f.name for f in fields if f.name not in (item.name, chosen))
        return EventFields(history, item.name, chosen, side, item.target, target)
    raise ValueError(
        f"lum: schema {schema.name!r} has no history with an item and a condition (two item-side event fields)"
    )

"""What a model must be to retrieve: it learns from users' event sequences and scores the whole catalogue.

Dims: B users, T padded history length, V rows of the item table, C width of the content
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Histories:
    """Users' events, oldest first, the newest at the right end."""

    ids: Mapping[str, Tensor]
    """Event field -> int64 [B, T], 0 on padding."""
    time_BT: Tensor
    """int64 seconds, 0 on padding."""
    real_BT: Tensor
    """bool; false is padding, on the left."""
    user_B: Tensor
    """int64 user ids."""

    def newest(self, events: int) -> Histories:
        """At most so many of the newest events of every user."""
        ids = {n: ids_BT[:, -events:] for n, ids_BT in self.ids.items()}
        return Histories(ids, self.time_BT[:, -events:], self.real_BT[:, -events:], self.user_B)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of the event that is looked for."""

    cond_B: Tensor
    """Condition id; a retriever that is not `conditioned` must not read it."""
    time_B: Tensor
    """int64 seconds."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The items that can be found."""

    items: int
    """V; ids under `FIRST_ID` are no items."""
    cond_V: Tensor
    """int64 condition id of each item; 0 where no training event has the item."""
    content_VC: Tensor
    """float32, what is known of an item beside its id, from training events alone; 0 where nothing is."""
    content: str
    """What the content is made of, for the report."""


@runtime_checkable
class Retriever(Protocol):
    """A module that learns by its own loss and answers with scores."""

    def loss(self, histories: Histories) -> Tensor:
        """Mean loss of predicting events of these users from the events before them."""
        ...

    def scores(self, histories: Histories, asked: Asked) -> Tensor:
        """float [B, V], higher is better; -inf for what the model does not propose. No gradient."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrieverSpec:
    """How a model of the registry is built to retrieve."""

    build: Callable[..., Any]
    """(config, schema, catalogue, device=None) -> Retriever."""
    conditioned: bool
    """Told the condition of the event it looks for, so that floors must be told it too."""

"""What is known of the items of a catalogue beside their ids, from training events alone.

Dims: U users, V items, C content
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema
from ctrbench.models.lum_backbone import event_fields


def content_of(prepared: Prepared, spans_U2: np.ndarray, schema: FeatureSchema) -> tuple[Tensor, str]:
    """(float32 [V, C], what it is made of): one-hot values of the item-side event fields other than the item.

    Args:
        prepared: the data.
        spans_U2: int64 begin and end in the event log of what training sees of each user.
        schema: of the data.
    """
    roles = event_fields(schema)
    events = prepared.events(roles.history)
    index_N = np.concatenate([np.arange(b, e) for b, e in spans_U2])
    item_N = events[roles.item].to_numpy().astype(np.int64)[index_N]
    items = schema[schema[roles.item].table].cardinality
    parts, names = [], []
    for field in schema.histories[roles.history]:
        if field.name == roles.item or field.target is None or schema[field.target].role != "item":
            continue
        value_V = values_of(item_N, events[field.name].to_numpy().astype(np.int64)[index_N], items)
        one_hot_VC = torch.nn.functional.one_hot(torch.from_numpy(value_V), schema[field.table].cardinality)
        parts.append(one_hot_VC[:, FIRST_ID:].float())
        names.append(field.target)
    return torch.cat(parts, dim=1), " and ".join(names)


def values_of(item_N: np.ndarray, value_N: np.ndarray, items: int) -> np.ndarray:
    """int64 [V]: the value of each item's last event; 0 where no event has the item."""
    value_V = np.zeros(items, np.int64)
    value_V[item_N] = value_N
    value_V[:FIRST_ID] = 0
    return value_V


def conditions(log: Mapping[str, np.ndarray], spans_U2: np.ndarray, item: str, cond: str, items: int) -> np.ndarray:
    """int64 [V]: the condition of each item in the events of these spans; 0 where they do not have it."""
    index_N = np.concatenate([np.arange(b, e) for b, e in spans_U2])
    return values_of(log[item][index_N], log[cond][index_N], items)

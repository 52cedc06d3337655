"""What is known of an item beside its id: its fields, and the company it keeps in the training events.

Dims: V rows of the item table, C width of the content, N events, U spans
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
import torch
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema
from ctrbench.models.lum_backbone import EventFields, event_fields

WINDOW = 10
"""Events of one user that are at most so many places apart occur together."""
VALUES = 128
"""Most frequent values of a field that get a column; the others have none."""


def content_of(
    prepared: Prepared, spans_U2: np.ndarray, schema: FeatureSchema, *, width: int = 32, seed: int = 0
) -> tuple[Tensor, str]:
    """(float32 [V, C], what it is made of, in words).

    One block a source, its items' vectors of mean squared length 1: the item's categorical fields, one column a value,
    and the truncated SVD of the positive pointwise mutual information of items within `WINDOW` places. Both are known
    of items that occur in the spans; the others are all zero.

    Args:
        spans_U2: [begin, end) in the event log of what each user's training may see.
        schema: of the data, with a history that has an item and a condition.
        width: of the co-occurrence vectors, less where there are fewer items; 0 leaves them out.
        seed: of the SVD.

    Raises:
        ValueError: no history with an item and a condition.
    """
    roles = event_fields(schema)
    items = schema[roles.item_target].cardinality
    log = prepared.events(roles.history)[roles.item].to_numpy().astype(np.int64)
    spans = [log[b:e] for b, e in spans_U2]
    seen_V = np.zeros(items, bool)
    seen_V[np.concatenate([*spans, log[:0]])] = True
    seen_V[:FIRST_ID] = False
    blocks, words = _fields(prepared, roles, schema, seen_V)
    wide = min(width, int(seen_V.sum()) - 1)
    if wide > 0:
        blocks.append(_unit(cooccurrence(spans, items, wide, seed), seen_V))
        words.append(f"co-occurrence within {WINDOW} events (SVD of positive PMI, {wide} columns)")
    content_VC = np.concatenate([*blocks, np.zeros((items, 0))], axis=1).astype(np.float32)
    none = int((np.count_nonzero(content_VC, axis=1)[FIRST_ID:] == 0).sum())
    text = f"{', '.join(words) or 'nothing'}; {none} of {items - FIRST_ID} items have none"
    return torch.from_numpy(content_VC), text


def _fields(
    prepared: Prepared, roles: EventFields, schema: FeatureSchema, seen_V: np.ndarray
) -> tuple[list[np.ndarray], list[str]]:
    """One column a value of every item-side field, of each item's first train row."""
    fields = [f for f in schema.categorical if f.role == "item" and f.name != roles.item_target]
    names = [roles.item_target, *(f.name for f in fields)]
    rows = pl.scan_parquet([p for p, _ in prepared.shards("train")]).select(names)
    table = rows.group_by(roles.item_target).first().sort(roles.item_target).collect().to_numpy().astype(np.int64)
    table = table[seen_V[table[:, 0]]]
    blocks, words = [], []
    for at, f in enumerate(fields, start=1):
        columns = min(VALUES, f.cardinality - FIRST_ID)
        value = table[:, at] - FIRST_ID
        held = np.flatnonzero((value >= 0) & (value < columns))  # ids are numbered by frequency
        block_VC = np.zeros((len(seen_V), columns))
        block_VC[table[held, 0], value[held]] = 1.0
        blocks.append(_unit(block_VC, seen_V))
        words.append(f"{f.name} ({columns} columns)")
    return blocks, words


def _unit(block_VC: np.ndarray, seen_V: np.ndarray) -> np.ndarray:
    """Scaled so that the seen items' vectors have mean squared length 1."""
    mean = float((block_VC[seen_V] ** 2).sum(axis=1).mean())
    return block_VC / np.sqrt(mean) if mean > 0 else block_VC


def cooccurrence(spans: list[np.ndarray], items: int, width: int, seed: int = 0) -> np.ndarray:
    """float64 [V, width]: left singular vectors times the roots of the singular values, of positive PMI.

    Args:
        spans: item ids of each user, in order of time.
        items: V.
    """
    item_N = np.concatenate([*spans, np.zeros(0, np.int64)])
    user_N = np.repeat(np.arange(len(spans)), [len(s) for s in spans])
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for apart in range(1, WINDOW + 1):
        same = (user_N[apart:] == user_N[:-apart]) & (item_N[apart:] != item_N[:-apart])
        pairs.append((item_N[:-apart][same], item_N[apart:][same]))
    left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
    count_VV = sparse.csr_matrix((np.ones(len(left)), (left, right)), shape=(items, items))
    count_VV = (count_VV + count_VV.T).tocoo()
    of_item_V = np.asarray(count_VV.sum(axis=1)).ravel()
    pmi = np.log(count_VV.data * of_item_V.sum() / (of_item_V[count_VV.row] * of_item_V[count_VV.col]))
    positive_VV = sparse.csr_matrix((np.maximum(pmi, 0.0), (count_VV.row, count_VV.col)), shape=(items, items))
    positive_VV.eliminate_zeros()
    if positive_VV.nnz == 0:
        return np.zeros((items, width))
    vectors, values, _ = randomized_svd(positive_VV, width, n_iter=4, random_state=seed)
    alone_V = positive_VV.getnnz(axis=1) == 0  # their rows are zero but for rounding
    return np.where(alone_V[:, None], 0.0, vectors * np.sqrt(values))


def values_of(item_N: np.ndarray, value_N: np.ndarray, items: int) -> np.ndarray:
    """int64 [V]: the value at each item's last event; 0 where no event has the item."""
    value_V = np.zeros(items, np.int64)
    value_V[item_N] = value_N
    value_V[:FIRST_ID] = 0
    return value_V


def conditions(log: Mapping[str, np.ndarray], spans_U2: np.ndarray, item: str, cond: str, items: int) -> np.ndarray:
    """int64 [V]: the condition of each item in the events of these spans; 0 where they do not have it."""
    index_N = np.concatenate([np.arange(b, e) for b, e in spans_U2])
    return values_of(log[item][index_N], log[cond][index_N], items)

"""Item-kNN: items that the same users have seen, by the cosine of their users (Sarwar et al., WWW 2001).

Dims: U users, V items
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

NEIGHBOURS = 200
"""Kept of each item; ties at the end by item number."""


class ItemKnn:
    """Similarities of the items of these users' histories.

    Args:
        histories: item ids of each user.
        items: V.
        neighbours: kept of each item.
    """

    def __init__(self, histories: Sequence[np.ndarray], items: int, neighbours: int = NEIGHBOURS) -> None:
        self.items = items
        seen_UV = self._seen(histories)
        together_VV = (seen_UV.T @ seen_UV).tocoo()
        count_V = np.asarray(seen_UV.sum(axis=0)).ravel()
        apart = together_VV.row != together_VV.col
        row, column = together_VV.row[apart], together_VV.col[apart]
        value = together_VV.data[apart] / np.sqrt(count_V[row] * count_V[column])
        order = np.lexsort((column, -value, row))
        row, column, value = row[order], column[order], value[order]
        begins = np.r_[0, np.flatnonzero(np.diff(row)) + 1] if len(row) else np.zeros(0, np.int64)
        place = np.arange(len(row)) - np.repeat(begins, np.diff(np.r_[begins, len(row)]))
        kept = place < neighbours
        self.near_VV = sparse.csr_matrix((value[kept], (row[kept], column[kept])), shape=(items, items))

    def _seen(self, histories: Sequence[np.ndarray]) -> sparse.csr_matrix:
        user = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
        item = np.concatenate([*histories, np.zeros(0, np.int64)]).astype(np.int64)
        seen = sparse.csr_matrix((np.ones(len(item)), (user, item)), shape=(len(histories), self.items))
        seen.data[:] = 1.0  # an item counts once a user
        return seen

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [U, V]: for every item the sum of its similarities to a user's items."""
        return np.asarray((self._seen(histories) @ self.near_VV.T).todense(), dtype=np.float32)

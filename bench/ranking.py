"""Ranks in the full catalogue, the floors that need no training, and what decides between two of them.

Dims: U users, V items
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ctrbench.bench.item_knn import ItemKnn
from ctrbench.datasets.schema import FIRST_ID

K = 10
"""Of recall and NDCG."""
MODEL = "model"
"""Scope of what is judged, beside the floors."""
FLOORS = ("popularity", "item_knn", "popularity_in_condition", "item_knn_in_condition")
BATCH = 512
"""Users scored together."""
APART = np.float32(1e6)
"""Puts items of another condition behind all others; more than any count or sum of similarities."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """Share of users whose held-out item is among the K best of the whole catalogue, seen items left out."""

    users: int
    recall: dict[str, float]
    """By `model` and the floors."""
    ndcg: dict[str, float]
    recall_over: dict[str, tuple[float, float, float]]
    """Floor -> recall of `model` less its own on the same users, and the 95 % interval of that."""


class Floors:
    """Scores without training, from the events that the users may be shown.

    Args:
        spans: item ids of each user.
        cond_V: condition of each item, 0 where it is not known.
    """

    def __init__(self, spans: Sequence[np.ndarray], cond_V: np.ndarray) -> None:
        self.spans, self.cond_V = spans, cond_V
        self.popular_V = np.bincount(np.concatenate(spans), minlength=len(cond_V)).astype(np.float32)
        self.knn = ItemKnn(spans, len(cond_V))

    def scores(self, part: slice, cond_U: np.ndarray) -> dict[str, np.ndarray]:
        """Floor -> float32 [U, V] of some users. `..._in_condition` list the items of the asked condition first."""
        spans = self.spans[part]
        plain = {"popularity": np.tile(self.popular_V, (len(spans), 1)), "item_knn": self.knn.scores(spans)}
        outside_UV = self.cond_V != cond_U[:, None]
        return plain | {f"{name}_in_condition": s - APART * outside_UV for name, s in plain.items()}

    def ranks(self, wanted_U: np.ndarray, cond_U: np.ndarray) -> dict[str, np.ndarray]:
        """Floor -> rank [U] of what each user's list is searched for, asked under a condition; see `ranks`."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in FLOORS}
        for begin in range(0, len(self.spans), BATCH):
            part = slice(begin, begin + BATCH)
            for name, score_UV in self.scores(part, cond_U[part]).items():
                found[name].append(ranks(score_UV, wanted_U[part], self.spans[part]))
        return {name: np.concatenate(parts) for name, parts in found.items()}


def ranks(score_UV: np.ndarray, wanted_U: np.ndarray, seen: Sequence[np.ndarray]) -> np.ndarray:
    """Mean rank under ties of each wanted item, 0 best; V where it was seen before or is not proposed.

    Args:
        score_UV: higher is better, -inf for what is not proposed; seen items are put to -inf in place.
        wanted_U: item ids.
        seen: items of each user that no list may hold.
    """
    score_UV[:, :FIRST_ID] = -np.inf
    for score_V, items in zip(score_UV, seen, strict=True):
        score_V[items] = -np.inf
    own_U = score_UV[np.arange(len(score_UV)), wanted_U]
    above = (score_UV > own_U[:, None]).sum(axis=1)
    ties = (score_UV == own_U[:, None]).sum(axis=1) - 1
    return np.where(np.isfinite(own_U), above + ties / 2, score_UV.shape[1])


def hits(rank_U: np.ndarray, k: int = K) -> np.ndarray:
    """float64: 1 where the item is among the k best."""
    return (rank_U < k).astype(np.float64)


def gains(rank_U: np.ndarray, k: int = K) -> np.ndarray:
    """float64: 1 / log2(rank + 2) where the item is among the k best, else 0; rank 0 is the best."""
    return np.where(rank_U < k, 1 / np.log2(rank_U + 2), 0.0)


def judged(rank: Mapping[str, np.ndarray], k: int = K) -> Retrieval:
    """Recall, NDCG and gains from the ranks of `model` and of floors on the same users."""
    hit = {name: hits(r, k) for name, r in rank.items()}
    return Retrieval(
        users=len(rank[MODEL]),
        recall={n: float(h.mean()) for n, h in hit.items()},
        recall_over={n: paired(hit[MODEL] - h) for n, h in hit.items() if n != MODEL},
        ndcg={n: float(gains(r, k).mean()) for n, r in rank.items()},
    )


def paired(difference_U: np.ndarray) -> tuple[float, float, float]:
    """(mean, 95 % interval by Student's t over users)."""
    mean, error = float(difference_U.mean()), float(stats.sem(difference_U)) if len(difference_U) > 1 else math.inf
    wide = float(stats.t.ppf(0.975, len(difference_U) - 1)) * error if len(difference_U) > 1 else math.inf
    return mean, mean - wide, mean + wide

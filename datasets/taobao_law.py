"""Statistics of Taobao UserBehavior that its generator reproduces, and the catalogue made from them.

Origin of the figures: 9,996 events of 114 users for the hours and days; published numbers of items and categories; the
laws of lengths, runs, items and visits were fitted to the same sample (data.md, section 5).

Dims: C categories, K ranks
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

CATEGORIES = 9_439
ITEMS = 4_162_024
USERS = 1_018_011
"""Largest user id."""
LENGTH = (4.2, 0.92)
"""Mean and sd of the log of a user's events."""
SHORTEST, LONGEST = 3, 900
FOCUSED, STAY = 0.10, (0.20, 0.82)
"""Share of runs that are focused on one category; chance to stay in an ordinary and in a focused run."""
NEW_CATEGORY = 0.44
"""Chance of a new category on leaving a run; else back to one of the last ones:"""
BACK = (np.log(6), 1.5)
"""Mean and sd of the log of the number of events back."""
AGAIN = 0.32
"""Chance of one of the user's earlier items of the category."""
RECENT = 0.5
"""Chance of the most recent of those, then of the one before, and so on."""
VISIT = ((0.8, 3.6), (0.2, 14.0))
"""Share and mean size of the two kinds of visits."""
GAP = (4.05, 1.35)
"""Mean and sd of the log of the seconds between events of a visit."""
LONGEST_GAP = 1_800
BEHAVIOURS = {"pv": 0.897, "cart": 0.054, "fav": 0.028, "buy": 0.021}
HOURS = (
    35, 9, 10, 5, 4, 4, 23, 27, 31, 25, 42, 31, 55, 54, 54, 51, 48, 46, 47, 44, 85, 114, 98, 57,
)  # fmt: skip
"""Events of each hour in UTC+8, per mille."""
DAYS = (0.109, 0.080, 0.078, 0.110, 0.102, 0.103, 0.118, 0.159, 0.143)
ITEM_EXPONENT = 0.65
"""Of the Zipf law of items inside a category. The design note's .6 gives item counts a slope of -.29, its band is
-.30 to -.42, that of real rows -.38."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Which items each category holds: `first` .. `first + size - 1`, most frequent first."""

    cumulated_C: np.ndarray
    """float64, cumulated mass of the categories, most frequent first."""
    first_C: np.ndarray
    size_C: np.ndarray

    def category(self, u_K: np.ndarray) -> np.ndarray:
        """Category at cumulated mass u."""
        found: np.ndarray = np.searchsorted(self.cumulated_C, u_K, side="right").clip(max=CATEGORIES - 1)
        return found

    def item(self, category_K: np.ndarray, u_K: np.ndarray) -> np.ndarray:
        """Item of a category at cumulated mass u; rank k has the integral of x^-.65 over [k - .5, k + .5]."""
        power = 1 - ITEM_EXPONENT
        low, high_K = 0.5**power, (self.size_C[category_K] + 0.5) ** power
        rank_K = ((low + u_K * (high_K - low)) ** (1 / power) + 0.5).astype(np.int64)
        rank_K = rank_K.clip(1, self.size_C[category_K])
        found: np.ndarray = self.first_C[category_K] + rank_K - 1
        return found

    def next_item(self, category_K: np.ndarray, item_K: np.ndarray) -> np.ndarray:
        """Another item of the category; every category has two or more."""
        first_K = self.first_C[category_K]
        found: np.ndarray = first_K + (item_K - first_K + 1) % self.size_C[category_K]
        return found


@cache
def catalogue() -> Catalogue:
    """The full catalogue, whatever the number of users: few users must meet many single items."""
    rank_C = np.arange(1, CATEGORIES + 1)
    mass_C = (rank_C + 4.0) ** -1.15 * np.exp(-rank_C / 4000)
    share_C = mass_C**0.85 / (mass_C**0.85).sum() * (ITEMS - 2 * CATEGORIES)
    size_C = 2 + share_C.astype(np.int64)
    left = ITEMS - int(size_C.sum())
    size_C[np.argsort(-(share_C % 1), kind="stable")[:left]] += 1
    return Catalogue(np.cumsum(mass_C) / mass_C.sum(), np.cumsum(size_C) - size_C, size_C)

"""Residual quantisation: a code is the nearest centroid of what the levels before it left over (models.md section 5).

Dims: I items, C width of the content, L levels, K codes a level, D width of the codebooks
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from sklearn.cluster import KMeans
from torch import Tensor

Method = Literal["rqkmeans", "rqvae", "random"]
Collision = Literal["append", "spill_knn", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SidConfig:
    """Defaults are the `small` preset."""

    method: Method = "rqkmeans"
    levels: int = 3
    codes: int = 32
    """K."""
    collision: Collision = "append"
    """`append` numbers the items of one code sequence; `spill_knn` moves all but the first to the nearest free code of
    the last level, where none is free under the next nearest code of the level before; `none` lets them share."""
    standardise: bool = True
    """Content columns at mean 0 and deviation 1 before anything else."""
    width: int = 16
    """D of RQ-VAE; RQ-KMeans works on the content itself."""
    hidden: tuple[int, ...] = (64,)
    """Hidden widths of RQ-VAE's encoder, and in reverse of its decoder."""
    commitment: float = 0.25
    """Weight of the pull of residuals to their codes."""
    restart: int = 25
    """Steps of RQ-VAE's training after which codes that no item has start anew at residuals of items; 0: never."""

    def __post_init__(self) -> None:
        for name, allowed in (("method", ("rqkmeans", "rqvae", "random")),
                              ("collision", ("append", "spill_knn", "none"))):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: use {', '.join(allowed)}")
        if self.levels < 1 or self.codes < 2:
            raise ValueError(f"levels={self.levels}, codes={self.codes}: at least one level of two codes")


@dataclass(frozen=True, kw_only=True)
class SidOptions:
    """Semantic IDs as options of a model that retrieves by them; no slots, so that configs may have other bases."""

    sid_method: Method = "rqkmeans"
    sid_levels: int = 3
    sid_codes: int = 32
    sid_collision: Collision = "append"
    sid_standardise: bool = False
    """The content comes with its blocks at one scale; one by one, columns of rare values would outweigh the others."""

    @property
    def sids(self) -> SidConfig:
        """How the IDs are made."""
        return SidConfig(
            method=self.sid_method, levels=self.sid_levels, codes=self.sid_codes, collision=self.sid_collision,
            standardise=self.sid_standardise,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Residuals:
    """What quantising level by level leaves."""

    codes_IL: Tensor
    """int64."""
    left_LID: Tensor
    """Residual behind each level; the input is the sum of the chosen centroids and the last one."""

    @property
    def mean_square_L(self) -> Tensor:
        """Mean squared residual behind each level."""
        return self.left_LID.square().sum(dim=2).mean(dim=1)


def quantise(x_ID: Tensor, books_LKD: Tensor) -> Residuals:
    """The nearest code of each level for what is left; deterministic, the first of equal ones."""
    codes, left = [], []
    for book_KD in books_LKD:
        chosen_I = torch.cdist(x_ID, book_KD).argmin(dim=1)
        x_ID = x_ID - book_KD[chosen_I]
        codes.append(chosen_I)
        left.append(x_ID)
    return Residuals(torch.stack(codes, dim=1), torch.stack(left))


def rq_kmeans(x_IC: Tensor, levels: int, codes: int, seed: int) -> Tensor:
    """Codebooks [L, K, C]: k-means on the residuals of the level before.

    A centroid is the mean of its items in an assignment before the last, so that on these items the mean squared
    residual never rises from level to level (for one item it may).

    Raises:
        ValueError: fewer different items than codes.
    """
    books, left_IC = [], x_IC
    for level in range(levels):
        if len(torch.unique(left_IC, dim=0)) < codes:
            raise ValueError(f"level {level + 1}: fewer different residuals than codes={codes}; take fewer codes")
        found = KMeans(codes, n_init=1, random_state=seed + level).fit(left_IC.numpy())
        book_KC = torch.from_numpy(found.cluster_centers_).to(x_IC.dtype)
        left_IC = quantise(left_IC, book_KC[None]).left_LID[0]
        books.append(book_KC)
    return torch.stack(books)

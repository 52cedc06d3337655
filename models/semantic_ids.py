"""Semantic IDs: an item's content as a few codes, each of what the codes before it left over (models.md section 5).

RQ-KMeans clusters residuals level by level (as OneRec, 2506.13695); RQ-VAE learns the codebooks between encoder and
decoder (as TIGER, 2305.05065). Items that share all codes are told apart by one more code, or moved.

Dims: I items, C width of the content, L levels, K codes a level, D width of the codebooks
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from ctrbench.models.blocks import MLP

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
    the last level; `none` lets them share."""
    standardise: bool = True
    """Content columns at mean 0 and deviation 1 before anything else."""
    width: int = 16
    """D of RQ-VAE; RQ-KMeans works on the content itself."""
    hidden: tuple[int, ...] = (64,)
    """Hidden widths of RQ-VAE's encoder, and in reverse of its decoder."""
    commitment: float = 0.25
    """Weight of the pull of residuals to their codes."""

    def __post_init__(self) -> None:
        for name, allowed in (("method", ("rqkmeans", "rqvae", "random")),
                              ("collision", ("append", "spill_knn", "none"))):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: use {', '.join(allowed)}")
        if self.levels < 1 or self.codes < 2:
            raise ValueError(f"levels={self.levels}, codes={self.codes}: at least one level of two codes")


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


class RqVae(nn.Module):
    """Encoder, residual codebooks, decoder; the loss of a batch is its forward.

    |x - x'|² + sum over levels of |sg[r] - e|² + commitment |r - sg[e]|², where x' decodes the sum of codes with the
    gradient passed straight through it to the encoder.
    """

    def __init__(self, content: int, config: SidConfig) -> None:
        super().__init__()
        self.commitment = config.commitment
        self.encoder = MLP(content, config.hidden, config.width)
        self.decoder = MLP(config.width, config.hidden[::-1], content)
        self.books_LKD = nn.Parameter(torch.randn(config.levels, config.codes, config.width))

    @torch.no_grad()
    def start(self, x_IC: Tensor, seed: int = 0) -> None:
        """Codebooks by k-means on the encoder's output for these items."""
        levels, codes, _ = self.books_LKD.shape
        self.books_LKD.copy_(rq_kmeans(self.encoder(x_IC), levels, codes, seed))

    def forward(self, x_IC: Tensor) -> Tensor:
        """Mean loss of the items."""
        z_ID = self.encoder(x_IC)
        with torch.no_grad():
            codes_IL = quantise(z_ID, self.books_LKD).codes_IL
        left_ID, total_ID, pulled = z_ID, torch.zeros_like(z_ID), z_ID.new_zeros(len(z_ID))
        for book_KD, chosen_I in zip(self.books_LKD, codes_IL.unbind(1), strict=True):
            code_ID = book_KD[chosen_I]
            to_code = (left_ID.detach() - code_ID).square().sum(dim=1)
            pulled = pulled + to_code + self.commitment * (left_ID - code_ID.detach()).square().sum(dim=1)
            left_ID, total_ID = left_ID - code_ID.detach(), total_ID + code_ID
        decoded_IC = self.decoder(z_ID + (total_ID - z_ID).detach())
        return ((x_IC - decoded_IC).square().sum(dim=1) + pulled).mean()


def train_rq_vae(x_IC: Tensor, config: SidConfig, *, steps: int, batch: int, lr: float, seed: int) -> RqVae:
    """Trains on random batches, codebooks started by k-means on the first."""
    torch.manual_seed(seed)
    model, g = RqVae(x_IC.shape[1], config), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    for step in range(steps):
        rows_IC = x_IC[torch.randint(len(x_IC), (min(batch, len(x_IC)),), generator=g)]
        if step == 0:
            model.start(rows_IC, seed)
        optimizer.zero_grad(set_to_none=True)
        model(rows_IC).backward()
        optimizer.step()
    return model.eval()


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticIds:
    """Codes of all items and what is known of them."""

    codes_IL: Tensor
    """int64 [I, L], or [I, L + 1] with an appended code."""
    vocabulary: tuple[int, ...]
    """Codes of each place."""
    used_L: tuple[float, ...]
    """Share of a level's codes that some item has."""
    mean_square_L: tuple[float, ...]
    """Mean squared residual behind each level; empty for random codes."""
    collisions: int
    """Items whose codes another item before them had, before that was resolved."""
    unresolved: int
    """Of them, those that still share theirs."""


def semantic_ids(
    content_IC: Tensor, config: SidConfig, *, seed: int = 0, steps: int = 2000, batch: int = 1024, lr: float = 2e-3
) -> SemanticIds:
    """Codes of every item from its content.

    Args:
        content_IC: a row an item.
        config: method and sizes.
        seed: of clustering, training and random codes.
        steps, batch, lr: of RQ-VAE's training.
    """
    x_IC = content_IC.float()
    if config.standardise:
        x_IC = (x_IC - x_IC.mean(dim=0)) / x_IC.std(dim=0).clamp(min=1e-8)
    left: Tensor | None = None
    if config.method == "random":
        shape = (len(x_IC), config.levels)
        codes_IL = torch.randint(config.codes, shape, generator=torch.Generator().manual_seed(seed))
        books = None
    else:
        if config.method == "rqvae":
            vae = train_rq_vae(x_IC, config, steps=steps, batch=batch, lr=lr, seed=seed)
            with torch.no_grad():
                x_IC, books = vae.encoder(x_IC), vae.books_LKD.detach()
        else:
            books = rq_kmeans(x_IC, config.levels, config.codes, seed)
        found = quantise(x_IC, books)
        codes_IL, left = found.codes_IL, found.mean_square_L
    used = tuple(len(torch.unique(codes)) / config.codes for codes in codes_IL.unbind(1))
    collided = _repeats(codes_IL)
    if config.collision == "spill_knn" and books is not None:
        codes_IL = _spilled(codes_IL, x_IC, books)
    vocabulary = (config.codes,) * config.levels
    if config.collision == "append":
        extra_I = torch.tensor(_numbers(codes_IL))
        codes_IL = torch.cat([codes_IL, extra_I.unsqueeze(1)], dim=1)
        vocabulary = (*vocabulary, int(extra_I.max()) + 1)
    return SemanticIds(
        codes_IL=codes_IL, vocabulary=vocabulary, used_L=used,
        mean_square_L=() if left is None else tuple(left.tolist()), collisions=collided, unresolved=_repeats(codes_IL),
    )  # fmt: skip


def _repeats(codes_IL: Tensor) -> int:
    return len(codes_IL) - len(torch.unique(codes_IL, dim=0))


def _numbers(codes_IL: Tensor) -> list[int]:
    """Number of each item among those of its codes, in item order."""
    seen: Counter[tuple[int, ...]] = Counter()
    out = []
    for row in map(tuple, codes_IL.tolist()):
        out.append(seen[row])
        seen[row] += 1
    return out


def _spilled(codes_IL: Tensor, x_IC: Tensor, books_LKD: Tensor) -> Tensor:
    """All but the first item of a code sequence on the nearest last code that leaves them alone; none free: unmoved."""
    out = codes_IL.clone()
    before = quantise(x_IC, books_LKD[:-1]).left_LID[-1] if len(books_LKD) > 1 else x_IC
    taken = {tuple(row) for row in codes_IL.tolist()}
    for item in np.flatnonzero(_numbers(codes_IL)).tolist():
        near: Sequence[int] = torch.cdist(before[item][None], books_LKD[-1])[0].argsort().tolist()
        head = tuple(codes_IL[item, :-1].tolist())
        free = next((code for code in near if (*head, code) not in taken), None)
        if free is not None:
            out[item, -1] = free
            taken.add((*head, free))
    return out

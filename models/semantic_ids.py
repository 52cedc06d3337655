"""Semantic IDs: an item's content as a few codes, each of what the codes before it left over (models.md section 5).

RQ-KMeans clusters residuals level by level (as OneRec, 2506.13695); RQ-VAE learns the codebooks between encoder and
decoder (as TIGER, 2305.05065). Items that share all codes are told apart by one more code, or moved.

Dims: I items, C width of the content, L levels, K codes a level, D width of the codebooks
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrbench.models.residual_codes import SidConfig, quantise, rq_kmeans
from ctrbench.models.rq_vae import train_rq_vae


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticIds:
    """Codes of all items and what is known of them."""

    codes_IL: Tensor
    """int64 [I, L], or [I, L + 1] with an appended code."""
    vocabulary: tuple[int, ...]
    """Codes of each place."""
    used_L: tuple[float, ...]
    """Share of a level's codes that some item has, before collisions are resolved."""
    entropy_L: tuple[float, ...]
    """Of the items over a level's codes, in nats; log K where all are used alike."""
    mean_square: float
    """Mean square of what is quantised: the content after scaling, or RQ-VAE's encoding of it."""
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
    counts_LK = torch.stack([torch.bincount(codes, minlength=config.codes) for codes in codes_IL.unbind(1)])
    collided = _repeats(codes_IL)
    if config.collision == "spill_knn" and books is not None:
        codes_IL = _spilled(codes_IL, x_IC, books)
    vocabulary = vocabulary_of(config)
    if config.collision == "append":
        extra_I = torch.tensor(_numbers(codes_IL))
        codes_IL = torch.cat([codes_IL, extra_I.unsqueeze(1)], dim=1)
        vocabulary = (*vocabulary[:-1], max(vocabulary[-1], int(extra_I.max()) + 1))
    return SemanticIds(
        codes_IL=codes_IL, vocabulary=vocabulary, used_L=tuple((counts_LK > 0).double().mean(dim=1).tolist()),
        entropy_L=tuple(torch.special.entr(counts_LK / len(x_IC)).sum(dim=1).tolist()),
        mean_square=float(x_IC.square().sum(dim=1).mean()), mean_square_L=() if left is None else tuple(left.tolist()),
        collisions=collided, unresolved=_repeats(codes_IL),
    )  # fmt: skip


def vocabulary_of(config: SidConfig) -> tuple[int, ...]:
    """Codes of each place. An appended one has as many as a level, as in TIGER; collisions may need more."""
    return (config.codes,) * (config.levels + (config.collision == "append"))


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
    """All but the first item of a code sequence on the nearest free one."""
    out = codes_IL.clone()
    taken = {tuple(row) for row in codes_IL.tolist()}
    for item in np.flatnonzero(_numbers(codes_IL)).tolist():
        free = _free(x_IC[item], books_LKD, taken, ())
        if free is not None:
            out[item] = torch.tensor(free)
            taken.add(free)
    return out


def _free(x_D: Tensor, books_LKD: Tensor, taken: set[tuple[int, ...]], head: tuple[int, ...]) -> tuple[int, ...] | None:
    """The first free code sequence that begins with `head`, nearest codes first; `x_D` is what is left behind it."""
    book_KD = books_LKD[len(head)]
    near: list[int] = torch.cdist(x_D[None], book_KD)[0].argsort().tolist()
    for code in near:
        codes = (*head, code)
        if len(codes) < len(books_LKD):
            found = _free(x_D - book_KD[code], books_LKD, taken, codes)
        else:
            found = None if codes in taken else codes
        if found is not None:
            return found
    return None


def sid_facts(ids: SemanticIds, config: SidConfig) -> dict[str, Any]:
    """What a record says of the semantic IDs that a run used."""
    return {
        "method": config.method, "collision": config.collision, "standardise": config.standardise,
        "items": len(ids.codes_IL), "vocabulary": list(ids.vocabulary), "code_use": list(ids.used_L),
        "entropy_nats": list(ids.entropy_L), "mean_square": ids.mean_square,
        "mean_square_left": list(ids.mean_square_L), "collisions": ids.collisions, "unresolved": ids.unresolved,
    }  # fmt: skip

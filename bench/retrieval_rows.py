"""Rows of retrieval: of one seed, and over all seeds of a model.

Dims: U users, S seeds, D draws of users
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctrbench.bench.arrays import arrays
from ctrbench.bench.ranking import MODEL, Retrieval, gains, hits
from ctrbench.bench.statistics import mean_interval
from ctrbench.reports.measures import make
from ctrbench.reports.records import Measurement

RANKS = "ranks.npz"
"""Rank of each user's item by the model and by the floors, beside the record."""
DRAWS = 400


def seed_rows(base: Mapping[str, Any], found: Retrieval, seed: int) -> list[Measurement]:
    """Recall, NDCG and gains over the floors of one training."""
    rows = [
        make(base, metric, v, "measured", phase="train", scope=who, seed=seed, n=found.users)
        for metric, values in (("recall_at_k", found.recall), ("ndcg_at_k", found.ndcg))
        for who, v in values.items()
    ]
    return rows + [
        make(base, "recall_gain", mean, "derived", phase="train", scope=f"vs:{floor}", seed=seed, ci_low=low,
             ci_high=high, n=found.users)
        for floor, (mean, low, high) in found.recall_over.items()
    ]  # fmt: skip


def over_seeds(base: Mapping[str, Any], files: Sequence[Path]) -> list[Measurement]:
    """Means over seeds; intervals resample users and seeds jointly, the same users on both sides of a difference.

    Args:
        base: identifying columns.
        files: `RANKS` of each seed.
    """
    ranks = [arrays(file, MODEL) for file in files]
    users, seeds = len(ranks[0][MODEL]), len(ranks)
    weight_DU = np.random.default_rng(0).multinomial(users, np.full(users, 1 / users), DRAWS) / users

    def row(metric: str, value_SU: np.ndarray, origin: Any, scope: str) -> Measurement:
        mean_S = value_SU.mean(axis=1)
        low, high = mean_interval(value_SU @ weight_DU.T)
        sd = float(np.std(mean_S, ddof=1)) if seeds > 1 else None
        return make(base, metric, float(mean_S.mean()), origin, phase="train", scope=scope, n=seeds, sd=sd,
                    ci_low=low, ci_high=high)  # fmt: skip

    rows = []
    for who in ranks[0]:
        hit_SU = np.stack([hits(r[who]) for r in ranks])
        rows.append(row("recall_at_k", hit_SU, "measured", who))
        rows.append(row("ndcg_at_k", np.stack([gains(r[who]) for r in ranks]), "measured", who))
        if who != MODEL:
            model_SU = np.stack([hits(r[MODEL]) for r in ranks])
            rows.append(row("recall_gain", model_SU - hit_SU, "derived", f"vs:{who}"))
    return rows

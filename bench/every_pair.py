"""Every two models of one kind on the same rows and seeds: who is told apart from whom.

`auc_delta` pairs with the references alone; a reader asks of two models of his own choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ctrbench.bench.option_gains import same_seeds
from ctrbench.bench.statistics import paired_from_draws
from ctrbench.reports.measures import make
from ctrbench.reports.records import Measurement

if TYPE_CHECKING:
    from ctrbench.bench.summary import Run, Who


def pair_rows(
    trained: Mapping[Who, list[Run]], bases: Mapping[Who, Mapping[str, Any]], aucs: Mapping[Who, np.ndarray],
    draws: Mapping[Who, np.ndarray], groups: tuple[str, ...],
) -> list[Measurement]:  # fmt: skip
    """AUC of the first less that of the second of every pair that shares seeds, and what it could have found.

    Users and seeds are resampled jointly.

    Defaults pair with defaults, tuned with tuned. Of a model with several variants in a group the plain one pairs:
    what its options are worth is `option_delta`.
    """
    found: dict[str, dict[str, list[Who]]] = defaultdict(lambda: defaultdict(list))
    for who, runs in trained.items():
        if runs[0].spec.kind == "quality":
            group = who[1].partition(",")[0]
            found[group if group in groups else ""][who[0]].append(who)
    out = []
    for group, by_model in found.items():
        chosen = [whos[0] if len(whos) == 1 else (m, group) for m, whos in by_model.items()]
        for who, other in combinations([w for w in chosen if w in trained], 2):
            mine, theirs = same_seeds(trained[who], trained[other])
            if not mine:
                continue
            delta = float(aucs[who][mine].mean() - aucs[other][theirs].mean())
            pair = paired_from_draws(delta, draws[who][mine], draws[other][theirs], seed=0)
            scope = f"vs:{','.join(filter(None, other))}"
            base = {**bases[who], "phase": "train", "scope": scope, "n": len(mine)}
            out.append(make(base, "auc_pair", delta, "derived", ci_low=pair.ci_low, ci_high=pair.ci_high))
            out.append(make(base, "auc_pair_mdd", pair.mdd, "derived"))
    return out

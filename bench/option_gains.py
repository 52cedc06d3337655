"""What an option of a model is worth: each variant against the nearest variant of the same model, paired.

The nearest one has some of the variant's options and no others; of several, the one with the most. In `suite=ablation`
that is the model with the mechanism that the variant lacks.

Dims: seeds and users are resampled jointly
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.statistics import paired_from_draws
from ctrbench.reports.measures import make
from ctrbench.reports.records import Measurement

if TYPE_CHECKING:
    from ctrbench.bench.summary import Run, Who


def option_rows(
    trained: Mapping[Who, list[Run]], bases: Mapping[Who, Mapping[str, Any]], aucs: Mapping[Who, np.ndarray],
    draws: Mapping[Who, np.ndarray],
) -> list[Measurement]:  # fmt: skip
    """AUC of every variant that has a nearest one, less that one's, over the seeds that both have."""
    out = []
    for who, runs in trained.items():
        other = _nearest(runs[0].spec, trained)
        mine, theirs = same_seeds(runs, trained[other]) if other else ([], [])
        if other is None or not mine:
            continue
        delta = float(aucs[who][mine].mean() - aucs[other][theirs].mean())
        pair = paired_from_draws(delta, draws[who][mine], draws[other][theirs], seed=0)
        out.append(make(bases[who], "option_delta", delta, "derived", phase="train", scope=f"vs:{other[1]}",
                        n=len(mine), ci_low=pair.ci_low, ci_high=pair.ci_high))  # fmt: skip
    return out


def same_seeds(runs: Sequence[Run], others: Sequence[Run]) -> tuple[list[int], list[int]]:
    """Places of the runs whose seed, precision and compile mode both have.

    A crashed training leaves a gap, so runs never pair by their place.
    """
    place = {_alike(r.spec): i for i, r in enumerate(others)}
    both = [(i, place[_alike(r.spec)]) for i, r in enumerate(runs) if _alike(r.spec) in place]
    return [i for i, _ in both], [j for _, j in both]


def _alike(s: RunSpec) -> tuple[Any, ...]:
    return s.seed, s.dtype, s.compile


def _nearest(spec: RunSpec, trained: Mapping[Who, list[Run]]) -> Who | None:
    if spec.kind != "quality":
        return None
    found = [
        (len(s.config), who) for who, (first, *_) in trained.items()
        if (s := first.spec).kind == "quality" and s.model == spec.model and _budget(s) == _budget(spec)
        and len(s.config) < len(spec.config) and all(spec.config.get(k) == v for k, v in s.config.items())
    ]  # fmt: skip
    return max(found)[1] if found else None


def _budget(s: RunSpec) -> tuple[Any, ...]:
    return s.preset, s.tuned, s.train_rows, s.epochs, s.batch, s.lr, s.flops_budget, s.history_length

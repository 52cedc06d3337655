"""Rows made from the answers on the whole test split of all seeds, beside those that every training writes itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ctrbench.bench.quality import calibration_bins, gauc
from ctrbench.reports.declared import Scored
from ctrbench.reports.measures import OF_SCORES, make, withheld
from ctrbench.reports.records import Measurement


def score_rows(base: Mapping[str, Any], trained: Sequence[Scored]) -> Iterator[Measurement]:
    """Whom GAUC leaves out, calibration by score bin, and every measure whose declaration says how it is made.

    Args:
        base: columns of all rows.
        trained: one a seed, of the same test rows.
    """
    yield from _users(base, trained[0])
    for scope, ratios in _bins(trained).items():
        yield _mean(base, "calibration", ratios, "no positive in this bin", scope)
    for m in OF_SCORES:
        assert m.of_scores is not None
        yield _mean(base, m.id, [m.of_scores(s) for s in trained], "its formula has no value on these test scores")


def _users(base: Mapping[str, Any], scored: Scored) -> Iterator[Measurement]:
    """The share of users without an AUC, the same for every seed; why there is no GAUC, where there is none."""
    value, dropped, reason = gauc(scored.label_N, scored.score_N, scored.user_N)
    if value is None:
        yield withheld(base, "gauc", reason, phase="train")
    if dropped is not None:
        yield make(base, "gauc_dropped", dropped, "measured", phase="train")


def _bins(trained: Sequence[Scored]) -> dict[str, list[float | None]]:
    """Scope -> what the bin predicts over what it observes, by seed; equal scores may leave a seed fewer bins."""
    ratios = defaultdict(list)
    for scored in trained:
        bins = calibration_bins(scored.label_N, scored.score_N)
        for k, b in enumerate(bins, start=1):
            ratios[f"bin:{k}/{len(bins)}"].append(b.ratio)
    return ratios


def _mean(
    base: Mapping[str, Any], metric: str, of_seed: Sequence[float | None], reason: str, scope: str = ""
) -> Measurement:
    """Over the seeds that have a value; `reason` says why none has one."""
    values = [v for v in of_seed if v is not None]
    if not values:
        return withheld(base, metric, reason, phase="train", scope=scope)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    value = float(np.mean(values))
    return make(base, metric, value, "measured", phase="train", scope=scope, n=len(values), sd=sd)

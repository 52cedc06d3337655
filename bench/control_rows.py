"""What the controls of a model say: mean over shuffles or seeds, interval by their own spread, judgement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from ctrbench.bench.controls import METRICS, SHUFFLES
from ctrbench.bench.floors import HONEST_AUC
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement

CONFIDENCE = 0.99
"""Of the interval that must hold .5: one clean model in a hundred is flagged."""


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's interval of the mean of at least two values."""
    n, mean = len(values), float(np.mean(values))
    half = float(student.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return mean - half, mean + half


def control_row(base: Mapping[str, Any], kind: str, extras: Sequence[Mapping[str, Any]]) -> Measurement:
    """The headline of one control of one model.

    Args:
        base: identifying columns.
        kind: `shuffled` or `ids_only`.
        extras: `extra` of the finished records.
    """
    values = [float(e["auc"]) for e in extras]
    return _shuffled(base, values) if kind == "shuffled" else _ids_only(base, values, bool(extras[0]["sampled"]))


def _shuffled(base: Mapping[str, Any], values: Sequence[float]) -> Measurement:
    metric, mean = METRICS["shuffled"], float(np.mean(values))
    if len(values) < SHUFFLES:
        return withheld(base, metric, f"{len(values)} of {SHUFFLES} shuffles finished", phase="train")
    low, high = t_interval(values)
    doubt: dict[str, Any] = {}
    if not low <= 0.5 <= high:
        doubt = {"status": "unstable", "reason": (
            f"trained on shuffled labels, yet the mean AUC of {len(values)} shuffles is {mean:.4f} "
            f"[{low:.4f}, {high:.4f}], which leaves out .5: suspect labels that reach the features, the batch or the "
            "split by another way than as training labels; if there are none, and the positive rate is far from .5, "
            "learning that rate moves some scores more than others, e.g. of rows with large dense values"
        )}  # fmt: skip
    return make(base, metric, mean, "measured", phase="train", n=len(values), sd=float(np.std(values, ddof=1)),
                ci_low=low, ci_high=high, **doubt)  # fmt: skip


def _ids_only(base: Mapping[str, Any], values: Sequence[float], sampled: bool) -> Measurement:
    mean = float(np.mean(values))
    more: dict[str, Any] = {"sd": float(np.std(values, ddof=1))} if len(values) > 1 else {}
    low, high = HONEST_AUC
    if sampled and not low <= mean <= high:
        more |= {"status": "unstable", "reason": (
            f"the target's ids alone reach AUC {mean:.3f}, outside {low:.2f}-{high:.2f}: sampled negatives give labels "
            "away; draw them from a pool of far more events of the whole period"
        )}  # fmt: skip
    return make(base, METRICS["ids_only"], mean, "measured", phase="train", n=len(values), **more)

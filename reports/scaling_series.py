"""Trainings of one model that differ in one thing, from the records: its size, the rows that it saw, its histories.

Every place of a series has the same seeds. What is fitted is a loss: log loss, or 1 - AUC. Laws: `scaling_laws`.

Dims: N sizes, S seeds
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from ctrbench.reports.cells import pick, where
from ctrbench.reports.claim_evidence import SEEDS, Evidence
from ctrbench.reports.claim_rules_scaling import GROUPS, SIZES
from ctrbench.reports.scaling_laws import LEAST_SIZES
from ctrbench.reports.scaling_words import Comparison, compare

Axis = Literal["size", "rows", "length"]
Metric = Literal["logloss", "auc"]
AXES: dict[Axis, tuple[str, str]] = {
    "size": ("Training FLOPs", "training FLOP of the whole run, derived"),
    "rows": ("Training rows", "training rows"),
    "length": ("History length", "events of the longest history"),
}
"""Axis -> head of its column, title of its axis."""
LOSSES: dict[Metric, str] = {"logloss": "log loss", "auc": "1 - AUC"}
"""Measure -> the loss that is fitted."""


@dataclass(frozen=True, slots=True)
class Training:
    """A variant with all its seeds."""

    model: str
    data: str
    parts: tuple[tuple[str, Any], ...]
    """(size, rows, length, rest): what tells trainings of a model apart."""
    flops: float
    """Of the whole training; nan where they were not counted."""
    rows: float
    length: float
    losses: Mapping[Metric, pd.Series]
    """Measure -> its loss by seed."""

    def at(self, axis: Axis) -> float:
        """Place on the axis."""
        return {"size": self.flops, "rows": self.rows, "length": self.length}[axis]

    @property
    def size(self) -> str:
        """Options that make it as large as it is."""
        return ", ".join(f"{k}={v}" for k, v in dict(self.parts)["size"]) or "default size"


@dataclass(frozen=True)
class Series:
    """One model on one data set, along one axis."""

    model: str
    data: str
    axis: Axis
    metric: Metric
    label: str
    """What all its trainings share."""
    at_N: np.ndarray
    """Place on the axis, rising."""
    loss_NS: np.ndarray
    """Test loss by size and seed."""

    @cached_property
    def compared(self) -> Comparison:
        """Both laws, and the word."""
        return compare(self.at_N, self.loss_NS)


def trainings(e: Evidence) -> list[Training]:
    """The trainings of every variant; those with tuned options or at the FLOPs of another model are no sizes."""
    specs = {}
    for body in e.context.bodies.values():
        spec = body.get("spec", {})
        if spec.get("kind") == "quality" and {"train_rows", "epochs", "history_length"} <= set(spec):
            specs[tuple(str(spec.get(k, "")) for k in ("model", "variant", "data", "split"))] = spec
    budgets = e.rows("budget_flops", scope="")
    by_metric = {m: e.rows(m, trained=True) for m in LOSSES}
    out = []
    for who, part in by_metric["logloss"].groupby(["model", "variant", "data", "split"], sort=False):
        model, variant, data, split = map(str, who)
        spec = specs.get((model, variant, data.split(" · ")[0], split))
        if spec is None or variant.split(",")[0] in GROUPS:
            continue
        auc = where(by_metric["auc"], model=model, variant=variant, data=data, split=split)
        seeds = {m: p[p["seed"].notna()].set_index("seed")["value"] for m, p in (("logloss", part), ("auc", auc))}
        config = {k: str(v) for k, v in spec.get("config", {}).items()}
        rows, length = int(spec["train_rows"]) * int(spec["epochs"]), int(spec["history_length"])
        parts = (
            ("size", tuple(sorted((k, v) for k, v in config.items() if k in SIZES))), ("rows", rows),
            ("length", length), ("rest", tuple(sorted((k, v) for k, v in config.items() if k not in SIZES))),
        )  # fmt: skip
        flops = pick(where(budgets, model=model, variant=variant, data=data), "budget_flops").value
        losses: dict[Metric, pd.Series] = {"logloss": seeds["logloss"], "auc": 1.0 - seeds["auc"]}
        out.append(Training(model, data, parts, flops or math.nan, float(rows), float(length), losses))
    return out


def series(e: Evidence) -> list[Series]:
    """Every series of the records with enough sizes, on any data: generated rows have laws too, and are named so."""
    found: dict[tuple[Any, ...], dict[float, Training]] = defaultdict(dict)
    for one in trainings(e):
        for axis in AXES:
            fixed = tuple((k, v) for k, v in one.parts if k != axis)
            found[one.model, one.data, axis, fixed][one.at(axis)] = one
    out = []
    for (model, data, axis, _), points in found.items():
        places = sorted(p for p in points if np.isfinite(p))
        if len(places) < LEAST_SIZES:
            continue
        for metric in LOSSES:
            shared = pd.concat([points[p].losses[metric] for p in places], axis=1, join="inner")
            if len(shared) >= SEEDS:
                label = _held(points[places[0]], axis)
                out.append(Series(model, data, axis, metric, label, np.array(places), shared.to_numpy().T))
    return out


def _held(one: Training, axis: Axis) -> str:
    """What the trainings of a series share, in words."""
    said: dict[Axis, str] = {
        "size": one.size,
        "rows": f"{one.rows:,.0f} rows",
        "length": f"histories of {one.length:,.0f}",
    }
    return ", ".join(text for part, text in said.items() if part != axis)


def slices(e: Evidence, apart: float = 0.05, least: int = 3) -> list[list[Training]]:
    """Trainings of one model at equal FLOPs, larger ones on fewer rows; smallest first.

    Args:
        e: the records.
        apart: most that two FLOPs of one slice differ, as a share.
        least: fewest sizes of a slice.
    """
    found: dict[tuple[Any, ...], list[Training]] = defaultdict(list)
    for one in trainings(e):
        if np.isfinite(one.flops):
            found[one.model, one.data, one.length, dict(one.parts)["rest"]].append(one)
    out = []
    for group in found.values():
        left = sorted(group, key=lambda t: t.flops)
        while left:
            near = [t for t in left if t.flops <= left[0].flops * (1 + apart)]
            if len({t.rows for t in near}) == len({t.size for t in near}) == len(near) >= least:
                out.append(sorted(near, key=lambda t: -t.rows))
            left = left[len(near) :]
    return out

"""Predictions as they were committed: one dated file of `bench/predictions`, read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ctrbench.datasets.spec import sha256_file

FOLDER = Path(__file__).resolve().parents[1] / "predictions"
SCHEMA, SCHEMA_VERSION = "ctrbench-predictions", 1
Key = tuple[str, str, int, str]
"""model, preset, batch, phase"""


@dataclass(frozen=True, slots=True)
class Band:
    """A predicted value with its interval."""

    low: float
    value: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One step on one GPU; a part that is withheld is None and has its reason in `reasons`."""

    dtype: str | None
    """Of the peaks behind the bounds; None where the catalogue has none."""
    flops: float | None
    """Model FLOPs of the step, counted."""
    kernels: Band | None
    time_s: Band | None
    """Sum of the kernels' times."""
    mfu_bound: float | None
    bound_s: float | None
    """No run of these operators, eager and on one stream, takes less."""
    reasons: Mapping[str, str]
    """Part -> why it is withheld."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One file."""

    name: str
    sha256: str
    date: str
    """ISO day."""
    commit: str
    gpus: Mapping[str, str | None]
    """Catalogue name -> dtype of its bounds."""
    parameters: Mapping[str, str]
    """Catalogue name -> id of the kernel-time parameters behind its times."""
    steps: Mapping[Key, tuple[float | None, Any, list[Any]]]
    texts: tuple[str, ...]

    def find(self, gpu: str, key: Key) -> Prediction | None:
        """What was predicted of a step on a catalogued GPU; None where nothing was."""
        if gpu not in self.gpus or key not in self.steps:
            return None
        flops, kernels, rows = self.steps[key]
        row = rows[list(self.gpus).index(gpu)]
        reasons = {}
        if isinstance(kernels, int):
            reasons["kernels"] = self.texts[kernels]
        if isinstance(row, int):
            reasons |= dict.fromkeys(("time_s", "mfu_bound", "bound_s"), self.texts[row])
            row = [None, None, None]
        elif isinstance(row[2], int):
            reasons["time_s"] = self.texts[row[2]]
        return Prediction(
            dtype=self.gpus[gpu], flops=flops, kernels=_band(kernels), mfu_bound=row[0], bound_s=row[1],
            time_s=_band(row[2]), reasons=reasons,
        )  # fmt: skip


def _band(found: Any) -> Band | None:
    return Band(*found) if isinstance(found, list) else None


@cache
def load(path: Path) -> Predictions:
    """One committed file."""
    body = json.loads(path.read_text(encoding="utf-8"))
    assert (body["schema"], body["schema_version"]) == (SCHEMA, SCHEMA_VERSION), path.name
    steps = {(m, p, b, phase): (flops, kernels, rows) for m, p, b, phase, flops, kernels, rows in body["steps"]}
    return Predictions(
        name=path.name, sha256=sha256_file(path), date=body["date"], commit=body["commit"], gpus=body["gpus"],
        parameters=body["parameters"], steps=steps, texts=tuple(body["reasons"]),
    )  # fmt: skip


def committed(folder: Path = FOLDER) -> list[Predictions]:
    """Every file, oldest first."""
    return [load(path) for path in sorted(folder.glob("*.json"), key=lambda p: p.stem)]


def fingerprints(folder: Path = FOLDER) -> dict[str, str]:
    """File -> sha256: what a record says lay in its checkout when it was begun."""
    return {path.name: sha256_file(path) for path in sorted(folder.glob("*.json"))}

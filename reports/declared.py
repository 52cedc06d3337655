"""What a measure says of itself, and how the files of `reports/` that declare something of their own are found.

Apart from the catalogue (`measures.py`), which imports the files that this finds.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Style = Literal["time", "bytes", "si", "count", "percent", "auc", "number"]
"""How a value of this measure is printed; see `ctrbench.reports.cells.text_of`."""
Better = Literal["up", "down", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One training's answers on the whole test split, what a measure of quality is made from."""

    label_N: npt.NDArray[Any]
    """0 or 1."""
    score_N: npt.NDArray[np.floating[Any]]
    """Predicted probabilities."""
    user_N: npt.NDArray[Any]
    """-1 where the data has no user."""
    train_rate: float
    """Share of positives among the training rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One declared measure."""

    id: str
    """The record's `metric`."""
    title: str
    """Short name for column heads and axes."""
    unit: str
    better: Better
    """Direction: larger is better, smaller is better, or descriptive."""
    words: str
    """The formula in words."""
    source: str
    """Instrument or publication that the definition comes from."""
    style: Style = "number"
    of_scores: Callable[[Scored], float | None] | None = None
    """Its value for one training, None where the formula has none; no function where another instrument is read."""

    @property
    def axis(self) -> str:
        """Axis label with unit."""
        return self.title if self.unit in ("ratio", "1") else f"{self.title} ({self.unit})"


@cache
def modules_with(name: str) -> tuple[ModuleType, ...]:
    """Modules of this room that set `name` at their top, in the order of their names."""
    wanted = re.compile(rf"^{name}\b", re.MULTILINE)
    files = sorted(Path(__file__).resolve().parent.glob("*.py"))
    return tuple(
        importlib.import_module(f"ctrbench.reports.{f.stem}")
        for f in files
        if wanted.search(f.read_text(encoding="utf-8"))
    )

"""What a rule may look at and what it returns: claims, the numbers a verdict rests on, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from ctrbench.reports.cells import KNOWN, Cell, pick, where
from ctrbench.reports.costs import cited
from ctrbench.reports.exhibits import Context
from ctrbench.reports.limits import GENERATED
from ctrbench.reports.tables import groups

Word = Literal["supported", "refuted", "inconclusive", "not testable here"]
WORDS: tuple[Word, ...] = ("supported", "refuted", "inconclusive", "not testable here")
SUPPORTED, REFUTED, OPEN, UNTESTABLE = WORDS
RATINGS = "ratings, not impressions"
SEEDS = 3
"""Fewest trainings of each side behind a verdict on quality."""
NO_LOG = (*GENERATED, "random")
"""Parts of the names of data whose labels are ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One row of claims.toml."""

    id: str
    claim: str
    """In our words."""
    source: str
    grade: str
    models: str
    hardware: str
    precision: str
    confirms: str
    refutes: str
    rule: str
    caution: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the rule is told: models, limits, data."""
    cannot: Mapping[str, str] = field(default_factory=dict)
    """hold | fall | open -> why the rule never says so."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number that a verdict rests on, and what it is of."""

    of: str
    cell: Cell
    beside: bool = False
    """Shown for scale; the verdict does not rest on it."""

    @property
    def text(self) -> str:
        """`OneTrans minus composite: +0.0019 [+0.0009, +0.0029] (derived)`."""
        said = " ".join(t for t in (self.cell.text, self.cell.band) if t)
        known = [self.cell.origin, "unstable" if self.cell.status == "unstable" else "", self.cell.note]
        return f"{self.of}: {said} ({', '.join(k for k in known if k)})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the records say of a claim."""

    word: Word
    reason: str
    """One sentence or more, made from the numbers."""
    numbers: tuple[Number, ...] = ()
    caps: tuple[str, ...] = ()
    """What lowers the confidence whatever the numbers are."""

    @property
    def known(self) -> str:
        """Origins of the numbers."""
        return ", ".join(dict.fromkeys(n.cell.origin for n in self.numbers)) or "—"

    @property
    def confidence(self) -> str:
        """In words; of the weakest number, never above low where something caps it."""
        if self.word == UNTESTABLE:
            return "none"
        if self.word == OPEN:
            return "undecided"
        level, how = min((_level(n.cell) for n in self.numbers if not n.beside), default=(0, "no number"))
        if self.caps:
            level, how = min(level, 1), f"{how}; {'; '.join(self.caps)}"
        return f"{LEVELS[level]}: {how}"


LEVELS = ("none", "low", "fair", "good", "high")
Rule = Callable[["Evidence", Claim], Verdict]


def _level(cell: Cell) -> tuple[int, str]:
    """(place in `LEVELS`, why) of one number."""
    if cell.status == "unstable":
        return 1, "an unstable number"
    band = cell.low is not None and cell.high is not None
    if cell.origin == "counted":
        return 3, "counted"
    if cell.origin in ("measured", "imported", "derived") and band:
        return 4, f"{cell.origin} with an interval"
    if cell.metric == "mfu_bound":
        return 3, "an upper bound from counts and datasheet peaks"
    if cell.origin == "modelled":
        return 2, "modelled, outside its band"
    if cell.origin == "cited":
        return 1, "arithmetic on cited figures"
    return 2, f"{cell.origin} without an interval"


@dataclass(frozen=True)
class Evidence:
    """The rows of a report by measure, its record bodies, and the cited figures."""

    context: Context
    sheet: Mapping[str, Any]
    by_metric: Mapping[str, pd.DataFrame]
    logs: tuple[tuple[str, str], ...]
    """(track, data) of observed labels, as tables name them."""

    @classmethod
    def of(cls, context: Context, sheet: Mapping[str, Any] | None = None) -> Evidence:
        """Splits the known rows once, since every rule asks for some measures alone."""
        frame = context.frame
        usable = frame[frame["status"].isin(KNOWN) & frame["value"].notna()]
        parts = {str(m): part for m, part in usable.groupby("metric", sort=False)}
        logs = tuple((t, d) for t, d in groups(frame) if not any(word in d for word in NO_LOG))
        return cls(context, cited() if sheet is None else sheet, parts, logs)

    def rows(self, metric: str, **wanted: Any) -> pd.DataFrame:
        """Known rows of a measure whose columns equal the wanted values."""
        found = self.by_metric.get(metric)
        return self.context.frame.iloc[:0] if found is None else where(found, **wanted)

    def published(self, metric: str, models: Iterable[str] = (), family: str = "", phase: str = "") -> pd.DataFrame:
        """Known rows of published sizes; the controls are no model of a family."""
        rows = self.rows(metric)
        keep = rows["preset"].str.startswith("published").to_numpy(dtype=bool)
        if models := tuple(models):
            keep = keep & rows["model"].isin(models).to_numpy(dtype=bool)
        rows = where(rows[keep], phase=phase or None)
        if not family:
            return rows
        camps = self.context.names.camp
        return rows[np.array([camps(m) == family for m in rows["model"]], dtype=bool)]

    def title(self, model: str, preset: str = "", variant: str = "") -> str:
        """Title with the published size behind it."""
        size = preset.removeprefix("published:") if preset.startswith("published:") else ""
        return " ".join(t for t in (self.context.names.title(model, variant), size) if t)

    def caps(self, data: Iterable[str]) -> tuple[str, ...]:
        """What keeps data from deciding more than a sign."""
        return (RATINGS,) if any(d.startswith("movielens") for d in data) else ()


def by_size(rows: pd.DataFrame) -> dict[tuple[str, str, str], pd.DataFrame]:
    """(model, variant, preset) -> its rows, in the order of the rows."""
    groups_ = rows.groupby(["model", "variant", "preset"], sort=False)
    return {(str(m), str(v), str(p)): part for (m, v, p), part in groups_}


def highest(rows: pd.DataFrame) -> Cell:
    """The number of the row with the highest value, and where that is."""
    top = rows[rows["value"] == rows["value"].max()].iloc[:1]
    cell = pick(top, str(top["metric"].iloc[0]), scope=None)
    batch = float(top["batch"].iloc[0])
    place = [str(top["scope"].iloc[0]), str(top["dtype"].iloc[0]) if top["scope"].iloc[0] else ""]
    return replace(cell, note=", ".join(p for p in (*place, "" if batch != batch else f"batch {batch:,.0f}") if p))


def untestable(missing: str) -> Verdict:
    """Nothing to decide by; says which record is missing and what would make it."""
    return Verdict(word=UNTESTABLE, reason=f"Missing: {missing}.")


def minus(a: Cell, b: Cell, metric: str) -> Cell:
    """a - b; the interval is the widest that both allow, since they were not paired with each other."""
    assert a.value is not None
    assert b.value is not None
    band = a.low is not None and a.high is not None and b.low is not None and b.high is not None
    low = a.low - b.high if band else None  # type: ignore[operator]
    high = a.high - b.low if band else None  # type: ignore[operator]
    return Cell(a.value - b.value, metric, "derived", low, high, min(a.n or 0, b.n or 0) or None, signed=True)


def listed(items: Iterable[str], most: int = 4) -> str:
    """`a, b, c and 3 more`."""
    every = list(dict.fromkeys(items))
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")

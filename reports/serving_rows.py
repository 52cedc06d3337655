"""How the rows of serving are found: by model, form of serving and candidates of a request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from ctrbench.reports.cells import KNOWN, Cell, absent, pick, where
from ctrbench.reports.names import Names

REUSE, WHOLE, ALONE, CACHED = "reuse", "whole", "alone", "cached"
FORMS = (REUSE, WHOLE, ALONE)
"""Forms that every model has; a model's own stand between the first and the others."""
FEWEST = {"p99": 1000}
"""Requests below which a percentile is withheld."""
PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

Point = tuple[str, str, str, float]
"""(model, variant, form, candidates)"""


def served(frame: pd.DataFrame, data: str | None = None) -> pd.DataFrame:
    """Tidy rows of requests that were served or counted here, of one data set or of all."""
    rows = where(frame, phase="serve", data=data)
    return rows[~rows["preset"].str.startswith("published")]


def kept(rows: pd.DataFrame, keep: Iterable[bool]) -> pd.DataFrame:
    """The rows for which a test holds; an empty list would choose columns."""
    return rows.loc[np.fromiter(keep, dtype=bool)]


def form_of(scope: str) -> str:
    """`reuse` of `reuse:user` or of `reuse/cpu:total`."""
    return re.split("[:/]", scope, maxsplit=1)[0]


def pair_of(scope: str) -> tuple[str, str]:
    """(form, the form that it is held against) of the scope of a ratio: `reuse/on_the_fly`, or `reuse` for `whole`."""
    form, _, other = scope.partition("/")
    return form, other or WHOLE


def order_of(names: Names, point: Point) -> tuple[object, ...]:
    """Sorting key: model as everywhere, best form first, then candidates."""
    model, variant, form, batch = point
    rank = FORMS.index(form) if form in FORMS else 0.5
    return (*names.order(model, variant), rank, form, batch)


def failures(rows: pd.DataFrame, names: Names) -> list[str]:
    """What a lost process owed, a line a model and reason: such rows name neither form nor candidates."""
    lost = rows[rows["value"].isna() & rows["batch"].isna() & (rows["scope"] == "")]
    found: dict[tuple[str, str], list[str]] = {}
    for model, variant, metric, status, reason in lost[["model", "variant", "metric", "status", "reason"]].itertuples(
        index=False
    ):
        found.setdefault((names.title(str(model), str(variant)), f"{status}, {reason}"), []).append(str(metric))
    return [f"{title}: {why} ({', '.join(dict.fromkeys(metrics))})" for (title, why), metrics in found.items()]


def points(rows: pd.DataFrame, names: Names, metrics: Iterable[str]) -> list[Point]:
    """Every model, form and number of candidates that any of the measures has a row of."""
    rows = rows[rows["metric"].isin(list(metrics)) & rows["batch"].notna()]
    keys = rows[["model", "variant", "scope", "batch"]].drop_duplicates()
    found = {(str(m), str(v), form_of(str(s)), float(b)) for m, v, s, b in keys.itertuples(index=False) if m}
    return sorted(found, key=lambda p: order_of(names, p))


def of_point(rows: pd.DataFrame, point: Point) -> pd.DataFrame:
    """Rows of a model at its candidates; the form is left to the scope, which says more than the form."""
    model, variant, _, batch = point
    return where(rows, model=model, variant=variant, batch=batch)


def usual_batch(rows: pd.DataFrame) -> float | None:
    """The candidates at which models are set side by side: the middle one of the numbers most models have values at."""
    known = rows[rows["status"].isin(KNOWN) & rows["value"].notna() & rows["batch"].notna()]
    if known.empty:
        return None
    counts = (known["model"] + "\n" + known["variant"]).groupby(known["batch"]).nunique()
    most = sorted(float(b) for b in counts[counts == counts.max()].index)
    return most[len(most) // 2]


def percentile(rows: pd.DataFrame, metric: str, column: str, scope: str) -> Cell:
    """A percentile that a row keeps beside its value; too few requests withhold it, and say so."""
    whole = pick(rows, metric, scope=scope)
    mine = where(rows, metric=metric, scope=scope)
    mine = mine[mine["value"].notna()]
    if whole.value is None or bool((mine[column] == mine["value"]).all()):
        return whole
    found = mine.assign(value=mine[column], ci_low=np.nan, ci_high=np.nan)
    found = found[found["value"].notna()]
    if found.empty:
        n = f"{int(mine['n'].max()):,} requests" if mine["n"].notna().any() else "a number of requests not stated"
        return absent(metric, f"{column} of {n}; from {FEWEST[column]:,}" if column in FEWEST else f"no {column}")
    return replace(pick(found, metric, scope=scope), n=whole.n)


def times(cell: Cell, factor: float, metric: str, origin: str = "derived") -> Cell:
    """A number and its band by an exact factor."""
    if cell.value is None:
        return cell
    low, high = (None if end is None else factor * end for end in (cell.low, cell.high))
    kept = cell.origin if cell.origin == "modelled" else origin
    return replace(cell, value=factor * cell.value, low=low, high=high, metric=metric, origin=kept)


def amount(text: str) -> float | None:
    """The number that a scope begins with: `64 MB` is 64e6, `1024` is 1024; None where it begins with none."""
    found = re.match(r"\s*([\d.]+(?:e[+-]?\d+)?)\s*([kKMGT]?)(i?)B?\b", text)
    if found is None:
        return None
    digits, prefix, binary = found.groups()
    factor = 1024.0 ** "kMGT".index(prefix.replace("K", "k")) * 1024 if prefix and binary else PREFIXES[prefix]
    return float(digits) * factor


def in_order(scopes: Iterable[str]) -> list[str]:
    """Scopes by the number they begin with, those without one last."""
    return sorted(set(scopes), key=lambda s: (amount(s) is None, amount(s) or 0.0, s))


def said(numbers: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(numbers[:-1]), numbers[-1]]) if len(numbers) > 1 else "".join(numbers)

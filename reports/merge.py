"""Several runs in one report: nothing of one is taken for the other's, and no number is averaged over runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from ctrbench.reports import kernel_rows

Pair = tuple[str, str]
"""(data, split)"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a report is drawn from."""

    table: pd.DataFrame
    """Rows of `records.load`."""
    bodies: Mapping[str, Mapping[str, Any]]
    """record.json by key."""
    kernels: pd.DataFrame = field(default_factory=kernel_rows.empty)
    label: str = ""
    """Tells this run from the others: its folder, or what a point of a sweep sets."""


def merged(runs: Sequence[Loaded]) -> Loaded:
    """The runs as one.

    Where two runs have the same data and split, each puts its label behind the split: tables, figures and claims
    then treat them as two splits, which are compared within and never with each other. Records that several runs have
    under one key (`summary`, `prepare`) get the label behind the key. What knows no data, the published sizes, is taken
    once if it is the same record, else its variant gets the label.

    Args:
        runs: of different labels; at least one.
    """
    if len(runs) == 1:
        return runs[0]
    if again := [label for label, n in Counter(run.label for run in runs).items() if n > 1]:
        raise ValueError(f"two runs have the label {again[0]!r}")
    pairs = Counter(p for run in runs for p in _pairs(run.table))
    keys = Counter(k for run in runs for k in run.bodies)
    shared, twice = {p for p, n in pairs.items() if n > 1}, {k for k, n in keys.items() if n > 1}
    seen: set[str] = set()
    parts = []
    for run in runs:
        known = {k for k in run.bodies if k in seen and _dataless(run, k)}
        seen |= set(run.bodies)
        kept = _without(run, known)
        names = {k: f"{k} @ {run.label}" for k in kept.bodies if k in twice and not _dataless(run, k)}
        parts.append(_marked(kept, names, shared, {k for k in kept.bodies if k not in twice}))
    bodies = {k: b for part in parts for k, b in part.bodies.items()}
    return Loaded(
        pd.concat([p.table for p in parts], ignore_index=True), bodies,
        pd.concat([p.kernels for p in parts], ignore_index=True),
    )  # fmt: skip


def _pairs(table: pd.DataFrame) -> set[Pair]:
    columns = table[["data", "split"]].drop_duplicates().fillna("")
    return {(str(d), str(s)) for d, s in columns.itertuples(index=False) if d}


def _dataless(run: Loaded, key: str) -> bool:
    """Whether a record is one process of a run and of no data set."""
    spec = run.bodies[key].get("spec", {})
    return bool(spec.get("model")) and not spec.get("data")


def _without(run: Loaded, keys: set[str]) -> Loaded:
    if not keys:
        return run
    bodies = {k: b for k, b in run.bodies.items() if k not in keys}
    table, kernels = (t[~t["run"].isin(list(keys))] for t in (run.table, run.kernels))
    return replace(run, table=table, bodies=bodies, kernels=kernels)


def _marked(run: Loaded, names: Mapping[str, str], shared: set[Pair], own: set[str]) -> Loaded:
    """The run under other keys, with its label behind shared splits and behind variants of its own without data."""

    def marked(table: pd.DataFrame) -> pd.DataFrame:
        data, split, variant = (table[c].fillna("").astype(str) for c in ("data", "split", "variant"))
        mine = pd.Series([p in shared for p in zip(data, split, strict=True)], index=table.index, dtype=bool)
        alone = (data == "") & table["run"].isin(list(own)) & (table["model"].fillna("") != "")
        fresh = {
            "split": [_joined(s, run.label) if m else s for s, m in zip(split, mine, strict=True)],
            "variant": [_joined(v, run.label) if a else v for v, a in zip(variant, alone, strict=True)],
            "run": [names.get(str(r), str(r)) for r in table["run"]],
        }
        return table.assign(**{c: pd.array(v, dtype="string") for c, v in fresh.items()})

    bodies = {names.get(k, k): _relabelled(b, shared, run.label) for k, b in run.bodies.items()}
    for key in own:
        spec = bodies[key].get("spec", {})
        if spec.get("model") and not spec.get("data"):
            bodies[key] = {**bodies[key], "spec": {**spec, "variant": _joined(spec.get("variant", ""), run.label)}}
    return replace(run, table=marked(run.table), bodies=bodies, kernels=marked(run.kernels))


def _joined(name: str, label: str) -> str:
    return f"{name}, {label}" if name else label


def _relabelled(value: Any, shared: set[Pair], label: str) -> Any:
    """JSON with the label behind the split of every object that names shared data."""
    if isinstance(value, Mapping):
        out = {k: _relabelled(v, shared, label) for k, v in value.items()}
        data, split = value.get("data"), value.get("split")
        if isinstance(data, str) and isinstance(split, str) and (data, split) in shared:
            out["split"] = _joined(split, label)
        return out
    if isinstance(value, list) and value and isinstance(value[0], dict | list):  # not the long lists of numbers
        return [_relabelled(v, shared, label) for v in value]
    return value

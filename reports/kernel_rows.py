"""Kernels of traced steps in columns, beside a record: declared here, filled by the bench, drawn by `kernels`.

A file holds two views of the same launches. `step`: every event of one representative step, with its start, for the
timeline. `total`: all recorded launches of equal kind, place, family, name and duration class, summed. On a CPU a
launch is a dispatched operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

FILE = "kernels.parquet"
RANGE, OPERATOR, KERNEL = "range", "operator", "kernel"
"""Kinds, with `memcpy` and `memset`; a range is an NVTX range of a stage or block."""
STEP, TOTAL = "step", "total"
DRAM, L2, CACHE = "dram", "l2", "cache"
"""Memory levels of a roof; `cache` is the last one of a CPU."""

IDENTITY = ("run", "model", "variant", "data", "split")
"""Columns of `Measurement` that say whose launches these are."""
PLACE = ("kind", "device", "stage", "block", "family", "name")
"""device: `cpu` or what the recording calls it; stage and block: of the innermost range around the launch, empty where
unknown; family: of the operator table, or by the kernel's name."""
TEXTS = (*IDENTITY, "view", *PLACE, "lane", "origin")
"""lane: the thread or stream of an event."""
WHOLE = ("step", "steps", "start_ns", "duration_ns", "bin_ns", "launches")
"""step: number within the recording; steps: how many a total sums over; start_ns: since the step began; duration_ns: of
an event, of totals the sum without what ran inside; bin_ns: upper edge of the duration class; launches: 0 for what does
no work of its own (views, wrappers of other operators)."""
COUNTERS = ("flops", "dram_bytes", "l2_bytes")
"""Hardware counters, sums; missing unless every launch of the row has them."""
COLUMNS = (*TEXTS, *WHOLE, *COUNTERS)

EDGES = np.array([m * 10**e for e in range(2, 12) for m in (1, 2, 5)], np.int64)
"""Upper edges of the duration classes, ns; an edge belongs to the class below it, the last class has no end."""
SHORT_NS = 10_000
"""A launch of at most this is short: the host takes about as long to launch it."""


class BadKernels(ValueError):
    """A file that is no table of kernels; says which, why and what to do."""


def frame(columns: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """A frame of exactly `COLUMNS`; what is not given is missing, identity comes from `base`.

    Args:
        columns: column -> values, or one value for all rows.
        base: a run's shared columns.
    """
    named = {name: (base or {}).get(name, "") for name in IDENTITY} if base is not None else {}
    body = pd.DataFrame({**dict(columns)})
    for name in (*named, *(c for c in COLUMNS if c not in body and c not in named)):
        body[name] = named.get(name)
    return _typed(body[list(COLUMNS)])


def empty() -> pd.DataFrame:
    """No rows, all columns."""
    return _typed(pd.DataFrame({name: [] for name in COLUMNS}))


def _typed(body: pd.DataFrame) -> pd.DataFrame:
    kinds = dict.fromkeys(TEXTS, "string") | dict.fromkeys(WHOLE, "Int64") | dict.fromkeys(COUNTERS, "Float64")
    return body.astype(kinds)


def bins(durations_ns: Any) -> np.ndarray:
    """Upper edge of the class of each duration, ns."""
    at = np.searchsorted(EDGES, np.asarray(durations_ns, np.int64), side="left")
    return EDGES[np.minimum(at, len(EDGES) - 1)]


def totals(events: pd.DataFrame, steps: int | None) -> pd.DataFrame:
    """Sums of single launches by place and duration class.

    Args:
        events: rows of `frame`, `duration_ns` without what ran inside.
        steps: that they were recorded in; None where the recording marks no step.
    """
    keys = [*IDENTITY, *PLACE, "origin", "bin_ns"]
    binned = events.assign(bin_ns=bins(events["duration_ns"]))
    grouped = binned.groupby(keys, dropna=False, sort=False)
    sums = grouped[["duration_ns", "launches", *COUNTERS]].sum()
    size, present = grouped.size(), grouped[list(COUNTERS)].count()
    for name in COUNTERS:
        sums[name] = sums[name].mask(present[name] < size)
    body = sums.reset_index()
    return frame({**{str(c): body[c] for c in body}, "view": TOTAL, "steps": steps})


def short_share(rows: pd.DataFrame, weight: str = "launches") -> float | None:
    """Share of the launches, or of their `duration_ns`, in launches of at most `SHORT_NS`; None without launches."""
    real = rows[rows["launches"].fillna(0) > 0]
    whole = float(real[weight].sum())
    return float(real.loc[real["bin_ns"] <= SHORT_NS, weight].sum()) / whole if whole else None


def save(rows: pd.DataFrame, folder: Path) -> Path:
    """Writes the file of a record's folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    partial = path.with_name(path.name + ".partial")
    _typed(rows[list(COLUMNS)]).to_parquet(partial, index=False, compression="zstd")
    partial.replace(path)
    return path


def load(runs_dirs: Sequence[Path]) -> pd.DataFrame:
    """The kernels of every whole record below these run directories; of a record found twice the last.

    Raises:
        BadKernels: a file that is damaged or lacks a column.
    """
    found = {p.parent.name: p for d in runs_dirs for p in sorted((d / "records").glob(f"*/{FILE}"))
             if (p.parent / "record.json").is_file()}  # fmt: skip
    parts = [_read(path) for path in found.values()]
    return pd.concat(parts, ignore_index=True) if parts else empty()


def _read(path: Path) -> pd.DataFrame:
    from pyarrow import ArrowException  # its errors are not all of Python's kinds

    again = "delete it, or record the run again"
    try:
        rows = pd.read_parquet(path)
        if missing := [c for c in COLUMNS if c not in rows]:
            raise BadKernels(f"{path}: lacks {', '.join(missing)}; {again}")
        return _typed(rows[list(COLUMNS)])
    except BadKernels:
        raise
    except (OSError, ValueError, TypeError, OverflowError, ArrowException) as error:
        raise BadKernels(f"{path}: no readable Parquet file of kernels ({error}); {again}") from None

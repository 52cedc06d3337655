"""Process: what the data path costs, part by part. Ways of doing the same are timed by turns in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ctrbench.bench.alternate import ratio
from ctrbench.bench.assemble import as_record
from ctrbench.bench.datapath.dedup import dedup_part
from ctrbench.bench.datapath.loading import loader_part, stall_part
from ctrbench.bench.datapath.tables import tables_part
from ctrbench.bench.datapath.timed import Found
from ctrbench.bench.datapath.transforms import transforms_part
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.statistics import two_level_bootstrap
from ctrbench.reports.measures import make
from ctrbench.reports.records import Measurement, RunRecord

PARTS: Mapping[str, Callable[[RunSpec], Found]] = {
    "loader": loader_part, "stall": stall_part, "transforms": transforms_part, "tables": tables_part,
    "dedup": dedup_part,
}  # fmt: skip
"""Part of a `RunSpec` -> what measures it."""


def run_datapath(spec: RunSpec, folder: Path) -> RunRecord:
    """The part that the spec names."""
    found = PARTS[spec.part](spec)
    rows = [make(found.base, m, v, o, phase=found.phase, **kw) for m, v, o, kw in found.plain]
    for place, samples in found.samples.items():
        rows += way_rows(found.base, spec.part, place, samples, found.phase)
    extra = {"part": spec.part, "samples": found.samples, **found.extra}
    return as_record(spec, rows, extra, {"path_ratio": {"path_time": "measured"}})


def way_rows(
    base: Mapping[str, Any], part: str, place: str, samples: Mapping[str, Sequence[float]], phase: str
) -> list[Measurement]:
    """Seconds of every way, and its ratio to the first one, round by round.

    Args:
        base: identifying columns.
        part: of the data path.
        place: size or setting that the ways were tried at.
        samples: way -> seconds of every round, the way that the others are held against first.
        phase: of the rows.
    """
    first = next(iter(samples.values()))
    rows = []
    for way, seconds in samples.items():
        known: dict[str, Any] = {"phase": phase, "scope": f"{part}:{way}:{place}", "n": len(seconds)}
        low, high = two_level_bootstrap([[s] for s in seconds])
        rows.append(make(base, "path_time", median(seconds), "measured", ci_low=low, ci_high=high, **known))
        if seconds is not first:
            found = ratio(seconds, first)
            rows.append(make(base, "path_ratio", found.value, "derived", ci_low=found.low, ci_high=found.high, **known))
    return rows

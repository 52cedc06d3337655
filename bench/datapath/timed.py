"""What a part of the data path hands back, before it is rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ctrbench.bench.runspec import RunSpec
from ctrbench.reports.cells import DATAPATH
from ctrbench.reports.records import Origin


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Numbers of one part."""

    base: Mapping[str, Any]
    """Identifying columns of its rows."""
    phase: str
    samples: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    """Place -> way -> seconds of every round; the way that the others are held against comes first."""
    plain: Sequence[tuple[str, float, Origin, Mapping[str, Any]]] = ()
    """(measure, value, origin, further columns)"""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """For the record: sizes and settings."""


def made_up(spec: RunSpec) -> dict[str, Any]:
    """Columns of a part that makes its own columns and ids: of no model and no data set."""
    return {"run": spec.key, "model": "", "preset": DATAPATH, "data": "", "split": "", "track": "",
            "device": spec.device, "dtype": spec.dtype, "threads": spec.threads}  # fmt: skip

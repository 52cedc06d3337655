"""Process: what the feature path costs in CPU, for a legacy ranker and for a transformer."""

from __future__ import annotations

from pathlib import Path

from ctrbench.bench.assemble import as_record
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.serving.feature_path import feature_rows
from ctrbench.datasets.prepared import Prepared
from ctrbench.reports.records import RunRecord

REPEATS = 5


def run_features(spec: RunSpec, folder: Path) -> RunRecord:
    """Rows of no model: the paradigm stands in their scope."""
    prepared = Prepared.open(Path(spec.prepared))
    base = {"run": spec.key, "model": "", "data": spec.data, "split": spec.split, "track": prepared.schema.track,
            "threads": spec.threads}  # fmt: skip
    rows, extra = feature_rows(base, prepared, candidates=spec.serving["candidates"], repeats=REPEATS, seed=spec.seed)
    return as_record(spec, rows, extra)

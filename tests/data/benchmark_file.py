"""A file of `pytest --benchmark-json`, made by hand: one benchmark of ours and one that is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tests.data.gate_runs import MACHINE, SPEC

from ctrbench.reports.benchmark_json import SCHEMA, entries, sealed_info
from ctrbench.reports.measures import make

SECONDS = (0.0101, 0.0100, 0.0099)


def benchmarks(file: Path) -> None:
    """Writes it."""
    spec = replace(SPEC, model="deepfm", data="random_tabular", level="quick")
    base = {"run": "", "model": spec.model, "data": spec.data, "phase": "train"}
    rows = [
        make(base, "step_time", 0.0100, "measured", n=3, p10=0.0099, p50=0.0100, p90=0.0101),
        make(base, "throughput", 25_600.0, "derived"), make(base, "flops_train_per_sample", 3e6, "counted"),
    ]  # fmt: skip
    measures = entries(rows)
    extra = {"family": "legacy", "track": "tabular", "ceilings": [{"gemm_fp32_gflops": 100.0, "copy_gbs": 10.0}],
             "clock_drift": 0.01}  # fmt: skip
    body = {"schema_version": SCHEMA, "spec": spec.to_json(), "environment": MACHINE, "phase": "train",
            "inputs": {"throughput": {"time": "measured"}}, "measures": list(measures), "extra": extra}  # fmt: skip
    ours = {"fullname": "test_speed.py::test_train", "extra_info": sealed_info(measures, body),
            "stats": {"data": list(SECONDS), "median": 0.0100}}  # fmt: skip
    other = {"fullname": "test_speed.py::test_sort", "extra_info": {"n": 7}, "stats": {"data": [1.0], "median": 1.0}}
    file.write_text(json.dumps({"benchmarks": [ours, other], "version": "5.2.3"}))

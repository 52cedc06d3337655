"""One report rendered in a process of its own, from SYNTHETIC records: seconds, CPU, peak memory, page bytes as JSON.

`python -m ctrbench.bench.suites.rendering RUNS FOLDER`. Numbers of the records are seeded noise: they are for the size
of a page, never for what it says. Imports and the making of records are not counted as time; memory is of the process.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ctrbench.bench.suites.ingest import peak_bytes
from ctrbench.reports.measures import make
from ctrbench.reports.page import build_report
from ctrbench.reports.records import Measurement, Origin, frame

LEGACY, TRANSFORMERS = ("deepfm", "dcn_v2", "din", "composite"), ("fat", "onetrans", "hstu", "rankmixer")
DATA = (("movielens_1m", "sequence"), ("criteo_synthetic", "tabular"))
STAGES = ("data", "embedding", "interaction", "dense", "loss", "backward", "optimizer", "other")
SEEDS = 3
SCALES = {
    "step_time": 0.02, "infer_latency": 0.006, "throughput": 3e4, "loader_stall": 0.02, "cpu_core_seconds": 0.03,
    "rss_peak": 8e8, "mfu_cpu": 0.3, "flops_train_per_sample": 1e7, "budget_flops": 1e12, "flop_coverage": 1.0,
    "ops_per_step": 500, "ops_per_sample": 1.0, "kernels_per_step": 700, "bytes_operands": 3e8,
    "bytes_compulsory": 3e7, "ai_operands": 10, "ai_compulsory": 100, "bytes_tables": 1e7, "bytes_optimizer": 4e6,
    "bytes_checkpoint": 2e7, "parameters": 3e6, "unique_row_ratio": 0.4, "ceiling_gemm": 90, "ceiling_copy": 12,
    "logloss": 0.5, "ne": 0.8, "calibration": 1.0,
}  # fmt: skip
"""Measure -> about how large it is; all of them are of the training phase but `infer_latency`."""
MODELLED = {"kernels_per_step"}
MEASURED = {"step_time", "infer_latency", "throughput", "loader_stall", "rss_peak", "logloss", "ne", "calibration"}


def records(runs: int) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """SYNTHETIC (frame, bodies) of so many trainings: 8 models on 2 data sets, then variants of them."""
    rng = random.Random(0)
    models = LEGACY + TRANSFORMERS
    rows: list[Measurement] = []
    bodies = {}
    for i in range(runs):
        model, (data, track) = models[i % 8], DATA[i // 8 % 2]
        variant = f"v{i // 16:03d}" if i >= 16 else ""
        family = "legacy" if model in LEGACY else "transformer"
        spec = {"model": model, "variant": variant, "data": data, "split": "time", "dtype": "float32", "threads": 1,
                "batch": 512}  # fmt: skip
        base = {**spec, "run": f"synthetic-{i}", "family": family, "track": track, "phase": "train"}
        rows += run_rows(rng, base)
        bodies[f"synthetic-{i}"] = {
            "spec": {**spec, "kind": "quality", "fingerprint": f"sha256:{data}", "train_rows": 150_000,
                     "level": "quick", "history_length": 50, "seed": 0},
            "environment": {"cpu": "Synthetic CPU", "cores": 2}, "extra": {"control": False},
        }  # fmt: skip
    return frame(rows), bodies


def run_rows(rng: random.Random, base: dict[str, Any]) -> Iterator[Measurement]:
    """Rows of one run."""
    auc = 0.78 + 0.02 * rng.random()
    for seed in range(SEEDS):
        yield make(base, "auc", auc + rng.gauss(0, 7e-4), "measured", seed=seed)
    yield make(base, "auc", auc, "measured", n=SEEDS, sd=7e-4, ci_low=auc - 4e-3, ci_high=auc + 4e-3)
    for metric, scale in SCALES.items():
        value = 1.0 if metric == "flop_coverage" else scale * rng.uniform(0.5, 1.5)
        band = {"ci_low": 0.9 * value, "ci_high": 1.1 * value, "n": SEEDS} if metric in MEASURED | MODELLED else {}
        origin: Origin = "measured" if metric in MEASURED else "modelled" if metric in MODELLED else "derived"
        yield make({**base, "phase": "infer"} if metric == "infer_latency" else base, metric, value, origin, **band)
    parts = [rng.random() + 0.05 for _ in STAGES]
    for stage, part in zip(STAGES, parts, strict=True):
        yield make(base, "split_host", part / sum(parts), "measured", scope=f"stage:{stage}")


def main(arguments: Sequence[str]) -> None:
    """Renders once."""
    runs, folder = int(arguments[0]), Path(arguments[1])
    rows, bodies = records(runs)
    before, cpu = time.perf_counter(), time.process_time()
    page = build_report(rows, bodies, folder / "report.html")
    found = {
        "seconds": time.perf_counter() - before, "cpu_s": time.process_time() - cpu, "peak_bytes": peak_bytes(),
        "page_bytes": page.stat().st_size, "rows": len(rows), "runs": runs,
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Run directories for `ctrbench compare`, made by hand: timed processes and trainings with test scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ctrbench.bench.runspec import RunSpec
from ctrbench.reports import records
from ctrbench.reports.measures import make
from ctrbench.reports.records import RunRecord

MACHINE = {"cpu": "a CPU", "cores": 2, "threads": 2, "usable_cpus": 2, "gpu": "none", "os": "Linux", "python": "3.11",
           "torch": "2.13", "commit": "c0ffee", "dirty": False}  # fmt: skip
SPEC = RunSpec(kind="time", model="din", data="d", split="s", fingerprint="f00", batch=256, train_rows=1000, epochs=1,
               level="publish")  # fmt: skip
ROWS = 800
TIMES = (0.0100, 0.0101, 0.0099, 0.01005, 0.00995)
PEAKS = (500e6, 501e6, 499e6, 502e6, 498e6)
LABEL = np.tile([1, 0], ROWS // 2)
USER = np.repeat(np.arange(ROWS // 4), 4)


def times(
    folder: Path, seconds: Sequence[float] = TIMES, peaks: Sequence[float] = PEAKS, *,
    machine: Mapping[str, Any] = MACHINE, gemm: float = 100.0, **changes: Any,
) -> Path:  # fmt: skip
    """Timed processes, one a value."""
    for i, (second, peak) in enumerate(zip(seconds, peaks, strict=True)):
        spec = replace(SPEC, repeat=i, **changes)
        steps = second * (1 + 0.01 * np.random.default_rng(i).standard_normal(51))
        extra = {
            "samples": {"step": (steps / np.median(steps) * second).tolist()}, "rss_peak": peak,
            "ceilings": [{"gemm_fp32_gflops": gemm, "copy_gbs": 10.0}],
        }  # fmt: skip
        records.save(RunRecord(key=spec.key, spec=spec.to_json(), rows=(), environment=machine, extra=extra), folder)
    return folder


def trainings(folder: Path, gap: float = 1.0, seeds: int = 3, luck: int = 0, doubt: str = "", **changes: Any) -> Path:
    """Trainings with test scores; `gap` is how far positives stand above negatives."""
    for seed in range(seeds):
        spec = replace(SPEC, kind="quality", seed=seed, **changes)
        shared = np.random.default_rng(99).normal(size=ROWS)  # what every model sees in these rows
        own = np.random.default_rng([luck, seed]).normal(size=ROWS)
        base = {"run": spec.key, "model": spec.model, "variant": spec.variant, "data": spec.data, "split": spec.split,
                "phase": "train"}  # fmt: skip
        state: Mapping[str, Any] = {"status": "unstable", "reason": doubt} if doubt else {}
        rows = (make(base, "auc", 0.7, "measured", seed=seed, **state),)
        kept = records.save(RunRecord(key=spec.key, spec=spec.to_json(), rows=rows, environment=MACHINE), folder)
        np.savez(kept / "scores.npz", score=(gap * LABEL + shared + 0.2 * own).astype(np.float32))
    (folder / "rows").mkdir(exist_ok=True)
    np.savez(folder / "rows" / "f00.npz", label=LABEL, user=USER)
    return folder

"""pytest-benchmark: one benchmark a model and phase, with our measures and their origins in `extra_info`.

Run with `pytest bench/suites/test_models.py --benchmark-json=out.json`; `ctrbench report out.json` draws the file
(docs/benchmarks.md).
"""

from __future__ import annotations

from typing import Any

import pytest

from ctrbench.bench.pytest_plugin import CtrBenchmark
from ctrbench.bench.registry import model_names, model_spec

TRACKS = ("sequence", "tabular")
CASES = [(m, t) for m in model_names() for t in TRACKS if t in model_spec(m).tracks]
ASKED: dict[str, Any] = {"batch": 256, "rounds": 30, "options": {"run.history_length": 50}}


@pytest.mark.parametrize("phase", ["train", "infer"])
@pytest.mark.parametrize(("model", "track"), CASES)
def test_model(ctr_benchmark: CtrBenchmark, model: str, track: str, phase: str) -> None:
    ctr_benchmark(model=model, data=f"random_{track}", phase=phase, **ASKED)

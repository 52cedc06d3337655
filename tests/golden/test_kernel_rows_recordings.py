"""Launches in columns of recorded GPUs against the figures of their readers (../shared/traces)."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctrbench.bench.trace.command import read
from ctrbench.bench.trace.kernel_rows import recorded_kernels
from ctrbench.bench.trace.recording import Recording
from ctrbench.reports import kernel_rows as schema

TRACES = Path(__file__).resolve().parents[2].parent / "shared" / "traces"
NAMES = ("kineto/h100_bert_small.json.gz", "kineto/mi250_toy_train.json.gz")


@pytest.mark.parametrize("name", NAMES)
def test_totals_are_the_launches_of_the_steps(name: str) -> None:
    path = TRACES / name
    if not path.is_file():
        pytest.skip(f"the recorded traces are not beside this checkout: {path} is missing")
    recording = read(path)
    assert isinstance(recording, Recording)
    summary = recording.summary()
    found = recorded_kernels({"run": "k"}, recording, None, "imported")
    work = found.table[(found.table["view"] == schema.TOTAL) & (found.table["kind"] == schema.KERNEL)]
    steps = summary["steps"]
    if "unlinked_share" in found.facts["withheld"].get("blocks", "") or not steps:
        assert int(work["launches"].sum()) == summary["kernels"]["launches"]
        assert int(work["duration_ns"].sum()) == summary["kernels"]["total_ns"]
        assert found.facts["steps"] is None
        return
    assert int(work["launches"].sum()) == sum(steps["kernels_per_step"])
    assert int(work["duration_ns"].sum()) == sum(steps["kernel_ns_per_step"])
    shown = found.table[(found.table["view"] == schema.STEP) & (found.table["kind"] == schema.KERNEL)]
    number = int(shown["step"].iloc[0])
    assert len(shown) == steps["kernels_per_step"][number]
    assert (shown["start_ns"] > 0).all(), "no kernel starts before its step"

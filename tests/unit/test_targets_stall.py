"""The target on waiting for data: which processes it runs, and what it says of their records."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from ctrbench.bench.config import build_plan
from ctrbench.bench.pool import Outcome as Ended
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.specs import Ready
from ctrbench.bench.targets import stall
from ctrbench.datasets.prepare import prepare

criteo_file = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))["criteo_file"]


def _record(folder: Path, spec: RunSpec, wait: float) -> None:
    path = folder / "records" / spec.key / "record.json"
    path.parent.mkdir(parents=True)
    extra = {"samples": {"wait": [wait, wait], "step": [1.0, 1.0]}, "cpu_seconds": {"data": 0.1, "all": 2.0}}
    path.write_text(json.dumps({"extra": extra}))


def test_every_timed_model_of_the_suite_is_run_and_no_other(tmp_path: Path) -> None:
    prepared = prepare("criteo", criteo_file(tmp_path), tmp_path / "out")
    plan = build_plan([f"suite={stall.SUITE}"])
    criteo = next(j for j in plan.jobs if j.data == "criteo_synthetic")
    untimed = next(j for j in plan.jobs if not j.timed)
    ready = [Ready(criteo, prepared, prepared.path), Ready(untimed, prepared, prepared.path)]
    specs = stall.timed_specs(plan, ready)
    assert [s.model for s in specs] == 2 * [e.model for e in criteo.models]
    assert {(s.kind, s.steps, s.threads) for s in specs} == {("time", 60, 2)}


@pytest.mark.parametrize(("slow", "verdict"), [(0.04, "met"), (0.06, "missed")])
def test_the_worst_model_decides(tmp_path: Path, slow: float, verdict: str) -> None:
    specs = [RunSpec(kind="time", model=m, data="d", repeat=r) for r in (0, 1) for m in ("din", "deepfm")]
    for spec in specs:
        _record(tmp_path, spec, slow if spec.model == "deepfm" else 0.01)
    found = stall.stalls(specs, tmp_path)
    assert [s.who for s in found] == ["d: deepfm", "d: din"]
    worst, context, *more = stall.judged(found, [], [], "two processes")
    assert not more
    assert (worst.verdict, worst.wanted) == (verdict, "< 5%")
    assert "d: deepfm" in worst.measured
    assert (context.verdict, context.how) == ("context", "the loader takes 5.0% of the CPU seconds of a step")


def test_a_failed_process_is_a_miss_and_absent_data_is_not_testable(tmp_path: Path) -> None:
    end = Ended(RunSpec(kind="time", model="din", data="d"), "oom", "killed")
    missed, absent = stall.judged([], [end], ["movielens_1m: no network"], "")
    assert (missed.verdict, missed.how) == ("missed", "killed")
    assert (absent.verdict, absent.how) == ("not testable here", "movielens_1m: no network")

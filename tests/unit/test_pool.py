"""A child that raises, dies, hangs or runs out of memory is an outcome; the others finish."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from ctrbench.bench.pool import Outcome, run_all
from ctrbench.bench.runspec import RunSpec
from ctrbench.reports import records

HOW = {
    "raise": 'raise RuntimeError("planted failure")',
    "memory": 'raise MemoryError("planted")',
    "allocator": "torch.empty(1 << 50)",
    "exit": "raise SystemExit(0)",
    "die": "os.kill(os.getpid(), signal.SIGKILL)",
    "fault": "os.kill(os.getpid(), signal.SIGSEGV)",
    "hang": "time.sleep(600)",
}
EXPECTED = {
    "raise": ("failed", "RuntimeError: planted failure"),
    "memory": ("oom", "MemoryError: planted"),
    "allocator": ("oom", "allocate memory"),
    "exit": ("failed", "SystemExit"),
    "die": ("oom", "signal 9"),
    "fault": ("failed", "code -11"),
    "hang": ("timeout", "run.timeout_s"),
}
MODEL = textwrap.dedent(
    """
    import dataclasses, os, signal, time
    import torch
    from ctrbench.legacy_baselines import deepfm

    def published():
        HOW

    SPEC = dataclasses.replace(deepfm.SPEC, published=published)
    """
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome], list[Outcome]]:
    """(run directory, outcomes, what was reported as each ended) of every way to break and one whole run."""
    folder = tmp_path_factory.mktemp("pool")
    specs = []
    for how, line in HOW.items():
        file = folder / f"{how}.py"
        file.write_text(MODEL.replace("HOW", line))
        timeout = 8 if how == "hang" else 300
        specs.append(RunSpec(kind="published", model=how, model_path=str(file), timeout_s=timeout))
    specs.insert(1, RunSpec(kind="published", model="deepfm", dtype="bf16"))
    reported: list[Outcome] = []
    return folder, run_all(specs, folder, workers=2, done=reported.append), reported


def test_every_run_has_one_outcome_reported_once(finished: tuple[Path, list[Outcome], list[Outcome]]) -> None:
    _, outcomes, reported = finished
    assert reported == outcomes
    assert sorted(o.spec.model for o in outcomes) == sorted([*HOW, "deepfm"])


@pytest.mark.parametrize("how", HOW)
def test_a_broken_child_is_one_outcome(how: str, finished: tuple[Path, list[Outcome], list[Outcome]]) -> None:
    outcome = next(o for o in finished[1] if o.spec.model == how)
    status, reason = EXPECTED[how]
    assert outcome.status == status
    assert reason in outcome.reason


def test_only_the_whole_run_left_a_record(finished: tuple[Path, list[Outcome], list[Outcome]]) -> None:
    folder, outcomes, _ = finished
    whole = next(o for o in outcomes if o.status == "ok")
    assert whole.spec.model == "deepfm"
    assert records.finished(folder) == {whole.spec.key}

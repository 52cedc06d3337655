"""A child that crashes, hangs or runs out of memory is an outcome; the others finish."""

import textwrap

import pytest

from ctrbench.bench.pool import run_all
from ctrbench.bench.runspec import RunSpec
from ctrbench.reports import records

MODEL = textwrap.dedent(
    """
    import os, time
    from dataclasses import dataclass
    from ctrbench.legacy_baselines import deepfm

    @dataclass(frozen=True)
    class Config:
        how: str = "raise"

    def build(config, schema, device="cpu"):
        raise RuntimeError("unused")

    def published():
        how = os.environ["CTRBENCH_TEST_HOW"]
        if how == "raise":
            raise RuntimeError("planted failure")
        if how == "memory":
            raise MemoryError("planted")
        if how == "die":
            os.kill(os.getpid(), 9)
        time.sleep(60)

    import dataclasses
    SPEC = dataclasses.replace(deepfm.SPEC, name="broken", config=Config, build=build, published=published)
    """
)


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        ("raise", "failed", "planted failure"),
        ("memory", "oom", "planted"),
        ("die", "oom", "signal 9"),
        ("hang", "timeout", "run.timeout_s"),
    ],
)
def test_a_broken_child_is_one_outcome(tmp_path, monkeypatch, how, status, reason):
    file = tmp_path / "broken.py"
    # The fork server may already run, so the way to break is written into the file rather than the environment.
    file.write_text(MODEL.replace('os.environ["CTRBENCH_TEST_HOW"]', repr(how)))
    bad = RunSpec(kind="published", model="broken", model_path=str(file), timeout_s=5 if how == "hang" else 120)
    seen = []
    outcomes = run_all([bad], tmp_path, workers=1, done=seen.append)
    assert [o.status for o in outcomes] == [status]
    assert reason in outcomes[0].reason
    assert seen == outcomes
    assert records.finished(tmp_path) == set()

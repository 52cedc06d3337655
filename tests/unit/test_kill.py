"""kill -9 at random moments of a small suite: what finished is kept and not repeated, no half record is read."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ctrbench.reports import records

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = {
    "auc": ["suite=ci", "data=criteo_synthetic", "model=deepfm,fat", "floors=true", "run.trials=2"],
    "auc_shuffled": [
        "suite=controls", "data=criteo_synthetic", "model=deepfm,fat", "data.options.rows=6000",
        "data.options.cap=1000", "run.train_rows=4000", "run.valid_rows=500", "run.cache=false",
    ],
    "recall_at_k": [  # with a pre-training that other runs wait for
        "suite=standard", "data=taobao_synthetic", "model=lum", "floors=false", "data.options.users=60",
        "data.options.pool_users=240", "run.trials=2", "run.trial_rows=512", "run.seeds=2", "run.processes=1",
        "run.steps=3", "run.warmup=1", "run.train_rows=2000", "run.valid_rows=300", "run.batch=64", "run.threads=1",
    ],
}  # fmt: skip
"""Measure that the whole suite must end with -> the suite."""


def start(out: Path, metric: str) -> subprocess.Popen[bytes]:
    arguments = [*ARGUMENTS[metric], f"run.out={out}", "run.resume=true"]
    command = [sys.executable, "-m", "ctrbench.bench.cli", "run", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def stamps(out: Path) -> dict[str, int]:
    """Record key -> time of writing, of every finished run; each must read whole."""
    found = {}
    for folder in (p.parent for p in out.glob("*/plan.sha256") if not p.parent.is_symlink()):
        for key in records.finished(folder):
            file = folder / "records" / key / "record.json"
            records.read(file.parent)
            found[key] = file.stat().st_mtime_ns
    return found


def test_a_trial_interrupts_its_job_where_whoever_started_it_ignores_that(tmp_path: Path) -> None:
    """As a script's `make kill-trials &` does: SIGINT reached no job there, and its trials proved nothing."""
    code = (
        "import random, signal, sys, time; from pathlib import Path; from tests.kill_trials import Job, Trials\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "command = [sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(600)']\n"
        "job = Job(name='sleep', command=command, whole=lambda f: {}, answer=lambda f: '')\n"
        "process = Trials(job, Path(), random.Random(0))._start(Path())\n"
        "while not Path('said.txt').read_text(): time.sleep(0.05)\n"
        "process.send_signal(signal.SIGINT)\n"
        "sys.exit(0 if process.wait(60) else 'it slept on')"
    )
    paths = {"PYTHONPATH": os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **paths}, check=True, timeout=150)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ARGUMENTS)
def test_ten_kills_lose_nothing_that_finished(tmp_path: Path, metric: str) -> None:
    moments = random.Random(0)
    kept: dict[str, int] = {}
    kills = 0
    while kills < 10:
        process = start(tmp_path, metric)
        time.sleep(moments.uniform(1.0, 14.0))
        if process.poll() is not None:  # finished before the kill came: begin another suite
            assert process.returncode == 0
            for folder in tmp_path.iterdir():
                if folder.is_dir() and not folder.is_symlink() and (folder / "plan.sha256").exists():
                    (folder / "plan.sha256").write_text("done")
            kept = {}
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(1.5)  # children notice within a second that the suite is gone
        kills += 1
        now = stamps(tmp_path)
        again = [k for k, stamp in kept.items() if k not in ("prepare", "summary") and now.get(k) != stamp]
        assert not again, f"written again or lost: {again}"
        kept |= now
    assert start(tmp_path, metric).wait() == 0
    now = stamps(tmp_path)
    assert all(now[k] == stamp for k, stamp in kept.items() if k not in ("prepare", "summary"))
    table, _ = records.load(tmp_path / "latest")
    wanted = {"lum"} if metric == "recall_at_k" else {"deepfm", "fat"}
    assert wanted <= set(table[(table.metric == metric) & table.value.notna()].model)

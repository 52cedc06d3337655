"""Training over two processes against the plain training of one: losses, checkpoints, lost processes."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from ctrbench.bench import registry
from ctrbench.bench.cli import main as ctrbench
from ctrbench.bench.distributed.__main__ import main
from ctrbench.bench.distributed.sharding import start_rows
from ctrbench.bench.step import TrainStep
from ctrbench.bench.train import seed_everything
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared
from ctrbench.models.embedding import EmbeddingTables
from ctrbench.reports import records

BATCH, LENGTH, ROWS = 256, 16, 52_000
DATA: dict[str, dict[str, Any]] = {
    "criteo_synthetic": {"rows": 30_000, "cap": 1000}, "taobao_synthetic": {"users": 800, "pool_users": 1200},
}  # fmt: skip
MODELS = {"deepfm": "criteo_synthetic", "din": "taobao_synthetic", "onetrans": "taobao_synthetic"}
LR = {"deepfm": 1e-3, "din": 1e-4, "onetrans": 1e-3}
"""Of Adam. Sums in another order part two trainings in the last bit, and training on rows that are known by heart makes
that grow: so 200 steps see no row twice, and DIN, with Dice, gets a lower rate. It is no fault of the processes: one
alone whose batches have their rows turned round parts from itself as fast, DIN by 8e-4 in 100 steps of 20,000 rows at
1e-3 (two processes: 8e-4), by 8e-7 in 200 steps at 1e-4 of rows all new, OneTrans at 1e-3 by 3e-7."""


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTRBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def command(model: str, out: Path, processes: int, *more: str) -> list[str]:
    data = MODELS[model]
    options = [f"data.options.{k}={v}" for k, v in DATA[data].items()]
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m",
        "ctrbench.bench.distributed", f"model={model}", f"data={data}", *options, f"run.batch={BATCH}",
        f"run.train_rows={ROWS}", f"run.history_length={LENGTH}", "run.threads=1", f"run.lr={LR[model]}",
        f"dist.out={out}", *more,
    ]  # fmt: skip


def run(model: str, out: Path, processes: int, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(model, out, processes, *more), capture_output=True, text=True, check=False)


def curve(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def alone(model: str, prepared: Prepared, steps: int) -> list[float]:
    """The same training without any of the code for processes but the start of the rows."""
    spec, schema = registry.model_spec(model), prepared.schema_for(LENGTH)
    config = spec.config()
    sharded = replace(config, tables=replace(config.tables, impl="sharded"))
    seed_everything(0)
    dense = spec.build(sharded, schema).state_dict()
    plain = spec.build(config, schema)
    tables = {n for n, m in plain.named_modules() if isinstance(m, EmbeddingTables)}
    own = plain.state_dict()
    with torch.no_grad():
        for name, value in own.items():
            if not any(name.startswith(f"{t}.") for t in tables):
                value.copy_(dense[name])
    start_rows(plain, 0)
    plain.train()
    step, losses, epoch = TrainStep(plain, lr=LR[model]), [], 0
    while len(losses) < steps:
        loader = Loader(prepared, "train", BATCH, rows=ROWS, shuffle_seed=epoch, history_length=LENGTH, drop_last=True)
        for batch in loader:
            losses.append(float(step(batch)))
            if len(losses) == steps:
                break
        epoch += 1
    return losses


CASES = [
    pytest.param("deepfm", "row_wise", 20, id="deepfm-row_wise-20"),
    *(pytest.param(model, sharding, 200, id=f"{model}-{sharding}", marks=pytest.mark.slow)
      for model in MODELS for sharding in ("row_wise", "table_wise")),
]  # fmt: skip


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("model", "sharding", "steps"), CASES)
def test_losses_are_those_of_one_process(model: str, sharding: str, steps: int, tmp_path: Path) -> None:
    done = run(model, tmp_path / "out", 2, f"dist.sharding={sharding}", f"dist.steps={steps}")
    assert done.returncode == 0, done.stderr[-3000:]
    found = curve(tmp_path / "out")
    expected = alone(model, prepare(MODELS[model], **DATA[MODELS[model]]), steps)
    print("largest relative difference", max(abs(a / b - 1) for a, b in zip(found, expected, strict=True)))
    assert found == pytest.approx(expected, rel=1e-4)
    table, bodies = records.load(tmp_path / "out")
    (body,) = bodies.values()
    assert body["spec"]["ranks"] == 2
    assert len(body["extra"]["balance"]["bytes_by_rank"]) == 2
    assert {s["sharding"] for s in body["extra"]["balance"]["shards"]} == {sharding}
    for metric in ("auc", "logloss", "throughput", "communication_share"):
        assert table[table["metric"] == metric]["value"].notna().all()
    assert 0 < table[table["metric"] == "communication_share"]["value"].item() < 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_column_shards_under_plain_adagrad(tmp_path: Path) -> None:
    done = run("deepfm", tmp_path / "rows", 2, "dist.sharding=row_wise", "dist.steps=60", "run.table_optimizer=adagrad")
    assert done.returncode == 0, done.stderr[-3000:]
    done = run("deepfm", tmp_path / "cols", 2, "dist.sharding=column_wise", "dist.steps=60",
               "run.table_optimizer=adagrad")  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert curve(tmp_path / "cols") == pytest.approx(curve(tmp_path / "rows"), rel=1e-4)


def held(checkpoint: Path, scratch: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint: weights, tables, states of both optimizers."""
    dcp_to_torch_save(checkpoint, scratch)
    found: dict[str, Tensor] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[name] = value
        for key, inner in value.items() if isinstance(value, dict) else ():
            walk(f"{name}/{key}", inner)

    walk("", torch.load(scratch, weights_only=False))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_training_that_goes_on_ends_bit_by_bit_as_if_nobody_had_stopped_it(tmp_path: Path) -> None:
    """Weights, tables and states of both optimizers, with dropout."""
    options = ("dist.sharding=row_wise", "dist.checkpoint_steps=40", "deepfm.dropout=0.1")
    for name, steps, more in (("whole", 120, ()), ("out", 80, ()), ("out", 120, ("dist.resume=true",))):
        done = run("deepfm", tmp_path / name, 2, *options, f"dist.steps={steps}", *more)
        assert done.returncode == 0, done.stderr[-3000:]
    assert curve(tmp_path / "out") == curve(tmp_path / "whole")
    at_end, stopped = (held(tmp_path / n / "step-000000120", tmp_path / f"{n}.pt") for n in ("whole", "out"))
    assert at_end.keys() == stopped.keys()
    assert {name.split("/")[1] for name in at_end} >= {"model", "tables", "adam"}
    assert [name for name in at_end if not torch.equal(at_end[name], stopped[name])] == []


def test_an_attempt_killed_before_its_first_checkpoint_leaves_no_losses(tmp_path: Path) -> None:
    """Found by `make kill-trials`: its steps stood twice in the curve."""
    out = tmp_path / "out"
    out.mkdir()
    left = [json.dumps({"step": step, "loss": 9.0}) for step in range(1, 6)]
    (out / "losses.jsonl").write_text("\n".join([*left, '{"step": 6, "lo']))
    done = run("deepfm", out, 1, "dist.steps=12", "dist.resume=true")
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(curve(out)) == 12
    assert max(curve(out)) < 9.0


def started(out: Path, *more: str) -> subprocess.Popen[str]:
    """Two processes that would go on for long, once they have written a checkpoint."""
    process = subprocess.Popen(
        command("deepfm", out, 2, "dist.sharding=row_wise", "dist.steps=100000", *more),
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(out.glob("step-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return process


def ended(process: subprocess.Popen[str]) -> str:
    """What it said to its end."""
    try:
        return process.communicate(timeout=300)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_lost_process_ends_the_job_and_one_process_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = started(out, "dist.checkpoint_steps=20", "dist.timeout_s=20")
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    said = ended(process)
    assert process.returncode == 1
    assert "a process was lost near step" in said
    assert "go on with dist.resume=true" in said
    kept = sorted(p.name for p in out.glob("step-*"))
    assert 1 <= len(kept) <= 2
    steps = int(kept[-1].split("-")[1]) + 20
    done = run("deepfm", out, 1, "dist.sharding=row_wise", "dist.checkpoint_steps=20", "dist.resume=true",
               f"dist.steps={steps}")  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    expected = alone("deepfm", prepare(MODELS["deepfm"], **DATA[MODELS["deepfm"]]), steps)
    assert curve(out) == pytest.approx(expected, rel=1e-4)
    assert list(out.glob(".*partial")) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_writes_a_checkpoint(number: signal.Signals, tmp_path: Path) -> None:
    """Checkpoints here come by the clock, every hundredth of a minute until the stop."""
    out = tmp_path / "out"
    process = started(out, "dist.checkpoint_minutes=0.01")
    process.send_signal(number)
    said = ended(process)
    assert process.returncode == 1, said[-3000:]
    stopped = int(said.split("stopped after step ")[1].split()[0])
    assert "go on with dist.resume=true" in said
    assert max(out.glob("step-*")).name == f"step-{stopped:09d}"
    assert len(curve(out)) == stopped


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also: one process without torchrun, and checkpoints of other options refused."""
    words = [*command("deepfm", tmp_path, 1)[8:], "data.options.rows=3000", "run.train_rows=2000"]

    def full(file: int) -> None:
        if list(tmp_path.glob("step-*3")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main([*words, "dist.checkpoint_steps=3", "dist.steps=7"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "step-000000006: checkpoint not written" in said
    assert "No space left on device" in said
    assert "step-000000003; go on with dist.resume=true" in said
    assert [p.name for p in tmp_path.glob("*step-*")] == ["step-000000003"]
    assert main([*words, "dist.checkpoint_steps=3", "dist.steps=7"]) == 2  # not asked to go on
    assert main([*words, "dist.checkpoint_steps=3", "dist.steps=7", "dist.resume=true", "run.lr=0.1"]) == 2
    assert "checkpoint of lr=0.001, this training has 0.1" in " ".join(capsys.readouterr().err.split())
    assert main([*words, "dist.checkpoint_steps=3", "dist.steps=7", "dist.resume=true"]) == 0
    assert len(curve(tmp_path)) == 7
    assert sorted(p.name for p in tmp_path.glob("*step-*")) == ["step-000000006", "step-000000007"]


def in_readme() -> list[str]:
    """README's commands that start processes."""
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith(".venv/bin/torchrun ")]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_readme_s_command_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the same with dist.resume=true, and the report of its folder."""
    (words,) = (shlex.split(line)[1:] for line in in_readme())
    monkeypatch.chdir(tmp_path)
    program = str(Path(sys.executable).with_name("torchrun"))
    for more in ([], ["dist.resume=true"]):
        done = subprocess.run([program, *words, *more], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    (out,) = (word.split("=")[1] for word in words if word.startswith("dist.out="))
    assert ctrbench(["report", out, "-o", "report.html"]) == 0
    assert "Training over processes" in Path("report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("words", "told"), [
    ("model=deepfm,fat", "give model=NAME data=NAME"), ("model=lum data=taobao_synthetic", "pre-training"),
    ("model=deepfm dist.sharding=rows", "dist.sharding"), ("model=deepfm dist.device=tpu", "dist.device"),
    ("model=deepfm run.dtype=bfloat16", "run.dtype"), ("model=deepfm run.embedding=per_table", "run."),
])  # fmt: skip
def test_wrong_arguments_are_said_before_any_work(
    words: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["data=criteo_synthetic", f"dist.out={tmp_path / 'out'}", *words.split()]
    assert main(given) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

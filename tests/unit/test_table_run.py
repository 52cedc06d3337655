"""A stranger's CSV through `suite=quick`, as a stranger does it: every model of its track ends in numbers.

The whole suites take minutes and are marked slow; what stays trains every model of them on the table in this process,
and runs the command on some.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch

from ctrbench.bench import registry
from ctrbench.bench.cli import main
from ctrbench.bench.config import build_plan
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepare import prepare

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_table.py"))
shop, loans, SEQUENCE = _tiny["shop"], _tiny["loans"], _tiny["SEQUENCE"]
SMALL = [
    "run.train_rows=256", "run.valid_rows=48", "run.batch=64", "run.steps=3", "run.warmup=1", "run.processes=1",
    "run.seeds=1", "run.threads=1", "run.history_length=5", "published=false",
]  # fmt: skip
EVERYWHERE = ("deepfm", "dcn_v2", "fat", "shared_fields")
OF_SEQUENCES = ("din", "composite", "onetrans", "gpt_block")
NUMBERS = ("auc", "logloss", "step_time", "flops_fwd_per_sample", "kernels_per_step")


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`ctrbench run` on a table and its schema, in an empty folder; in this process, which has torch loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run_(files: tuple[Path, Path], *more: str) -> Ended:
        data = ["data=table", f"data.path={files[0]}", f"data.schema={files[1]}", f"run.out={tmp_path / 'runs'}"]
        capfd.readouterr()
        return Ended(main(["run", *data, *SMALL, *more]), *capfd.readouterr())

    return run_


def _table(folder: Path) -> pd.DataFrame:
    table = pd.read_parquet(folder / "runs" / "latest" / "measurements.parquet")
    return table[table["data"] == "table"]


def _numbers(table: pd.DataFrame, model: str) -> dict[str, float]:
    rows = table[(table["model"] == model) & table["metric"].isin(NUMBERS)]
    rows = rows[rows["value"].notna()]
    assert set(rows["status"]) <= {"ok", "unstable"}  # so few steps may not be steady
    return dict(zip(rows["metric"], rows["value"], strict=True))


@pytest.mark.parametrize("track", ["sequence", "tabular"])
def test_every_model_of_the_quick_suite_learns_from_the_table(tmp_path: Path, track: str) -> None:
    """One batch through each, forward and backward, with the history it was prepared with."""
    files = shop(tmp_path) if track == "sequence" else loans(tmp_path)
    plan = build_plan(["suite=quick", "data=table", f"data.path={files[0]}", f"data.schema={files[1]}"])
    prepared = prepare("table", files[0], tmp_path / "out", schema=plan.jobs[0].options["schema"])
    batch = next(iter(Loader(prepared, "train", 64)))
    if track == "sequence":
        assert batch.ids["hist_item"].lengths().max() == 6
    ran = set()
    for entry in plan.jobs[0].models:
        spec = registry.model_spec(entry.model)
        if track not in spec.tracks:
            assert spec.skip_reason is not None
            assert spec.skip_reason[track]
            continue
        model = spec.build(spec.config(**entry.options), prepared.schema)
        logit_B = model(batch)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit_B, batch.label_B)
        loss.backward()
        assert logit_B.shape == (64,)
        assert torch.isfinite(loss)
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        ran.add(entry.model)
    assert ran >= {*EVERYWHERE, *(OF_SEQUENCES if track == "sequence" else ())}


@pytest.mark.parametrize(("track", "model"), [("sequence", "din"), ("tabular", "deepfm")])
def test_one_model_by_command(tmp_path: Path, run: Run, track: str, model: str) -> None:
    files = shop(tmp_path) if track == "sequence" else loans(tmp_path)
    done = run(files, "suite=ci", f"model={model}")
    assert done.code == 0, done.stdout[-3000:] + done.stderr[-3000:]
    table = _table(tmp_path)
    assert set(table["track"]) == {track}
    assert set(_numbers(table, model)) == set(NUMBERS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sequence_track(tmp_path: Path, run: Run) -> None:
    done = run(shop(tmp_path), "suite=quick")
    assert done.code == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "note: history hist: items not earlier than their row, cut (" in done.stdout
    table = _table(tmp_path)
    assert set(table["track"]) == {"sequence"}
    assert not set(table["status"]) & {"failed", "timeout", "oom"}
    for model in (*EVERYWHERE, *OF_SEQUENCES):
        numbers = _numbers(table, model)
        assert set(numbers) == set(NUMBERS), model
        assert 0.2 < numbers["auc"] < 0.8, "labels are noise here"
    floors = table[(table["family"] == "floor") & (table["metric"] == "auc") & table["value"].notna()]
    assert set(floors["model"]) == {"popularity", "logistic", "lightgbm", "lightgbm_history"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tabular_track(tmp_path: Path, run: Run) -> None:
    done = run(loans(tmp_path), "suite=quick")
    assert done.code == 0, done.stdout[-3000:] + done.stderr[-3000:]
    table = _table(tmp_path)
    assert set(table["track"]) == {"tabular"}
    assert not set(table["status"]) & {"failed", "timeout", "oom"}
    for model in EVERYWHERE:
        assert set(_numbers(table, model)) == set(NUMBERS), model
    for model in OF_SEQUENCES:
        rows = table[table["model"] == model]
        assert set(rows["status"]) == {"skipped"}, model
        assert rows["reason"].str.len().min() > 10


def test_a_model_that_the_schema_does_not_suit_is_skipped_with_the_remedy(tmp_path: Path, run: Run) -> None:
    """The composite ranker wants to tell liked from disliked; this history does not say."""
    lines = [line for line in SEQUENCE.splitlines() if "hist_action" not in line]
    files = shop(tmp_path, schema="\n".join(lines))
    done = run(files, "suite=ci", "model=composite", "floors=false")
    assert done.code == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = _table(tmp_path)
    rows = rows[rows["model"] == "composite"]
    assert set(rows["status"]) == {"skipped"}
    assert set(rows["metric"]) >= {"auc", "step_time"}
    assert rows["reason"].str.contains("needs event field 'hist_action'").all()
    assert rows["reason"].str.contains("composite.histories to all,recent").all()
    done = run(files, "suite=ci", "model=composite", "floors=false", "composite.histories=[liked]")
    assert done.code == 2
    assert "needs event field 'hist_action'" in done.stderr


def test_longer_histories_than_prepared_are_exit_2_before_any_run(tmp_path: Path, run: Run) -> None:
    done = run(shop(tmp_path), "suite=ci", "model=din", "run.history_length=7")
    assert done.code == 2
    assert "history_length=7: shop was prepared with 1..6; use run.history_length within that" in done.stderr
    assert not (tmp_path / "runs").exists()

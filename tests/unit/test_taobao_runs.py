"""UserBehavior in whole runs: every sequence model takes it unchanged, and a leaking pool spoils every AUC."""

from __future__ import annotations

import html
from pathlib import Path

import pandas as pd
import pytest
import torch

from ctrbench.bench import registry
from ctrbench.bench.cli import main
from ctrbench.bench.owed import TRAINED
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.step import TrainStep, predict
from ctrbench.bench.summary import POOL_CONTROL, Run, pool_doubt
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.taobao_synthetic import Parameters, write

SEQUENCE_MODELS = [m for m in registry.model_names() if "sequence" in registry.model_spec(m).tracks]
SMALL = [
    "run.train_rows=4000", "run.valid_rows=500", "run.steps=4", "run.warmup=1", "run.threads=1", "run.batch=64",
    "run.history_length=8", "published=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 60 users, and a pool of 400 that it is a part of."""
    folder = tmp_path_factory.mktemp("taobao")
    write(Parameters(users=60), folder / "u.csv")
    write(Parameters(users=400), folder / "pool.csv")
    return folder


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Prepared:
    return prepare("taobao_behaviour", folder / "u.csv", folder / "out", pool=str(folder / "pool.csv"))


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_every_sequence_model_trains_on_it(prepared: Prepared, name: str) -> None:
    spec = registry.model_spec(name)
    loader = Loader(prepared, "train", 64, rows=640, history_length=12, shuffle_seed=0)
    model = spec.build(spec.config(), loader.schema)
    step = TrainStep(model)
    losses = [float(step(batch)) for batch in loader]
    assert len(losses) == 10
    assert all(0.2 < loss < 3 for loss in losses)
    score_B = predict(model.eval(), next(iter(Loader(prepared, "test", 64, history_length=12))))
    assert score_B.shape == (64,)
    assert torch.isfinite(torch.as_tensor(score_B)).all()


def _run(folder: Path, out: Path, *extra: str) -> pd.DataFrame:
    argv = ["run", "suite=ci", "data=taobao_behaviour", f"data.path={folder / 'u.csv'}", "model=deepfm",
            f"run.out={out}", *SMALL, *extra]  # fmt: skip
    assert main(argv) == 0
    table = pd.read_parquet(out / "latest" / "measurements.parquet")
    return table[(table.data == "taobao_behaviour") & table.seed.isna()]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cache")
def test_a_run_on_its_own_events_claims_no_auc(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The control runs even where floors are not wanted, and every quality row carries its finding."""
    table = _run(folder, tmp_path / "runs", "floors=false")
    printed = capfd.readouterr().out
    assert "NO AUC CAN BE CLAIMED taobao_behaviour: leaking pool: target ids alone reach AUC" in printed
    assert set(table.model) - {""} == {"deepfm", "target_ids"}
    quality = table[table.metric.isin(TRAINED)]
    assert set(quality[quality.model == "deepfm"].metric) == set(TRAINED)
    assert (quality.status == "unstable").all()
    assert quality.reason.str.startswith("leaking pool: ").all()
    assert quality.value.notna().all()
    assert set(table[table.metric.isin(["step_time", "rss_peak"])].status) == {"ok"}, "times have nothing to do with it"
    page = html.unescape((tmp_path / "runs" / "latest" / "report.html").read_text())
    assert "taobao_behaviour: every negative is sampled (1 a positive, by popularity, own items excluded" in page
    assert "taobao_behaviour: leaking pool: target ids alone reach AUC" in page
    assert "No quality number of it is a result." in page


@pytest.mark.usefixtures("cache")
def test_a_run_with_a_large_pool_is_not_flagged(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = _run(folder, tmp_path / "runs", f"data.options.pool={folder / 'pool.csv'}")
    assert "NO AUC" not in capfd.readouterr().out
    assert set(table.model) - {""} == {"deepfm", "logistic", "target_ids"}
    quality = table[table.metric.isin(TRAINED)]
    assert set(quality.status) == {"ok"}
    page = html.unescape((tmp_path / "runs" / "latest" / "report.html").read_text())
    assert "from pool.csv: " in page
    assert "leaking pool" not in page
    control = float(table[(table.model == "target_ids") & (table.metric == "auc")].value.item())
    assert 0.45 <= control <= 0.60


def test_a_control_that_did_not_finish_leaves_the_pool_in_doubt() -> None:
    def control(reason: str) -> list[Run]:
        return [Run(RunSpec(kind="floor", model=POOL_CONTROL), {"extra": {"leaking_pool": reason}})]

    other = [Run(RunSpec(kind="quality", model="din"), {"extra": {}})]
    assert pool_doubt({("din", ""): other}).startswith("pool not judged: the target_ids control did not finish")
    assert pool_doubt({("din", ""): other, (POOL_CONTROL, ""): control("")}) == ""
    assert pool_doubt({("din", ""): other, (POOL_CONTROL, ""): control("leaking pool: x")}) == "leaking pool: x"


@pytest.mark.usefixtures("cache")
def test_prepare_takes_options_and_judges_the_pool(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["data", "prepare", "taobao_behaviour", "--path", str(folder / "u.csv")]
    assert main([*argv, "--option", f"pool={folder / 'pool.csv'}", "--option", "ratio=2"]) == 0
    printed = capsys.readouterr()
    assert "reading u.csv: 100%" in printed.err
    assert "warning" not in printed.err
    assert '"leaking_pool": ""' in printed.out
    assert '"ratio": 2' in printed.out
    assert main(argv) == 0
    assert "\nwarning: leaking pool: " in capsys.readouterr().err
    for wrong, message in (
        ("pol=x", "did you mean 'pool'"),
        ("ratio=two", "option ratio='two' must be int"),
        ("exclude_own=maybe", "must be bool"),
        ("pool", "arguments have the form key=value"),
    ):
        assert main([*argv, "--option", wrong]) == 2
        assert message in capsys.readouterr().err

"""`suite=controls` from command line to report: nothing twice, shown by other suites, bad entries made again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from tests.data.resealed import resealed

from ctrbench.bench import control_cache, controls
from ctrbench.bench.cli import main
from ctrbench.bench.runspec import RunSpec
from ctrbench.datasets.taobao_synthetic import Parameters, write
from ctrbench.reports import records

SMALL = ["run.train_rows=1500", "run.valid_rows=200", "run.batch=64", "run.seeds=1", "run.history_length=8"]


@pytest.fixture(scope="module")
def work(cache_folder: Path) -> Path:
    """Folder of everything made here; the cache within it is this module's."""
    write(Parameters(users=60), cache_folder / "u.csv")
    write(Parameters(users=400), cache_folder / "pool.csv")
    return cache_folder


def arguments(work: Path, out: str, suite: str = "controls", model: str = "deepfm,din") -> list[str]:
    return ["run", f"suite={suite}", "data=taobao_behaviour", f"data.path={work / 'u.csv'}", f"model={model}",
            f"data.options.pool={work / 'pool.csv'}", f"run.out={work / out}", *SMALL]  # fmt: skip


@pytest.fixture(scope="module")
def done(work: Path) -> pd.DataFrame:
    assert main(arguments(work, "first")) == 0
    return pd.read_parquet(work / "first" / "latest" / "measurements.parquet")


def specs_of(folder: Path, *kinds: str) -> dict[str, RunSpec]:
    _, bodies = records.load(folder)
    found = {
        k: RunSpec.from_json(b["spec"])
        for k, b in bodies.items()
        if b["spec"]["kind"] in (kinds or ("shuffled", "ids_only"))
    }
    return found


def ran(text: str) -> set[str]:
    """Keys of the runs that were made, by the lines of the log."""
    return set(re.findall(r"^\[\d+/\d+\] \w+ (\S+)", text, re.MULTILINE))


def test_five_shuffles_a_model_and_ids_alone_where_they_can_be_built(work: Path, done: pd.DataFrame) -> None:
    for model in ("deepfm", "din"):
        mine = done[done.model == model]
        shuffled = mine[(mine.metric == "auc_shuffled") & mine.seed.notna()].sort_values("seed")
        assert list(shuffled.scope) == [f"shuffle:{s}" for s in range(5)]
        (row,) = mine[(mine.metric == "auc_shuffled") & mine.seed.isna()].itertuples()
        assert row.value == pytest.approx(shuffled.value.mean())
        assert row.sd == pytest.approx(shuffled.value.astype(float).std(ddof=1))
        assert (row.n, row.status, row.origin) == (5, "ok", "measured")
        assert set(mine.metric) == {"auc_shuffled", "auc_ids_only"}  # nothing else runs
    ids = done[(done.metric == "auc_ids_only") & done.seed.isna()].set_index("model")
    assert 0.4 < ids.value["deepfm"] < 0.65
    assert ids.status["din"] == "skipped"
    assert "no sequence field" in ids.reason["din"]
    assert "target_ids" in set(done.model)  # negatives are sampled
    assert {s.kind for s in specs_of(work / "first" / "latest").values()} == set(controls.CONTROLS)


def test_the_section_and_the_console_show_them(
    work: Path, done: pd.DataFrame, capfd: pytest.CaptureFixture[str]
) -> None:
    page = (work / "first" / "latest" / "report.html").read_text()
    assert "Controls: shuffled labels, target ids alone" in page
    assert "On taobao_behaviour 2 of 2 models trained on shuffled labels have a mean AUC at .5 by their spread." in page
    assert "NOT AT .5" not in page
    assert main([*arguments(work, "first"), "run.resume=true"]) == 0
    printed = capfd.readouterr().out
    assert ran(printed) == set()
    assert "controls (99 % intervals)" in printed
    assert "CONTROL FAILED" not in printed


def test_what_is_kept_is_not_run_again(work: Path, done: pd.DataFrame, capfd: pytest.CaptureFixture[str]) -> None:
    kept = specs_of(work / "first" / "latest")
    assert {p.name for p in control_cache.folder().iterdir()} == set(kept)
    assert main(arguments(work, "second")) == 0
    printed = capfd.readouterr().out
    assert f"controls: {len(kept)} are taken from earlier runs" in printed
    assert all("-floor-" in key for key in ran(printed))
    again = pd.read_parquet(work / "second" / "latest" / "measurements.parquet")
    columns = ["run", "model", "metric", "scope", "seed", "value", "status"]
    pick = lambda t: t[t.metric.isin(controls.METRICS.values())][columns].reset_index(drop=True)  # noqa: E731
    pd.testing.assert_frame_equal(pick(again), pick(done))


def cut_record(entry: Path) -> None:
    file = entry / "record.json"
    file.write_bytes(file.read_bytes()[:100])


def cut_table(entry: Path) -> None:
    file = entry / "measurements.parquet"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit(entry: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    body = json.loads((entry / "record.json").read_text())
    change(body)
    (entry / "record.json").write_text(json.dumps(body))
    resealed(entry)


SPOILT: dict[str, Callable[[Path], None]] = {
    "record cut off": cut_record,
    "table cut off": cut_table,
    "table gone": lambda e: (e / "measurements.parquet").unlink(),
    "not an object": lambda e: (e / "record.json").write_text("[1]"),
    "another value": lambda e: edit(e, lambda b: b["extra"].update(auc=0.5)),
    "other code": lambda e: edit(e, lambda b: b["extra"].update(code="0" * 16)),
    "another run": lambda e: edit(e, lambda b: b["spec"].update(lr=0.5)),
    "another key": lambda e: edit(e, lambda b: b.update(key="x")),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_entry_is_not_usable(what: str, work: Path, done: pd.DataFrame) -> None:
    spec = next(iter(specs_of(work / "first" / "latest", "shuffled").values()))
    entry = control_cache.folder() / spec.key
    whole = work / "whole"
    shutil.copytree(entry, whole)
    try:
        assert control_cache.usable(spec)
        SPOILT[what](entry)
        assert not control_cache.usable(spec)
        control_cache.keep([spec], work / "first" / "latest")  # a good result replaces it
        assert control_cache.usable(spec)
    finally:
        shutil.rmtree(entry)
        whole.rename(entry)


def test_a_corrupt_entry_is_run_again_and_mended(
    work: Path, done: pd.DataFrame, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = next(s for s in specs_of(work / "first" / "latest", "shuffled").values() if s.model == "deepfm")
    cut_table(control_cache.folder() / spec.key)
    assert main(arguments(work, "third", model="deepfm")) == 0
    assert {k for k in ran(capfd.readouterr().out) if "-floor-" not in k} == {spec.key}
    assert control_cache.usable(spec)


def test_other_suites_show_them_and_run_none(work: Path, done: pd.DataFrame, capfd: pytest.CaptureFixture[str]) -> None:
    argv = [*arguments(work, "ci", "ci", "deepfm"), "run.steps=4", "run.warmup=1", "floors=false", "published=false"]
    assert main(argv) == 0
    printed = capfd.readouterr().out
    assert "controls: 6 are taken from earlier runs" in printed
    assert not any("-shuffled-" in k or "-ids_only-" in k for k in ran(printed))
    table = pd.read_parquet(work / "ci" / "latest" / "measurements.parquet")
    want = done[(done.model == "deepfm") & (done.metric == "auc_shuffled")]
    found = table[(table.model == "deepfm") & (table.metric == "auc_shuffled")]
    assert sorted(found.value) == sorted(want.value)
    assert {"auc", "step_time", "auc_shuffled", "auc_ids_only"} <= set(table[table.model == "deepfm"].metric)
    assert "Controls: shuffled labels, target ids alone" in (work / "ci" / "latest" / "report.html").read_text()


def test_a_set_that_is_not_whole_is_not_shown(work: Path, done: pd.DataFrame, tmp_path: Path) -> None:
    specs = [s for s in specs_of(work / "first" / "latest").values() if s.model == "din"]
    assert len(specs) == 5
    other = RunSpec.from_json({**specs[0].to_json(), "lr": 0.77})
    assert control_cache.fetch([[*specs, other]], tmp_path) == []
    assert records.finished(tmp_path) == set()
    assert control_cache.fetch([specs, [other]], tmp_path) == specs
    assert records.finished(tmp_path) == {s.key for s in specs}


def test_resume_runs_what_is_missing_and_nothing_else(
    work: Path, done: pd.DataFrame, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = [*arguments(work, "resumed", model="deepfm"), "run.cache=false"]
    assert main(argv) == 0
    first = ran(capfd.readouterr().out)
    assert sum("-shuffled-" in k for k in first) == 5
    lost = next(k for k in sorted(first) if "-shuffled-" in k)
    (work / "resumed" / "latest" / "records" / lost / "record.json").unlink()
    assert main([*argv, "run.resume=true"]) == 0
    assert ran(capfd.readouterr().out) == {lost}

"""Several runs in one report: nothing of one is taken for the other's."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from ctrbench.bench.cli import main
from ctrbench.reports import records
from ctrbench.reports.measures import make
from ctrbench.reports.records import RunRecord

ROOT = Path(__file__).resolve().parents[2]


def _run(folder: Path, auc: float, data: str = "movielens_1m") -> Path:
    """A run directory of one model with one AUC, its own summary and one published size."""
    base = {"run": "k", "model": "deepfm", "family": "legacy", "data": data, "track": "sequence", "split": "time",
            "phase": "train"}  # fmt: skip
    spec = {"kind": "quality", "model": "deepfm", "variant": "", "data": data, "split": "time", "fingerprint": "f"}
    records.save(RunRecord(key="k", spec=spec, rows=(make(base, "auc", auc, "measured", seed=0),)), folder)
    rows = (make(base | {"run": "summary"}, "auc", auc, "measured"),)
    spec = {"kind": "summary", "level": folder.name, "tuned": False}
    records.save(RunRecord(key="summary", spec=spec, rows=rows), folder)
    meta = {"run": "meta", "model": "deepfm", "family": "legacy", "phase": "train", "preset": "published:x", "batch": 1}
    spec = {"kind": "published", "model": "deepfm", "variant": "", "data": ""}
    records.save(RunRecord(key="meta", spec=spec, rows=(make(meta, "kernels_per_step", 9, "modelled"),)), folder)
    return folder


def test_runs_of_the_same_data_keep_their_numbers_apart(tmp_path: Path) -> None:
    from ctrbench.bench.exports import loaded_all

    runs = [_run(tmp_path / "first", 0.71), _run(tmp_path / "second", 0.75), _run(tmp_path / "third", 0.8, "other")]
    whole = loaded_all(runs)
    rows = whole.table[whole.table["metric"] == "auc"]
    assert sorted(zip(rows["run"], rows["data"], rows["split"], rows["value"], strict=True)) == [
        ("k @ first", "movielens_1m", "time, first", 0.71), ("k @ second", "movielens_1m", "time, second", 0.75),
        ("k @ third", "other", "time", 0.8), ("summary @ first", "movielens_1m", "time, first", 0.71),
        ("summary @ second", "movielens_1m", "time, second", 0.75), ("summary @ third", "other", "time", 0.8),
    ]  # fmt: skip
    assert set(whole.table["run"]) <= set(whole.bodies)
    assert whole.bodies["k @ second"]["spec"]["split"] == "time, second"
    assert [whole.bodies[f"summary @ {n}"]["spec"]["level"] for n in ("first", "second")] == ["first", "second"]
    assert (whole.table["run"] == "meta").sum() == 1  # the published size does not depend on the run
    report = tmp_path / "r.md"
    assert main(["report", *map(str, runs), "-o", str(report), "--section", "summary"]) == 0
    text = report.read_text()
    assert "0.7100" in text
    assert "0.7500" in text
    assert "time, first" in text


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    from ctrbench.bench.exports import loaded_all

    run = _run(tmp_path / "one", 0.7)
    assert loaded_all([run, run]).table.equals(loaded_all([run]).table)


def test_runs_of_one_name_in_two_folders_have_two_labels(tmp_path: Path) -> None:
    from ctrbench.bench.exports import loaded_all

    whole = loaded_all([_run(tmp_path / "a" / "one", 0.7), _run(tmp_path / "b" / "one", 0.8)])
    assert len({str(s) for s in whole.table["split"] if s}) == 2


def test_a_whole_report_of_two_runs_is_drawn(tmp_path: Path) -> None:
    synthetic = runpy.run_path(str(ROOT / "tests" / "data" / "synthetic_report.py"))["synthetic_records"]
    from ctrbench.reports.merge import Loaded, merged
    from ctrbench.reports.page import build_report

    whole = merged(
        [Loaded(*synthetic(seed, groups=("quality", "published")), label=f"run.lr={seed}") for seed in (1, 2)]
    )
    for seed in (1, 2):
        rows, bodies = synthetic(seed, groups=("quality", "published"))
        mine = whole.table[whole.table["split"].fillna("").str.endswith(f"run.lr={seed}")]
        assert mine["value"].dropna().tolist() == rows[rows["data"].fillna("") != ""]["value"].dropna().tolist()
        assert bodies
    page = build_report(whole.table, whole.bodies, tmp_path / "r.html").read_text()
    assert "run.lr=1" in page
    assert "run.lr=2" in page


def test_a_sweep_without_a_finished_point_has_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grid.json").write_text('{"point": ["suite=ci"]}')
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 2
    assert "no point of the sweep has finished" in capsys.readouterr().err

"""Scoring of kit records against predictions: every verdict, every refusal, and the page that shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from ctrbench.bench.cli import main
from ctrbench.bench.kit import record as records
from ctrbench.bench.kit.ledger import ledger, run_score
from ctrbench.bench.kit.predicted import Prediction, Predictions, committed
from ctrbench.bench.kit.score import BANDS, Score, score, wilson
from ctrbench.datasets.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
KEY = ("deepfm", "criteo_x1", 4096, "train")
GPU, DEVICE = "A100-40 SXM", "NVIDIA A100-SXM4-40GB"
PREDICTED = Predictions(
    name="2026-11-26.json", sha256="f" * 64, date="2026-11-26", commit="c" * 40, gpus={GPU: "tf32", "B200 SXM": None},
    parameters={GPU: "A100-40 SXM tf32, fitted: x"}, texts=("coverage_low: too little", "peak_missing_for_dtype: none"),
    steps={
        KEY: (1e12, [75.0, 100.0, 125.0], [[0.5, 0.010, [0.010, 0.020, 0.040]], 1]),
        (*KEY[:3], "infer"): (3e11, [30.0, 40.0, 50.0], [[0.6, 0.003, 0], 1]),
    },
)  # fmt: skip


def timing(seconds: float = 0.025, mfu: float = 0.256) -> dict[str, Any]:
    return {
        "status": "ok", "reason": "", "event_s": {"p10": seconds, "p50": seconds, "p90": seconds}, "n": 50,
        "mfu": {"value": mfu, "origin": "derived"},
    }  # fmt: skip


def trace(kernels: float = 110, kernel_s: float = 0.022) -> dict[str, Any]:
    row = {"kernels": {"median": kernels}, "kernel_ns": {"median": kernel_s * 1e9}}
    return {"status": "ok", "reason": "", "phases": {"train": row, "infer": row}}


def body(**changes: Any) -> dict[str, Any]:
    model = {
        "status": "ok", "reason": "", "preset": KEY[1], "batch": KEY[2], "trace": trace(), "dry_run": False,
        "phases": {"train": timing()}, "flops": {"value": {"train": 1e12}},
    }  # fmt: skip
    return {
        "schema": records.SCHEMA, "schema_version": records.SCHEMA_VERSION, "dry_run": False, "dtype": "tf32",
        "started": "2026-12-01T10:00:00+00:00", "device": {"name": DEVICE, "driver": "570.1"}, "predictions": {},
        "environment": {"commit": "d" * 40, "torch": "2.13.0"}, "models": {"deepfm": model},
        "tests": {"status": "ok", "passed": ["a::b"], "failed": {}, "skipped": {}}, **changes,
    }  # fmt: skip


def with_model(**changes: Any) -> dict[str, Any]:
    found = body()
    found["models"]["deepfm"] |= changes
    return found


def scored(folder: Path, *bodies: dict[str, Any]) -> Score:
    paths = []
    for i, found in enumerate(bodies):
        paths.append(folder / f"box{i}.json")
        records.save(found, paths[-1])
    return score(paths, [PREDICTED])


def verdicts(found: Score) -> dict[str, str]:
    return {r.quantity: r.verdict for r in found.rows}


def test_a_step_inside_every_band(tmp_path: Path) -> None:
    found = scored(tmp_path, body())
    assert verdicts(found) == {
        "kernels per step": "hit", "kernel time s": "hit", "step time s, at least": "held",
        "kernel time s, at least": "held", "MFU, at most": "held",
    }  # fmt: skip
    assert not found.unscored
    assert not found.violated
    row = found.rows[0]
    assert (row.gpu, row.model, row.low, row.high, row.measured, row.before) == (GPU, "deepfm", 75, 125, 110, True)


@pytest.mark.parametrize(
    ("changes", "quantity", "verdict"),
    [
        ({"trace": trace(kernels=126)}, "kernels per step", "miss"),
        ({"trace": trace(kernels=74)}, "kernels per step", "miss"),
        ({"trace": trace(kernels=125)}, "kernels per step", "hit"),
        ({"trace": trace(kernel_s=0.041)}, "kernel time s", "miss"),
        ({"trace": trace(kernel_s=0.0099)}, "kernel time s, at least", "violated"),
        ({"phases": {"train": timing(seconds=0.0099)}}, "step time s, at least", "violated"),
        ({"phases": {"train": timing(mfu=0.51)}}, "MFU, at most", "violated"),
    ],
)
def test_misses_and_violated_bounds(tmp_path: Path, changes: dict[str, Any], quantity: str, verdict: str) -> None:
    found = scored(tmp_path, with_model(**changes))
    assert verdicts(found)[quantity] == verdict
    assert len(found.violated) == (verdict == "violated")
    page = ledger(found, [PREDICTED])
    assert ("VIOLATED BOUND" in page) == (verdict == "violated")
    assert ("| **miss** |" in page) == (verdict == "miss" or "kernel time" in quantity)


def test_a_violated_bound_is_said_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ctrbench.bench.kit.ledger.committed", lambda: [PREDICTED])
    records.save(with_model(phases={"train": timing(mfu=0.51)}), tmp_path / "box.json")
    assert main(["score", str(tmp_path / "box.json"), "-o", str(tmp_path / "ledger.md")]) == 1
    said = capsys.readouterr().out
    assert "VIOLATED BOUND: box: deepfm criteo_x1, batch 4096, train: MFU, at most 0.5, measured 0.51" in said
    assert "## 1 VIOLATED BOUNDS" in (tmp_path / "ledger.md").read_text()
    records.save(body(), tmp_path / "box.json")
    assert main(["score", str(tmp_path / "box.json")]) == 0


def test_unknown_gpu(tmp_path: Path) -> None:
    found = scored(tmp_path, body(device={"name": "NVIDIA Imaginary", "driver": "1"}))
    assert not found.rows
    assert [u.reason for u in found.unscored] == ["device_unknown: 'NVIDIA Imaginary' is not in bench/hardware.toml"]
    assert "NVIDIA Imaginary" in ledger(found, [PREDICTED])


def test_what_was_not_predicted(tmp_path: Path) -> None:
    missing = scored(tmp_path, with_model(preset="d256"))
    assert not missing.rows
    assert missing.unscored[0].reason == "2026-11-26.json has no prediction for it"
    infer = scored(tmp_path, with_model(phases={"infer": timing()}, flops={"value": {"infer": 3e11}}))
    assert BANDS[1] not in verdicts(infer)
    assert [u.reason for u in infer.unscored] == ["not predicted: coverage_low: too little"]
    b200 = scored(tmp_path, body(device={"name": "NVIDIA B200", "driver": "1"}))
    assert verdicts(b200) == {"kernels per step": "hit"}, "kernels need no peak"
    assert {u.reason for u in b200.unscored} == {"not predicted: peak_missing_for_dtype: none"}


def test_what_was_not_measured(tmp_path: Path) -> None:
    lost = {"value": None, "origin": "abstained", "reason": "clock_unstable: apart"}
    unstable = timing() | {"status": "unstable", "reason": "clock_unstable: apart", "mfu": lost}
    untraced = {"status": "failed", "reason": "boom", "phases": {}}
    found = scored(tmp_path, with_model(phases={"train": unstable}, trace=untraced))
    assert not found.rows
    assert {u.reason for u in found.unscored} == {"not measured: boom", "not measured: clock_unstable: apart"}
    skipped = scored(tmp_path, with_model(status="skipped", reason="budget: used up", phases={}))
    assert [(u.what, u.reason) for u in skipped.unscored] == [("deepfm", "budget: used up")]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (with_model(flops={"value": {"train": 2e12}}), "not the same model any more"),
        (body(dtype="fp32"), "predicted for tf32, recorded in fp32"),
    ],
)
def test_a_record_of_something_else_is_not_compared(tmp_path: Path, found: dict[str, Any], why: str) -> None:
    result = scored(tmp_path, found)
    assert not result.rows
    assert why in result.unscored[0].reason


def test_predictions_after_the_fact_are_counted_apart(tmp_path: Path) -> None:
    late = body(started="2026-11-26T23:00:00+00:00")
    listed = body(started="2026-11-26T23:00:00+00:00", predictions={PREDICTED.name: PREDICTED.sha256})
    found = scored(tmp_path, body(), late, listed)
    assert {r.record: r.before for r in found.rows} == {"box0": True, "box1": False, "box2": True}
    kernels = {c.before: (c.hits, c.n) for c in found.coverage if c.quantity == BANDS[0]}
    assert kernels == {True: (2, 2), False: (1, 1)}
    assert "**after the fact**" in ledger(found, [PREDICTED])


def test_the_newest_predictions_before_a_record_count(tmp_path: Path) -> None:
    later = replace(PREDICTED, name="2027-01-01.json", date="2027-01-01", sha256="0" * 64)
    records.save(body(), tmp_path / "a.json")
    records.save(body(started="2027-02-01T00:00:00+00:00"), tmp_path / "b.json")
    found = score([tmp_path / "a.json", tmp_path / "b.json"], [PREDICTED, later])
    assert [(s.predictions, s.before) for s in found.sources] == [("2026-11-26.json", True), ("2027-01-01.json", True)]


def test_coverage_has_a_wilson_interval() -> None:
    found = wilson(BANDS[0], True, [True] * 8 + [False] * 2)
    assert (found.hits, found.n) == (8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson 1927, z = 1.96
    assert found.low < binomtest(8, 10).statistic < found.high


@pytest.mark.parametrize("bad", [body(dry_run=True), with_model(dry_run=True)])
def test_dry_runs_are_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"box0\.json: a dry run: it measured no GPU and is never scored"):
        scored(tmp_path, bad)


def test_broken_json_and_equal_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.json").write_text('{"schema": "ctr')
    assert main(["score", str(tmp_path / "cut.json")]) == 2
    assert "not whole JSON" in capsys.readouterr().err
    for folder in ("a", "b"):
        records.save(body(), tmp_path / folder / "box.json")
    with pytest.raises(BadInput, match="two records are named box"):
        score([tmp_path / "a/box.json", tmp_path / "b/box.json"], [PREDICTED])
    records.save(body(), tmp_path / "a" / "record.json")
    records.save(body(), tmp_path / "b" / "record.json")
    found = score([tmp_path / "a/record.json", tmp_path / "b/record.json"], [PREDICTED])
    assert [s.name for s in found.sources] == ["a", "b"]


def test_the_page_of_the_records_is_the_one_in_docs(tmp_path: Path) -> None:
    assert main(["score", "-o", str(tmp_path / "ledger.md")]) == 0
    assert "## No record of a real GPU exists" in (tmp_path / "ledger.md").read_text()
    kept = sorted(map(str, (ROOT / "docs" / "records").glob("*.json")))
    main(["score", *kept, "-o", str(tmp_path / "ledger.md")])
    assert (ROOT / "docs" / "ledger.md").read_text() == (tmp_path / "ledger.md").read_text()
    with pytest.raises(BadInput, match="lies in none"):
        run_score([], str(tmp_path / "absent" / "ledger.md"))
    with pytest.raises(BadInput, match="no predictions are committed"):
        score([], [])


def test_page_holds_every_row_and_no_path(tmp_path: Path) -> None:
    page = ledger(scored(tmp_path, body()), [PREDICTED])
    for part in ("box0", DEVICE, "`dddddddddddd`", "ok (1 / 0 / 0)", "75 to 125", "110", "100%", "None of 3 bounds"):
        assert part in page
    assert str(tmp_path) not in page


# ----------------------------------------------------------- committed files


def test_committed_predictions_are_small_and_whole() -> None:
    files = committed()
    assert files, "predictions come before any record"
    for p in files:
        assert (ROOT / "bench" / "predictions" / p.name).stat().st_size < 1_000_000
        assert p.name.split(".")[0] == p.date
        assert len(p.commit) == 40
        assert {key[3] for key in p.steps} == set(records.PHASES)
        for key in p.steps:
            found = p.find("A100-40 SXM", key)
            assert isinstance(found, Prediction)
            assert found.kernels is not None or found.reasons["kernels"]
            assert found.time_s is not None or found.reasons["time_s"]
            assert found.time_s is None or found.time_s.low < found.time_s.value < found.time_s.high
            assert found.bound_s is None or found.time_s is None or found.bound_s < found.time_s.high
    assert files[-1].find("no such GPU", KEY) is None

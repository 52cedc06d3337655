"""`ctrbench compare` on run directories made by hand: every verdict, every exit code, every reason to refuse."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from tests.data.gate_runs import MACHINE, PEAKS, SPEC, TIMES, times, trainings

from ctrbench.bench.cli import main
from ctrbench.bench.gate import Draft, compare, decide
from ctrbench.bench.gate_sides import load_side
from ctrbench.datasets.errors import BadInput
from ctrbench.reports import records
from ctrbench.reports.comparison import Comparison, Subject, Verdict
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import RunRecord


def judged(base: Path, new: Path, **options: Any) -> tuple[Comparison, dict[str, Verdict]]:
    found = compare(load_side(str(base)), load_side(str(new)), **options)
    return found, {v.metric: v for v in found.verdicts}


def test_equal_runs_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, new = (trainings(times(tmp_path / n), luck=n == "new") for n in ("base", "new"))
    found, by = judged(base, new)
    assert {m: v.call for m, v in by.items()} == {"auc": "same", "step_time": "same", "rss_peak": "same"}
    assert found.decided == 3
    assert found.needed == 5
    assert by["step_time"].p == 1
    assert "an increase from" in by["step_time"].reason
    assert "would be found" in by["auc"].reason
    assert by["step_time"].change == 0
    assert main(["compare", str(base), str(new)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "Nothing is worse (3 same)."
    assert "both sides are of one commit" in out


WORSE: dict[str, Callable[[Path], Path]] = {
    "step_time": lambda p: trainings(times(p, [1.3 * t for t in TIMES])),
    "rss_peak": lambda p: trainings(times(p, peaks=[1.1 * m for m in PEAKS])),
    "auc": lambda p: trainings(times(p), gap=0.8),
}


@pytest.mark.parametrize("metric", WORSE)
def test_what_is_worse_is_named_and_its_mirror_is_better(
    metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = trainings(times(tmp_path / "base")), WORSE[metric](tmp_path / "new")
    assert main(["compare", str(base), str(new)]) == 1
    out = capsys.readouterr().out
    title = {"step_time": "Step time", "rss_peak": "Peak RSS", "auc": "AUC"}[metric]
    assert out.splitlines()[-1].startswith(f"Worse: {title} of din on d (s) (")
    assert out.startswith("WORSE: ")
    _, by = judged(base, new)
    assert {m for m, v in by.items() if v.call == "worse"} == {metric}
    _, mirror = judged(new, base)
    assert {m: v.call for m, v in mirror.items() if v.call != "same"} == {metric: "better"}
    assert main(["compare", str(new), str(base)]) == 0


def test_a_change_within_the_threshold_is_none(tmp_path: Path) -> None:
    base, new = times(tmp_path / "base"), times(tmp_path / "new", [1.025 * t for t in TIMES])
    _, by = judged(base, new)
    assert by["step_time"].call == "same"
    assert by["step_time"].p is not None
    assert by["step_time"].p < 0.05
    assert "not one beyond the threshold" in by["step_time"].reason
    assert judged(base, new, threshold=0.001)[1]["step_time"].call == "worse"


def test_too_few_processes_are_undecided_and_say_how_many_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = (times(tmp_path / n, [f * t for t in TIMES[:3]], PEAKS[:3]) for n, f in (("base", 1), ("new", 3)))
    _, by = judged(base, new)
    assert by["step_time"].call == "undecided"
    assert by["step_time"].reason == "too few to call any change: 3 / 3 processes, 5 needed a side"
    assert main(["compare", str(base), str(new)]) == 0
    out = capsys.readouterr().out
    assert "UNDECIDED: Step time" in out
    assert "takes 5 processes a side" in out
    one = times(tmp_path / "one", TIMES[:1], PEAKS[:1])
    assert judged(one, one)[1]["rss_peak"].call == "undecided"
    trained = [trainings(tmp_path / f"seeds{gap}", gap=gap, seeds=2) for gap in (1.0, 0.2)]
    assert judged(*trained)[1]["auc"].reason == "too few to call any change: 2 / 2 seeds, 3 needed a side"


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"fingerprint": "bad"}, "fingerprint (bad against f00)"), ({"batch": 512}, "batch (256 against 512)"),
     ({"train_rows": 9}, "train rows (1000 against 9)"), ({"epochs": 2}, "epochs (1 against 2)"),
     ({"dtype": "bfloat16"}, "dtype (float32 against bfloat16)"), ({"threads": 2}, "threads (1 against 2)"),
     ({"level": "quick"}, "level (publish against quick)"),
     ({"machine": {**MACHINE, "cpu": "another"}}, "hardware: cpu (a CPU against another)")],
)  # fmt: skip
def test_an_unfair_pair_is_refused_with_the_reason(
    change: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = times(tmp_path / "base"), times(tmp_path / "new", **change)
    if change == {"fingerprint": "bad"}:
        base, new = new, base
    assert main(["compare", str(base), str(new)]) == 2
    assert f"Nothing is comparable: different {reason}" in capsys.readouterr().out


def test_fewer_models_need_fewer_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [tmp_path / "base", tmp_path / "new"]
    for side, factor in zip(sides, (1.0, 1.3), strict=True):
        for model in ("din", "fat", "dlrm", "bst"):
            times(side, [factor * t for t in TIMES], model=model)
    call = ["compare", *map(str, sides)]
    assert main(call) == 0  # eight tests ask for six processes
    assert "Nothing is worse (8 undecided)" in capsys.readouterr().out
    assert main([*call, "--model", "fat,din"]) == 1
    assert "Worse: Step time of din on d (s)" in capsys.readouterr().out
    assert main([*call, "--model", "fast"]) == 2
    assert "did you mean 'fat'" in capsys.readouterr().err


def test_another_preset_is_another_model(tmp_path: Path) -> None:
    base, new = times(tmp_path / "base"), times(tmp_path / "new", preset="large")
    assert [v.reason for v in judged(base, new)[0].verdicts] == ["not in NEW"] * 2 + ["not in BASE"] * 2


def test_a_record_of_an_older_version_had_the_defaults(tmp_path: Path) -> None:
    base, new = times(tmp_path / "base"), times(tmp_path / "new")
    for path in (base / "records").glob("*/record.json"):
        body = json.loads(path.read_text())
        del body["spec"]["flops_budget"], body["sha256"]  # of before there were seals
        path.write_text(json.dumps(body))
    assert judged(base, new)[0].exit_code == 0


def test_what_a_change_is_about_is_said_and_compared(tmp_path: Path) -> None:
    base, new = times(tmp_path / "base"), times(tmp_path / "new", lr=0.5, machine={**MACHINE, "torch": "3"})
    found, by = judged(base, new)
    assert by["step_time"].call == "same"
    assert by["step_time"].notes == ("lr was 0.0, is 0.5",)
    assert "torch differs: 2.13 against 3" in found.notes


def test_a_machine_that_moved_says_nothing_of_the_code(tmp_path: Path) -> None:
    base, new = times(tmp_path / "base"), times(tmp_path / "new", [1.3 * t for t in TIMES], gemm=80.0)
    _, by = judged(base, new)
    assert by["step_time"].call == "not comparable"
    assert "the machine itself moved: gemm_fp32_gflops -20%" in by["step_time"].reason
    assert by["rss_peak"].call == "same"


def fail(folder: Path, **changes: Any) -> None:
    spec = replace(SPEC, repeat=9, **changes)
    body = {"spec": spec.to_json(), "status": "oom", "reason": "no memory", "rows": []}
    records.write_atomic(folder / "records" / spec.key / "failure.json", json.dumps(body).encode())


def test_a_missing_model_is_not_comparable_and_one_that_fails_in_new_is_no_pass(tmp_path: Path) -> None:
    base = times(times(tmp_path / "base"), model="fat")
    found, _ = judged(base, times(tmp_path / "new"))
    assert {(v.subject.model, v.call) for v in found.verdicts} == {("din", "same"), ("fat", "not comparable")}
    assert found.exit_code == 0
    assert "2 not comparable" in found.headline
    fail(tmp_path / "new", model="fat")
    found, _ = judged(base, tmp_path / "new")
    assert found.exit_code == 1
    assert found.headline.startswith("Failed in NEW: Step time of fat on d (s)")
    assert judged(tmp_path / "new", base)[0].exit_code == 0  # it works now
    fail(tmp_path / "new")
    (first, *_) = judged(base, tmp_path / "new")[0].verdicts
    assert (first.subject.model, first.call) == ("din", "same")
    assert first.notes[0] == "1 of 6 failed in NEW: oom: no memory"


def test_scores_that_do_not_fit_are_no_verdict(tmp_path: Path) -> None:
    base, new = trainings(tmp_path / "base"), trainings(tmp_path / "new")
    first = sorted((new / "records").glob("*/scores.npz"))[0]
    np.savez(first, score=np.zeros(7))
    assert "7,) scores for 800 test rows" in judged(base, new)[1]["auc"].reason
    first.write_bytes(b"no archive")
    with pytest.raises(BadInput, match=r"scores\.npz: damaged: "):
        judged(base, new)
    first.unlink()
    assert "are gone" in judged(base, new)[1]["auc"].reason
    doubtful = trainings(tmp_path / "doubt", doubt="the pool gives labels away")
    assert judged(base, doubtful)[1]["auc"].reason == "the pool gives labels away"
    fewer = trainings(tmp_path / "more", seeds=4)
    assert judged(trainings(tmp_path / "again"), fewer)[1]["auc"].notes == (
        "seeds [3] are on one side only and left out",
    )


@pytest.mark.parametrize("file", ["record.json", "measurements.parquet"])
def test_a_damaged_record_is_wrong_input_and_named(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = times(tmp_path / "base"), times(tmp_path / "new")
    folder = sorted((new / "records").iterdir())[0]
    (folder / file).write_bytes(b"{half")
    assert main(["compare", str(base), str(new)]) == 2
    said = capsys.readouterr().err
    assert str(folder) in said
    assert "delete that folder" in said
    assert main(["report", str(new), "-o", str(tmp_path / "r.html")]) == 2


def test_wrong_names_and_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = times(tmp_path / "base")
    store = ["--baselines", str(tmp_path / "kept")]
    assert main(["compare", str(base), "mian", *store]) == 2
    assert "no run directory, and no baseline" in capsys.readouterr().err
    assert main(["compare", str(base), str(base), "--alpha", "5"]) == 2
    assert main(["compare", str(base), str(base), "--threshold", "-1"]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["compare", str(base), str(tmp_path / "empty")]) == 2
    assert "no finished record" in capsys.readouterr().err


def verdict(metric: str, change: float = 0.5) -> Verdict:
    return Verdict(subject=Subject(data="d", split="s", model=metric), metric="step_time", call="undecided",
                   change=change, low=change - 0.1, high=change + 0.1, repeats=(5, 5))  # fmt: skip


def test_holm_runs_over_all_that_the_gate_decides() -> None:
    """0.02 is called alone, and not beside two tests that stay open: 3 x 0.02."""

    def test(p: float, smallest: float = 0.001) -> Draft:
        return Draft(verdict=verdict(str(p)), p=p, smallest=smallest, detectable="-")

    assert [v.call for v in decide([test(0.02)])[0]] == ["worse"]
    found, decided, _ = decide([test(0.02), test(0.5), test(0.9)])
    assert [v.call for v in found] == ["same"] * 3
    assert [v.p for v in found] == pytest.approx([0.06, 1.0, 1.0])
    assert decided == 3
    found, decided, _ = decide([test(0.02), test(0.1, 0.1), test(0.1, 0.1)])  # three processes: never called
    assert [v.call for v in found] == ["worse", "undecided", "undecided"]
    assert decided == 1
    found, _, _ = decide([test(0.001), test(0.02), test(0.03)])  # a step further each: 3, 2, 1 times p
    assert [v.call for v in found] == ["worse"] * 3


def test_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "<script>alert(1)<script>{{x}}\u202e|`\x07"
    base = times(tmp_path / "base", variant=name)
    new = times(tmp_path / "new", [1.3 * t for t in TIMES], variant=name)
    fail(new, kind="quality")
    files = {n: tmp_path / "out" / n for n in ("diff.html", "junit.xml", "summary.md")}
    call = ["compare", str(base), str(new), "--json", "-o", str(files["diff.html"]), "--junit",
            str(files["junit.xml"]), "--summary", str(files["summary.md"])]  # fmt: skip
    assert main(call) == 1
    body = json.loads(capsys.readouterr().out)
    assert body["exit_code"] == 1
    assert {v["call"] for v in body["verdicts"]} == {"worse", "same", "not comparable"}
    page, summary = files["diff.html"].read_text(), files["summary.md"].read_text()
    assert "<script" not in page
    assert "default-src 'none'" in html.unescape(page)
    assert "&lt;script&gt;" in page
    assert "{{x}}" in page
    for text in (page, summary, files["junit.xml"].read_text()):
        assert "\u202e" not in text
        assert "\x07" not in text
        assert "⟨U+202E⟩" in text
    assert "<script" not in summary
    assert "**worse**" in summary
    suite = ElementTree.fromstring(files["junit.xml"].read_text())
    cases = suite.findall("testcase")
    assert int(suite.get("tests", "")) == len(cases) == len(body["verdicts"])
    assert int(suite.get("failures", "")) == len(suite.findall("testcase/failure")) == 1
    assert int(suite.get("skipped", "")) == len(suite.findall("testcase/skipped")) == 1
    assert "worse: 10.0 ms" in str(suite.findall("testcase/failure")[0].get("message"))
    main(call)
    assert files["summary.md"].read_text() == 2 * summary  # a job's steps append


def test_everything_else_is_described(tmp_path: Path) -> None:
    def with_rows(folder: Path, flops: float) -> Path:
        base = {"run": "summary", "model": "din", "data": "d", "split": "s", "phase": "train"}
        rows = (make(base, "flops_train_per_sample", flops, "counted"), make(base, "parameters", 5, "counted"),
                make(base, "step_time", flops, "measured"), withheld(base, "mbu", "no"))  # fmt: skip
        records.save(RunRecord(key="summary", spec={"kind": "summary"}, rows=rows), folder)
        return times(folder)

    found, _ = judged(with_rows(tmp_path / "base", 100.0), with_rows(tmp_path / "new", 150.0))
    (d,) = found.described
    assert (d.metric, d.base, d.new, d.ratio, found.equal) == ("flops_train_per_sample", 100, 150, 1.5, 1)


def test_baselines_outlive_the_run_and_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--baselines", str(tmp_path / "kept")]
    run = trainings(times(tmp_path / "run"))
    (run / "records" / "junk.bin").write_bytes(b"x")
    assert main(["baseline", "save", "main", str(run), *store]) == 0
    new = trainings(times(tmp_path / "new"), gap=0.8)
    for rows in (run / "rows", new / "rows"):  # as in a run whose prepared data is gone
        (rows / "f00.npz").unlink()
    assert "labels of the test rows are gone" in judged(run, new)[1]["auc"].reason
    capsys.readouterr()
    assert main(["compare", "main", str(new), *store]) == 1
    assert "Worse: AUC of din" in capsys.readouterr().out
    assert main(["baseline", "list", *store]) == 0
    said = capsys.readouterr().out.split("\t")
    assert (said[0], said[2], said[3], said[4], said[5]) == ("main", "run", "c0ffee", "a CPU", "f00")
    assert main(["baseline", "save", "main", str(run), *store]) == 2
    assert "exists" in capsys.readouterr().err
    for bad in ("../main", ".hidden", ""):
        assert main(["baseline", "save", bad, str(run), *store]) == 2
    assert main(["baseline", "save", "other", str(tmp_path / "nowhere"), *store]) == 2
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["main"]

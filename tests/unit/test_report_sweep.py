"""The section of `suite=mfu`: a pure function of its rows, hidden without them, and no order out of unstable points."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ctrbench.reports import sweep
from ctrbench.reports.cells import tidy
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.names import Names, names_of
from ctrbench.reports.page import make_report, render
from ctrbench.reports.records import Measurement, frame
from ctrbench.reports.tables import console_tables

synthetic_records = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_report.py"))["synthetic_records"]
BODIES: dict[str, dict[str, Any]] = {
    "count": {
        "spec": {"kind": "count", "model": "fat", "preset": "sweep", "variant": "d=16,T=50", "level": "standard"},
        "extra": {"random_batches": {"ids": "uniform", "histories": "full", "table_rows_at_most": 20_000,
                                     "batches_held": 8}},
    }
}  # fmt: skip
SHAKY = {"status": "unstable", "reason": "clock_unstable: ceilings moved by 40 %"}


def _base(model: str, variant: str, family: str = "transformer") -> dict[str, Any]:
    return {"run": "summary", "model": model, "variant": variant, "preset": "sweep", "family": family,
            "data": "random_sequence", "split": "random", "track": "sequence", "phase": "train", "threads": 2,
            "batch": 100}  # fmt: skip


def _point(model: str, variant: str, mfu: float, family: str = "transformer", **status: str) -> list[Measurement]:
    base = _base(model, variant, family)
    return [
        make(base, "flops_train_per_sample", 3e6, "counted"), make(base, "bytes_operands", 1e8, "counted"),
        make(base, "ai_operands", 4.0, "counted"), make(base, "padding_waste", 0.0, "counted"),
        make(base, "step_time", 0.02, "measured", n=5), make(base, "throughput", 5e3, "measured", n=5),
        make(base, "mfu_cpu", mfu, "derived", **status),
        make(base, "mbu", 0.3, "derived", scope="bytes_operands", **status),
    ]  # fmt: skip


def _published(label: str, share: float, bound: float, batch: int = 16) -> list[Measurement]:
    base = {"run": "meta", "model": "lum_step1", "preset": f"published:{label}", "family": "transformer",
            "device": "meta", "batch": batch, "phase": "train"}  # fmt: skip
    executed = 200.0 * 1e9
    return [
        make(base, "flops_train_per_sample", share * executed / batch, "counted"),
        make(base, "padding_waste", 0.5, "counted"), make(base, "bytes_operands", 1e9, "counted"),
        make(base, "ai_operands", 200.0, "counted"), make(base, "mfu_bound", bound, "derived", scope="H100 SXM"),
        make(base, "mfu_bound", 1.0, "derived", scope="L4"),
    ]  # fmt: skip


def _rows() -> list[Measurement]:
    reason = "no history in the batches: what a step costs does not depend on a length"
    return [
        *_point("fat", "d=128,T=50", 0.30), *_point("fat", "d=16,T=50", 0.05), *_point("fat", "d=64,T=50", 0.20),
        *(withheld(_base("fat", "d=64,T=200"), metric, reason) for metric in ("mfu_cpu", "step_time")),
        *_point("din", "d=16,T=50", 0.20, "legacy"), *_point("din", "d=128,T=50", 0.10, "legacy"),
        *_point("lum_step1", "packed,d=16,T=50", 0.1), *_point("lum_step1", "packed,d=128,T=50", 0.6, **SHAKY),
        *_point("lum_step1", "unpacked,d=16,T=50", 0.02),
    ]  # fmt: skip


def _section(rows: list[Measurement]) -> Any:
    report = make_report(frame(rows), BODIES)
    return next((s for s in report.sections if s.id == "mfu-sweep"), None)


def _tidied(rows: list[Measurement]) -> tuple[pd.DataFrame, Names]:
    body = tidy(frame(rows))
    return body, names_of(body, BODIES)


def test_points_sort_by_model_and_size_and_say_why_one_is_missing() -> None:
    table = sweep.points(*_tidied(_rows()))
    assert list(zip(table["Model"], table["d"], table["T"], strict=True)) == [
        ("DIN", "16", "50"), ("DIN", "128", "50"), ("FAT", "16", "50"), ("FAT", "64", "50"), ("FAT", "64", "200"),
        ("FAT", "128", "50"), ("LUM step 1 (pre-training) · packed", "16", "50"),
        ("LUM step 1 (pre-training) · packed", "128", "50"),
        ("LUM step 1 (pre-training) · unpacked", "16", "50"),
    ]  # fmt: skip
    skipped = table[table["T"] == "200"].iloc[0]
    assert skipped[sweep.MFU].value is None
    assert "does not depend on a length" in skipped[sweep.MFU].reason
    first = table.iloc[0]
    assert first[sweep.USEFUL].value == pytest.approx(100 * 3e6 / (4.0 * 1e8))
    assert first[sweep.USEFUL].origin == "derived"
    assert first["Batch"] == "100"


def test_the_sentence_counts_steady_ends_only() -> None:
    section = _section(_rows())
    assert section.title == "MFU against width and length"
    assert "Along width 1 of 2 models with steady timings" in section.sentence
    assert section.flags == (
        "1 of 8 utilisations are unstable (open markers): the ceilings moved while they were timed, "
        "so no order of these points is a result",
    )
    assert "no figure of a GPU" in section.caveat
    assert "uniform random ids" in section.exhibits[0].note
    assert "20,000 rows" in section.exhibits[0].note


def test_without_a_steady_end_nothing_follows() -> None:
    rows = [*_point("fat", "d=16,T=50", 0.1, **SHAKY), *_point("fat", "d=32,T=50", 0.2, **SHAKY)]
    section = _section(rows)
    assert "nothing follows" in section.sentence
    assert "of 1 models" not in section.sentence


def test_a_line_a_model_through_its_points_and_open_markers_where_unstable() -> None:
    body, names = _tidied(_rows())
    table = sweep.points(body, names)
    fig = sweep.figure(table, "d", names)
    assert fig is not None
    drawn = {t.name: (list(t.x), list(t.y), list(t.marker.symbol)) for t in fig.data}
    assert drawn["FAT"] == ([16, 64, 128], [5.0, 20.0, 30.0], ["diamond"] * 3)
    assert drawn["LUM step 1 (pre-training) · packed"][2] == ["diamond-tall", "diamond-tall-open"]
    assert "LUM step 1 (pre-training) · unpacked" not in drawn  # one point is no line
    assert sweep.figure(table, "T", names) is None  # the only second length was skipped


def test_what_the_counts_say_of_claim_s3() -> None:
    rows = [
        *_published("d=256,L=256,packed", 0.9, 1.0), *_published("d=256,L=1024,packed", 0.6, 0.3),
        *_published("d=1024,L=256,unpacked", 0.35, 1.0), *_published("d=512,L=256,unpacked", 0.5, 0.9),
    ]  # fmt: skip
    poor_batch = _section([*rows, *_published("d=256,L=256,packed", 0.9, 0.2, batch=4)])
    assert "at 1 of 4 sizes" in poor_batch.sentence
    table = sweep.step1(*_tidied(rows))
    assert list(zip(table["d"], table["L"], table["Rows"], strict=True)) == [
        ("256", "256", "packed"), ("256", "1024", "packed"), ("512", "256", "unpacked"), ("1024", "256", "unpacked"),
    ]  # fmt: skip
    section = _section(rows)
    assert "refutes 40 % MFU of LUM's step 1 at 1 of 4 sizes and confirms it at none" in section.sentence
    assert "Packed rows: 60 to 90 %" in section.sentence
    assert "Unpacked rows: 35 to 50 %" in section.sentence
    assert "below 40 % at 1 of 2" in section.sentence


def test_hidden_without_rows_of_a_sweep() -> None:
    assert "mfu-sweep" not in {s.id for s in make_report(*synthetic_records()).sections}
    assert sweep.console(*synthetic_records()) == []


def test_points_enter_no_other_table() -> None:
    plain, bodies = synthetic_records(groups=("quality", "time", "count"))
    both = pd.concat([plain, frame(_rows())], ignore_index=True)
    without, with_points = (make_report(f, bodies) for f in (plain, both))
    for section in without.sections:
        other = next(s for s in with_points.sections if s.id == section.id)
        assert other.sentence == section.sentence
        assert [e.title for e in other.exhibits] == [e.title for e in section.exhibits]
        assert [len(e.table) for e in other.exhibits] == [len(e.table) for e in section.exhibits]
    assert len(console_tables(both, bodies)) == len(console_tables(plain, bodies))


def test_the_page_draws_it_and_the_summary_says_that_nothing_was_trained() -> None:
    report = make_report(frame(_rows()), BODIES)
    assert report.sections[0].sentence.startswith("No model was trained")
    text = render(report)
    assert 'id="mfu-sweep"' in text
    assert "clock_unstable" in text
    assert len(sweep.console(frame(_rows()), BODIES)) == 1

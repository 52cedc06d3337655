"""The report as Markdown: the numbers of the page's tables, no line that breaks a table, only what was asked for."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from ctrbench.bench.cli import main
from ctrbench.reports.cells import Cell, absent
from ctrbench.reports.markdown import build_markdown, entry_text
from ctrbench.reports.page import make_report
from ctrbench.reports.records import Measurement, RunRecord, save

_synthetic = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_report.py"))
synthetic_records = _synthetic["synthetic_records"]


def test_it_holds_the_tables_of_the_page(tmp_path: Path) -> None:
    rows, bodies = synthetic_records(0)
    text = build_markdown(rows, bodies, tmp_path / "r.md").read_text()
    report = make_report(rows, bodies)
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        *(s.title for s in report.sections), "What is not there, or not steady",
    ]  # fmt: skip
    for section in report.sections:
        assert section.sentence in text
        for exhibit in section.exhibits:
            for row in exhibit.table.itertuples(index=False, name=None):
                assert "| " + " | ".join(entry_text(e) for e in row) + " |" in text
    for cannot in report.limits.cannot:
        assert cannot in text


def test_a_withheld_number_says_why_and_a_known_one_how() -> None:
    assert entry_text(absent("auc", "no | row")) == "— (no \\| row)"
    assert entry_text(Cell(0.75, "auc_delta", "derived", 0.7, 0.8)) == "0.7500 [0.7000, 0.8000] d"


def test_rows_have_as_many_cells_as_the_head(tmp_path: Path) -> None:
    lines = build_markdown(*synthetic_records(1), tmp_path / "r.md").read_text().replace("\\|", "").splitlines()
    width = 0
    for line in lines:
        if line.startswith("|---"):
            width = line.count("|")
        elif line.startswith("|") and width:
            assert line.count("|") == width
        elif not line.startswith("|"):
            width = 0


def test_sections_asked_for_and_unknown_ones(
    tmp_path: Path, synthetic_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.md"
    assert main(["report", str(synthetic_run), "-o", str(out), "--section", "quality"]) == 0
    assert out.read_text().count("\n## ") == 1
    assert main(["report", str(synthetic_run), "-o", str(out), "--section", "claims"]) == 0
    assert "\n## Claims on trial\n" in out.read_text()
    assert "| Id | Claim | Verdict |" in out.read_text()
    assert main(["report", str(synthetic_run), "-o", str(out), "--section", "qualty"]) == 2
    assert "quality" in capsys.readouterr().err
    assert main(["report", str(synthetic_run), "-o", str(tmp_path / "r.html"), "--section", "quality"]) == 2


@pytest.fixture
def synthetic_run(tmp_path: Path) -> Path:
    """A run directory with all rows in one record."""
    rows, _ = synthetic_records(0)
    plain = rows.astype(object).where(rows.notna(), None)
    whole = ("seed", "threads", "batch", "n")
    made = [
        Measurement(**{k: int(v) if k in whole and v is not None else v for k, v in row.items()})
        for row in plain.to_dict("records")
    ]
    save(RunRecord(key="prepare", spec={}, environment={}, rows=tuple(made)), tmp_path / "run")
    return tmp_path / "run"

"""The section on training over processes: from a record's rows and balance, hidden without one."""

from __future__ import annotations

from typing import Any

from ctrbench.reports.cells import PROCESSES
from ctrbench.reports.measures import make
from ctrbench.reports.page import Report, make_report, render
from ctrbench.reports.records import Measurement, frame

KEY = "criteo_synthetic-deepfm-distributed-0123456789"
SHARDS = [
    {"table": "embedder.tables.lookup.C1", "sharding": "row_wise", "rank": rank, "rows": rows, "columns": 16}
    for rank, rows in ((0, 900), (1, 300))
]


def _report(rate: float = 12_345.0) -> Report:
    base: dict[str, Any] = {
        "run": KEY, "model": "deepfm", "preset": PROCESSES, "family": "legacy", "phase": "train",
        "data": "criteo_synthetic", "split": "default", "track": "tabular", "batch": 256,
    }  # fmt: skip
    rows: list[Measurement] = [
        make(base, "throughput", rate, "measured"), make(base, "communication_share", 0.25, "measured"),
        make(base, "auc", 0.71, "measured", seed=0), make(base, "logloss", 0.5, "measured", seed=0),
    ]  # fmt: skip
    spec = {"kind": "distributed", "model": "deepfm", "variant": "", "data": "criteo_synthetic", "ranks": 2,
            "sharding": "auto", "device": "cpu", "batch": 256}  # fmt: skip
    held = {"bytes_by_rank": [57_600, 19_200], "fullest_over_mean": 1.5, "shards": SHARDS}
    return make_report(frame(rows), {KEY: {"spec": spec, "extra": {"balance": held, "steps": 200}}})


def test_the_section_says_speed_collectives_and_balance() -> None:
    report = _report()
    (section,) = [s for s in report.sections if s.id == "processes"]
    assert section.sentence == (
        "DeepFM on criteo_synthetic, 2 processes, auto: 12.3 k rows a second, 25.0 % of a step in collectives, "
        "fullest process 1.50 times the mean."
    )
    trainings, shards = (e.table for e in section.exhibits)
    assert trainings["Tables a process"].iloc[0].value == 38_400
    assert list(shards["Process"]) == ["0", "1"]
    assert [c.value for c in shards["Bytes"]] == [57_600, 19_200]
    page = render(report)
    assert "Training over processes" in page
    assert "embedder.tables.lookup.C1" in page


def test_its_numbers_stand_in_no_other_section() -> None:
    """They are of another clock and of one seed: no table of speed or quality may have them."""
    others = [s for s in _report().sections if s.id != "processes"]
    cells = [v for s in others for e in s.exhibits for row in e.table.to_numpy().tolist() for v in row]
    assert all(getattr(v, "value", None) not in (12_345.0, 0.71) for v in cells)
    assert [s for s in make_report(frame([]), {}).sections if s.id == "processes"] == []


def test_the_page_does_not_say_that_nothing_has_a_number() -> None:
    report = _report()
    (summary,) = [s for s in report.sections if s.id == "summary"]
    assert summary.sentence == "No model ran alone: see Training over processes."
    assert any("in as many as it had" in line for line in report.limits.can)

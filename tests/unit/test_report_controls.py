"""The section of controls from rows: who holds .5, who is flagged, hidden where nothing was run."""

from __future__ import annotations

import html
import io
import runpy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from ctrbench.bench.suite import _doubts
from ctrbench.reports import controls, tables
from ctrbench.reports.cells import tidy
from ctrbench.reports.exhibits import Context
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.names import names_of
from ctrbench.reports.page import make_report, render
from ctrbench.reports.records import Measurement, frame

synthetic_records = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_report.py"))["synthetic_records"]
REASON = "trained on shuffled labels, yet the mean AUC of 5 shuffles is 0.6000 [0.59, 0.61] which leaves out .5"


def base(model: str, **kw: Any) -> dict[str, Any]:
    return {"run": "summary", "model": model, "family": "legacy", "data": "movielens_1m", "track": "sequence",
            "phase": "train", "split": "time"} | kw  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[Measurement]:
    def shuffled(model: str, values: list[float], low: float, high: float, **kw: Any) -> list[Measurement]:
        each = [make(base(model), "auc_shuffled", v, "measured", scope=f"shuffle:{i}", seed=i)
                for i, v in enumerate(values)]  # fmt: skip
        mean = sum(values) / len(values)
        return [*each, make(base(model), "auc_shuffled", mean, "measured", n=5, sd=0.0123, ci_low=low, ci_high=high,
                            **kw)]  # fmt: skip

    return [
        *shuffled("deepfm", [0.49, 0.5, 0.51, 0.52, 0.48], 0.467, 0.533),
        *shuffled("dcn_v2", [0.59, 0.6, 0.61, 0.6, 0.6], 0.59, 0.61, status="unstable", reason=REASON),
        withheld(base("din"), "auc_shuffled", "3 of 5 shuffles finished"),
        make(base("deepfm"), "auc_ids_only", 0.72, "measured", seed=0),
        make(base("deepfm"), "auc_ids_only", 0.72, "measured", n=1),
        withheld(base("din"), "auc_ids_only", "din: no history"),
    ]


def context(rows: list[Measurement]) -> Context:
    found = tidy(frame(rows))
    return Context(found, {}, names_of(found, {}), (("sequence", "movielens_1m"),))


def test_table_by_hand(rows: list[Measurement]) -> None:
    c = context(rows)
    body = controls.table(c.frame, "movielens_1m", c.names)
    assert list(body.index) == ["deepfm", "dcn_v2", "din"]
    assert list(body["Verdict"]) == ["at .5", "NOT AT .5", "—"]
    assert [x.value for x in body["AUC, labels shuffled"]] == [pytest.approx(0.5), pytest.approx(0.6), None]
    assert body["AUC, labels shuffled"]["deepfm"].band == "[0.4670, 0.5330]"
    assert list(body["Standard deviation"]) == ["0.0123", "0.0123", "—"]
    assert body["Each shuffle"]["deepfm"] == "0.4900, 0.5000, 0.5100, 0.5200, 0.4800"
    assert body["AUC, target ids alone"]["deepfm"].value == 0.72
    assert body["AUC, target ids alone"]["din"].reason == "din: no history"


def test_section_says_and_flags(rows: list[Measurement]) -> None:
    section = controls.section(context(rows))
    assert section is not None
    assert section.sentence.startswith("On movielens_1m 1 of 2 models trained on shuffled labels have a mean AUC at .5")
    assert section.flags == (f"DCN-v2 on movielens_1m: {REASON}",)
    assert "does not find a field that equals the label" in section.caveat


def test_no_controls_no_section() -> None:
    found, bodies = synthetic_records()
    report = make_report(found, bodies)
    assert "controls" not in [s.id for s in report.sections]
    assert controls.console_tables(found, bodies) == []


def test_page_and_console_say_it_loudly(rows: list[Measurement]) -> None:
    found, bodies = synthetic_records()
    joined = pd.concat([found, frame(rows)], ignore_index=True)
    page = html.unescape(render(make_report(joined, bodies)))
    assert f"DCN-v2 on movielens_1m: {REASON}" in page
    assert f"A control failed, dcn_v2 on movielens_1m: {REASON}" in page
    out = io.StringIO()
    console = Console(file=out, width=120)
    for part in controls.console_tables(joined, bodies):
        console.print(part)
    for text in _doubts(rows):
        console.print(text, soft_wrap=True)
    assert "NOT AT .5" in out.getvalue()
    assert f"CONTROL FAILED dcn_v2 on movielens_1m: {REASON}" in out.getvalue()


def test_a_model_with_controls_alone_has_no_row_of_quality(rows: list[Measurement]) -> None:
    c = context(rows)
    assert tables.headline(c.frame, "movielens_1m", c.names).empty
    alone = make(base("deepfm"), "auc", 0.77, "measured")
    c = context([*rows, alone])
    assert list(tables.headline(c.frame, "movielens_1m", c.names).index) == ["deepfm"]

"""The page: complete, offline, escaped, honest about what it holds."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from ctrbench.reports.exhibits import Exhibit
from ctrbench.reports.measures import make
from ctrbench.reports.page import Report, build_report, make_report, render
from ctrbench.reports.records import Measurement, RunRecord, frame, load, save

_synthetic = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_report.py"))
synthetic_records, GROUPS = _synthetic["synthetic_records"], _synthetic["GROUPS"]


class Page(HTMLParser):
    """What a browser would load, run or show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.scripts: list[tuple[dict[str, Any], str]] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.csp = ""
        self._script: dict[str, Any] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append(tag)
        self.links += [str(known[a]) for a in ("src", "href", "action", "srcset", "data") if a in known]
        if known.get("http-equiv") == "Content-Security-Policy":
            self.csp = str(known["content"])
        if "id" in known:
            self.ids.append(str(known["id"]))
        self._script = known if tag == "script" else None
        if tag == "script":
            self.scripts.append((known, ""))

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[-1] = (self._script, self.scripts[-1][1] + data)

    def handle_endtag(self, tag: str) -> None:
        self._script = None


def page_of(report: Report) -> tuple[str, Page]:
    text = render(report)
    return text, Page(text)


@pytest.fixture(scope="module")
def whole() -> tuple[str, Page]:
    return page_of(make_report(*synthetic_records(0)))


def test_page_loads_nothing_from_anywhere(whole: tuple[str, Page]) -> None:
    text, page = whole
    assert all(link.startswith("#") for link in page.links), page.links
    assert not {"link", "iframe", "img", "object", "embed", "form", "base"} & set(page.tags)
    own = text.replace(page.scripts[1][1], "")  # plotly.js carries addresses in comments and licences
    assert not re.search(r"https?://", own)
    assert not re.search(r"url\(|@import", own)


def test_plotly_is_inlined_whole_but_for_its_wrapper(whole: tuple[str, Page]) -> None:
    _, page = whole
    library, inlined = get_plotlyjs(), page.scripts[1][1]
    assert 0 < len(library) - len(inlined) < 500
    assert inlined[200:-200] in library
    assert "module.exports = factory" in library
    assert "module.exports = factory" not in inlined
    assert "MIT license" in inlined[:200]


def test_policy_allows_exactly_the_two_scripts_of_the_page(whole: tuple[str, Page]) -> None:
    _, page = whole
    assert page.csp.startswith("default-src 'none'")
    run = [code for attrs, code in page.scripts if attrs.get("type") != "application/json"]
    want = {"'sha256-" + base64.b64encode(hashlib.sha256(c.encode()).digest()).decode() + "'" for c in run}
    directive = next(d for d in page.csp.split("; ") if d.startswith("script-src"))
    assert set(directive.split()[1:]) == want
    assert len(run) == 2


def test_every_figure_is_drawn_somewhere_and_has_a_data_table(whole: tuple[str, Page]) -> None:
    text, page = whole
    figures = json.loads(page.scripts[0][1])
    assert len(figures) >= 18
    assert {f"{i}{end}" for i in figures for end in ("", "-h")} == {i for i in page.ids if i.startswith("figure-")}
    for exhibit in text.split('<div class="exhibit"')[1:]:
        if 'class="plot"' in exhibit:
            assert "<tbody><tr" in exhibit.split("</section>")[0]
            assert set(re.findall(r'aria-details="(.*?)"', exhibit)) == set(
                re.findall(r'<table id="(.*?)"', exhibit)[:1]
            )
    assert len(page.ids) == len(set(page.ids))


def test_an_exhibit_without_data_table_is_refused() -> None:
    import plotly.graph_objects as go

    with pytest.raises(ValueError, match="data table"):
        Exhibit(table=pd.DataFrame(), figures=(("x", go.Figure()),))


def test_sections_of_the_issue_are_there(whole: tuple[str, Page]) -> None:
    want = {
        "limits", "summary", "claims", "quality", "floors", "launches", "mfu-bound", "roofline", "gain", "speed",
        "split", "memory", "pairing", "cards", "environment", "lost", "measures",
    }  # fmt: skip
    assert want <= set(whole[1].ids)


def test_first_box_comes_first_and_says_what_it_must(whole: tuple[str, Page]) -> None:
    text = whole[0]
    box = text[text.index('id="limits"') : text.index("</section>")]
    assert text.index('id="limits"') < text.index('id="summary"')
    for said in (
        "measured, on Synthetic CPU @ 2.0 GHz", "No number on this page was measured on a GPU", "upper bound",
        "orders of magnitude", "P99 is withheld", "Untuned", "ratings, not impressions", "generated data",
    ):  # fmt: skip
        assert said in box, said


def test_counts_of_the_box_are_the_rows() -> None:
    rows, bodies = synthetic_records(0)
    can = " ".join(make_report(rows, bodies).limits.can)
    for origin in ("counted", "derived"):
        count = int(((rows.origin == origin) & rows.value.notna()).sum())
        assert f"{count:,} are {origin}" in can


def test_page_at_level_quick_ranks_nobody_by_time_and_prints_no_p_value(whole: tuple[str, Page]) -> None:
    text, page = whole
    own = text.replace(page.scripts[1][1], "")
    assert not re.search(r"\bfaster\b|\bslower\b|p-value|p ?[<=] ?0\.\d", own)


def test_origin_of_every_number_is_visible(whole: tuple[str, Page]) -> None:
    for table in re.findall(r"<table.*?</table>", whole[0], re.S):
        top, body = table.split("</thead>")
        heads = re.findall(r"<th[ >].*?</th>", top, re.S)
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.S):
            for head, cell in zip(heads, re.findall(r"<t[dh][ >].*?</t[dh]>", row, re.S), strict=True):
                if "data-v=" in cell:
                    assert 'class="tag' in head or 'class="tag' in cell
                    assert ("data-o=" in head) != ("data-o=" in cell)


def test_failed_model_is_loud_and_listed(whole: tuple[str, Page]) -> None:
    text = whole[0]
    assert "Failed runs" in text
    assert "GPT block on movielens_1m: oom, the process was killed at 3.1 GB, limit 3.0 GB" in text


def test_skipped_track_is_loud_near_the_top() -> None:
    text, _ = page_of(make_report(*synthetic_records(0, skip=("movielens_1m",))))
    alarm = text.index('role="alert"')
    assert alarm < text.index("<nav")
    assert "sequence track, movielens_1m: the wheel could not be fetched" in text[alarm : text.index("<nav")]
    assert "LightGBM-history reaches" not in text


def test_history_floor_is_stated_whatever_it_is() -> None:
    rows, bodies = synthetic_records(0, groups=("quality",))
    for frame_, said in (
        (rows, "LightGBM-history reaches AUC"),
        (rows[rows.model != "lightgbm_history"], "gave no number"),
    ):
        floors = next(s for s in make_report(frame_, bodies).sections if s.id == "floors")
        assert said in floors.sentence


def test_model_below_the_history_floor_is_flagged_in_its_section() -> None:
    base = {"run": "r", "family": "legacy", "data": "ml", "track": "sequence", "phase": "train"}
    rows = frame([
        make({**base, "model": "din"}, "auc", 0.78, "measured"),
        make({**base, "model": "lightgbm_history", "family": "floor"}, "auc", 0.79, "measured"),
        make({**base, "model": "din"}, "auc_delta", -0.01, "derived", scope="vs:lightgbm_history",
             ci_low=-0.02, ci_high=-0.005),
    ])  # fmt: skip
    floors = next(s for s in make_report(rows, {}).sections if s.id == "floors")
    assert floors.flags == ("DIN (ml): uses its history no better than six counts",)


def test_strings_of_others_are_escaped_everywhere() -> None:
    rows, bodies = synthetic_records(0)
    evil = "</script><script>alert(1)</script>"
    for body in bodies.values():
        if body["spec"].get("model") == "fat":
            body["extra"]["title"] = evil
            body["environment"]["note"] = evil
    rows.loc[rows.status == "oom", "reason"] = evil
    text, page = page_of(make_report(rows, bodies))
    assert len(page.scripts) == 3
    assert evil not in text
    assert "&lt;/script&gt;" in text
    figures = json.loads(page.scripts[0][1])
    labels = json.dumps([t.get("name", "") for f in figures.values() for t in f["data"]])
    assert "<script>" not in labels
    assert "&lt;script&gt;" in labels


@pytest.mark.parametrize("missing", GROUPS)
def test_page_builds_without_a_group_of_measures(missing: str, tmp_path: Path) -> None:
    rows, bodies = synthetic_records(1, groups=tuple(g for g in GROUPS if g != missing), skip=("movielens_1m",))
    out = build_report(rows, bodies, tmp_path / "report.html")
    assert out.stat().st_size > 1_000_000


@pytest.mark.parametrize("only", GROUPS)
def test_page_builds_from_one_group_alone(only: str) -> None:
    report = make_report(*synthetic_records(2, groups=(only,), skip=("movielens_1m",)))
    assert report.sections[0].id == "summary"


def test_page_builds_from_nothing_but_skipped_rows() -> None:
    report = make_report(*synthetic_records(0, skip=("movielens_1m", "criteo_synthetic"), groups=()))
    assert len(report.limits.skipped) == 2
    assert "No model has a number." in render(report)


def test_page_is_the_same_from_saved_records(tmp_path: Path) -> None:
    rows, bodies = synthetic_records(3, groups=("quality", "trace"), skip=("movielens_1m",))
    plain = rows.astype(object).where(rows.notna(), None)
    whole_numbers = ("seed", "threads", "batch", "n")
    made = [
        Measurement(**{k: int(v) if k in whole_numbers and v is not None else v for k, v in row.items()})
        for row in plain.to_dict("records")
    ]
    spec, environment = bodies["prepare"]["spec"], {"cpu_model": "Synthetic CPU"}
    save(RunRecord(key="prepare", spec=spec, environment=environment, rows=tuple(made)), tmp_path)
    _, loaded = load(tmp_path)
    assert render(make_report(*load(tmp_path))) == render(make_report(rows, loaded))


def test_reports_import_neither_torch_nor_another_room() -> None:
    code = (
        "import sys, ctrbench.reports.page\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'torchrec', 'fbgemm_gpu', 'polars', 'lightgbm')"
        " or (m.startswith('ctrbench.') and not m.startswith('ctrbench.reports'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Nothing that a record says is obeyed by the page, and the page's policy would stop a script that got in."""

from __future__ import annotations

import csv
import io
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctrbench.reports.page import build_report

pytestmark = pytest.mark.browser
_many = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_many.py"))
_kernels = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_kernels.py"))
EVIL, FORMULAS = _many["EVIL"], _many["FORMULAS"]
UNSEEN = ("\u202e", "\u2066", "\x07")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of records and launches whose names are attacks."""
    rows, bodies = _many["hostile_records"]()
    launches, body = _kernels["synthetic_kernels"](f"data {EVIL}", "fat")
    launches.loc[launches["name"] == "aten::mm", "name"] = EVIL
    launches.loc[launches["block"] == "tower", "block"] = f"block {EVIL}"
    bodies["trace"] = body
    return build_report(rows, bodies, tmp_path_factory.mktemp("hostile") / "report.html", launches)


def test_names_that_are_attacks_come_out_inert(open_tab: Callable[..., Any], hostile: Path, artefacts: Path) -> None:
    tab = open_tab(hostile)
    tab.draw_all()
    assert tab.page.evaluate("window.owned") is None
    assert tab.page.evaluate("document.scripts.length") == 3
    assert tab.page.evaluate("document.querySelectorAll('main img, main b, main a[href^=http]').length") == 0
    text = tab.page.evaluate("document.body.innerText + [...document.querySelectorAll('svg')].map(s => s.textContent)")
    markup = tab.page.evaluate("document.querySelector('main').outerHTML")
    for unseen in UNSEEN:
        assert unseen not in text
        assert unseen not in markup
    assert "⟨U+202E⟩abc" in text
    for literal in ("<script>window.owned=1</script>", "{{7*7}}${7*7}", "%{x}<b>bold</b>"):
        assert literal in tab.page.locator("#summary").inner_text()
        assert literal in tab.page.evaluate(
            "[...document.querySelectorAll('#quality svg')].map(s => s.textContent).join()"
        )
    tab.page.screenshot(path=artefacts / "hostile.png")
    assert tab.console == []
    assert tab.requests == []


def test_hover_shows_the_name_and_runs_no_template(open_tab: Callable[..., Any], hostile: Path) -> None:
    tab = open_tab(hostile)
    tab.draw_all()
    hover = """() => { const p = document.querySelector('#quality .plot');
      const at = p.data.findIndex(t => t.meta && t.meta.model.includes('script'));
      p.scrollIntoView(); Plotly.Fx.hover(p, [{curveNumber: at, pointNumber: 0}]); }"""
    tab.page.evaluate(hover)
    shown = tab.page.locator("#quality .hoverlayer .hovertext").first
    shown.wait_for()
    text = shown.evaluate("x => x.textContent")
    assert "%{x}<b>bold</b>" in text
    assert "<script>" in text


def test_csv_starts_no_formula(open_tab: Callable[..., Any], hostile: Path) -> None:
    tab = open_tab(hostile)
    with tab.page.expect_download() as got:
        tab.page.locator("#summary button.csv").first.click()
    found = list(csv.DictReader(io.StringIO(Path(got.value.path()).read_text("utf-8-sig"), newline="")))
    names = {line["Model"] for line in found}
    assert {f"'{f}" for f in FORMULAS if not f.startswith("\t")} <= names
    texts = [cell for line in found for cell in line.values()]
    assert not [t for t in texts if t.strip()[:1] in tuple("=+@") and not t.strip()[1:2].isdigit()]


@pytest.mark.parametrize(
    "attack",
    [
        "<script>window.owned=1</script>",
        "<img src='data:,' onerror='window.owned=1'>",
        "<script src='http://127.0.0.1:9/x.js'></script>",
        "<iframe srcdoc='<script>parent.owned=1</script>'></iframe>",
    ],
)
def test_the_policy_stops_what_would_get_in(
    open_tab: Callable[..., Any], report: Path, tmp_path: Path, attack: str
) -> None:
    page = tmp_path / "report.html"
    page.write_text(report.read_text(encoding="utf-8").replace("<main>", f"<main>{attack}", 1), encoding="utf-8")
    tab = open_tab(page)
    tab.page.wait_for_timeout(200)
    assert tab.page.evaluate("window.owned") is None
    assert any("Content Security Policy" in line for line in tab.console), tab.console


def test_without_the_policy_the_same_attack_would_run(
    open_tab: Callable[..., Any], report: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    text = report.read_text(encoding="utf-8").replace("<main>", "<main><script>window.owned=1</script>", 1)
    page.write_text(text.replace('http-equiv="Content-Security-Policy"', 'name="none"'), encoding="utf-8")
    assert open_tab(page).page.evaluate("window.owned") == 1

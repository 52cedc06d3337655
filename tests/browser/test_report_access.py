"""The page for everyone: axe-core finds nothing serious, every control is reached from the keyboard, paper works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest

pytestmark = pytest.mark.browser
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
RUN = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations
  .map(v => ({impact: v.impact, id: v.id, nodes: v.nodes.map(n => n.html.slice(0, 200))}))"""


def serious(open_tab: Callable[..., Any], page: Path, scheme: str) -> list[Any]:
    """What axe-core finds on a page with everything open and drawn; nothing may be said or asked meanwhile."""
    tab = open_tab(page, color_scheme=scheme, reduced_motion="reduce")
    tab.draw_all()
    tab.page.locator(".filter summary").first.click()
    tab.thin_out()
    tab.page.evaluate(AXE)
    found = tab.page.evaluate(RUN)
    assert tab.console == []
    assert tab.requests == []
    return [v for v in found if v["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_tab: Callable[..., Any], report: Path, scheme: str) -> None:
    assert serious(open_tab, report, scheme) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_your_own_page(open_tab: Callable[..., Any], own_page: Path, scheme: str) -> None:
    assert serious(open_tab, own_page, scheme) == []


def test_axe_would_find_a_bad_page(open_tab: Callable[..., Any], tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><title>x</title><p style='color:#ccc;background:#fff'>pale</p><img src='data:,'>")
    tab = open_tab(page)
    tab.page.evaluate(AXE)
    assert {"color-contrast", "image-alt"} <= {v["id"] for v in tab.page.evaluate(RUN)}


def test_every_control_is_reached_from_the_keyboard_and_shows_it(open_tab: Callable[..., Any], report: Path) -> None:
    tab = open_tab(report)
    controls = "[...document.querySelectorAll('a, button, summary, select, .scroll')].filter(x => x.checkVisibility())"
    assert tab.page.evaluate(f"{controls}.filter(x => x.tabIndex < 0).map(x => x.outerHTML.slice(0, 90))") == []
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.textContent") == "Skip to the summary"
    seen = set()
    for _ in range(30):
        tab.page.keyboard.press("Tab")
        seen.add(tab.page.evaluate("document.activeElement.tagName"))
        outline = tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", tab.page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
    assert {"A", "SUMMARY", "BUTTON", "DIV"} <= seen


def test_tables_and_figures_say_what_they_are(open_tab: Callable[..., Any], report: Path) -> None:
    page = open_tab(report).page
    assert (
        page.evaluate(
            "[...document.querySelectorAll('table')].filter(t => !t.caption || !t.caption.textContent).length"
        )
        == 0
    )
    assert (
        page.evaluate("document.querySelectorAll('thead th:not([scope=col]), tbody th:not([scope=row])').length") == 0
    )
    figures = "[...document.querySelectorAll('.plot')]"
    assert page.evaluate(f"{figures}.filter(p => !p.getAttribute('aria-label')).length") == 0
    named = f"{figures}.filter(p => !document.getElementById(p.getAttribute('aria-details')).matches('table')).length"
    assert page.evaluate(named) == 0


def test_a_jump_is_a_jump(open_tab: Callable[..., Any], report: Path) -> None:
    """Over a page as long as this one a smooth scroll takes seconds; and nothing moves for who wants it still."""
    tab = open_tab(report)
    assert tab.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_on_paper_everything_is_open_and_no_control_is_printed(
    open_tab: Callable[..., Any], report: Path, artefacts: Path
) -> None:
    tab = open_tab(report, color_scheme="dark")
    tab.draw_all()
    tab.page.emulate_media(media="print", color_scheme="light")
    assert tab.page.evaluate("[...document.querySelectorAll('main section details')].every(d => d.open)")
    # A column's head is a button that sorts; its name is printed.
    assert tab.page.locator("nav:visible, .filters:visible, button:visible:not(th button)").count() == 0
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.page.pdf(path=artefacts / "report.pdf")
    assert (artefacts / "report.pdf").stat().st_size > 100_000

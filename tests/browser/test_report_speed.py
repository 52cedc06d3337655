"""The page paints soon after an empty one that carries plotly.js, and a large record set never freezes it.

What is timed is slow: `make slow` has the machine to itself, beside other processes it would take ten times as long.
"""

from __future__ import annotations

import runpy
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from ctrbench.reports.page import build_report

pytestmark = pytest.mark.browser
many_runs = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_many.py"))["many_runs"]
MB = 1_000_000
ROUNDS = 5
WATCH = """window.longest = 0;
const see = x => { window.longest = Math.max(window.longest, x.duration); };
new PerformanceObserver(list => list.getEntries().forEach(see)).observe({type: "longtask", buffered: true});"""
SCROLL = """async () => {
  for (let y = 0; y < document.documentElement.scrollHeight; y += 700) {
    scrollTo({top: y, behavior: "instant"});
    await new Promise(done => { requestAnimationFrame(() => setTimeout(done, 30)); setTimeout(done, 1000); });
  }
}"""
PAINT = "performance.getEntriesByName('first-paint').length > 0"


def empty_page(folder: Path) -> Path:
    """A page with plotly.js inlined and nothing else."""
    page = folder / "empty.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><title>x</title><p>x</p><script>{get_plotlyjs()}</script>")
    return page


def first_paint_ratio(open_tab: Callable[..., Any], page: Path, folder: Path) -> float:
    """First paint of a page over that of an empty one with plotly.js inlined: medians of turns, up to three times."""
    found: list[float] = []
    while len(found) < 3 and not any(ratio <= 3 for ratio in found):  # other work on the machine paints nothing sooner
        found.append(_one_series(open_tab, page, folder))
    return min(found)


def _one_series(open_tab: Callable[..., Any], page: Path, folder: Path) -> float:
    empty = empty_page(folder)
    times: dict[Path, list[float]] = {empty: [], page: []}
    for _ in range(ROUNDS):
        for path, mine in times.items():
            tab = open_tab(path)
            tab.wait(PAINT)
            mine.append(tab.page.evaluate("performance.getEntriesByName('first-paint')[0].startTime"))
            tab.page.close()
    ratio = statistics.median(times[page]) / statistics.median(times[empty])
    size = page.stat().st_size / MB
    print(f"first paint, ms: empty {times[empty]}, report {times[page]}, ratio of medians {ratio:.2f}; {size:.1f} MB")
    return ratio


@pytest.mark.slow
def test_first_paint_is_at_most_three_times_that_of_an_empty_page(
    open_tab: Callable[..., Any], report: Path, tmp_path: Path
) -> None:
    assert report.stat().st_size < 8 * MB
    assert first_paint_ratio(open_tab, report, tmp_path) <= 3


@pytest.mark.slow
def test_a_page_of_your_own_paints_as_soon(open_tab: Callable[..., Any], own_page: Path, tmp_path: Path) -> None:
    assert own_page.stat().st_size < 8 * MB
    assert first_paint_ratio(open_tab, own_page, tmp_path) <= 3


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows, bodies = many_runs()
    assert (len(rows), len(bodies)) == (10_000, 200)
    return build_report(rows, bodies, tmp_path_factory.mktemp("large") / "report.html")


@pytest.mark.slow
def test_ten_thousand_rows_of_200_runs_open_without_a_frozen_page(
    open_tab: Callable[..., Any], large: Path, tmp_path: Path
) -> None:
    """Opened, scrolled to the end, filtered: no task of a second, where the machine does nothing else.

    Other work lengthens every task, so on a busy one the measure is plotly.js as it comes, by turns on an empty page.
    """
    empty, found = empty_page(tmp_path), []
    for _ in range(3):
        alone = open_tab(empty, WATCH)
        alone.wait("window.longest > 0")
        theirs = alone.page.evaluate("Math.round(window.longest)")
        alone.page.close()  # a page behind another one is painted no frame
        tab = open_tab(large, WATCH)
        tab.page.evaluate(SCROLL)
        tab.wait("[...document.querySelectorAll('section > .exhibit .plot')].every(p => p.matches('.js-plotly-plot'))")
        tab.page.locator(".filter summary").first.click()
        tab.page.locator("input[value=DIN]").check()
        tab.page.wait_for_timeout(300)
        assert tab.console == []
        found.append([tab.page.evaluate("Math.round(window.longest)"), theirs])
        tab.page.close()
        if found[-1][0] < 1000:
            break
    print(f"longest task, ms, and that of an empty page: {found}; {large.stat().st_size / MB:.1f} MB")
    ours, plotly = (statistics.median(x) for x in zip(*found, strict=True))
    assert found[-1][0] < 1000 or ours <= plotly


def test_a_frozen_page_would_be_seen(open_tab: Callable[..., Any], tmp_path: Path) -> None:
    """In a task of its own: the parser may run a short page's script in the task that installs the observer, unseen."""
    page = tmp_path / "frozen.html"
    page.write_text(
        "<!doctype html><script>const freeze = () => {"
        " for (const start = performance.now(); performance.now() - start < 1100;); };"
        " addEventListener('load', () => setTimeout(freeze, 100));</script>"
    )
    tab = open_tab(page, WATCH)
    tab.wait("window.longest >= 1000")

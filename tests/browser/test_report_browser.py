"""The page in a real browser: it draws, says nothing on the console, shows the records' numbers, fits a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytestmark = pytest.mark.browser
LAYERS = 2
FOLDED = 7
"""Figures of the two recordings: timeline, treemap, sizes, and the roofline of the CPU alone."""
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
COUNT = "s => document.querySelectorAll(s).length"
TABLE = """id => [...document.querySelectorAll(`#${id} table`)].map(t => ({
  heads: [...t.tHead.rows[0].cells].map(x => x.querySelector(".h").textContent),
  rows: [...t.querySelectorAll("tbody tr")].map(r => [...r.cells].map(c => c.dataset.v || c.textContent)),
  title: t.caption.textContent}))"""


def test_every_figure_is_drawn_and_nothing_is_said_or_asked(
    open_tab: Callable[..., Any], report: Path, artefacts: Path
) -> None:
    tab = open_tab(report)
    tab.wait("document.querySelector('#quality') !== null")
    figures = tab.page.evaluate(COUNT, ".plot")
    assert figures >= 18 + FOLDED
    assert tab.page.evaluate(COUNT, ".js-plotly-plot") < figures, "only what comes into view is drawn"
    tab.page.screenshot(path=artefacts / "top.png")
    tab.page.locator("#quality .plot").first.scroll_into_view_if_needed()
    tab.wait("document.querySelector('#quality .plot').classList.contains('js-plotly-plot')")
    tab.page.screenshot(path=artefacts / "quality.png")
    tab.draw_all()
    assert tab.page.evaluate(COUNT, ".plot .main-svg") >= figures
    assert tab.page.evaluate(COUNT, ".heatmaplayer.mlayer g.hm") == LAYERS
    points = "[...document.querySelectorAll('#quality .plot')].map(p => p.querySelectorAll('.points path').length)"
    assert min(tab.page.evaluate(points)) >= 3, "a point a model"
    tab.page.screenshot(path=artefacts / "whole.png", full_page=True)
    tools = "[...new Set([...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title))]"
    assert not [t for t in tab.page.evaluate(tools) if "Share" in t or "loud" in t], "nothing leaves the machine"
    assert tab.console == []
    assert tab.requests == []


def test_a_console_error_and_a_request_would_be_seen(open_tab: Callable[..., Any], tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><img src='http://127.0.0.1:9/x.png'><script>console.error('planted')</script>")
    tab = open_tab(page)
    assert any("planted" in line for line in tab.console)
    assert tab.requests == ["http://127.0.0.1:9/x.png"]


def test_tables_hold_the_numbers_of_the_parquet_file(
    open_tab: Callable[..., Any], report: Path, run_folder: Path
) -> None:
    rows = pd.read_parquet(run_folder / "records" / "prepare" / "measurements.parquet")
    rows = rows[rows["status"].isin(["ok", "unstable"]) & (rows["preset"] == "small") & rows["scope"].fillna("").eq("")]
    titles = {"DeepFM": "deepfm", "DIN": "din", "FAT": "fat", "OneTrans": "onetrans", "DCN-v2": "dcn_v2"}
    columns = {"AUC": "auc", "Log loss": "logloss", "Step time": "step_time", "Peak RSS": "rss_peak",
               "Forward FLOPs / sample": "flops_fwd_per_sample", "CUDA kernels / step": "kernels_per_step"}  # fmt: skip
    compared = 0
    for table in open_tab(report).page.evaluate(TABLE, "summary"):
        data = next(d for d in ("movielens_1m", "criteo_synthetic") if d in table["title"])
        for row in table["rows"]:
            for head, metric in columns.items():
                wanted = rows[
                    (rows["model"] == titles.get(row[0])) & (rows["data"] == data) & (rows["metric"] == metric)
                ]
                wanted = wanted[wanted["seed"].isna()]
                if len(wanted):
                    assert float(row[table["heads"].index(head)]) == pytest.approx(float(wanted["value"].iloc[0]))
                    compared += 1
    assert compared >= 8 * len(columns)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_does_not_scroll_sideways_on_a_phone(
    open_tab: Callable[..., Any], report: Path, artefacts: Path, scheme: str
) -> None:
    tab = open_tab(report, **PHONE, color_scheme=scheme)
    tab.draw_all()
    width, scroll = tab.page.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollWidth]")
    assert width == 390
    assert scroll <= width
    tab.page.locator("#quality").scroll_into_view_if_needed()
    tab.page.screenshot(path=artefacts / f"phone-{scheme}.png")
    assert tab.console == []


def test_from_a_block_to_its_operators_in_one_click(open_tab: Callable[..., Any], report: Path) -> None:
    tab = open_tab(report)
    link = tab.page.locator("#split .links a").first
    group = tab.page.locator(link.get_attribute("href"))
    assert group.get_attribute("open") is None
    link.click()
    assert group.get_attribute("open") is not None
    assert group.evaluate("g => Math.abs(g.getBoundingClientRect().top) < innerHeight")
    group.locator(".js-plotly-plot").first.wait_for()
    tab.page.locator(".filters a").click()
    assert tab.page.evaluate("location.hash") == "#contents"


LEVEL = "() => document.querySelector('details.group .level').closest('figure').querySelector('.plot').data[0].level"


@pytest.mark.parametrize(("context", "by"), [(PHONE, "list"), ({}, "list"), ({}, "click")])
def test_a_folded_model_opens_and_its_treemap_is_entered(
    open_tab: Callable[..., Any], report: Path, context: dict[str, Any], by: str
) -> None:
    """By the list above it, which a keyboard reaches, or by a click, which the list follows."""
    tab = open_tab(report, **context, reduced_motion="reduce")
    group = tab.page.locator("details.group", has=tab.page.locator(".plot")).first
    assert group.locator(".main-svg").count() == 0
    group.locator("summary").first.focus()
    tab.page.keyboard.press("Enter")
    treemap = group.locator("figure", has_text="a click or the list goes into a part")
    treemap.scroll_into_view_if_needed()
    listed = treemap.locator(".level select")
    listed.wait_for()
    assert listed.locator("option").count() >= 1 + 4 + 4, "the model, its stages and its blocks"
    if by == "list":
        listed.select_option(label="backward › tower")
    else:
        treemap.locator(".slice", has_text="backward").first.locator("path").dispatch_event("click")
    tab.wait("() => { const s = document.querySelector('details.group .level select');"
             " return s.selectedIndex > 0 && (" + LEVEL + ")() === s.value; }")  # fmt: skip
    treemap.locator(".slicetext", has_text="gemm").first.wait_for()
    assert tab.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert tab.console == []

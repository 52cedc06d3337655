"""Filters by model, track, hardware and origin, and the CSV of what they leave."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser
ROWS = """s => [...document.querySelectorAll(s + " tbody tr")].filter(r => r.checkVisibility())
  .map(r => r.cells[0].textContent)"""
HEADS = """s => [...document.querySelectorAll(s + " thead th")].filter(h => h.checkVisibility())
  .map(h => h.querySelector(".h").textContent)"""


def tick(tab: Any, kind: str, *names: str) -> None:
    summary = tab.page.locator(".filter", has=tab.page.locator(f"[data-chosen={kind}]")).locator("summary")
    summary.click()
    for name in names:
        tab.page.locator(f"input[data-filter={kind}][value='{name}']").check()
    tab.page.keyboard.press("Escape")


def test_models(open_tab: Callable[..., Any], report: Path, artefacts: Path) -> None:
    tab = open_tab(report)
    before = tab.page.evaluate(ROWS, "#summary .exhibit:first-of-type")
    plot = tab.page.locator("#quality .plot").first
    plot.scroll_into_view_if_needed()
    tab.wait("document.querySelector('#quality .plot').classList.contains('js-plotly-plot')")
    tick(tab, "model", "DIN", "OneTrans")
    assert set(tab.page.evaluate(ROWS, "#summary")) == {"DIN", "OneTrans"}
    plot.scroll_into_view_if_needed()  # what left the window is drawn again when it comes back
    tab.wait("document.querySelector('#quality .plot').data.filter(t => t.meta && t.visible !== false).length === 2")
    shown = "document.querySelector('#quality .plot').layout.yaxis.categoryarray.length"
    assert tab.page.evaluate(shown) == 2
    assert " rows of tables" in tab.page.locator(".filters output").inner_text()
    tab.page.screenshot(path=artefacts / "filtered.png")
    tab.page.get_by_role("button", name="Show all").click()
    assert tab.page.evaluate(ROWS, "#summary .exhibit:first-of-type") == before
    plot.scroll_into_view_if_needed()
    tab.wait(f"{shown} > 2")
    assert tab.console == []


def test_a_row_of_two_models_passes_with_either_or_with_both(open_tab: Callable[..., Any], report: Path) -> None:
    tab = open_tab(report)
    tab.draw_all()
    rows = """[...document.querySelectorAll("#quality tr[data-against]")].filter(r => r.checkVisibility())
      .map(r => [r.dataset.model, r.dataset.against].sort().join("/"))"""
    tick(tab, "model", "DIN")
    alone = tab.page.evaluate(rows)
    assert len(alone) >= 6
    assert all("DIN" in row.split("/") for row in alone)
    tick(tab, "model", "OneTrans")
    assert tab.page.evaluate(rows) == ["DIN/OneTrans"]


def test_tracks(open_tab: Callable[..., Any], report: Path) -> None:
    tab = open_tab(report)
    tick(tab, "track", "tabular")
    seen = "[...document.querySelectorAll('.exhibit[data-track]')].filter(x => !x.hidden).map(x => x.dataset.track)"
    assert set(tab.page.evaluate(seen)) == {"tabular"}
    assert "movielens_1m" not in tab.page.locator("#pairing").inner_text()
    assert "criteo_synthetic" in tab.page.locator("#pairing table").inner_text()


def test_hardware(open_tab: Callable[..., Any], report: Path) -> None:
    tab = open_tab(report)
    tab.page.locator("#mfu-bound summary").first.click()
    before = tab.page.evaluate(HEADS, "#mfu-bound .exhibit:first-of-type")
    assert {"H100 SXM", "L4"} <= set(before)
    tick(tab, "hardware", "H100 SXM")
    heads = tab.page.evaluate(HEADS, "#mfu-bound .exhibit:first-of-type")
    assert [h for h in before if h not in heads] == ["A100-80 SXM", "B200 SXM", "L4"]
    captions = tab.page.locator("#mfu-bound figcaption:visible").all_inner_texts()
    assert set(captions) == {"H100 SXM"}
    assert tab.page.locator("#speed .exhibit:visible").count() == 0, "times of the CPU"
    assert tab.page.locator("#roofline .exhibit:visible").count() == 1


def test_origins(open_tab: Callable[..., Any], report: Path) -> None:
    tab = open_tab(report)
    tab.draw_all()
    tick(tab, "origin", "counted", "derived")
    found = """[...new Set([...document.querySelectorAll("main .exhibit td[data-o]")].filter(c =>
      c.checkVisibility({visibilityProperty: true})).map(c => c.dataset.o))].sort()"""
    assert tab.page.evaluate(found) == ["counted", "derived"]
    tab.page.locator("#quality .plot").first.scroll_into_view_if_needed()
    tab.wait("!document.querySelector('#quality .plot').data.some(t => t.meta && t.visible !== false)")


def test_by_keyboard_alone(open_tab: Callable[..., Any], report: Path) -> None:
    tab = open_tab(report)
    tab.page.locator(".filter summary").first.focus()
    for key in ("Enter", "Tab", "Space"):
        tab.page.keyboard.press(key)
    assert tab.page.locator("[data-chosen=model]").inner_text() == "DeepFM"
    tab.page.keyboard.press("Escape")
    focus = "document.activeElement.tagName + getComputedStyle(document.activeElement).outlineStyle"
    assert tab.page.evaluate(focus) == "SUMMARYsolid"


def test_csv_holds_what_the_filters_leave(open_tab: Callable[..., Any], report: Path) -> None:
    tab = open_tab(report)
    tick(tab, "model", "DIN", "FAT")
    tick(tab, "origin", "measured")
    with tab.page.expect_download() as got:
        tab.page.locator("#summary button.csv").first.click()
    lines = list(csv.DictReader(io.StringIO(Path(got.value.path()).read_text("utf-8-sig"))))
    shown = tab.page.evaluate(ROWS, "#summary .exhibit:first-of-type")
    assert [line["Model"] for line in lines] == shown
    value = tab.page.locator("#summary tbody tr[data-model=DIN] td[data-o=measured]").first.get_attribute("data-v")
    assert {line["Model"]: line["AUC"] for line in lines}["DIN"] == value
    assert {line["Forward FLOPs / sample origin"] for line in lines} == {"filtered out: counted"}

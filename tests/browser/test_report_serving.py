"""Serving and cost in a browser: drawn without a complaint, readable for everyone, no wider than a phone."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest

from ctrbench.reports.page import build_report

pytestmark = pytest.mark.browser
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
RUN = """async () => (await axe.run("main", {resultTypes: ["violations"]})).violations
  .filter(v => v.impact === "serious" || v.impact === "critical")
  .map(v => ({id: v.id, nodes: v.nodes.map(n => n.html.slice(0, 200))}))"""
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


def test_serving_and_cost_on_a_phone(open_tab: Callable[..., Any], tmp_path: Path) -> None:
    made = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_serving.py"))
    rows, bodies = made["serving_records"]()
    page = build_report(rows, bodies, tmp_path / "report.html")
    tab = open_tab(page, **PHONE, color_scheme="dark", reduced_motion="reduce")
    tab.draw_all()
    for section in ("serving", "cost"):
        assert tab.page.evaluate(f"document.querySelectorAll('#{section} .js-plotly-plot').length") >= 5
    width, scroll = tab.page.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollWidth]")
    assert scroll <= width
    tab.thin_out()
    tab.page.evaluate(AXE)
    assert tab.page.evaluate(RUN) == []
    assert (tab.console, tab.requests) == ([], [])

"""The page in a real browser: it draws, it prints nothing to the console, it fits a phone."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from ctrbench.reports.page import build_report

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
DATA = Path(__file__).parents[1] / "data"
synthetic_records = runpy.run_path(str(DATA / "synthetic_report.py"))["synthetic_records"]
_kernels = runpy.run_path(str(DATA / "synthetic_kernels.py"))
LAYERS = 2
"""Of FAT, each with a heat map of its field pairs."""
FOLDED = 7
"""Figures of the two recordings: timeline, treemap, sizes, and the roofline of the CPU alone."""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next((p for p in map(shutil.which, NAMES) if p), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path; apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows, bodies = synthetic_records(0)
    data, parts = "movielens_1m", []
    for model, device in (("composite", "cpu"), ("fat", "Tesla T4")):
        launches, body = _kernels["synthetic_kernels"](data, model, device=device)
        parts.append(launches)
        bodies |= {f"{data}-{model}-trace": body, f"{model}-count": _kernels["counted_body"](data, model)}
    fat, weights = bodies[f"{data}-fat"], [[[[1.1, 0.9, 1.0], [1.0, 1.2, 0.8], [0.7, 1.0, 1.1]]]] * LAYERS
    fat["extra"]["pairs"] = {"fields": ["user", "item", "genre"], "weights": weights, "start": 1.0}
    return build_report(rows, bodies, tmp_path_factory.mktemp("page") / "report.html", pd.concat(parts))


def open_page(chromium: str, url: str, profile: Path, *options: str) -> tuple[str, str]:
    """(DOM, log) of a page after its scripts ran."""
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            "--v=0",
            "--virtual-time-budget=15000",
            *options,
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return done.stdout, done.stderr


def console_of(log: str) -> list[str]:
    return [line for line in log.splitlines() if ":CONSOLE" in line or "Content Security Policy" in line]


def test_page_draws_every_figure_without_a_console_message(chromium: str, report: Path, tmp_path: Path) -> None:
    dom, log = open_page(chromium, report.as_uri(), tmp_path, "--window-size=1280,900")
    assert console_of(log) == []
    figures = len(set(re.findall(r'id="(figure-\d+)"', dom)))
    assert figures >= 18 + FOLDED
    assert dom.count('class="plot js-plotly-plot"') == figures - FOLDED, (
        "those of folded groups wait until they are opened"
    )
    assert dom.count('class="main-svg"') >= figures - FOLDED
    assert dom.count('class="heatmaplayer mlayer"><g class="hm"') == LAYERS


def test_a_console_error_would_be_seen(chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><script>console.error('planted')</script>")
    _, log = open_page(chromium, page.as_uri(), tmp_path / "profile")
    assert any("planted" in line for line in console_of(log))


def test_page_does_not_scroll_sideways_on_a_phone(chromium: str, report: Path, tmp_path: Path) -> None:
    # Headless windows have a least width, so the phone is a frame; frame and probe share the file origin by the switch.
    probe = report.parent / "phone.html"
    probe.write_text(
        '<!doctype html><body><iframe id="f" src="report.html" style="width:400px;height:900px"></iframe><script>'
        'onload=function(){var d=document.getElementById("f").contentDocument.documentElement;'
        'document.title="w"+d.clientWidth+" s"+d.scrollWidth'
        '+" p"+d.ownerDocument.querySelectorAll(".main-svg").length}</script>'
    )
    dom, _ = open_page(chromium, probe.as_uri(), tmp_path, "--allow-file-access-from-files", "--window-size=900,1000")
    found = re.search(r"<title>w(\d+) s(\d+) p(\d+)</title>", dom)
    assert found, dom[:300]
    width, scroll, plots = map(int, found.groups())
    assert 380 <= width <= 404
    assert scroll <= width
    assert plots > 0


PROBE = """<!doctype html><body><iframe id="f" src="report.html" style="width:WIDTHpx;height:900px"></iframe><script>
var said = [];
function wait(ready, left, run) {
  if (ready() || !left) { run(); } else { setTimeout(function () { wait(ready, left - 1, run); }, 500); }
}
onload = function () {
  var page = document.getElementById("f").contentDocument, groups = page.querySelectorAll("details.group"), list;
  function svg(sort) { return groups[0].querySelectorAll(sort).length; }
  function shows(word) {
    return [...groups[0].querySelectorAll(".treemaplayer .slicetext")].some(x => x.textContent.includes(word));
  }
  function level() { return list.closest("figure").querySelector(".plot").data[0].level; }
  said.push("groups=" + groups.length, "before=" + svg(".main-svg"));
  groups[0].querySelector("summary").focus();
  said.push("focus=" + (page.activeElement === groups[0].querySelector("summary")));
  groups[0].querySelector("summary").click();
  wait(function () { return shows("embedding"); }, 40, function () {
    list = groups[0].querySelector(".level select");
    said.push("plots=" + svg(".js-plotly-plot"), "bars=" + svg(".barlayer .point"));
    said.push("levels=" + list.options.length, "whole=" + shows("embedding"));
    ENTER
    wait(function () { return level() === list.value && shows("gemm"); }, 40, last);
  });
  function last() {
    var wide = page.documentElement;
    said.push("inside=" + shows("gemm"), "level=" + (level() === list.value), "now=" + list.selectedIndex);
    said.push("wide=" + (wide.scrollWidth <= wide.clientWidth));
    document.title = said.join(" ");
  }
};
</script>"""
BY_LIST = """list.value = [...list.options].find(x => x.textContent === "backward \\u203a tower").value;
    list.dispatchEvent(new Event("change"));"""
BY_CLICK = """[...groups[0].querySelectorAll(".treemaplayer .slice")].find(x => x.textContent.startsWith("backward"))
      .querySelector("path").dispatchEvent(new page.defaultView.MouseEvent("click", { bubbles: true }));"""


@pytest.mark.parametrize(("width", "enter"), [(400, BY_LIST), (1280, BY_LIST), (1280, BY_CLICK)])
def test_a_folded_model_opens_and_its_treemap_is_entered(
    chromium: str, report: Path, tmp_path: Path, width: int, enter: str
) -> None:
    """By the list above it, which a keyboard reaches, or by a click, which the list follows."""
    probe = report.parent / "probe.html"
    probe.write_text(PROBE.replace("WIDTH", str(width)).replace("ENTER", enter))
    options = ("--allow-file-access-from-files", f"--window-size={width + 100},1000", "--virtual-time-budget=60000")
    dom, log = open_page(chromium, probe.as_uri(), tmp_path, *options)
    assert console_of(log) == []
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found, dom[:300]
    said = dict(re.findall(r"(\w+)=(\S+)", found.group(1)))
    bars, levels, now = (int(said.pop(name)) for name in ("bars", "levels", "now"))
    assert said == {
        "groups": "2", "before": "0", "focus": "true", "plots": "4", "whole": "true", "inside": "true", "level": "true",
        "wide": "true",
    }  # fmt: skip
    assert bars >= 4 + 12, "ranges and operators of one step"
    assert levels >= 1 + 4 + 4, "the model, its stages and its blocks"
    assert now > 0

"""The page in a real browser: it draws, it prints nothing to the console, it fits a phone."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from ctrbench.reports.page import build_report

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
synthetic_records = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_report.py"))["synthetic_records"]


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next((p for p in map(shutil.which, NAMES) if p), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path; apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report(*synthetic_records(0), tmp_path_factory.mktemp("page") / "report.html")


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
    assert figures >= 18
    assert dom.count("js-plotly-plot") >= figures
    assert dom.count('class="main-svg"') >= figures


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

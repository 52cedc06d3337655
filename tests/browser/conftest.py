"""A real browser for the tests beside this file: Debian's Chromium, driven by Playwright from PyPI."""

from __future__ import annotations

import os
import runpy
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from ctrbench.reports.page import build_report
from ctrbench.reports.records import Measurement, RunRecord, load, save

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
HELP = f"none of {', '.join(NAMES)} is on the path; apt-get install chromium"
DATA = Path(__file__).parents[1] / "data"
PATIENCE = 180_000
"""ms to wait for anything: generous, since the machine may be busy."""
ALIKE = """() => { const seen = new Map();
  for (const row of document.querySelectorAll('tbody tr')) {
    const look = [row.closest('table'), row, ...row.querySelectorAll('*')].map(x => x.tagName + x.className).join();
    seen.set(look, (seen.get(look) || 0) + 1);
    if (seen.get(look) > 3) row.remove();
  } }"""
"""Keeps three rows of each look: axe-core takes the contrast of every cell."""
LAYERS = 2
"""Of FAT, each with a heat map of its field pairs."""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A skip among thousands of dots is not seen: say it at the end."""
    if any(HELP in str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_sep("!", f"THE PAGE WAS NOT TESTED IN A BROWSER: {HELP}", red=True, bold=True)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a browser; without one a skip, a failure where CTRBENCH_BROWSER=required."""
    found = next((p for p in map(shutil.which, NAMES) if p), None)
    if found is None:
        (pytest.fail if os.environ.get("CTRBENCH_BROWSER") == "required" else pytest.skip)(f"no browser: {HELP}")
    return found


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@dataclass
class Tab:
    """A page with what it said and what it asked the network for."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """Addresses other than the file itself, data and blobs."""

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true. Playwright's own wait has the page evaluate it: its policy forbids."""
        end = time.monotonic() + PATIENCE / 1000
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"not within {PATIENCE / 1000:.0f} s: {condition}"
            self.page.wait_for_timeout(20)

    def draw_all(self) -> None:
        """Opens what is folded and draws every figure, as before printing."""
        self.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        self.wait("document.querySelectorAll('.plot').length === document.querySelectorAll('.js-plotly-plot').length")

    def thin_out(self) -> None:
        """Leaves three of the table rows that have the same elements and classes: they look alike."""
        self.page.evaluate(ALIKE)


Opener = Callable[..., Tab]


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Opener]:
    """Opens a file in a fresh profile; `context` are options of Playwright's new_context."""
    opened = []

    def open_(path: Path, before: str = "", **context: Any) -> Tab:
        context = {"viewport": {"width": 1280, "height": 900}, **context}
        profile = browser.new_context(**context)
        profile.set_default_timeout(PATIENCE)
        opened.append(profile)
        tab = Tab(profile.new_page())
        tab.page.on("console", lambda message: tab.console.append(f"{message.type}: {message.text}"))
        tab.page.on("pageerror", lambda error: tab.console.append(f"error: {error}"))
        own = path.as_uri()
        tab.page.on("request", lambda r: None if r.url.split("#")[0] == own or r.url.startswith(("data:", "blob:"))
                    else tab.requests.append(r.url))  # fmt: skip
        if before:
            tab.page.add_init_script(before)
        tab.page.goto(own)
        return tab

    yield open_
    for profile in opened:
        profile.close()


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of screenshots: CTRBENCH_ARTEFACTS, or a temporary one."""
    named = os.environ.get("CTRBENCH_ARTEFACTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("artefacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SYNTHETIC run directory with every section's records; the rows lie in Parquet, as a suite leaves them."""
    rows, bodies = runpy.run_path(str(DATA / "synthetic_report.py"))["synthetic_records"](0)
    folder = tmp_path_factory.mktemp("run")
    fat, weights = bodies["movielens_1m-fat"], [[[[1.1, 0.9, 1.0], [1.0, 1.2, 0.8], [0.7, 1.0, 1.1]]]] * LAYERS
    fat["extra"]["pairs"] = {"fields": ["user", "item", "genre"], "weights": weights, "start": 1.0}
    plain = rows.astype(object).where(rows.notna(), None)
    whole = ("seed", "threads", "batch", "n")
    made = [
        Measurement(**{k: int(v) if k in whole and v is not None else v for k, v in row.items()})
        for row in plain.to_dict("records")
    ]
    for key, body in bodies.items():
        mine = tuple(made) if key == "prepare" else ()
        environment = body.get("environment", {})
        save(RunRecord(key=key, spec=body["spec"], environment=environment, extra=body["extra"], rows=mine), folder)
    return folder


@pytest.fixture(scope="session")
def own_page() -> Path:
    """The page that CTRBENCH_PAGE names, of a run of yours."""
    named = os.environ.get("CTRBENCH_PAGE")
    if not named:
        pytest.skip(
            "CTRBENCH_PAGE names no page; CTRBENCH_PAGE=runs/latest/report.html holds that one to the same rules"
        )
    return Path(named).resolve()


@pytest.fixture(scope="session")
def report(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `run_folder` with two recordings."""
    rows, bodies = load(run_folder)
    made, data, parts = runpy.run_path(str(DATA / "synthetic_kernels.py")), "movielens_1m", []
    for model, device in (("composite", "cpu"), ("fat", "Tesla T4")):
        launches, body = made["synthetic_kernels"](data, model, device=device)
        parts.append(launches)
        bodies |= {f"{data}-{model}-trace": body, f"{model}-count": made["counted_body"](data, model)}
    return build_report(rows, bodies, tmp_path_factory.mktemp("page") / "report.html", pd.concat(parts))

"""Processes of the kit under a time limit: the pytest step, a model's worker, nsys around one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctrbench.bench.kit.record import ROOT

_MARK = re.compile(r"pytest\.mark\.gpu\b")


def run_limited(command: Sequence[str], seconds: float, log: Path) -> int | None:
    """Runs a command, its output into `log`; None if it was still running after `seconds` and was ended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as f, subprocess.Popen(
        list(command), stdout=f, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:  # fmt: skip
        try:
            return process.wait(timeout=seconds)
        except BaseException as error:  # also a Ctrl-C: a session of its own does not get it
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise


def last_line(log: Path) -> str:
    """Last line that is not empty."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def gpu_test_files(root: Path = ROOT) -> list[Path]:
    """Test files with a test marked `gpu`; none where only the package is installed."""
    files = sorted((root / "tests").glob("**/test_*.py"))
    return [f for f in files if _MARK.search(f.read_text(encoding="utf-8"))]


def run_gpu_tests(files: Sequence[Path], seconds: float, folder: Path) -> dict[str, Any]:
    """`pytest -m gpu` on the files that hold such tests.

    Returns:
        `status` (`ok`, `failed`, `timeout`, `skipped`), `reason`, and the names in `passed`, `failed`, `skipped`; the
        last two with their reasons.
    """
    none: dict[str, Any] = {"passed": [], "failed": {}, "skipped": {}}
    if not files:
        return {"status": "skipped", "reason": "field_missing: no checkout, so no tests; clone the repository", **none}
    xml, log = folder / "pytest.xml", folder / "pytest.log"
    xml.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={xml}", *map(str, files)]
    code = run_limited(command, seconds, log)
    if code is None:
        return {"status": "timeout", "reason": f"not finished after {seconds:.0f} s", **none}
    if not xml.is_file():
        return {"status": "failed", "reason": f"pytest ended with exit code {code}: {last_line(log)}", **none}
    found = read_junit(xml)
    bad = bool(found["failed"]) or code not in (0, 5)  # 5: nothing was collected
    reason = f"{len(found['failed'])} failed, exit code {code}" if bad else ""
    return {
        "status": "failed" if bad else "ok" if found["passed"] else "skipped",
        "reason": reason or _why(found),
        **found,
    }


def _why(found: dict[str, Any]) -> str:
    return "" if found["passed"] else "; ".join(sorted(set(found["skipped"].values()))) or "no test was collected"


def read_junit(path: Path) -> dict[str, Any]:
    """Names of passed, and of failed and skipped tests with the first line of their message."""
    out: dict[str, Any] = {"passed": [], "failed": {}, "skipped": {}}
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        bad = next((e for tag in ("failure", "error") if (e := case.find(tag)) is not None), None)
        skipped = case.find("skipped")
        if bad is not None:
            out["failed"][name] = (bad.get("message") or "").split("\n")[0][:300]
        elif skipped is not None:
            out["skipped"][name] = (skipped.get("message") or "").split("\n")[0][:300]
        else:
            out["passed"].append(name)
    return out

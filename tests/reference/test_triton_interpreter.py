"""Every Triton kernel against its operator's plain twin, forward and backward, in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip(
        "TRITON IS NOT INSTALLED: no kernel of kernels/gpu was run. pip install triton==3.7.1 (Linux)",
        allow_module_level=True,
    )

ROOT = Path(__file__).parents[2]


def test_every_kernel_gives_what_the_twin_gives(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.reference.triton_twins"],
        env={**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)},
        cwd=ROOT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found: dict[str, str] = json.loads(run.stdout)
    assert "away" in found.pop("planted"), "a planted mistake of one percent was not seen: the comparison is blind"
    assert len(found) > 20
    assert not {case: wrong for case, wrong in found.items() if wrong}

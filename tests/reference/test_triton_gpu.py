"""Every Triton kernel on a CUDA device against its operator's plain twin in float64, forward and backward."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
ROOM = ROOT / "kernels" / "gpu"
FILES = sorted(p.stem for p in ROOM.glob("*.py") if p.stem not in ("kernel", "offline", "__init__"))
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2}
"""Relative, by norms: float32 products are `ieee`; a rounded operand is 2^-9 off."""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is false")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", FILES)
def test_kernels_give_what_the_twin_gives(name: str, dtype: str) -> None:
    command = [sys.executable, "-m", "tests.reference.triton_twins", "--device", dtype, name]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    found: dict[str, dict[str, Any]] = json.loads(run.stdout)
    assert found.pop("planted")["twin"] > TOLERANCE[dtype], "a planted mistake was not seen: the comparison is blind"
    assert found, "nothing was compared"
    failed = {case: of["error"] for case, of in found.items() if of["error"]}
    assert not failed
    assert not {case: of["idle"] for case, of in found.items() if of["idle"]}, "kernels that were not launched"
    far = {
        case: (of["twin"], of["again"]) for case, of in found.items() if max(of["twin"], of["again"]) > TOLERANCE[dtype]
    }
    assert not far

"""Builds C of this folder with the machine's own compiler, on first use, into the cache.

No compiler, or one that fails, is no error: `library` gives None and the callers have a path of ATen's operators.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_FLAGS = (
    "-O3", "-std=gnu11", "-fPIC", "-shared", "-march=native", "-ffp-contract=fast", "-fno-math-errno",
    "-fno-trapping-math", "-fopenmp",
)  # fmt: skip


@cache
def library(name: str) -> ctypes.CDLL | None:
    """`<name>.c` as a library; None where it cannot be built. Import torch first: both then share one OpenMP."""
    command = _compiler()
    if command is None:
        return None
    source = Path(__file__).with_name(f"{name}.c")
    call = [*command, *_FLAGS]
    digest = hashlib.sha256(source.read_bytes() + shlex.join(call).encode() + _cpu().encode()).hexdigest()[:16]
    folder = Path(os.environ.get("CTRBENCH_CACHE") or Path.home() / ".cache" / "ctrbench") / "kernels"
    built = folder / f"{name}-{digest}.so"
    try:
        if not built.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as aside:  # same file system: the rename is atomic
                made = Path(aside) / built.name
                subprocess.run([*call, "-o", str(made), str(source), "-lm"], capture_output=True, check=True)
                made.replace(built)
        return ctypes.CDLL(str(built))
    except (OSError, subprocess.CalledProcessError):
        return None


def _compiler() -> list[str] | None:
    """$CC, else gcc or cc."""
    given = shlex.split(os.environ.get("CC", ""))
    found = [c for c in ([given] if given else [["gcc"], ["cc"]]) if shutil.which(c[0])]
    return found[0] if found else None


def _cpu() -> str:
    """What `-march=native` depends on: a cache may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return "".join(line for line in dict.fromkeys(lines) if line.startswith(("model name", "flags", "Features")))

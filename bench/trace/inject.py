"""Builds and attaches the NVTX injection library (inject.c): what a process emits becomes JSON lines, no GPU needed."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from ctrbench.datasets.spec import cache_dir

SOURCE = Path(__file__).with_name("inject.c")
HEADER_PACKAGES = ("nvidia-nvtx", "nvidia-nvtx-cu13", "nvidia-nvtx-cu12", "nvidia-nvtx-cu11")
"""PyPI packages that ship the NVTX 3 headers; torch's CUDA builds bring one, the extra `cpu` the third."""
HEADER = "nvToolsExt.h"
ATTACH, OUT = "NVTX_INJECTION64_PATH", "CTRBENCH_NVTX_OUT"
_FLAGS = ("-O2", "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")


class RecorderUnavailable(RuntimeError):
    """The recorder cannot be built here; says what is missing and how to get it."""


def nvtx_include() -> Path:
    """Folder of `nvtx3/nvToolsExt.h`.

    Raises:
        RecorderUnavailable: no installed package ships it.
    """
    for package in HEADER_PACKAGES:
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            found = Path(str(file.locate()))
            if file.name == HEADER and found.is_file():
                return found.parent.parent
    raise RecorderUnavailable("no NVTX headers: `pip install nvidia-nvtx-cu12` brings them (90 kB, no GPU needed)")


def compiler() -> list[str]:
    """The C compiler: $CC, else gcc or cc.

    Raises:
        RecorderUnavailable: there is none.
    """
    given = shlex.split(os.environ.get("CC", ""))
    for command in [given] if given else [["gcc"], ["cc"]]:
        if shutil.which(command[0]):
            return command
    looked = given[0] if given else "gcc, cc"
    raise RecorderUnavailable(f"no C compiler ({looked}): install gcc, or name one in CC")


def library() -> Path:
    """The injection library, built on first use into the cache; another source, header or compiler builds another.

    Raises:
        RecorderUnavailable: no compiler, no headers, or the compiler fails (its first lines are in the message).
    """
    include, command = nvtx_include(), [*compiler(), *_FLAGS]
    headers = sorted((include / "nvtx3").rglob("*.h"))
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(command).encode())
    for header in headers:
        digest.update(header.read_bytes())
    built = cache_dir() / "nvtx" / f"inject-{digest.hexdigest()[:16]}.so"
    if built.is_file():
        return built
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:  # same file system: the rename below is atomic
        made = Path(folder) / built.name
        done = subprocess.run(
            [*command, "-isystem", str(include), "-o", str(made), str(SOURCE)], capture_output=True, text=True
        )
        if done.returncode != 0:
            said = "\n".join(done.stderr.splitlines()[:5])
            raise RecorderUnavailable(f"{shlex.join(command)} does not build {SOURCE.name}:\n{said}")
        made.replace(built)
    return built


def record(command: Sequence[str], out: Path, env: Mapping[str, str] | None = None) -> int:
    """Runs a command with the recorder attached to it and its children.

    Args:
        command: what to run.
        out: JSON lines; an old file is replaced.
        env: environment, this process's if not given.

    Returns:
        the command's exit code.

    Raises:
        RecorderUnavailable: the library cannot be built.
    """
    attached = {**(os.environ if env is None else env), ATTACH: str(library()), OUT: str(out.resolve())}
    out.unlink(missing_ok=True)
    return subprocess.run(list(command), env=attached).returncode

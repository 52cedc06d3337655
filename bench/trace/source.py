"""The bytes of a recorded file: gzip or plain, with what identifies them."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ctrbench.bench.trace.columns import BadRecording

GZIP = b"\x1f\x8b"
HEAD = 4096
"""Bytes by which a format is recognised."""


def head_of(path: Path) -> bytes:
    """First bytes of the file, decompressed.

    Raises:
        BadRecording: missing, empty, or damaged gzip.
    """
    if not path.is_file():
        raise BadRecording(f"{path}: no such file")
    with path.open("rb") as f:
        start = f.read(HEAD)
    if not start:
        raise BadRecording(f"{path}: empty file; copy or record it again")
    if not start.startswith(GZIP):
        return start
    with _readable(path), gzip.open(path) as g:
        return g.read(HEAD)


def identity(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256 of the file as it lies there."""
    with path.open("rb") as f:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def content(path: Path) -> bytes:
    """The whole file, decompressed.

    Raises:
        BadRecording: missing, or cut or damaged gzip.
    """
    if not path.is_file():
        raise BadRecording(f"{path}: no such file")
    with _readable(path):
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw.startswith(GZIP) else raw


@contextmanager
def plain_file(path: Path) -> Iterator[Path]:
    """A path to the decompressed file: the file itself, or a temporary copy that goes away with the context.

    Raises:
        BadRecording: missing, or cut or damaged gzip.
    """
    if not head_of(path) or not _is_gzip(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ctrbench-") as folder:
        copy = Path(folder) / "recording"
        with _readable(path), gzip.open(path) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        yield copy


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as f:
        return f.read(2) == GZIP


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadRecording(f"{path}: truncated or damaged gzip ({error}); copy or record it again") from None

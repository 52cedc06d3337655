"""What a data set must say of itself, and where raw files live."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.schema import Track
from ctrbench.datasets.shards import Shards

GZ_RATIO = 4
"""Text bytes that a gzipped file is taken for, a byte."""


def cache_dir() -> Path:
    """Where downloads, generated files and prepared data go: $CTRBENCH_CACHE, else ~/.cache/ctrbench."""
    return Path(os.environ.get("CTRBENCH_CACHE") or Path.home() / ".cache" / "ctrbench")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes.

    Raises:
        BadInput: if it is not a readable file.
    """
    if path.is_dir():
        raise BadInput(f"{path}: is a directory; give the file itself")
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}; check the path") from None


def plain_bytes(file: Path) -> int:
    """Bytes of a plain file; 0 for a gzipped one, whose text nobody has measured."""
    with file.open("rb") as f:
        return 0 if f.read(2) == b"\x1f\x8b" else file.stat().st_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Raw:
    """A raw file that is here."""

    path: Path
    sha256: str
    bytes: int
    synthetic: bool = False
    """True where our generator wrote it; said in the manifest and by every number made from it."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """For the manifest: generator parameters and the like."""

    @property
    def text_bytes(self) -> int:
        """Bytes of its text, decompressed; of gzipped files a guess."""
        files = [self.path / name for name in self.detail.get("files", {})] if self.path.is_dir() else [self.path]
        return sum(plain_bytes(f) or GZ_RATIO * f.stat().st_size for f in files)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec:
    """Registry entry of a data set; the file name is its key."""

    name: str
    title: str
    track: Track | None
    """None: the user's schema decides."""
    description: str
    terms: str
    """Under which terms the rows may be used."""
    splits: tuple[str, ...]
    """Split rules, the default first."""
    options: Mapping[str, Any]
    """Options of `prepare` with their defaults; the default's type is the option's type."""
    fetch: Callable[[Path | None, Mapping[str, Any]], Raw]
    """(path of the user or None, options) -> the raw file. Raises DataUnavailable or BadInput."""
    build: Callable[[Raw, str, Mapping[str, Any], Account, Shards], Mapping[str, Any]]
    """(raw, split rule, options, account, shards) fills account and shards; returns `schema` (a FeatureSchema) and
    `split` (rule and cuts as JSON). Where labels are made by sampling negatives it also returns `sampler` (for the
    manifest), `history_only` (kept rows that are events but no row of a split), `sampled` (rows added) and `aside`
    (columns of the shards that controls may read and models never get)."""
    fetch_options: tuple[str, ...] = ()
    """Options that only decide the raw bytes; the raw sha256 stands for them in the fingerprint."""
    room: float = 1.5
    """Bytes that `build` has on disk at once, a byte of the raw text; checked before it starts."""
    own: bool = False
    """Rows of ours or of the user: nobody else's terms are to be shown."""
    fit: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Model -> options without which it would misread these rows (which actions are likes); they make no variant."""

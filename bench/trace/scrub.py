"""`ctrbench scrub FILE -o OUT`: makes a recording fit to share (measures.md section 10, Privacy).

By allow-list everywhere: what is not known to be harmless is dropped or becomes `redacted`. Figures stay: a reader says
the same of both files. Names of NVTX ranges and of kernels are what the figures are about, and are kept.
"""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.ncu import REPORT, looks_like_ncu, read_bytes
from ctrbench.bench.trace.scrub_account import Dropped
from ctrbench.bench.trace.scrub_kineto import scrub_kineto
from ctrbench.bench.trace.scrub_ncu import scrub_ncu
from ctrbench.bench.trace.scrub_nsys import scrub_nsys

_SQLITE = b"SQLite format 3\x00"
NAMES_KEPT = "kept: names of kernels, operators and NVTX ranges; the ranges are the user's words (--redact-names)"
NAMES_HASHED = "kept: names of kernels and operators; range names outside the domain ctrbench are hashed"


Scrubber = Callable[[Path, bytes, Path, Dropped], None]
"""(input, its decompressed bytes, plain output, account)."""


def run_scrub(source: str | Path, out: str | Path, redact_names: bool = False) -> int:
    """Writes the scrubbed copy and prints what was dropped.

    Raises:
        BadRecording: OUT exists, or FILE is no recording that can be scrubbed.
    """
    dropped = scrub(source, out, redact_names)
    table = Table(title=f"{out}: dropped or redacted", title_justify="left")
    table.add_column("what", overflow="fold")
    table.add_column("values", justify="right")
    for where, times in sorted(dropped.counts.items()):
        table.add_row(where, str(times))
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(NAMES_HASHED if redact_names else NAMES_KEPT)
    return 0


def scrub(source: str | Path, out: str | Path, redact_names: bool = False) -> Dropped:
    """Writes a copy of a recording that is fit to share; gzipped if OUT ends in `.gz`.

    Raises:
        BadRecording: OUT exists, or FILE is no recording that can be scrubbed.
    """
    source, out = Path(source), Path(out)
    if not source.is_file():
        raise BadRecording(f"{source}: no such file")
    if out.exists() or out.is_symlink():
        same = out.exists() and os.path.samefile(source, out)
        raise BadRecording(f"{out}: {'is the input' if same else 'exists'}; give -o the name of a new file")
    if not out.parent.is_dir():
        raise BadRecording(f"{out}: no such folder as {out.parent}")
    raw = read_bytes(source)
    scrubber = _scrubber(source, raw)
    dropped = Dropped(redact_names=redact_names)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".scrub-") as folder:
        plain = Path(folder) / "plain"
        scrubber(source, raw, plain, dropped)
        if out.suffix == ".gz":
            plain.write_bytes(gzip.compress(plain.read_bytes(), 6, mtime=0))
        os.replace(plain, out)
    return dropped


def _scrubber(source: Path, raw: bytes) -> Scrubber:
    """By content, not by name."""
    if raw[: len(_SQLITE)] == _SQLITE:
        return scrub_nsys
    if raw[:4] == REPORT or source.name.endswith((".ncu-rep", ".nsys-rep")):
        raise BadRecording(
            f"{source}: a closed format: nobody but its vendor can say what else is in it (user, host, paths, source "
            "text). Share a table instead: `ncu --import FILE --csv --page raw --print-units base`, or "
            "`nsys export --type=sqlite`, and scrub that"
        )
    if looks_like_ncu(source, raw[: 1 << 20]):
        return scrub_ncu
    if raw[:64].lstrip()[:1] in (b"{", b"["):
        return scrub_kineto
    raise BadRecording(f"{source}: no export of Nsight Systems, CSV of Nsight Compute or Kineto JSON; nothing written")

"""`ctrbench trace FILE...`: recognises each file by its content, reads it and says what it holds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import polars as pl
from rich.console import Console
from rich.table import Table

from ctrbench.bench.hardware import HardwareUnknown, find
from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.figures import sizes
from ctrbench.bench.trace.kernel_rows import counted_kernels, recorded_kernels
from ctrbench.bench.trace.kineto import looks_like_kineto, read_kineto
from ctrbench.bench.trace.ncu import looks_like_ncu, read_ncu
from ctrbench.bench.trace.ncu_table import NcuReport
from ctrbench.bench.trace.nsys import looks_like_sqlite, read_nsys
from ctrbench.bench.trace.recording import Recording
from ctrbench.bench.trace.source import head_of
from ctrbench.bench.trace.table import kernel_table
from ctrbench.bench.trace.time_split import split_of
from ctrbench.reports.records import write_atomic

Readable = Recording | NcuReport


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of file."""

    name: str
    accepts: Callable[[Path, bytes], bool]
    """Of the path and the first bytes, decompressed."""
    read: Callable[[Path], Readable]


def formats(domain: str | None = None) -> tuple[Format, ...]:
    """The kinds of files that are read; the first that accepts a file reads it.

    Args:
        domain: NVTX domain whose ranges are asked for.
    """
    return (
        Format(name="Nsight Systems .sqlite", accepts=looks_like_sqlite, read=partial(read_nsys, domain=domain)),
        Format(name="Nsight Compute .csv or .ncu-rep", accepts=looks_like_ncu, read=partial(read_ncu, domain=domain)),
        Format(name="Kineto .json", accepts=looks_like_kineto, read=partial(_read_kineto, domain=domain)),
    )


def _read_kineto(path: Path, domain: str | None) -> Recording:
    if domain is not None:
        raise BadRecording(f"{path}: --domain {domain}: Kineto JSON holds no NVTX domains; leave the flag out")
    return read_kineto(path)


def read(path: Path, domain: str | None = None) -> Readable:
    """Reads a recording of any known format; gzip is accepted.

    Raises:
        BadRecording: missing, of no known format, or what its reader refuses.
    """
    head = head_of(path)
    known = formats(domain)
    for kind in known:
        if kind.accepts(path, head):
            return kind.read(path)
    names = ", ".join(kind.name for kind in known)
    hint = "; export it with nsys export --type=sqlite" if path.suffix in (".nsys-rep", ".qdrep") else ""
    raise BadRecording(f"{path}: format not recognised (read are {names}, gzipped or not){hint}")


def run_trace(
    paths: Sequence[str | Path], json: bool = False, domain: str | None = None, table: Path | None = None
) -> int:
    """A summary a file; 2 if any file could not be read, the others are printed.

    Args:
        paths: the files.
        json: one object a line and file instead of tables; shares are rounded to six decimals.
        domain: NVTX domain whose ranges are asked for.
        table: where the rows of all files go, one a kernel, copy or profiled launch; of the suffixes `TABLES`.
    """
    code, console = 0, Console(markup=False, emoji=False)  # names in recordings hold brackets
    rows: list[pl.DataFrame] = []
    for path in paths:
        try:
            recording = read(Path(path), domain)
            figures = figures_of(recording)
        except BadRecording as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
            continue
        if table is not None:
            rows.append(_rows(recording).select(pl.lit(str(path)).alias("file"), pl.all()))
        if json:
            line = orjson.dumps(rounded({"file": str(path), "origin": "imported", **figures})).decode()
            print(line, flush=True)
            continue
        for shown in _tables(str(path), figures, recording):
            console.print(shown)
    if table is not None and rows:
        content = BytesIO()
        TABLES[table.suffix](pl.concat(rows, how="diagonal"), content)
        write_atomic(table, content.getvalue())
    return code


def step_of(path: Path) -> tuple[str, pd.DataFrame, dict[str, Any]]:
    """The events of one step of a recording made elsewhere, for `reports.perfetto`: (name, rows, facts).

    Raises:
        BadRecording: as `read`.
    """
    recording = read(path)
    if isinstance(recording, NcuReport):
        kernels = counted_kernels({}, {"": recording})
    else:
        try:
            split = split_of(recording)
        except ValueError:
            split = None
        kernels = recorded_kernels({}, recording, split, "imported")
    return path.name, kernels.table, kernels.facts


TABLES: dict[str, Callable[[pl.DataFrame, BytesIO], object]] = {
    ".parquet": lambda rows, out: rows.write_parquet(out), ".csv": lambda rows, out: rows.write_csv(out)
}  # fmt: skip
"""Suffix of a table -> how it is written."""


def _rows(recording: Readable) -> pl.DataFrame:
    return recording.table() if isinstance(recording, NcuReport) else pl.from_pandas(kernel_table(recording))


def figures_of(recording: Readable) -> dict[str, Any]:
    """The summary, with what the catalogue and our own ranges add to that of a `Recording`."""
    figures = recording.summary()
    if not isinstance(recording, Recording):
        return figures
    notes = figures["refusal_notes"]
    if len(recording.gpu):
        try:
            figures["catalogue"] = find(recording.device).name if recording.device else None
        except HardwareUnknown as error:
            figures["catalogue"] = None
            notes[error.reason] = f'MFU is withheld: add [gpu."..."] with device_names = ["{recording.device}"] to ' \
                "bench/hardware.toml, each figure with its source"  # fmt: skip
        if recording.device is None:
            notes["device_unknown"] = "MFU is withheld: the recording names no device"
    try:
        split = split_of(recording)
        figures["split_host"] = {
            "steps": split.steps, "step_ns": split.step_ns, "tracer_ns": split.tracer_ns, "coverage": split.coverage,
            "shares": split.shares(),
        }  # fmt: skip
    except ValueError:
        figures["split_host"] = None
    return figures | {"refusals": sorted(notes)}


def rounded(value: Any) -> Any:
    """The same figures with shares rounded to six decimals, as they are printed."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value


def _tables(path: str, figures: dict[str, Any], recording: Readable) -> Iterable[Table]:
    table = Table(title=f"{path} (imported)", title_justify="left", show_header=False)
    for name, value in _lines(recording, figures) if isinstance(recording, Recording) else recording.lines():
        table.add_row(name, value)
    yield table
    if not isinstance(recording, Recording):
        return
    if figures["kernels"]["launches"]:
        rows = figures["kernels"]["top_by_time"]
        yield _top("kernels by time", "launches", rows, figures["kernels"]["total_ns"])
    ranges = (figures.get("nvtx") or {}).get("by_name") or {}
    rows = [(name, r["ops"], r["gpu_ns"]) for name, r in ranges.items() if r["ops"]][:10]
    if rows:
        yield _top("ranges by device time of what was launched inside", "operations", rows, None)


def _top(title: str, column: str, rows: Iterable[tuple[str, int, int]], total_ns: int | None) -> Table:
    table = Table(title=title, title_justify="left", expand=True)
    table.add_column("name", no_wrap=True, overflow="ellipsis", ratio=1)
    for text, width in ((column, 8), ("total", 12), *([("share", 6)] if total_ns is not None else [])):
        table.add_column(text, justify="right", min_width=width)
    for name, count, ns in rows:
        share = [] if total_ns is None else [f"{ns / max(1, total_ns):.1%}"]
        table.add_row(name, str(count), _ms(ns), *share)
    return table


def _lines(recording: Recording, s: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "device", s["device"] or "not recorded: utilisation is withheld"
    if s["kernels"]["launches"] is not None:
        k = s["kernels"]
        coarse = "; whole microseconds: each time is +-0.5 us" if s["whole_microseconds"] else ""
        yield "kernel launches", f"{k['launches']} ({k['le_10us']} of at most 10 us), {_ms(k['total_ns'])}{coarse}"
    if s["gpu_time_by_device"] is None:
        yield "device operations", "withheld: no_kernel_table" if not len(recording.gpu) else "withheld"
    else:
        yield from _device_lines(recording, s)
    if len(recording.ops):
        yield "operators", "withheld: thinned_recording" if s["thinned"] else str(len(recording.ops))
    if s.get("nvtx"):
        n = s["nvtx"]
        yield "NVTX ranges", ", ".join(f"{c} of domain {d}" for d, c in n["ranges_by_domain"].items()) or "none"
    if s["split_host"]:
        shares = s["split_host"]["shares"].items()
        yield "step", ", ".join(f"{scope.removeprefix('stage:')} {v:.1%}" for scope, v in shares if "/" not in scope)
        yield "  named stages", f"{s['split_host']['coverage']:.1%} of {s['split_host']['steps']} steps"
    for code, text in s["refusal_notes"].items():
        yield code, text
    for text in s.get("warnings", []):
        yield "warning", text


def _device_lines(recording: Recording, s: dict[str, Any]) -> Iterable[tuple[str, str]]:
    link = s["link"]
    for kind in ("memcpy", "memset"):
        if s[kind]["count"] is None:
            yield kind, f"withheld: {s[kind]['reason']}"
            continue
        amount = "bytes not recorded" if s[kind]["bytes"] is None else f"{s[kind]['bytes']} B"
        yield kind, f"{s[kind]['count']}, {amount}, {_ms(s[kind]['total_ns'])}"
    calls = link.get("launch_api", link.get("kernel_launch_api"))
    yield "launch calls", ", ".join(f"{n} {c}" for n, c in calls.items()) or "none"
    share = "" if link["unlinked_share"] is None else f" ({link['unlinked_share']:.1%})"
    yield "unlinked", f"{link['unlinked']} of {link['gpu_ops']} operations{share}"
    for device, time in s["gpu_time_by_device"].items():
        yield f"device {device}", f"busy {_ms(time['busy_ns'])} of {_ms(time['span_ns'])}"
        idle, verdict = s["idle_split_by_device"][device], s["launch_verdict"][device]
        parts = ", ".join(f"{n} {_ms(idle[f'idle_{n}_ns'])}" for n in ("host_late", "other", "unknown"))
        yield "  idle", parts.replace("_", " ")
        yield "  verdict", verdict["verdict"] or f"withheld: {verdict['reason']}"
    if s["steps"]:
        per_step = sorted(set(s["steps"]["kernels_per_step"]))
        many = f"{per_step[0]}" if len(per_step) == 1 else f"{per_step[0]} to {per_step[-1]}"
        lost = s["steps"]["kernels_unlinked"]
        yield (
            "launches per step",
            f"{many} in {s['steps']['steps']} steps" + (f"; {lost} kernels have no call" if lost else ""),
        )
    hist = sizes(recording.gpu.ns[recording.gpu.is_kernel])
    yield "kernel sizes", ", ".join(f"{n} {c:.0%} of launches, {t:.0%} of time" for n, (c, t) in hist.items() if c)


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.3f} ms"

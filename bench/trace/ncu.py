"""Reads files of Nsight Compute: CSV of both pages, and `.ncu-rep` with the optional extra `ncu` (package ncu-report).

`read_ncu(path).summary()` is what `ctrbench trace` prints; `.table()` has one row a launch.
"""

from __future__ import annotations

import gzip
import tempfile
import zlib
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.ncu_csv import decode, is_header, read_csv
from ctrbench.bench.trace.ncu_launch import Metric, NcuLaunch
from ctrbench.bench.trace.ncu_ranges import ranges_of_state
from ctrbench.bench.trace.ncu_table import NcuReport
from ctrbench.bench.trace.ncu_units import to_base

_GZIP, REPORT = b"\x1f\x8b", b"NVR\x00"
_LOG = ("==PROF==", "==ERROR==", "==WARNING==")


def looks_like_ncu(path: str | Path, head: bytes) -> bool:
    """Whether a file is Nsight Compute's, by its first bytes (compressed or not); 4 KiB are enough for most.

    A table below much program output is told by ncu's own log lines and the suffix.
    """
    if head[:2] == _GZIP:
        with suppress(zlib.error):
            head = zlib.decompressobj(wbits=31).decompress(head)
    if head[:4] == REPORT:
        return True
    lines = decode(head).splitlines()
    suffixes = Path(path).suffixes
    logged = any(line.startswith(_LOG) for line in lines)
    return any(is_header(line) for line in lines) or (logged and bool({".csv", ".txt", ".log"} & set(suffixes)))


def read_ncu(path: str | Path, domain: str | None = None) -> NcuReport:
    """Reads one file.

    Args:
        path: the file.
        domain: NVTX domain whose ranges are asked for, `default` for the default one; None: that and ours.

    Raises:
        BadRecording: missing, damaged, not ncu's, a report file without the extra that reads it, or no range of the
            domain.
    """
    path = Path(path)
    if not path.is_file():
        raise BadRecording(f"{path}: no such file")
    raw = read_bytes(path)
    is_report = raw[:4] == REPORT or path.name.endswith((".ncu-rep", ".ncu-rep.gz"))
    found = replace(_read_report(path, raw) if is_report else read_csv(str(path), raw), domain=domain)
    if domain is not None and domain not in found.domains():
        held = ", ".join(sorted(found.domains())) or "no range at all; record with --nvtx"
        raise BadRecording(f"{path}: --domain {domain}: no launch is inside a range of it; the file has {held}")
    return found


def read_bytes(path: Path) -> bytes:
    """Content of a file, decompressed if it is gzip.

    Raises:
        BadRecording: truncated or damaged gzip.
    """
    raw = path.read_bytes()
    if raw[:2] != _GZIP:
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadRecording(f"{path}: truncated or damaged gzip ({error}); copy or record it again") from None


def _library(path: Path) -> Any:
    try:
        import ncu_report
    except ImportError:
        raise BadRecording(
            f"{path}: .ncu-rep is a closed format; `pip install ctrbench[ncu]` (NVIDIA's package ncu-report, no GPU "
            "needed) reads it, or export it with `ncu --import FILE --csv --page raw --print-units base`"
        ) from None
    return ncu_report


def _read_report(path: Path, raw: bytes) -> NcuReport:
    library = _library(path)
    if raw[:4] != REPORT:
        raise BadRecording(f"{path}: does not begin like a report of Nsight Compute; copy or record it again")
    with tempfile.NamedTemporaryFile(suffix=".ncu-rep") as plain:
        plain.write(raw)
        plain.flush()
        try:
            context = library.load_report(plain.name)
            ranges = [context.range_by_idx(i) for i in range(context.num_ranges())]
            actions = [each.action_by_idx(i) for each in ranges for i in range(each.num_actions())]
            launches = tuple(_launch(str(i), action) for i, action in enumerate(actions))
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            raise BadRecording(f"{path}: damaged or cut report ({error}); copy or record it again") from None
    if not launches:
        raise BadRecording(f"{path}: a report without a profiled launch: cut, or no kernel matched; record it again")
    # what the library makes of a cut or altered report: no error, but launches without metrics
    empty = [launch.kernel for launch in launches if not launch.metrics]
    if empty:
        raise BadRecording(f"{path}: {empty[0] or 'a launch'} has no metrics: damaged or cut report; copy it again")
    return NcuReport(path=str(path), format="ncu-rep", launches=launches, facts={"ranges": len(ranges)})


def _launch(number: str, action: Any) -> NcuLaunch:
    metrics = {}
    for name in action.metric_names():
        metric = action.metric_by_name(name)
        metrics["", name] = Metric(None, "") if metric is None else _metric(metric)
    read = {name: metrics["", name].value for _, name in metrics}
    return NcuLaunch(
        id=number, process=None, kernel=action.name(), context=_int(read.get("launch__context_id")),
        stream=_int(read.get("launch__stream_id")), grid=_size(read, "grid"), block=_size(read, "block"),
        device_index=_int(read.get("launch__device_id")), cc=_capability(read), metrics=metrics,
        ranges=ranges_of_state(action.nvtx_state()),
    )  # fmt: skip


def _metric(metric: Any) -> Metric:
    value, unit = metric.value(), metric.unit() or ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return Metric(None if value is None else str(value), unit)
    if value != value or value in (float("inf"), float("-inf")):
        return Metric(None, unit)
    base, name, scaled = to_base(Decimal(1), unit)
    return Metric(float(value) * base if scaled else float(value), name)


def _int(value: float | str | None) -> str | None:
    return str(int(value)) if isinstance(value, float) else None


def _size(read: dict[str, float | str | None], what: str) -> tuple[int, int, int] | None:
    x, y, z = (read.get(f"launch__{what}_dim_{axis}") for axis in "xyz")
    return (int(x), int(y), int(z)) if isinstance(x, float) and isinstance(y, float) and isinstance(z, float) else None


def _capability(read: dict[str, float | str | None]) -> str | None:
    major, minor = (_int(read.get(f"device__attribute_compute_capability_{part}")) for part in ("major", "minor"))
    return f"{major}.{minor}" if major and minor else None

"""Scrubs an SQLite export of Nsight Systems into a new database that holds only what is allowed here.

The output is written from nothing, so no free page keeps what was taken out. Tables are allowed by name, their numbers
by type, their texts by column; every other text becomes `redacted`.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.scrub_account import DOMAIN, REDACTED, Dropped

_TABLES = re.compile(
    r"CUPTI_ACTIVITY_KIND_(KERNEL|RUNTIME|DRIVER|MEMCPY|MEMSET|SYNCHRONIZATION|CUDA_EVENT|OVERHEAD|GRAPH_TRACE)"
    r"|NVTX_EVENTS|OSRT_API|CUDNN_EVENTS|CUBLAS_EVENTS|CUDA_GRAPH_EVENTS|CUDA_GRAPH_NODE_EVENTS"
    r"|CUDA_GPU_MEMORY_USAGE_EVENTS|GPU_METRICS|TARGET_INFO_GPU_METRICS|PROFILER_OVERHEAD|SCHED_EVENTS|COMPOSITE_EVENTS"
    r"|TARGET_INFO_(GPU|CUDA_DEVICE|CUDA_STREAM|CUDA_NULL_STREAM|CUDA_CONTEXT_INFO|SESSION_START_TIME)|ANALYSIS_DETAILS"
    r"|PROCESSES|ThreadNames|StringIds|DIAGNOSTIC_EVENT|META_DATA_EXPORT|EXPORT_META_DATA|ENUM_[A-Z0-9_]+"
)
_TEXT: dict[str, set[str]] = {
    "TARGET_INFO_GPU": {"name", "chipName"},
    "TARGET_INFO_GPU_METRICS": {"typeName", "sourceName", "metricName"},
}
"""Texts that describe hardware. Names of ranges, strings and diagnostics have rules of their own below."""
_SECRET_NUMBERS = {("TARGET_INFO_GPU", "luid")}
"""Numbers that tell one card from all others."""
_META = re.compile(
    r"EXPORT_(SCHEMA_VERSION(_MAJOR|_MINOR|_MICRO|_CKSUM)?|PRODUCT_(NAME|VERSION|DATE)|PLATFORM|ARCH"
    r"|(PARAM_)?(OVERWRITE|APPEND|LAZY|TIME_NORMALIZE|TIME_SHIFT)|CONFIG_TIME_SHIFT)"
)
_META_VALUE = re.compile(
    r"-?[\d. ]+|NVIDIA Nsight Systems|true|false|(linux|windows)-(desktop|arm|sbsa|l4t)(-[a-z0-9]+)?|x64|x86_64|aarch64"
)
_CONSTANT = re.compile(r"[A-Z][A-Z0-9_]*")
_DIGITS = re.compile(r"[\d,;\[\](){}: xX-]*")
_DIAGNOSTIC = re.compile(
    r"Number of (CUDA|NVTX|OpenGL|OS runtime libraries|cuDNN|cuBLAS) events collected:\s*[\d,]+\."
    r"|Number of (CUPTI events produced|IP samples collected):\s*[\d,]+(, CUPTI buffers: \d+)?\."
    r"|Number of CUPTI events produced:\s*\d+, CUPTI buffers: \d+ of \d+\. Some CUPTI events might be missing\. To "
    r"make sure all the events are collected, let the application run until it quits, and make sure "
    r'cudaDeviceReset\(\) is called before exit\. Try using the "Flush data periodically" checkbox in '
    r"CUDA trace options\."
    r"|(Profiling|Collection) has (started|stopped)\.|Enabling trace for device graph launch"
    r"|Profiling (started|stopped) due to cudaProfiler(Start|Stop) API invoked in the application\."
    r"|Not all (NVTX|CUDA|OpenGL|OS runtime libraries|cuDNN|cuBLAS) events might have been collected\."
    r"|No (NVTX|CUDA|OpenGL) events collected\. Does the process use (NVTX|CUDA|OpenGL)\?"
    r"|(Common|CUDA|OpenGL|OS runtime libraries|NVTX|cuDNN|cuBLAS) injection( library)? initialized successfully\."
    r"|Buffers holding CUDA trace data will be flushed on CudaProfilerStop\(\) call\. See --flush-on-cudaprofilerstop "
    r"to control this behavior\."
    r"|Installed CUDA driver version \([\d.]+\) is not supported by this build of Nsight Systems\. CUDA trace will be "
    r"collected using libraries for driver version [\d.]+"
    r"|CUDA hardware tracing is not supported on this system\. A legacy \(software instrumented\) trace was collected "
    r"instead\."
)
"""Texts of the tool that hold no name and no path."""
_NAMES = {
    r"CUPTI_ACTIVITY_KIND_KERNEL": ("shortName", "demangledName", "mangledName"),
    r"CUPTI_ACTIVITY_KIND_(RUNTIME|DRIVER|OVERHEAD)|OSRT_API|CUDNN_EVENTS|CUBLAS_EVENTS|CUDA_GRAPH_EVENTS"
    r"|CUDA_GRAPH_NODE_EVENTS|PROFILER_OVERHEAD": ("nameId",),
}
"""Columns whose strings stay. NVTX's textId is apart: thread names go."""
_THREAD_NAME, _DOMAIN_CREATE, _CATEGORY = 39, 75, 33
_SCHEMA_SUFFIX = re.compile(r"^(CUPTI_ACTIVITY_KIND_|NVTX_EVENTS$|StringIds$)")


def scrub_nsys(source: Path, raw: bytes, out: Path, dropped: Dropped) -> None:
    """Writes the allowed part of an export.

    Raises:
        BadRecording: damaged, or no export of Nsight Systems.
    """
    with closing(sqlite3.connect(":memory:")) as old, closing(sqlite3.connect(out)) as new:
        try:
            old.deserialize(raw)
            old.text_factory = lambda value: value.decode("utf-8", errors="replace")
            tables = [name for (name,) in old.execute("SELECT name FROM sqlite_master WHERE type='table' ORDER BY 1")]
            if not any(_SCHEMA_SUFFIX.match(name) for name in tables):
                raise BadRecording(f"{source}: SQLite without a table of Nsight Systems; nothing written")
            kept = _kept_strings(old, tables)
            foreign = _foreign_strings(old, tables) if dropped.redact_names else set()
            for table in tables:
                if _TABLES.fullmatch(table):
                    _copy(old, new, table, dropped, kept, foreign)
                elif not table.startswith("sqlite_"):
                    dropped.add(f"table {table}", old.execute(f"SELECT count(*) FROM {_quoted(table)}").fetchone()[0])
            new.commit()
            new.execute("VACUUM")
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter of a damaged schema
            raise BadRecording(f"{source}: damaged or cut database ({error}); export it again") from None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _columns(db: sqlite3.Connection, table: str) -> list[tuple[str, str]]:
    return [(row[1], row[2]) for row in db.execute(f"PRAGMA table_info({_quoted(table)})")]


def _kept_strings(db: sqlite3.Connection, tables: Iterable[str]) -> set[int]:
    """Ids of strings that a kept name refers to."""
    kept: set[int] = set()
    for table in tables:
        has = {column for column, _ in _columns(db, table)}
        wanted = [column for pattern, names in _NAMES.items() if re.fullmatch(pattern, table) for column in names]
        for column in has.intersection(wanted):
            kept |= {value for (value,) in db.execute(f"SELECT DISTINCT {_quoted(column)} FROM {_quoted(table)}")}
        if table == "NVTX_EVENTS" and {"textId", "eventType"} <= has:
            query = f"SELECT DISTINCT textId FROM NVTX_EVENTS WHERE eventType IS NOT {_THREAD_NAME}"
            kept |= {value for (value,) in db.execute(query)}
    return kept - {None}


def _foreign_strings(db: sqlite3.Connection, tables: Iterable[str]) -> set[int]:
    """Ids of strings that name ranges outside our domain and nothing else: those that `--redact-names` hashes."""
    if "NVTX_EVENTS" not in tables or not {"textId", "domainId"} <= {c for c, _ in _columns(db, "NVTX_EVENTS")}:
        return set()
    own = _own_domains(db)
    foreign: set[int] = set()
    ours: set[int] = set()
    for text, domain, kind in db.execute("SELECT DISTINCT textId, domainId, eventType FROM NVTX_EVENTS"):
        (ours if domain in own or kind in (_DOMAIN_CREATE, _CATEGORY) else foreign).add(text)
    return foreign - ours - _kept_strings(db, [table for table in tables if table != "NVTX_EVENTS"])


def _own_domains(db: sqlite3.Connection) -> set[Any]:
    """Ids of the domain `ctrbench`, one a process."""
    columns = {column for column, _ in _columns(db, "NVTX_EVENTS")}
    if not {"eventType", "domainId"} <= columns:
        return set()
    ways = ["text = ?1"] if "text" in columns else []
    ways += ["textId IN (SELECT id FROM StringIds WHERE value = ?1)"] if "textId" in columns else []
    query = f"SELECT domainId FROM NVTX_EVENTS WHERE eventType = {_DOMAIN_CREATE} AND ({' OR '.join(ways) or '0'})"
    return {domain for (domain,) in db.execute(query, (DOMAIN,))}


def _copy(
    old: sqlite3.Connection, new: sqlite3.Connection, table: str, dropped: Dropped, kept: set[int], foreign: set[int]
) -> None:
    """One allowed table, value by value."""
    columns = _columns(old, table)
    declared = ", ".join(f"{_quoted(name)} {_affinity(kind)}" for name, kind in columns)
    new.execute(f"CREATE TABLE {_quoted(table)} ({declared})")
    marks = ", ".join("?" * len(columns))
    names = [name for name, _ in columns]
    clean = _Cleaner(table, names, dropped, kept, foreign, _own_domains(old) if table == "NVTX_EVENTS" else set())
    rows = old.execute(f"SELECT {', '.join(map(_quoted, names))} FROM {_quoted(table)} ORDER BY rowid")
    new.executemany(f"INSERT INTO {_quoted(table)} VALUES ({marks})", map(clean.row, rows))


def _affinity(kind: str) -> str:
    kind = kind.upper()
    return "INTEGER" if "INT" in kind else "REAL" if any(k in kind for k in ("REAL", "FLOA", "DOUB")) else "TEXT"


class _Cleaner:
    """What may stay of a row of one table."""

    def __init__(
        self, table: str, columns: list[str], dropped: Dropped, kept: set[int], foreign: set[int], own: set[Any]
    ) -> None:
        self._table, self._columns, self._dropped = table, columns, dropped
        self._kept, self._foreign, self._own = kept, foreign, own
        self._at = {column: i for i, column in enumerate(columns)}
        self._texts = {self._at[c] for c in _TEXT.get(table, ()) if c in self._at}
        self._secret = [i for i, column in enumerate(columns) if (table, column) in _SECRET_NUMBERS]

    def row(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        texts = [i for i, value in enumerate(row) if isinstance(value, (str, bytes))]
        if not texts and not self._secret:
            return row
        out = list(row)
        for i in texts:
            out[i] = self._text(i, row)
        for i in self._secret:
            if isinstance(out[i], (int, float)):
                out[i] = None
                self._dropped.add(f"{self._table}.{self._columns[i]}")
        return tuple(out)

    def _text(self, i: int, row: tuple[Any, ...]) -> str | None:
        column, value = self._columns[i], row[i]
        if isinstance(value, str):
            if value in ("", REDACTED) or i in self._texts:
                return value
            allowed = self._special(column, value, row)
            if allowed is not None:
                return allowed
        table = "ENUM_*" if self._table.startswith("ENUM_") else self._table
        self._dropped.add(f"{table}.{column}")
        return REDACTED

    def _special(self, column: str, value: str, row: tuple[Any, ...]) -> str | None:
        """The texts that are judged one by one; None to redact."""
        table = self._table
        if column == "tensorSizeMinusOneElements" and _DIGITS.fullmatch(value):
            return value
        if table == "NVTX_EVENTS" and column == "text":
            return self._nvtx(value, row)
        if table == "StringIds" and column == "value":
            key = row[self._at["id"]] if "id" in self._at else None
            if key not in self._kept:
                return None
            return self._dropped.range_name(value, own=False) if key in self._foreign else value
        if table == "DIAGNOSTIC_EVENT" and column == "text":
            return value if _DIAGNOSTIC.fullmatch(value) else None
        if table in ("META_DATA_EXPORT", "EXPORT_META_DATA") and column in ("name", "value"):
            name = row[self._at["name"]] if "name" in self._at else ""
            known = isinstance(name, str) and _META.fullmatch(name)
            return value if known and (column == "name" or _META_VALUE.fullmatch(value)) else None
        if table.startswith("ENUM_") and column == "name" and _CONSTANT.fullmatch(value):
            return value
        return None

    def _nvtx(self, value: str, row: tuple[Any, ...]) -> str | None:
        """Names of ranges, marks, domains and categories stay; those of threads go."""
        kind = row[self._at["eventType"]] if "eventType" in self._at else None
        if not isinstance(kind, int) or kind == _THREAD_NAME:
            return None
        if kind in (_DOMAIN_CREATE, _CATEGORY):
            return value
        domain = row[self._at["domainId"]] if "domainId" in self._at else None
        return self._dropped.range_name(value, own=domain in self._own)

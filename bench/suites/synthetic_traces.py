"""Synthetic recordings: exports of Nsight Systems from rows, and large files of both formats for the ingest benchmark.

Nothing in them was measured; names of files and kernels say `synthetic`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

COLUMNS: dict[str, tuple[str, ...]] = {
    "META_DATA_EXPORT": ("name", "value"),
    "StringIds": ("id", "value"),
    "CUPTI_ACTIVITY_KIND_KERNEL": (
        "start", "end", "deviceId", "contextId", "streamId", "correlationId", "globalPid", "demangledName", "shortName",
        "mangledName", "registersPerThread", "gridX", "gridY", "gridZ", "blockX", "blockY", "blockZ", "graphNodeId",
    ),
    "CUPTI_ACTIVITY_KIND_MEMCPY": (
        "start", "end", "deviceId", "contextId", "streamId", "correlationId", "globalPid", "bytes", "copyKind",
        "srcKind", "dstKind", "graphNodeId",
    ),
    "CUPTI_ACTIVITY_KIND_MEMSET": (
        "start", "end", "deviceId", "contextId", "streamId", "correlationId", "globalPid", "value", "bytes",
        "graphNodeId",
    ),
    "CUPTI_ACTIVITY_KIND_RUNTIME": (
        "start", "end", "eventClass", "globalTid", "correlationId", "nameId", "returnValue", "callchainId",
    ),
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": ("start", "end", "deviceId", "correlationId", "globalPid", "graphId"),
    "NVTX_EVENTS": (
        "start", "end", "eventType", "rangeId", "category", "color", "text", "globalTid", "endGlobalTid", "textId",
        "domainId", "uint64Value", "int64Value", "doubleValue", "uint32Value", "int32Value", "floatValue",
    ),
    "TARGET_INFO_GPU": (
        "id", "name", "chipName", "smCount", "memoryBandwidth", "l2CacheSize", "totalMemory", "clockRate",
        "computeMajor", "computeMinor",
    ),
    "TARGET_INFO_CUDA_DEVICE": ("gpuId", "cudaId", "pid"),
    "DIAGNOSTIC_EVENT": ("timestamp", "timestampType", "source", "severity", "text", "globalPid"),
}  # fmt: skip
"""Columns of an export of schema 3.20, as far as the reader knows them and a few more."""

KERNEL, MEMCPY, MEMSET, RUNTIME, GRAPH_TRACE = (
    f"CUPTI_ACTIVITY_KIND_{t}" for t in ("KERNEL", "MEMCPY", "MEMSET", "RUNTIME", "GRAPH_TRACE")
)
Rows = Sequence[Mapping[str, Any]]


def thread_id(process: int, thread: int = 0) -> int:
    """A globalTid, or globalPid with thread 0; the high bits hold the machine."""
    return (1 << 48) | (process << 24) | thread


def write_nsys(
    path: Path, tables: Mapping[str, Rows], strings: Sequence[str] = (), *, schema: str | None = "3.20.2",
    without: Sequence[tuple[str, str]] = (),
) -> Path:  # fmt: skip
    """Writes an export with these rows; a table that is not named does not exist.

    Args:
        path: file to write.
        tables: table -> rows, each a mapping from column to value; other columns are NULL.
        strings: StringIds, by id from 0.
        schema: None leaves the metadata table out.
        without: (table, column) that the file lacks.
    """
    found: dict[str, Rows] = dict(tables)
    if strings:
        found["StringIds"] = [{"id": i, "value": s} for i, s in enumerate(strings)]
    if schema is not None:
        found["META_DATA_EXPORT"] = [{"name": "EXPORT_SCHEMA_VERSION", "value": schema}]
    connection = sqlite3.connect(path)
    for table, rows in found.items():
        columns = [c for c in COLUMNS[table] if (table, c) not in without]
        connection.execute(f'CREATE TABLE "{table}" ({", ".join(columns)})')
        marks = ", ".join("?" * len(columns))
        connection.executemany(
            f'INSERT INTO "{table}" VALUES ({marks})', ([row.get(c) for c in columns] for row in rows)
        )
    connection.commit()
    connection.close()
    return path


def write_large_nsys(path: Path, kernels: int, ranges: int) -> Path:
    """An export of two processes with one launch a kernel, and nested ranges four deep around the launches.

    Every column of `COLUMNS` has a value, so that rows are as wide as real ones.
    """
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=OFF")
    for table in ("META_DATA_EXPORT", "StringIds", KERNEL, RUNTIME, "NVTX_EVENTS", "TARGET_INFO_GPU"):
        kinds = ("TEXT" if c in ("text", "value") and table != MEMSET else "INTEGER" for c in COLUMNS[table])
        connection.execute(
            f'CREATE TABLE "{table}" ({", ".join(f"{c} {k}" for c, k in zip(COLUMNS[table], kinds, strict=True))})'
        )
    connection.execute("INSERT INTO META_DATA_EXPORT VALUES ('EXPORT_SCHEMA_VERSION', '3.20.2')")
    names = [
        "cudaLaunchKernel_v7000",
        *(f"synthetic_kernel_{i}" for i in range(400)),
        *(f"range_{i}" for i in range(40)),
    ]
    connection.executemany("INSERT INTO StringIds VALUES (?, ?)", enumerate(names))
    connection.execute("INSERT INTO TARGET_INFO_GPU (id, name) VALUES (0, 'Synthetic GPU')")
    for table, rows in (
        (KERNEL, _kernels(kernels)),
        (RUNTIME, _launches(kernels)),
        ("NVTX_EVENTS", _ranges(kernels, ranges)),
    ):
        connection.executemany(f'INSERT INTO "{table}" VALUES ({", ".join("?" * len(COLUMNS[table]))})', rows)
    connection.commit()
    connection.close()
    return path


def _where(i: int) -> tuple[int, int]:
    """(host time, process) of launch i: two processes with one launching thread each."""
    return i // 2 * 4_000, 100 + i % 2


def _kernels(n: int) -> Iterator[tuple[int | None, ...]]:
    for i in range(n):
        at, process = _where(i)
        start, name = at + 5_000 + i % 7 * 100, 1 + i % 400
        yield (start, start + 1_000 + i % 900, process - 100, 1, 7, i // 2, thread_id(process), name, name, name, 32,
               i % 512, 1, 1, 128, 1, 1, None)  # fmt: skip


def _launches(n: int) -> Iterator[tuple[int | None, ...]]:
    for i in range(n):
        at, process = _where(i)
        yield (at, at + 3_000, 0, thread_id(process, process), i // 2, 0, 0, None)


def _ranges(kernels: int, n: int) -> Iterator[tuple[Any, ...]]:
    """Ranges four deep: each level four times as long as the one inside it."""
    per_leaf = max(1, 2 * kernels // max(1, n))
    for i in range(n):
        level, process = next(k for k in range(4) if (i + 1) % 4 ** (k + 1) or k == 3), 100 + i % 2
        width = per_leaf * 4**level
        first = i // 2 * per_leaf // width * width
        start, end = first * 4_000 - 500 + level, (first + width) * 4_000 - 600 - level
        yield (start, end, 59, None, 1, 0xFF00FF00, None, thread_id(process, process), None, 401 + i % 40, 0, None, i,
               None, None, None, None)  # fmt: skip


def kineto_events(steps: int) -> Iterator[dict[str, Any]]:
    """Events as the profiler writes them; a step has 1 range, 60 operators of which 40 launch a kernel."""
    for step in range(steps):
        begin = step * 1_000_000
        yield {"ph": "X", "cat": "user_annotation", "name": f"ProfilerStep#{step}", "pid": 7, "tid": 7,
               "ts": begin + 0.25, "dur": 900_000.5, "args": {"External id": step * 1000}}  # fmt: skip
        for i in range(60):
            ts, number = begin + 100 + i * 10_000.125, step * 1000 + i + 1
            yield {
                "ph": "X", "cat": "cpu_op", "name": f"aten::synthetic_{i}", "pid": 7, "tid": 7, "ts": ts,
                "dur": 9_000.5, "args": {"External id": number, "Record function id": 0, "Ev Idx": number,
                         "Sequence number": number, "Fwd thread id": 0, "Input Dims": [[128, 64], [64, i + 1], []],
                         "Input type": ["float", "float", "Scalar"], "Input Strides": [[64, 1], [i + 1, 1], []],
                         "Concrete Inputs": ["", "", "1"]},
            }  # fmt: skip
            if i % 3 == 2:
                continue
            yield {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 7, "tid": 7, "ts": ts + 100.5,
                   "dur": 5.25, "args": {"cbid": 211, "correlation": number, "External id": number}}  # fmt: skip
            yield {
                "ph": "X", "cat": "kernel", "name": f"void synthetic_kernel_{i}<float, 4>(int, float*)", "pid": 0,
                "tid": 7, "ts": ts + 200.375, "dur": 20.125,
                "args": {"External id": number, "queued": 0, "device": 0, "context": 1, "stream": 7,
                         "correlation": number, "registers per thread": 32, "shared memory": 0, "blocks per SM": 1.5,
                         "warps per SM": 6.0, "grid": [132, 1, 1], "block": [128, 1, 1],
                         "est. achieved occupancy %": 25},
            }  # fmt: skip
            yield {"ph": "s", "id": number, "pid": 7, "tid": 7, "ts": ts + 100.5, "cat": "ac2g", "name": "ac2g"}
            yield {
                "ph": "f",
                "id": number,
                "pid": 0,
                "tid": 7,
                "ts": ts + 200.375,
                "cat": "ac2g",
                "name": "ac2g",
                "bp": "e",
            }


def write_large_kineto(path: Path, size: int) -> Path:
    """A Kineto file of at least this many bytes."""
    written, first, events = 0, True, kineto_events(10**9)
    with path.open("wb") as f:
        f.write(b'{"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "Synthetic GPU"}], "traceEvents": [\n')
        while written < size:
            lines = b",\n".join(orjson.dumps(e, option=orjson.OPT_INDENT_2) for e in islice(events, 5_000))
            written += f.write((b"" if first else b",\n") + lines)
            first = False
        f.write(b'\n], "traceName": "synthetic.json", "displayTimeUnit": "ms"}\n')
    return path

"""What an Nsight Systems export says of itself: version, tables, GPUs, diagnostics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ctrbench.bench.trace.columns import BadRecording, Ints, Operations
from ctrbench.bench.trace.sqlite_tables import Tables

SEEN = ((2, 9), (3, 25))
"""Oldest and newest schema that the reader was tested with."""
_META = ("META_DATA_EXPORT", "EXPORT_META_DATA")
_COUNTED = (
    "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_MEMSET",
    "CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION", "CUPTI_ACTIVITY_KIND_GRAPH_TRACE",
    "CUPTI_ACTIVITY_KIND_CUDA_EVENT", "CUPTI_ACTIVITY_KIND_OVERHEAD", "NVTX_EVENTS", "OSRT_API", "TARGET_INFO_GPU",
    "GPU_METRICS",
)  # fmt: skip
_GPU_COLUMNS = (
    "name", "chipName", "smCount", "memoryBandwidth", "l2CacheSize", "totalMemory", "clockRate", "computeMajor",
    "computeMinor",
)  # fmt: skip
_WARNING = 2
"""Severity of DIAGNOSTIC_EVENT from which a message is passed on."""


def file_facts(tables: Tables) -> dict[str, Any]:
    """Version of schema and tool, rows of the tables, warnings.

    Raises:
        BadRecording: not an export of Nsight Systems.
    """
    meta = next((t for t in _META if t in tables.names), None)
    if meta is None and not any(t in tables.names for t in (*_COUNTED[:4], "NVTX_EVENTS")):
        raise BadRecording(
            f"{tables.path}: an SQLite file, but no export of Nsight Systems; make one with nsys export --type=sqlite"
        )
    values = {}
    if meta is not None and {"name", "value"} <= tables.columns(meta):
        values = dict(tables.rows(f'SELECT name, value FROM "{meta}"'))
    schema = values.get("EXPORT_SCHEMA_VERSION")
    return {
        "meta_table": meta,
        "schema": schema,
        "product": values.get("EXPORT_PRODUCT_VERSION"),
        "tables": len(tables.names),
        "enum_tables": sum(t.startswith("ENUM_") for t in tables.names),
        "rows": {t: tables.count(t) for t in _COUNTED},
        "warnings": _schema_warnings(schema),
    }


def _schema_warnings(schema: Any) -> list[str]:
    numbers = re.match(r"(\d+)\.(\d+)", str(schema))
    if numbers is None:
        return ["no schema version in the file: read by the tables and columns it has"]
    version = (int(numbers[1]), int(numbers[2]))
    if SEEN[0] <= version <= SEEN[1]:
        return []
    return [f"schema {schema} is outside 2.9 to 3.25, which were tested: read by the tables and columns it has"]


def gpus(tables: Tables) -> list[dict[str, Any]]:
    """The GPUs of the machine; columns that the file lacks are None."""
    held = tables.columns("TARGET_INFO_GPU")
    read = [c for c in (*_GPU_COLUMNS, "id") if c in held]
    if "name" not in held:
        return []
    rows = tables.rows(f'SELECT {", ".join(read)} FROM "TARGET_INFO_GPU"')
    return [{c: dict(zip(read, row, strict=True)).get(c) for c in _GPU_COLUMNS} for row in rows]


def cuda_devices(
    tables: Tables, gpu: Operations, listed: Sequence[dict[str, Any]]
) -> tuple[Operations, dict[int, str]]:
    """Operations by physical device, and the devices' names.

    CUDA numbers devices per process: where two processes mean different GPUs by one number, the GPU's own number takes
    its place, so that their operations are never added up as one device's.
    """
    processes = np.unique(gpu.process).tolist()
    used = [(p, d) for p in processes for d in np.unique(gpu.device[gpu.process == p]).tolist()]
    names = _named(tables)
    if len(listed) == 1:
        name = listed[0]["name"]
        return gpu, {device: name for _, device in used if type(name) is str}
    to: dict[tuple[int, int], int] = {}
    if {"gpuId", "cudaId", "pid"} <= tables.columns("TARGET_INFO_CUDA_DEVICE"):
        rows = tables.rows("SELECT gpuId, cudaId, pid FROM TARGET_INFO_CUDA_DEVICE")
        to = {(p & 0xFFFFFF, c): g for g, c, p in rows if all(type(cell) is int for cell in (g, c, p))}
    meant = {(p, d): to.get((p, d)) for p, d in used}
    numbers = {d: {g for (_, c), g in meant.items() if c == d} for _, d in used}
    if any(len(found) > 1 for found in numbers.values()) and None not in meant.values():
        out: Ints = gpu.device.copy()
        for (process, device), number in meant.items():
            if number is not None:
                out[(gpu.process == process) & (gpu.device == device)] = number
        return replace(gpu, device=out), {g: names[g] for g in meant.values() if g is not None and g in names}
    certain = {d: next(iter(found)) for d, found in numbers.items() if len(found) == 1}
    return gpu, {d: names[g] for d, g in certain.items() if g is not None and g in names}


def _named(tables: Tables) -> dict[int, str]:
    if not {"id", "name"} <= tables.columns("TARGET_INFO_GPU"):
        return {}
    return {i: n for i, n in tables.rows("SELECT id, name FROM TARGET_INFO_GPU") if type(n) is str}


def diagnostics(tables: Tables) -> dict[str, Any]:
    """Messages of the tool: events that it collected, and whether it supports the driver."""
    held = tables.columns("DIAGNOSTIC_EVENT")
    rows = tables.rows("SELECT text FROM DIAGNOSTIC_EVENT") if "text" in held else []
    texts = [text for (text,) in rows if type(text) is str]
    warned = []
    if {"text", "severity"} <= held:
        warned = [text for (text,) in tables.rows("SELECT text FROM DIAGNOSTIC_EVENT WHERE severity >= ?", (_WARNING,))]
    driver = next((t for t in texts if "driver version" in t and "not supported" in t), None)
    return {
        "rows": len(rows),
        "cuda_events_collected": _collected(texts, "CUDA"),
        "nvtx_events_collected": _collected(texts, "NVTX"),
        "driver_unsupported": driver is not None,
        "driver_text": driver,
        "warnings": warned,
    }


def _collected(texts: Sequence[str], what: str) -> int | None:
    """Sum over the processes of `Number of CUDA events collected: n.`; None where not said."""
    found = [re.match(rf"Number of {what} events collected:\s*(\d+)", text) for text in texts]
    numbers = [int(match[1]) for match in found if match]
    return sum(numbers) if numbers else None

"""Reads an export of Nsight Systems, `nsys export --type=sqlite` (.sqlite or .sqlite.gz), into columns.

Schemas 2.9 to 3.25 have been seen. What a file has is found table by table and column by column; its version only
adds a warning (measures.md section 10). Our own NVTX recorder writes the same tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ctrbench.bench.trace.columns import (
    KERNEL,
    MEMCPY,
    MEMSET,
    MISSING,
    UNNAMED,
    BadRecording,
    Calls,
    Ints,
    Operations,
    host_events,
    joined,
    operations,
)  # fmt: skip
from ctrbench.bench.trace.nsys_facts import cuda_devices, diagnostics, file_facts, gpus
from ctrbench.bench.trace.nsys_nvtx import read_nvtx
from ctrbench.bench.trace.nsys_strings import Strings
from ctrbench.bench.trace.recording import Recording
from ctrbench.bench.trace.source import identity, plain_file
from ctrbench.bench.trace.sqlite_tables import MAGIC, Tables, open_tables

CUPTI = "CUPTI_ACTIVITY_KIND_"
_OPERATION = ("start", "end", "deviceId", "correlationId", "globalPid")
_COPY_NAMES = {1: "HtoD", 2: "DtoH", 8: "DtoD", 10: "PtoP"}


def looks_like_sqlite(path: Path, head: bytes) -> bool:
    """Whether a file that starts with these bytes is an SQLite database."""
    return head.startswith(MAGIC)


def process_of(identifier: Ints) -> Ints:
    """Process id within a `globalPid` or `globalTid`."""
    return (identifier >> 24) & 0xFFFFFF


def read_nsys(path: str | Path, domain: str | None = None) -> Recording:
    """Reads one export.

    Args:
        path: .sqlite or .sqlite.gz.
        domain: NVTX domain whose ranges name parts of the program, `default` for the default one; if None, the
            default domain and our own.

    Raises:
        BadRecording: missing, cut, damaged, no export, a column that counts rest on is missing or NULL, or no range of
            the domain.
    """
    path = Path(path)
    with plain_file(path) as file, open_tables(file, path) as tables:
        facts = identity(path) | file_facts(tables)
        strings = Strings(tables)
        listed = gpus(tables)
        gpu, devices = cuda_devices(tables, _operations(tables, strings), listed)
        calls = _calls(tables, strings)
        nvtx = read_nvtx(tables, strings, domain)
        facts |= {"gpus": listed, "diagnostics": diagnostics(tables), "nvtx": nvtx and nvtx.facts}
    ranges = dict(nvtx.columns) if nvtx else {c: np.empty(0, np.int64) for c in ("name", "start", "end", "thread")}
    ids, thread = np.unique(np.concatenate((calls["thread"], ranges["thread"])), return_inverse=True)
    n = len(calls["thread"])
    api = Calls(**calls | {"thread": thread[:n]})
    annotations = host_events(**ranges | {"thread": thread[n:]})
    names = [devices.get(d) for d in np.unique(gpu.device).tolist()] or [g["name"] for g in listed]
    return Recording(
        path=str(path), format="nsys-sqlite", strings=strings.values,
        threads=[(int(g >> 24) & 0xFFFFFF, int(g) & 0xFFFFFF) for g in ids.tolist()], gpu=gpu, api=api,
        ops=host_events(**{c: np.empty(0, np.int64) for c in ranges}), annotations=annotations,
        device=next(iter(names), None), devices=devices, facts=facts, own_ranges=nvtx.own if nvtx else None,
        our_ranges=nvtx.ours if nvtx else np.zeros(0, bool),
        refused=_refused(facts, gpu, api, annotations.end),
    )  # fmt: skip


def _operations(tables: Tables, strings: Strings) -> Operations:
    """Kernels, then copies, then sets, each in the order of its table."""
    parts = []
    for kind, table, optional in (
        (KERNEL, "KERNEL", ("streamId", "graphNodeId", "shortName", "demangledName", "mangledName")),
        (MEMCPY, "MEMCPY", ("streamId", "graphNodeId", "bytes", "copyKind")),
        (MEMSET, "MEMSET", ("streamId", "graphNodeId", "bytes")),
    ):
        if CUPTI + table not in tables.names:
            continue
        found = tables.integers(CUPTI + table, _OPERATION, optional)
        n = len(found["start"])
        own = {"bytes": found.get("bytes"), "copy_kind": found.get("copyKind")}
        _ordered(tables, CUPTI + table, found)
        if kind == KERNEL:
            name = strings.first_known([found.pop(c) for c in ("shortName", "demangledName", "mangledName")])
        else:
            copy_kind = found.get("copyKind", np.full(n, MISSING, np.int64))
            texts = {k: f"Memcpy {_COPY_NAMES.get(k, '')}".strip() for k in np.unique(copy_kind).tolist()}
            name = strings.named(copy_kind, texts if kind == MEMCPY else {MISSING: "Memset"})
        parts.append(operations(
            kind=np.full(n, kind, np.int64), name=name, start=found["start"], end=found["end"],
            device=found["deviceId"], process=process_of(found["globalPid"]), correlation=found["correlationId"],
            stream=found["streamId"], graph_node=found["graphNodeId"],
            **{field: column for field, column in own.items() if column is not None},
        ))  # fmt: skip
    return joined(parts)


def _calls(tables: Tables, strings: Strings) -> dict[str, Ints]:
    """Calls of runtime and driver; `thread` holds the file's globalTid."""
    fields = ("name", "start", "end", "thread", "process", "correlation")
    if CUPTI + "RUNTIME" not in tables.names:
        return {c: np.empty(0, np.int64) for c in fields}
    found = tables.integers(CUPTI + "RUNTIME", ("start", "globalTid", "correlationId"), ("end", "nameId"))
    _ordered(tables, CUPTI + "RUNTIME", found)
    return {
        "name": strings.api_names(found["nameId"]), "start": found["start"], "end": found["end"],
        "thread": found["globalTid"], "process": process_of(found["globalTid"]), "correlation": found["correlationId"],
    }  # fmt: skip


def _ordered(tables: Tables, table: str, found: Mapping[str, Ints]) -> None:
    wrong = np.flatnonzero((found["end"] < found["start"]) & (found["end"] != MISSING))
    if len(wrong):
        raise BadRecording(f"{tables.path}: table {table}, row {wrong[0] + 1}: ends before it starts; export it again")


def _refused(facts: Mapping[str, Any], gpu: Operations, api: Calls, range_end: Ints) -> dict[str, str]:
    """Reason code -> what the reader withholds and why."""
    found: dict[str, str] = {}
    kernel, rows, told = gpu.is_kernel, facts["rows"], facts["diagnostics"]
    if rows[CUPTI + "GRAPH_TRACE"] and not (gpu.graph_node[kernel] != MISSING).any():
        found["graph_trace_only"] = (
            "CUDA graphs were traced as a whole, their kernels are not listed: all device figures are withheld; record "
            "with --cuda-graph-trace=node"
        )
    elif not kernel.any():
        why = told["driver_text"] or (
            "its table has no rows" if rows[CUPTI + "KERNEL"] == 0 else "it has no kernel table"
        )
        found["no_kernel_table"] = f"{why}: kernel figures, MFU and the verdict are withheld"
    held = sum(rows[CUPTI + t] or 0 for t in ("KERNEL", "MEMCPY", "MEMSET", "RUNTIME"))
    if told["cuda_events_collected"] is not None and held < told["cuda_events_collected"]:
        found["thinned_recording"] = (
            f"{held} of the {told['cuda_events_collected']} CUDA events that the tool collected are left: counts are "
            "those of the file, the verdict is withheld"
        )
    parts = {
        "calls without an end": int((api.end == MISSING).sum()),
        "ranges without an end, which own no operation": int((range_end == MISSING).sum()),
        "kernels without a name": int((gpu.name[kernel] == UNNAMED).sum()),
        "calls without a name": int((api.name == UNNAMED).sum()),
    }
    if any(parts.values()):
        found["field_missing"] = ", ".join(f"{n} {what}" for what, n in parts.items() if n)
    return found

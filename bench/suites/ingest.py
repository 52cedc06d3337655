"""One way of reading one file, in a process of its own: CPU seconds and peak memory as one JSON line.

`python -m ctrbench.bench.suites.ingest WAY FILE`, WAY one of `WAYS`. Imports are not counted as time.
"""

from __future__ import annotations

import json
import resource
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from ctrbench.bench.suites.synthetic_traces import KERNEL, RUNTIME
from ctrbench.bench.trace.command import figures_of, read

SELECTED = {
    KERNEL: ("start", "end", "deviceId", "correlationId", "globalPid", "streamId", "graphNodeId", "shortName",
             "demangledName", "mangledName"),
    RUNTIME: ("start", "globalTid", "correlationId", "end", "nameId"),
    "NVTX_EVENTS": ("eventType", "globalTid", "start", "end", "textId", "domainId", "category", "endGlobalTid",
                    "int64Value", "int32Value", "text"),
}  # fmt: skip
"""The columns that the reader needs, and no more, so that the floor is not raised by what it leaves out."""


def select(path: Path) -> dict[str, Any]:
    """The floor of an export: one SELECT a table through Python's sqlite3, 65536 rows at a time, into Arrow columns."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    rows = {}
    for table, columns in SELECTED.items():
        cursor = connection.execute(f'SELECT {", ".join(columns)} FROM "{table}"')
        parts = []
        while found := cursor.fetchmany(1 << 16):
            arrays = [pa.array(values) for values in zip(*found, strict=True)]
            parts.append(pa.Table.from_arrays(arrays, names=list(columns)))
        rows[table] = pa.concat_tables(parts, promote_options="permissive").num_rows
    connection.close()
    return rows


def loads(path: Path) -> dict[str, Any]:
    """The floor of a Kineto file: `orjson.loads` of all of it."""
    return {"events": len(orjson.loads(path.read_bytes())["traceEvents"])}


def ingest(path: Path) -> dict[str, Any]:
    """What `ctrbench trace` does with a file: links, projection and every figure included."""
    figures = figures_of(read(path))
    ranges = figures["nvtx"] if "nvtx" in figures else figures["user_annotations"]
    return {
        "launches": figures["kernels"]["launches"],
        "linked": figures["link"]["linked"],
        "ranges": ranges.get("ranges", ranges.get("events")),
        "inside": ranges.get("gpu_ops_inside_a_range"),
    }


WAYS: dict[str, Callable[[Path], dict[str, Any]]] = {"select": select, "loads": loads, "ingest": ingest}


def peak_bytes() -> int:
    """Largest resident memory of this process; not of the one that started it, as ru_maxrss may be."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(arguments: Sequence[str]) -> None:
    """Reads a file one way."""
    way, path = arguments
    before = time.process_time()
    found = WAYS[way](Path(path))
    print(json.dumps({"cpu_s": time.process_time() - before, "peak_bytes": peak_bytes(), "found": found}))


if __name__ == "__main__":
    main(sys.argv[1:])

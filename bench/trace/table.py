"""The kernel table of a recording: one row an operation of the devices."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ctrbench.bench.trace.columns import KINDS, MISSING, Ints
from ctrbench.bench.trace.figures import family
from ctrbench.bench.trace.recording import Recording


def kernel_table(recording: Recording) -> pd.DataFrame:
    """kind, name, family, device, stream, correlation, start_ns, ns, bytes and graph_node; its launch: launch_api,
    launch_thread (`process/thread`), launch_to_start_ns; where that lies: op, annotation (innermost names) and path
    (the range's key). In file order, times in ns, unknown cells missing.
    """
    gpu, api, call = recording.gpu, recording.api, recording.call_of
    linked = call >= 0
    at = np.where(linked, call, 0)
    strings = np.array(recording.strings, object)

    def texts(codes: Ints, of: object, known: object = True) -> pd.Series:
        values = np.asarray(of, object)
        found = values[np.where(known, codes, 0)] if len(values) and len(codes) else np.full(len(codes), None, object)
        return pd.Series(np.where(known, found, None), dtype="string")

    def numbers(column: Ints, known: object = True) -> pd.Series:
        return pd.Series(pd.array(column, "Int64")).mask(~(np.asarray(known) & (column != MISSING)))

    def launch(column: Ints) -> Ints:
        return column[at] if len(column) else np.zeros(len(gpu), np.int64)

    def innermost(rows: Ints, names: Ints) -> pd.Series:
        inside = rows >= 0
        return texts(names[np.where(inside, rows, 0)] if len(names) else rows, strings, inside)

    keys_at, keys = recording.range_keys
    around = recording.annotation_of
    families = [family(s) for s in recording.strings]
    threads = [f"{process}/{thread}" for process, thread in recording.threads]
    return pd.DataFrame({
        "kind": texts(gpu.kind, KINDS),
        "name": texts(gpu.name, strings),
        "family": texts(gpu.name, families, gpu.is_kernel),
        "device": numbers(gpu.device),
        "stream": numbers(gpu.stream),
        "correlation": numbers(gpu.correlation),
        "start_ns": numbers(gpu.start),
        "ns": numbers(gpu.ns),
        "bytes": numbers(gpu.bytes),
        "graph_node": numbers(gpu.graph_node),
        "launch_api": texts(launch(api.name), strings, linked),
        "launch_thread": texts(launch(api.thread), threads, linked),
        "launch_to_start_ns": numbers(gpu.start - launch(api.start), linked),
        "op": innermost(recording.op_of, recording.ops.name),
        "annotation": innermost(around, recording.annotations.name),
        "path": texts(keys_at[np.where(around >= 0, around, 0)] if len(keys_at) else around, keys, around >= 0),
    })  # fmt: skip

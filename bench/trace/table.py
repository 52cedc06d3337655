"""The kernel table of a recording: one row an operation of the devices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ctrbench.bench.trace.columns import KINDS, MISSING, Ints, Mask
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
    strings = recording.strings

    everything = np.ones(len(gpu), bool)

    def texts(codes: Ints, of: Sequence[str], shown: Mask) -> pd.Series:
        values = np.array([*of, None], object)
        return pd.Series(values[np.where(shown, codes, -1)], dtype="string")

    def numbers(column: Ints, shown: Mask) -> pd.Series:
        return pd.Series(pd.array(column, "Int64")).mask(~shown | (column == MISSING))

    def launch(column: Ints) -> Ints:
        return column[at] if len(column) else at

    def innermost(rows: Ints, codes: Ints, of: Sequence[str]) -> pd.Series:
        return texts(codes[np.maximum(rows, 0)] if len(codes) else rows, of, rows >= 0)

    keys_at, keys = recording.range_keys
    around = recording.annotation_of
    families = [family(s) for s in recording.strings]
    threads = [f"{process}/{thread}" for process, thread in recording.threads]
    return pd.DataFrame({
        "kind": texts(gpu.kind, KINDS, everything),
        "name": texts(gpu.name, strings, everything),
        "family": texts(gpu.name, families, gpu.is_kernel),
        "device": numbers(gpu.device, everything),
        "stream": numbers(gpu.stream, everything),
        "correlation": numbers(gpu.correlation, everything),
        "start_ns": numbers(gpu.start, everything),
        "ns": numbers(gpu.ns, everything),
        "bytes": numbers(gpu.bytes, everything),
        "graph_node": numbers(gpu.graph_node, everything),
        "launch_api": texts(launch(api.name), strings, linked),
        "launch_thread": texts(launch(api.thread), threads, linked),
        "launch_to_start_ns": numbers(gpu.start - launch(api.start), linked),
        "op": innermost(recording.op_of, recording.ops.name, strings),
        "annotation": innermost(around, recording.annotations.name, strings),
        "path": innermost(around, keys_at, keys),
    })  # fmt: skip

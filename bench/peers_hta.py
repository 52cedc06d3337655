"""What HolisticTraceAnalysis counts in the files that `bench.peers_traces` names. Runs in the peer's own environment.

Imports nothing of ctrbench. Prints one JSON line: version, and per file and setting its figures or its error. Device
times are its microseconds times 1000. Settings: `default` is what a user gets; `everything` keeps the last profiler
step and switches its rounding off.
"""

import argparse
import json
import logging
import os
from importlib.metadata import version
from typing import Any

logging.disable(logging.WARNING)

from hta.trace_analysis import TraceAnalysis  # noqa: E402  its import sets up loggers

SETTINGS = {"default": {}, "everything": {"include_last_profiler_step": True}}


def nanoseconds(us: Any) -> int:
    return round(float(us) * 1000)


def figures(path: str, options: dict[str, bool]) -> dict[str, int]:
    """Figures of one file; counts are rows of its table of device events, times are those that its analyses return."""
    analysis = TraceAnalysis(trace_files={0: path}, **options)
    trace = analysis.t.get_trace(0)
    names = analysis.t.symbol_table.get_sym_table()
    device = trace[trace["stream"].ne(-1)]
    category = device["cat"].map(lambda code: names[code])
    # no limits, so that every name keeps its row; its default would add copies and sets to the kernels
    _, kernels = analysis.get_gpu_kernel_breakdown(
        visualize=False, duration_ratio=1.0, num_kernels=len(device) + 1, include_memory_kernels=False
    )
    time = analysis.get_temporal_breakdown(visualize=False).iloc[0]
    launches = analysis.get_cuda_kernel_launch_stats(ranks=[0], include_memory_events=False, visualize=False)[0]
    span, idle = nanoseconds(time["kernel_time(us)"]), nanoseconds(time["idle_time(us)"])
    return {
        "kernels": int((category == "kernel").sum()),
        "kernel_ns": nanoseconds(kernels["sum (us)"].sum()),
        "memcpy": int((category == "gpu_memcpy").sum()),
        "memset": int((category == "gpu_memset").sum()),
        "busy_ns": span - idle,
        "idle_ns": idle,
        "linked_kernels": len(launches),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+")
    files: dict[str, dict[str, Any]] = {}
    for path in parser.parse_args().files:
        files[path] = {}
        for setting, options in SETTINGS.items():
            os.environ["HTA_DISABLE_NS_ROUNDING"] = "1" if setting == "everything" else "0"
            try:
                files[path][setting] = figures(path, options)
            except Exception as error:  # a file that it cannot analyse is a row of the table, not an end
                files[path][setting] = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps({"version": version("HolisticTraceAnalysis"), "files": files}))


if __name__ == "__main__":
    main()

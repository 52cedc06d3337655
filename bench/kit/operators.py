"""Operators of `kernels/` on the CUDA device that is here: Triton, the other ways and the plain twin, by turns.

    python -m ctrbench.bench.kit.operators --out FILE.json [--seconds 60] [OPERATOR ...]

Each way is timed twice. `eager`: windows of calls as a model makes them, by CUDA events, L2 flushed before each window;
short kernels wait for Python here. `graph`: the same calls captured in a CUDA graph and replayed, where nothing waits;
null with the reason where a way asks the device for a number and cannot be captured.

Run on an H100 (docs/performance/triton_h100.md), but for the check before a capture, which came of that run.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ctrbench.bench.alternate import ratio
from ctrbench.bench.hardware import this_machine
from ctrbench.bench.kit.device import cuda_device
from ctrbench.bench.kit.record import save
from ctrbench.bench.kit.timing import EventClock
from ctrbench.bench.operator_calls import PASSES, RUN, Pass, arguments, call_of, operators, ways
from ctrbench.datasets.errors import BadInput
from ctrbench.kernels.operator import Operator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Float32 products may be TF32, for every way alike."""
WINDOW_S, LEAST, MOST = 2e-3, 5, 15
"""Seconds of a window of calls; fewest and most rounds."""
COMPARE_S = 0.12
"""About what the rounds of one comparison take."""
Call = Callable[[], object]


def main(argv: Sequence[str] | None = None) -> int:
    """0 done, 2 no CUDA device; ways that fail are rows with their reason."""
    parser = argparse.ArgumentParser(prog="python -m ctrbench.bench.kit.operators")
    parser.add_argument("names", nargs="*", metavar="OPERATOR")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0, help="no operator is begun after it")
    given = parser.parse_args(argv)
    try:
        device = cuda_device()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.set_float32_matmul_precision("high")
    body: dict[str, Any] = {"device": device, "environment": this_machine(), "rows": []}
    clock, end = EventClock(torch.device("cuda")), time.monotonic() + given.seconds
    known = operators()
    for name in given.names or [n for n, op in known.items() if op.gpu]:
        for dtype in DTYPES:
            for label in known[name].shapes:
                for passes in PASSES:
                    if time.monotonic() > end:
                        body["rows"].append({"operator": name, "shape": label, "pass": passes, "dtype": dtype,
                                             "error": f"budget: {given.seconds:.0f} s were used up"})  # fmt: skip
                        continue
                    body["rows"].append(timed(name, known[name], label, passes, dtype, clock))
                    print(line(body["rows"][-1]), flush=True)
                save(body, given.out)
    save(body, given.out)
    return 0


def timed(name: str, op: Operator, label: str, passes: Pass, dtype: str, clock: EventClock) -> dict[str, Any]:
    """One shape and pass: every way's milliseconds, and how many times as long as `run` each takes."""
    row: dict[str, Any] = {"operator": name, "shape": label, "pass": passes, "dtype": dtype, "ways": {}, "error": ""}
    try:
        args = arguments(op, op.shapes[label], "cuda", DTYPES[dtype])
    except Exception as error:
        return row | {"error": told(error)}
    calls: dict[str, Call] = {}
    for way, run in ways(op).items():
        row["ways"][way] = {"eager_ms": None, "graph_ms": None, "reason": ""}
        try:
            calls[way] = call_of(run, args, passes)
            calls[way]()
        except Exception as error:
            calls.pop(way, None)
            row["ways"][way]["reason"] = told(error)
    torch.cuda.synchronize()
    compare(row, "eager", calls, clock)
    graphs: dict[str, Call] = {}
    for way, call in calls.items():
        try:
            graphs[way] = captured(call)
        except Exception as error:
            row["ways"][way]["reason"] = told(error)
    compare(row, "graph", graphs, clock)
    return row


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def captured(call: Call) -> Call:
    """Replays of one call.

    Raises:
        RuntimeError: it waits for the device. That is found out before a capture, which would lose its memory by it.
    """
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def compare(row: dict[str, Any], how: str, calls: dict[str, Call], clock: EventClock) -> None:
    """Windows of all ways by turns, into the row."""
    if not calls:
        return
    windows: dict[str, tuple[int, Call]] = {}
    for way, call in calls.items():
        for _ in range(3):
            _, seconds = clock(call)
        assert seconds is not None
        windows[way] = (count := max(1, min(200, round(WINDOW_S / max(seconds, 1e-6)))), repeated(call, count))
    took: dict[str, list[float]] = {way: [] for way in calls}
    for number in range(max(LEAST, min(MOST, round(COMPARE_S / (WINDOW_S * len(calls)))))):
        for way in list(windows) if number % 2 == 0 else list(windows)[::-1]:
            count, run = windows[way]
            took[way].append((clock(run)[1] or 0.0) / count)
    for way, seconds_of in took.items():
        row["ways"][way][f"{how}_ms"] = median(seconds_of) * 1e3
        if RUN in took and way != RUN:
            over = ratio(seconds_of, took[RUN])
            row["ways"][way][f"{how}_over_run"] = [over.value, over.low, over.high]


def repeated(call: Call, count: int) -> Call:
    def run() -> None:
        for _ in range(count):
            call()

    return run


def line(row: dict[str, Any]) -> str:
    """For the terminal."""
    head = f"{row['operator']:18} {row['shape']:28} {row['dtype']} {row['pass']:8}"
    if row["error"]:
        return f"{head} {row['error']}"
    parts = []
    for way, of in row["ways"].items():
        each = ["-" if of[k] is None else f"{of[k]:.3f}" for k in ("eager_ms", "graph_ms")]
        parts.append(f"{way} {'/'.join(each)}" + (f" ({of['reason'][:60]})" if of["reason"] else ""))
    return f"{head} " + "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())

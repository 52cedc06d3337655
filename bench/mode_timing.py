"""What a mode costs and gains: compilation cold and warm, graphs, and its step against eager float32 by turns."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import cycle, islice
from statistics import median
from typing import Any

import torch

from ctrbench.bench.alternate import alternate, ratio
from ctrbench.bench.assemble import fed
from ctrbench.bench.hardware import bf16_units
from ctrbench.bench.modes import NARROW
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.step import TrainStep
from ctrbench.datasets.schema import Batch

HELD, ROUNDS, LIMIT_S = 4, 15, 15.0
RECALLED = 3
"""Steps after a reset in which everything is compiled again, from the files on disk."""
EMULATED = "bf16 emulated: this CPU has no bf16 units"
_CACHE = "TORCHINDUCTOR_CACHE_DIR"


@contextmanager
def fresh_cache(compile: str) -> Iterator[None]:
    """Inductor's files in an empty directory, so that a cold compilation is one; the directory is removed after."""
    if compile == "eager":
        yield
        return
    before = os.environ.get(_CACHE)
    with tempfile.TemporaryDirectory(prefix="ctrbench-inductor-", ignore_cleanup_errors=True) as folder:
        os.environ[_CACHE] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[_CACHE]
            else:
                os.environ[_CACHE] = before


def graphs() -> dict[str, Any]:
    """What Dynamo made of the process so far: graphs, breaks with their reasons, compilations of a frame once more."""
    from torch._dynamo.utils import counters, get_compilation_metrics

    again = [str(m.recompile_reason) for m in get_compilation_metrics() if m.recompile_reason]
    breaks = {str(reason).splitlines()[0][:200]: int(n) for reason, n in counters["graph_break"].items()}
    return {
        "graphs": int(counters["stats"]["unique_graphs"]),
        "graph_breaks": sum(breaks.values()), "break_reasons": breaks,
        "recompiles": len(again), "recompile_reasons": [r.splitlines()[0][:200] for r in again[:8]],
        "cudagraph_skips": int(counters["inductor"]["cudagraph_skips"]),
    }  # fmt: skip


def over_steady(first: Sequence[float], steady: Sequence[float]) -> float:
    """Seconds that the first calls took beyond steady ones: compilation, and what a first call finds out."""
    usual = median(steady)
    return sum(max(0.0, s - usual) for s in first)


def mode_facts(
    spec: RunSpec, step: Callable[[Batch], object], batches: Iterator[Batch], warm: Sequence[float],
    seconds: Sequence[float],
) -> dict[str, Any]:  # fmt: skip
    """Of a timed process that is not eager float32: {} or `mode` for its record.

    Args:
        spec: of the process.
        step: its training step, warm.
        batches: what it trains on.
        warm: seconds of the warm-up steps, the first ones of the process.
        seconds: of the timed steps.
    """
    if (spec.dtype, spec.compile) == ("float32", "eager"):
        return {}
    facts: dict[str, Any] = {"note": EMULATED if spec.dtype in NARROW and not bf16_units() else ""}
    held = list(islice(batches, HELD))
    if spec.compile != "eager":
        facts |= {"compile_cold_s": over_steady(warm, seconds), **graphs()}
        torch._dynamo.reset()
        again = []
        for batch in held[:RECALLED]:
            start = time.perf_counter()
            step(batch)
            again.append(time.perf_counter() - start)
        facts["compile_warm_s"] = over_steady(again, seconds)
    facts["against_eager"] = asdict(_against_eager(spec, step, held))
    return {"mode": facts}


def _against_eager(spec: RunSpec, step: Callable[[Batch], object], held: Sequence[Batch]) -> Any:
    """Step of the mode over that of eager float32, of a twin with the same weights on the same batches."""
    twin = fed(replace(spec, dtype="float32", compile="eager"))[3].train()
    plain = TrainStep(twin, lr=spec.lr)
    ours, theirs = cycle(held), cycle(held)
    found = alternate(
        {"mode": lambda: step(next(ours)), "eager": lambda: plain(next(theirs))}, rounds=ROUNDS, limit_s=LIMIT_S
    )
    return ratio(found["mode"], found["eager"])

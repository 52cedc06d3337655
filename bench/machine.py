"""`ctrbench hardware`: this machine's ceilings as medians with their spread, kept with the machine's identity.

`ceilings.py` takes the best of a few runs within the seconds that a suite can spare; here every figure is a median of
many, at one thread and at all, so that two machines can be compared.

Dims: M side of a square product, D width of a row
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import threadpoolctl  # type: ignore[import-untyped]
import torch

from ctrbench.bench.ceilings import cached_values, gather_run, last_level_cache, quick_runs, stream_run, thread_count
from ctrbench.bench.hardware import this_machine
from ctrbench.datasets.spec import cache_dir

_IDENTITY = ("cpu", "cores", "threads", "usable_cpus", "memory_gb", "os", "python", "torch", "gpu")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
_ROW_BYTES = (64, 256)
_CACHE_VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is measured; tests take less."""

    gemm_m: int = 1024
    stream_values: int | None = None
    """fp32 values of one array of the triad; None: twice the last-level cache, at least 64 MiB."""
    table_values: int | None = None
    """fp32 values of the gathered table; None: twice an array of the triad."""
    calls: int = 2000
    """Operator calls a sample of the dispatch overhead."""
    samples: int = 15
    seconds: float = 0.5
    """Most time for the samples of one figure; at least three are taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Repeated measurements of one figure."""

    unit: str
    median: float
    low: float
    """10th percentile."""
    high: float
    """90th percentile."""
    n: int

    @property
    def relative(self) -> float:
        """(high - low) / median."""
        return (self.high - self.low) / self.median


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineCeilings:
    """Figures by name, e.g. `gemm_bf16_t2`; a figure that this machine cannot have is in `withheld` with its reason."""

    identity: dict[str, Any]
    measured_on: str
    figures: dict[str, Spread]
    withheld: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def identity() -> dict[str, Any]:
    """What the figures depend on: processor, memory, torch and the libraries that torch computes with."""
    here = this_machine()
    pools = [{k: pool[k] for k in ("user_api", "internal_api", "version")} for pool in threadpoolctl.threadpool_info()]
    libraries = sorted({json.dumps(pool, sort_keys=True) for pool in pools})
    return {
        **{name: here[name] for name in _IDENTITY},
        "libraries": [json.loads(library) for library in libraries],
        "onednn": torch.backends.mkldnn.is_available(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "llc_bytes": last_level_cache(),
    }


def machine_ceilings(sizes: Sizes | None = None, refresh: bool = False) -> MachineCeilings:
    """The ceilings of this machine: from the user's cache if they were measured here before, else measured now.

    Args:
        sizes: how much to measure; figures of other sizes are kept apart.
        refresh: measure again.
    """
    sizes = sizes or Sizes()
    here = identity()
    file = cache_file(here, sizes)
    if not refresh and (kept := _load(file)) is not None:
        return kept
    found = measure(here, sizes)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"version": _CACHE_VERSION, **asdict(found)}, indent=1))
    part.replace(file)
    return found


def cache_file(here: dict[str, Any], sizes: Sizes) -> Path:
    """Where figures of this machine and these sizes are kept."""
    key = json.dumps([_CACHE_VERSION, here, asdict(sizes)], sort_keys=True)
    return cache_dir() / "hardware" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _load(file: Path) -> MachineCeilings | None:
    """Kept figures; None if there are none, or the file is not whole."""
    try:
        body = json.loads(file.read_text())
        figures = {name: Spread(**row) for name, row in body["figures"].items()}
        return MachineCeilings(**{k: v for k, v in body.items() if k != "version"} | {"figures": figures})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measure(here: dict[str, Any], sizes: Sizes) -> MachineCeilings:
    """Measures every figure, one after the other; nothing else should run meanwhile."""
    began = time.perf_counter()
    figures: dict[str, Spread] = {}
    withheld: dict[str, str] = {}
    with torch.inference_mode():
        for threads in sorted({1, int(here["usable_cpus"])}):
            with thread_count(threads):
                for name, spread in _at_threads(sizes):
                    figures[f"{name}_t{threads}"] = spread
        with thread_count(1):
            figures.update(_dispatch(sizes))
        if torch.cuda.is_available():
            figures["cuda_launch"] = _cuda_launch(sizes)
        else:
            withheld["cuda_launch"] = "device_unknown: no CUDA device here"
    return MachineCeilings(
        identity=here, measured_on=datetime.now(UTC).date().isoformat(), figures=figures, withheld=withheld,
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def _at_threads(sizes: Sizes) -> Iterator[tuple[str, Spread]]:
    for name, dtype in _DTYPES.items():
        runs = quick_runs(sizes.gemm_m, dtype)
        spreads = [_spread(run, sizes, "GFLOP/s", 2e-9 * sizes.gemm_m**3) for run in runs]
        yield f"gemm_{name}", max(spreads, key=lambda spread: spread.median)
    values = sizes.stream_values or max(2 * last_level_cache(), 64 << 20) // 4
    yield "triad", _spread(stream_run(values, arrays=3), sizes, "GB/s", 3 * values * 4e-9)
    cached = min(values, cached_values(last_level_cache()))
    yield "triad_cache", _spread(stream_run(cached, arrays=3), sizes, "GB/s", 3 * cached * 4e-9)
    for row in _ROW_BYTES:
        run, rows = gather_run(sizes.table_values or 2 * values, row // 4)
        yield f"gather_{row}B", _spread(run, sizes, "GB/s", rows * row * 1e-9)


def _dispatch(sizes: Sizes) -> dict[str, Spread]:
    """Time of one call on operands so small that only the way to the kernel counts."""
    one, row, ids = torch.ones(1), torch.ones(1, 1), torch.zeros(1, dtype=torch.int64)
    operators: dict[str, Callable[[], object]] = {
        "add_": lambda: one.add_(1.0),
        "mul": lambda: torch.mul(one, one),
        "sum": lambda: one.sum(),
        "mm": lambda: torch.mm(row, row),
        "index_select": lambda: torch.index_select(row, 0, ids),
        "view": lambda: one.view(1, 1),
    }
    return {
        f"dispatch_{name}": _spread(_repeated(call, sizes.calls), sizes, "us", 1e6 / sizes.calls, inverse=False)
        for name, call in operators.items()
    }


def _repeated(call: Callable[[], object], times: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(times):
            call()

    return run


def _cuda_launch(sizes: Sizes) -> Spread:
    """Host time of one kernel launch while the queue has room. Unproven: no record of a CUDA device covers it yet."""
    one = torch.ones(1, device="cuda")

    def run() -> None:
        for _ in range(min(sizes.calls, 500)):  # a full queue would wait for the device
            one.add_(1.0)

    def sample() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    sample()
    times = [sample() for _ in range(max(3, sizes.samples))]
    return _of([t / min(sizes.calls, 500) * 1e6 for t in times], "us")


def _spread(run: Callable[[], object], sizes: Sizes, unit: str, amount: float, inverse: bool = True) -> Spread:
    """Samples a run after one warm-up.

    Args:
        amount: work of one run in the unit's numerator; with `inverse` the figure is amount / seconds, else
            amount * seconds.
    """
    run()
    times: list[float] = []
    end = time.perf_counter() + sizes.seconds
    while len(times) < 3 or (len(times) < sizes.samples and time.perf_counter() < end):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return _of([amount / t if inverse else amount * t for t in times], unit)


def _of(values: list[float], unit: str) -> Spread:
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return Spread(unit=unit, median=statistics.median(values), low=tenths[0], high=tenths[-1], n=len(values))

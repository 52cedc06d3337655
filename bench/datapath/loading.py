"""The loader alone, from Parquet and from its window, and beside the training step of a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, cycle, islice, repeat
from statistics import median
from typing import Any

import numpy as np

from ctrbench.bench.alternate import alternate
from ctrbench.bench.assemble import base_columns, build
from ctrbench.bench.datapath.timed import Found
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.statistics import two_level_bootstrap
from ctrbench.bench.step import TrainStep
from ctrbench.datasets.loader import PREFETCH, Loader
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import Batch
from ctrbench.reports.cells import DATAPATH

BATCHES = (256, 4_096)
LIMIT_S = 8.0
AHEAD = (PREFETCH, 0, 1, 2)
"""Batches made ahead; the loader's default first."""
HELD = 8
"""Batches that are made before and taken in turn: steps without a loader, that the others are held against."""
ROUNDS, STEPS = 8, 8
SETTLE = max(AHEAD) + 1
"""Steps before those of a round that are not counted: batches that were made before it."""


def loader_part(spec: RunSpec, batches: tuple[int, ...] = BATCHES) -> Found:
    """Passes over the train rows in the calling thread: a first one, and one over the window in memory."""
    prepared = Prepared.open(spec.prepared)
    base = {"run": spec.key, "model": "", "preset": DATAPATH, "data": spec.data, "split": spec.split,
            "track": prepared.schema.track, "device": spec.device, "dtype": spec.dtype, "threads": 1}  # fmt: skip
    shards = sum(path.stat().st_size for path, _ in prepared.shards("train"))
    shards += sum((prepared.path / f"events-{h}.parquet").stat().st_size for h in prepared.schema.histories)
    samples, plain = {}, []
    for batch in batches:
        rows, size = 0, 0
        held = _loader(spec, prepared, batch, 0)
        for made in held:
            rows, size = rows + made.size, size + made.nbytes
        cpu: dict[str, list[float]] = {"memory": [], "parquet": []}
        sides = {
            "memory": _passing(partial(_same, held), cpu["memory"]),
            "parquet": _passing(partial(_loader, spec, prepared, batch, 0), cpu["parquet"]),
        }
        samples[f"batch {batch}"] = taken = alternate(sides, limit_s=LIMIT_S, warmup=1)
        for way, seconds in taken.items():
            scope: dict[str, Any] = {"scope": f"loader:{way}:batch {batch}", "n": len(seconds)}
            low, high = two_level_bootstrap([[s] for s in seconds])
            middle = median(seconds)
            band = {"ci_low": rows / high, "ci_high": rows / low} if low and high else {}
            plain.append(("load_rate", rows / middle, "measured", {**scope, **band}))
            plain.append(("load_bytes", size / middle, "measured", scope))
            core = 1e6 * median(cpu[way][1:]) / rows
            plain.append(("cpu_core_s_per_million", core, "measured", scope))
        read = shards / median(taken["parquet"])
        plain.append(("load_bytes", read, "measured", {"scope": f"loader:shards:batch {batch}"}))
    extra = {"rows": rows, "bytes_shards": shards}
    return Found(base=base, phase="prepare", samples=samples, plain=plain, extra=extra)  # type: ignore[arg-type]


def _loader(spec: RunSpec, prepared: Prepared, batch: int, prefetch: int) -> Loader:
    return Loader(
        prepared, "train", batch, rows=spec.train_rows, shuffle_seed=spec.seed, history_length=spec.history_length,
        prefetch=prefetch, drop_last=True,
    )  # fmt: skip


def _same(loader: Loader) -> Loader:
    return loader


def _passing(loader: Callable[[], Loader], cpu: list[float]) -> Callable[[], None]:
    """A pass over a loader; notes the CPU seconds that it took."""

    def run() -> None:
        mine = loader()
        before = mine.cpu_seconds
        for _ in mine:
            pass
        cpu.append(mine.cpu_seconds - before)

    return run


def stall_part(spec: RunSpec, rounds: int = ROUNDS, steps: int = STEPS) -> Found:
    """Share of a training step that waits for its batch, with none to a few batches made ahead, by turns."""
    model_spec, _, schema, model, prepared = build(spec)
    base = base_columns(spec, model_spec.family, schema.track)
    feeds: dict[str, Iterator[Batch]] = {
        f"prefetch {ahead}": chain.from_iterable(repeat(_loader(spec, prepared, spec.batch, ahead))) for ahead in AHEAD
    }
    feeds = {"held": cycle(list(islice(feeds["prefetch 0"], HELD))), **feeds}
    step = TrainStep(model.train(), lr=spec.lr)
    for feed in feeds.values():
        _steps(step, feed, spec.warmup)
    waits: dict[str, list[float]] = {name: [] for name in feeds}
    wholes: dict[str, list[float]] = {name: [] for name in feeds}
    for number in range(rounds):
        for name in list(feeds)[:: -1 if number % 2 else 1]:
            _steps(step, feeds[name], SETTLE)
            wait, whole = _steps(step, feeds[name], steps)
            waits[name].append(wait)
            wholes[name].append(whole)
    plain = []
    for ahead in AHEAD:
        share_R = np.array(waits[f"prefetch {ahead}"]) / np.array(wholes[f"prefetch {ahead}"])
        low, high = two_level_bootstrap([[float(s)] for s in share_R])
        known = {"scope": f"prefetch:{ahead}", "n": rounds, "ci_low": low, "ci_high": high}
        plain.append(("loader_stall", float(np.median(share_R)), "measured", known))
    samples = {"step": {name: [w / steps for w in whole] for name, whole in wholes.items()}}
    return Found(base=base, phase="train", samples=samples, plain=plain, extra={"waits": waits, "steps": steps})  # type: ignore[arg-type]


def _steps(step: TrainStep, batches: Iterator[Batch], count: int) -> tuple[float, float]:
    """(seconds of waiting for batches, all seconds) of some steps."""
    waited = 0.0
    began = time.perf_counter()
    for _ in range(count):
        start = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - start
        step(batch)
        del batch  # before the next one is ordered (bench/jobs.py)
    return waited, time.perf_counter() - began

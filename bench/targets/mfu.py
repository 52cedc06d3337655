"""Targets of utilisation: named points of `suite=mfu`, each step against the GEMM ceiling by turns.

A point runs in several processes. Each finds the library and size that multiply fastest, then alternates one training
step with one such product: mfu_cpu is the median over rounds of (FLOPs of the step / its time) / (rate of the product).
"""

from __future__ import annotations

import multiprocessing as mp
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ctrbench.bench.alternate import alternate, ratio
from ctrbench.bench.assemble import fed
from ctrbench.bench.ceilings import quick_runs, thread_count
from ctrbench.bench.hardware import bf16_units
from ctrbench.bench.jobs import run_count
from ctrbench.bench.proc import keep_freed_memory
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.step import TrainStep
from ctrbench.bench.targets.outcome import Outcome, at_least
from ctrbench.datasets import random_batches

GROUP = "mfu"
PROCESSES, ROUNDS, LIMIT_S, THREADS, HELD = 3, 11, 12.0, 2, 4
SIZES_M = (1024, 2048)
TRY_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A model at a size, and the utilisations asked of it."""

    title: str
    model: str
    data: str
    batch: int
    config: dict[str, Any] = field(default_factory=dict)
    wanted: dict[str, float]
    """dtype -> least mfu_cpu."""


POINTS = (
    Point(title="OneTrans d=256 T=50 B128", model="onetrans", data="random_sequence", batch=128,
          config={"width": 256, "dim": 32}, wanted={"float32": 0.55, "bfloat16": 0.40}),
    Point(title="LUM step 1 packed d=256 T=50 R64", model="lum_step1", data="random_sequence", batch=64,
          config={"width": 256, "dim": 32, "packed": True}, wanted={"float32": 0.55, "bfloat16": 0.40}),
    Point(title="FAT d=128 B128", model="fat", data="random_tabular", batch=128,
          config={"dim": 128, "hidden": 512}, wanted={"float32": 0.45}),
    Point(title="DCN-v2 390 wide, MLP 400-400, B4096", model="dcn_v2", data="random_tabular", batch=4096,
          config={"dim": 10, "mlp": (400, 400)}, wanted={"float32": 0.60}),
)  # fmt: skip
"""The sizes are those of `suite=mfu` (bench/conf/suite/mfu.yaml)."""


def spec_of(point: Point, dtype: str = "float32", threads: int = THREADS) -> RunSpec:
    """The point as a timed process."""
    return RunSpec(
        kind="time", model=point.model, config=point.config, data=point.data, split=random_batches.SPLIT,
        fingerprint=random_batches.fingerprint(point.data), history_length=50, batch=point.batch, lr=1e-3,
        dtype=dtype, threads=threads,
    )  # fmt: skip


def flops_of(point: Point) -> float:
    """Model FLOPs of one training step as `suite=mfu` counts them; padding, masked pairs and idle products left out."""
    counted = run_count(replace(spec_of(point, threads=1), kind="count"), Path())
    if counted.extra["withheld"]:
        raise RuntimeError(f"{point.title}: {counted.extra['withheld']}")
    return float(counted.extra["flops_model_train"])


def fastest_product(dtype: torch.dtype, sizes: tuple[int, ...] = SIZES_M) -> tuple[Callable[[], object], float, float]:
    """(product, its FLOPs, its seconds) of the best library and size."""
    found = []
    for m in sizes:
        for run in quick_runs(m, dtype):
            run()
            times, end = list[float](), time.perf_counter() + TRY_S
            while not times or time.perf_counter() < end:
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            found.append((2.0 * m**3 / median(times), 2.0 * m**3, run))
    rate, flops, run = max(found, key=lambda f: f[0])
    return run, flops, flops / rate


def timed(spec: RunSpec, flops: float, rounds: int = ROUNDS, limit_s: float = LIMIT_S) -> dict[str, float]:
    """In a process of its own: `mfu` with `low` and `high`, GFLOP/s of the product, seconds of the step."""
    keep_freed_memory()
    with thread_count(spec.threads):
        _, _, _, model, _, batches = fed(spec)
        step, held = TrainStep(model.train(), lr=spec.lr), cycle(islice(batches, HELD))
        dtype = torch.float32 if spec.dtype == "float32" else torch.bfloat16
        product, product_flops, seconds = fastest_product(dtype)
        start = time.perf_counter()
        step(next(held))
        step(next(held))
        # a turn of the product about as long as a step: what disturbs one disturbs the other
        times = max(1, round((time.perf_counter() - start) / 2 / seconds))

        def products() -> None:
            for _ in range(times):
                product()

        found = alternate(
            {"gemm": products, "step": lambda: step(next(held))}, rounds=rounds, limit_s=limit_s, warmup=1
        )
    of = ratio(found["gemm"], found["step"])
    scale = flops / (product_flops * times)
    return {
        "mfu": of.value * scale, "low": of.low * scale, "high": of.high * scale, "step_s": median(found["step"]),
        "gemm_gflops": product_flops * times / median(found["gemm"]) / 1e9,
    }  # fmt: skip


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Result of a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=mp.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def outcomes() -> Iterator[Outcome]:
    """Every point in float32, and in bfloat16 where the CPU has units for it."""
    units = bf16_units()
    for point in POINTS:
        flops = flops_of(point)
        for dtype, wanted in point.wanted.items():
            if dtype != "float32" and not units:
                continue
            yield judged(point, dtype, wanted, [alone(timed, spec_of(point, dtype), flops) for _ in range(PROCESSES)])
    if not units:
        yield from untestable()


def judged(point: Point, dtype: str, wanted: float, runs: list[dict[str, float]]) -> Outcome:
    """Median over the processes; the interval is the widest of theirs."""
    how = (
        f"{len(runs)} processes of at most {ROUNDS} rounds, {THREADS} threads, step and product by turns; "
        f"step {1e3 * median(r['step_s'] for r in runs):.0f} ms, "
        f"product {median(r['gemm_gflops'] for r in runs):.0f} GFLOP/s"
    )
    interval = (min(r["low"] for r in runs), max(r["high"] for r in runs))
    return at_least(
        GROUP, f"mfu_cpu {point.title} {dtype}", wanted, median(r["mfu"] for r in runs), how, " %", interval
    )


def untestable() -> Iterator[Outcome]:
    """The bfloat16 points of a CPU without units, each with what its products run at."""
    measured = product_ratio()
    for point in POINTS:
        for dtype, wanted in point.wanted.items():
            if dtype == "float32":
                continue
            yield Outcome(
                group=GROUP, target=f"mfu_cpu {point.title} {dtype}", wanted=f">= {100 * wanted:g} %",
                measured=f"product bf16 / fp32 {measured:.2f}x", verdict="not testable here",
                how="this CPU has no bf16 units (no avx512_bf16, no amx_bf16): torch multiplies in float32 and rounds",
            )  # fmt: skip


def product_ratio() -> float:
    """Rate of the fastest bfloat16 product over that of the fastest float32 one, by turns."""
    with thread_count(THREADS):
        sides = {}
        work = {}
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            sides[name], work[name], _ = fastest_product(dtype, SIZES_M[:1])
        found = alternate(sides, rounds=ROUNDS, limit_s=5.0)
    return ratio(found["fp32"], found["bf16"]).value * work["bf16"] / work["fp32"]

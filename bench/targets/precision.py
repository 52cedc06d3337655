"""Targets of precision: bfloat16 training of OneTrans against float32, its speed by turns and its AUC over seeds."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t as student

from ctrbench.bench import pool
from ctrbench.bench.alternate import Ratio, alternate, ratio
from ctrbench.bench.assemble import fed
from ctrbench.bench.ceilings import thread_count
from ctrbench.bench.hardware import bf16_units
from ctrbench.bench.proc import keep_freed_memory
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.step import TrainStep
from ctrbench.bench.targets.mfu import HELD, LIMIT_S, POINTS, alone, product_ratio, spec_of
from ctrbench.bench.targets.outcome import Outcome, at_least
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared
from ctrbench.reports import records

GROUP = "precision"
FASTER = 1.3
"""Wanted: time of a float32 step over that of a bfloat16 one."""
NARROW = ("bfloat16", "autocast")
SEEDS = 4
USERS, ROWS, BATCH = 400, 12_000, 256
ROUNDS = 9
EMULATED_BATCH = 32
"""Of the steps where bfloat16 is emulated: the ratio says little there and should not take minutes."""


def step_ratios(spec: RunSpec, rounds: int = ROUNDS, limit_s: float = 2 * LIMIT_S) -> dict[str, Ratio]:
    """Time of a float32 step over that of each narrow one, by turns in this process."""
    keep_freed_memory()
    sides = {}
    with thread_count(spec.threads):
        for dtype in ("float32", *NARROW):
            _, _, _, model, _, batches = fed(replace(spec, dtype=dtype))
            sides[dtype] = _stepper(TrainStep(model.train(), lr=spec.lr), cycle(islice(batches, HELD)))
        found = alternate(sides, rounds=rounds, limit_s=limit_s, warmup=1)
    return {dtype: ratio(found["float32"], found[dtype]) for dtype in NARROW}


def _stepper(step: TrainStep, batches):  # type: ignore[no-untyped-def]
    return lambda: step(next(batches))


def trainings(prepared: Prepared, seeds: int = SEEDS, rows: int = ROWS) -> list[RunSpec]:
    """OneTrans's small preset in float32 and bfloat16 on the same rows and seeds."""
    spec = RunSpec(
        kind="quality", model="onetrans", data=prepared.schema.name, split=prepared.split,
        fingerprint=prepared.fingerprint, prepared=str(prepared.path.resolve()), history_length=32,
        train_rows=min(rows, prepared.rows("train")), valid_rows=2_000, epochs=1, evaluations=2, patience=2,
        batch=BATCH, eval_batch=BATCH, lr=1e-3,
    )  # fmt: skip
    return [replace(spec, dtype=d, seed=s) for d in ("float32", "bfloat16") for s in range(seeds)]


def aucs(specs: list[RunSpec]) -> dict[str, list[float]]:
    """dtype -> test AUC of every seed; two trainings side by side."""
    with tempfile.TemporaryDirectory() as folder:
        failed = [o for o in pool.run_all(specs, Path(folder), workers=2, done=lambda o: None) if o.status != "ok"]
        if failed:
            raise RuntimeError(f"{failed[0].spec.key}: {failed[0].reason}")
        table, _ = records.load(Path(folder))
    rows = table[table["metric"] == "auc"]
    return {str(d): [float(v) for v in mine["value"]] for d, mine in rows.groupby("dtype")}


def within(wide: list[float], narrow: list[float]) -> tuple[bool, str, str]:
    """(whether the mean of `narrow` lies in the 95 % t interval of a float32 mean, what was measured, the interval).

    A mean above the interval is no loss of precision.
    """
    n = len(wide)
    half = float(student.ppf(0.975, n - 1)) * stdev(wide) / math.sqrt(n)
    low, high = mean(wide) - half, mean(wide) + half
    return mean(narrow) >= low, f"{mean(narrow):.4f}", f"{mean(wide):.4f} [{low:.4f}, {high:.4f}]"


def outcomes() -> Iterator[Outcome]:
    """Speed of both narrow modes, then quality of bfloat16."""
    units = bf16_units()
    point = next(p for p in POINTS if p.model == "onetrans")
    spec = spec_of(point) if units else replace(spec_of(point), batch=EMULATED_BATCH)
    ratios = alone(step_ratios, spec)
    emulated = "" if units else (
        f"; this CPU has no bf16 units: torch emulates such products, which run at {product_ratio():.2f}x of float32's"
    )  # fmt: skip
    for dtype, found in ratios.items():
        how = f"{found.rounds} rounds by turns in one process, batch {spec.batch}, {spec.threads} threads{emulated}"
        target = f"training step of OneTrans d=256 T=50: float32 / {dtype}"
        made = at_least(GROUP, target, FASTER, found.value, how, interval=(found.low, found.high))
        if dtype != "bfloat16":
            made = replace(made, verdict="context", wanted="")
        elif not units:
            made = replace(made, verdict="not testable here")
        yield made
    prepared = prepare("taobao_synthetic", None, users=USERS)
    by_dtype = aucs(trainings(prepared))
    ok, measured, wanted = within(by_dtype["float32"], by_dtype["bfloat16"])
    yield Outcome(
        group=GROUP, target="test AUC of OneTrans (small) trained in bfloat16", wanted=f"not below float32's {wanted}",
        measured=measured, verdict="met" if ok else "missed",
        how=f"{SEEDS} seeds each, {min(ROWS, prepared.rows('train')):,} rows of taobao_synthetic ({USERS} users), "
        "mean and 95 % t interval over the float32 seeds" + ("" if units else "; emulated bfloat16 rounds the same"),
    )  # fmt: skip

"""SYNTHETIC trainings whose loss follows a planted law of FLOPs, rows or history length, as records on disk.

The noise over seeds is Gaussian and known, so what a report may say of them is known too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctrbench.reports.measures import make
from ctrbench.reports.records import RunRecord, save

Truth = Callable[[np.ndarray], np.ndarray]
"""Compute over the smallest -> loss."""


def power(c: float, a: float = 0.45, b: float = 0.05) -> Truth:
    return lambda x_N: a + b * x_N**-c


def saturating(c: float, a: float = 0.45, b: float = 0.05) -> Truth:
    return lambda x_N: a + b * np.exp(-(x_N - 1.0) / c)


def flat(x_N: np.ndarray) -> np.ndarray:
    return np.full(len(x_N), 0.45)


def rising(x_N: np.ndarray) -> np.ndarray:
    return 0.45 + 0.01 * np.log(x_N)


def plant(
    runs_dir: Path, model: str, truth: Truth, sd: float, *, axis: str = "size", places: Sequence[float] = (),
    seeds: int = 3, noise: int = 0, data: str = "movielens_1m", more: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes one record a training and one with what a suite sums up: FLOPs of the whole training, and of a sample.

    1 - AUC is .2 below log loss, with noise of its own.

    Args:
        runs_dir: of the records.
        model: who is trained.
        truth: law of log loss.
        sd: standard deviation over seeds.
        axis: what differs: `size`, `rows` or `length`.
        places: FLOPs, rows or lengths; five sizes a factor of 4 apart if empty.
        seeds: trainings a place.
        noise: seed of the noise.
        data: data set.
        more: options of the model that all its trainings share.
    """
    x_N = np.asarray(places or np.geomspace(1e9, 256e9, 5))
    rng = np.random.default_rng(noise)
    family = "legacy" if model in ("deepfm", "dcn_v2", "din") else "transformer"
    summed = []
    for i, (at, loss) in enumerate(zip(x_N, truth(x_N / x_N[0]), strict=True)):
        number = {"size": 8 * 2**i if axis == "size" else 16, "rows": 1000, "length": 32} | (
            {axis: int(at)} if axis != "size" else {}
        )
        variant = f"dim={number['size']}" + (f",{axis}={int(at)}" if axis != "size" else "")
        base = {"run": "planted", "model": model, "variant": variant, "family": family, "data": data, "split": "time",
                "track": "sequence", "phase": "train"}  # fmt: skip
        flops = at if axis == "size" else 1e6 * number["rows"]
        summed += [make(base, "budget_flops", flops, "derived"),
                   make({**base, "phase": "infer"}, "flops_fwd_per_sample", flops / 3e3, "counted")]  # fmt: skip
        for seed in range(seeds):
            spec = {
                "kind": "quality", "model": model, "variant": variant, "data": data, "split": "time", "seed": seed,
                "config": {"dim": number["size"], **(more or {})}, "train_rows": number["rows"], "epochs": 1,
                "history_length": number["length"],
            }  # fmt: skip
            values = {"logloss": loss, "auc": 1.2 - loss}
            rows = tuple(
                make(base, m, float(v + sd * rng.standard_normal()), "measured", seed=seed) for m, v in values.items()
            )
            save(RunRecord(key=f"{model}-{variant}-{seed}", spec=spec, rows=rows), runs_dir)
    save(RunRecord(key=f"summary-{model}-{axis}", spec={"kind": "summary"}, rows=tuple(summed)), runs_dir)

"""Our side of a race with peers, one process an epoch:

python -m ctrbench.bench.peers_ours DIR ROWS MODEL WIDTH SIDE --threads 2 --seed 0
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ctrbench.bench.peers_models import TABLES, Width, our_model
from ctrbench.bench.peers_verdict import Run, Side
from ctrbench.bench.proc import keep_freed_memory
from ctrbench.bench.quality import auc
from ctrbench.bench.step import TrainStep
from ctrbench.bench.targets.mfu import fastest_product
from ctrbench.bench.train import Budget, scores, seed_everything
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepared import Prepared
from ctrbench.models.embedding import count_parameters

BATCH, WARMUP = 4096, 2 * 4096
TEST_ROWS, VALID_ROWS = 60_000, 30_000
LR = 1e-3
"""Of our dense weights' Adam: the default of `TrainStep`."""
START: Mapping[str, float] = {"din": 0.3}
"""Standard deviation of the start of everybody's tables, where it is not everybody's own (.01 here, 1e-4 there): from
there the unit's products of target and event are nothing, and an epoch of twenty batches teaches nobody: AUC .50 to .53
on test rows, and .62 from .3 (ours, one seed)."""


def train_ours(prepared: Prepared, rows: int, model_name: str, width: Width, side: Side, seed: int) -> Run:
    """One epoch of our model over the most recent rows; seconds include the loader, from rows in memory."""
    keep_freed_memory()  # as every process of a suite
    seed_everything(seed)
    tables = TABLES[side.optimizer]
    tables = replace(tables, lr=tables.lr * side.scale, init_std=START.get(model_name, tables.init_std))
    model = our_model(model_name, side.peer, tables, prepared.schema, width)
    step = TrainStep(model, lr=LR * side.dense)
    loader = Loader(prepared, "train", BATCH, rows=rows, shuffle_seed=seed)
    first = iter(loader)
    for _ in range(WARMUP // BATCH):
        step(next(first))
    del first
    start = time.perf_counter()
    for batch in loader:
        step(batch)
    seconds = time.perf_counter() - start
    rate = gemm_rate()
    history = max((f.max_length for f in prepared.schema.sequences), default=0)
    budget = Budget(
        train_rows=rows, valid_rows=1, epochs=1, evaluations=1, patience=1, batch=BATCH, eval_batch=8192, lr=LR,
        history_length=history,
    )  # fmt: skip
    found = []
    for split, most in (("valid", VALID_ROWS), ("test", TEST_ROWS)):
        score, label, _ = scores(model, prepared, split, budget, min(most, prepared.rows(split)))
        found.append(auc(label, score))
    return Run(
        seconds=seconds, rows=rows, valid_auc=found[0], auc=found[1], weights=count_parameters(model),
        floor_s=rows / batch.size * products(step, batch) / rate,  # the step that it makes comes after the score
    )  # fmt: skip


def products(step: Callable[[Any], object], batch: object) -> float:
    """FLOPs of the matrix products of one step, which is made."""
    counter = FlopCounterMode(display=False)
    with counter:
        step(batch)
    return float(counter.get_total_flops())


def gemm_rate() -> float:
    """FLOP/s of the fastest float32 product, at the present number of threads."""
    _, flops, seconds = fastest_product(torch.float32)
    return flops / seconds


def main() -> None:
    """Prints the run as one JSON line."""
    parser = argparse.ArgumentParser(prog="peers_ours", description=__doc__)
    parser.add_argument("data", help="prepared directory")
    parser.add_argument("rows", type=int)
    parser.add_argument("model")
    parser.add_argument("width")
    parser.add_argument("side", type=json.loads, help="fields of `Side`")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    side, data = Side(**options.side), Prepared.open(options.data)
    print(json.dumps(asdict(train_ours(data, options.rows, options.model, options.width, side, options.seed))))


if __name__ == "__main__":
    main()

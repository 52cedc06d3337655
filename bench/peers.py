"""`make peers`: DeepFM here against DeepFM of deepctr-torch 0.3.0, same rows, same machine, A B A B.

The peer trains with the faster of Adam and Adagrad in the very epoch loop that it ships; ours runs its loader,
fused tables (row-wise Adagrad) and Adam on dense weights. Every run is a fresh process; one epoch over the same rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared

HIDDEN, DIM, BATCH = (400, 400, 400), 16, 4096
REQUIRED = 2.0


def write_arrays(prepared: Prepared, rows: int, path: Path) -> None:
    """The rows of both sides as plain arrays: ids [N, 26], dense [N, 13] (missing = 0), label [N]."""
    schema = prepared.schema
    arrays: dict[str, Any] = {"cardinality": np.array([f.cardinality for f in schema.categorical])}
    for split in ("train", "test"):
        frame = prepared.frame(split, last=rows if split == "train" else None)
        arrays[f"{split}_ids"] = frame.select([f.name for f in schema.categorical]).to_numpy().astype(np.int64)
        arrays[f"{split}_dense"] = (
            frame.select([f.name for f in schema.dense]).fill_null(0.0).to_numpy().astype(np.float32)
        )
        arrays[f"{split}_label"] = frame["label"].to_numpy().astype(np.float32)
    np.savez(path, **arrays)


def train_ours(prepared_dir: str, rows: int, threads: int, seed: int) -> dict[str, Any]:
    """One epoch of our DeepFM; seconds include the loader, from rows in memory."""
    import torch

    from ctrbench.bench.quality import auc
    from ctrbench.bench.step import TrainStep
    from ctrbench.bench.train import Budget, scores, seed_everything
    from ctrbench.datasets.loader import Loader
    from ctrbench.legacy_baselines.deepfm import SPEC, DeepFMConfig

    torch.set_num_threads(threads)
    seed_everything(seed)
    prepared = Prepared.open(Path(prepared_dir))
    model = SPEC.build(DeepFMConfig(dim=DIM, mlp=HIDDEN), prepared.schema)
    step = TrainStep(model)
    loader = Loader(prepared, "train", BATCH, rows=rows, shuffle_seed=seed)
    next(iter(loader))  # the peer's rows are in memory when its clock starts; so are ours
    start = time.perf_counter()
    for batch in loader:
        step(batch)
    seconds = time.perf_counter() - start
    budget = Budget(
        train_rows=rows,
        valid_rows=1,
        epochs=1,
        evaluations=1,
        patience=1,
        batch=BATCH,
        eval_batch=16384,
        lr=1e-3,
        history_length=0,
    )
    score, label, _ = scores(model, prepared, "test", budget)
    return {"seconds": seconds, "auc": auc(label, score)}


def _process(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ... failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> int:
    """Alternates the sides and prints medians; exit 1 below the required ratio or AUC."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default=".venv-peers/bin/python")
    parser.add_argument("--rows", type=int, default=600_000, help="rows generated; 80 % train")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ours", nargs=3, metavar=("PREPARED", "ROWS", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        print(json.dumps(train_ours(options.ours[0], int(options.ours[1]), options.threads, int(options.ours[2]))))
        return 0
    console = Console()
    prepared = prepare("criteo_synthetic", rows=options.rows, cap=200_000, full_tables=True)
    rows = prepared.rows("train")
    results: dict[str, list[dict[str, Any]]] = {"ctrbench": [], "deepctr-torch adam": [], "deepctr-torch adagrad": []}
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "arrays.npz"
        write_arrays(prepared, rows, arrays)
        # -P: the script's folder must not hide the standard library (bench/statistics.py)
        peer = [options.peer_python, "-P", str(Path(__file__).with_name("peers_deepctr.py")), str(arrays)]
        for repeat in range(options.repeats):
            for side in results:
                if side == "ctrbench":
                    command = [
                        sys.executable,
                        "-m",
                        "ctrbench.bench.peers",
                        "--threads",
                        str(options.threads),
                        "--ours",
                        str(prepared.path),
                        str(rows),
                        str(repeat),
                    ]
                else:
                    command = [
                        *peer,
                        "--optimizer",
                        side.split()[1],
                        "--batch",
                        str(BATCH),
                        "--threads",
                        str(options.threads),
                        "--seed",
                        str(repeat),
                    ]
                results[side].append(_process(command))
                console.print(
                    f"{side} run {repeat}: {results[side][-1]['seconds']:.1f} s, AUC {results[side][-1]['auc']:.4f}"
                )
    return _verdict(results, prepared, rows, console)


def _verdict(results: dict[str, list[dict[str, Any]]], prepared: Prepared, rows: int, console: Console) -> int:
    from ctrbench.bench.statistics import auc_standard_error

    positives = int(prepared.frame("test", columns=["label"])["label"].sum())
    negatives = prepared.rows("test") - positives
    table = Table(title=f"DeepFM, criteo_synthetic: {rows:,} rows, {sum(prepared.schema.tables.values()):,} table rows")
    for column in ("side", "median s", "rows/s", "AUC mean", "AUC each"):
        table.add_column(column)
    seconds = {s: median(r["seconds"] for r in runs) for s, runs in results.items()}
    aucs = {s: float(np.mean([r["auc"] for r in runs])) for s, runs in results.items()}
    for side, runs in results.items():
        table.add_row(
            side,
            f"{seconds[side]:.1f}",
            f"{rows / seconds[side]:,.0f}",
            f"{aucs[side]:.4f}",
            " ".join(f"{r['auc']:.4f}" for r in runs),
        )
    console.print(table)
    best = min((s for s in results if s != "ctrbench"), key=lambda s: seconds[s])
    ratio = seconds[best] / seconds["ctrbench"]
    se = auc_standard_error(aucs[best], positives, negatives)
    gap = aucs["ctrbench"] - aucs[best]
    passed = ratio >= REQUIRED and gap >= -2 * se
    console.print(
        f"{ratio:.2f}x the faster peer ({best}); AUC difference {gap:+.4f}, s.e. {se:.4f}:"
        f" {'pass' if passed else 'FAIL'}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

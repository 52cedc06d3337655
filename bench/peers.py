"""`make peers`: DeepFM, DCN-v2 and DIN here against deepctr-torch 0.3.0 and FuxiCTR 2.3.9: same rows, model and batch.

A peer trains in the epoch loop that it ships, with Adam and with Adagrad; ours runs its loader and `TrainStep` from
rows in memory. Every run is a fresh process and runs take turns; each trains two batches before its clock starts, then
one epoch over the same rows. A pair has as many weights on both sides, or the race stops.

Learning rates: every side has four candidates, and the AUC on validation rows picks one: a peer two optimizers, each at
its default rate and at 4 times that; ours one optimizer of tables at two rates, times two rates of its dense weights.
That is the search round. Later rounds run ours and, of each peer, the faster optimizer, whose time counts, and the
better one on validation rows, whose test AUC counts. Ours with the peer's optimizer on the tables runs once, at the
rate that the peer's search picked, for context. Where the better peer stays within `LEAST` of an AUC of one half,
nobody is judged to be as good.

Memory: our processes tell glibc to keep what is freed (`keep_freed_memory`), a peer's run as they ship. Beside the
verdict stands the peer's time with glibc told the same, in the first round after the search.

Floor: both sides multiply the same matrices. The products of one of our steps over the rate of the fastest product of
this machine, measured in our process right after its clock stops, are seconds that no side can leave out, so the
peer's time over them is the largest ratio that can be reached.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from ctrbench.bench.peers_data import Rows, Size, prepared_rows, write_arrays
from ctrbench.bench.peers_models import Peer, Width
from ctrbench.bench.peers_ours import BATCH, START, TEST_ROWS, VALID_ROWS, WARMUP
from ctrbench.bench.peers_verdict import (
    MODELS,
    OPTIMIZERS,
    REQUIRED,
    Run,
    Runs,
    Side,
    Verdict,
    finalists,
    matched_side,
    sentence,
    sides,
    verdict,
)
from ctrbench.datasets.prepared import Prepared

KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""glibc's environment that does to a peer what `keep_freed_memory` does to us."""
TRAIN_ROWS: Mapping[Rows, Mapping[Size, int]] = {
    "tabular": {"1.48m": 50 * BATCH, "5.2m": 25 * BATCH}, "sequence": {"1.48m": 20 * BATCH, "5.2m": 20 * BATCH},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Race:
    """How a model and a size are raced."""

    model: str
    size: Size
    pythons: Mapping[Peer, str]
    """Interpreter of each peer's environment; a peer without one is left out."""
    width: Width = "default"
    rounds: int = 3
    threads: int = 2
    rows: int | None = None
    """Train rows, None for `TRAIN_ROWS`."""
    searching: bool = True
    """Not: each side at its first candidate."""

    def runs(self, say: Console) -> tuple[dict[Side, list[Run]], Prepared]:
        """Searches, then trains the finalists in turn."""
        prepared = prepared_rows(MODELS[self.model][0], self.size)
        rows = min(self.rows or TRAIN_ROWS[MODELS[self.model][0]][self.size], prepared.rows("train"))
        done: dict[Side, list[Run]] = {}
        with tempfile.TemporaryDirectory() as folder:
            arrays = Path(folder) / "arrays.npz"
            most = {"train": rows, "valid": VALID_ROWS, "test": TEST_ROWS}
            write_arrays(prepared, {s: min(n, prepared.rows(s)) for s, n in most.items()}, arrays)

            def run(side: Side, number: int) -> None:
                body = _process(self._command(side, number, prepared, arrays, rows), KEPT if side.kept else {})
                found = Run(**{k: body[k] for k in Run.__dataclass_fields__ if k in body})
                done.setdefault(side, []).append(found)
                say.print(
                    f"{self.model} {self.width} {self.size} {number or 'search'} {side}: "
                    f"{found.rows / found.seconds:,.0f} rows/s, AUC {found.valid_auc:.4f} {found.auc:.4f}"
                )

            for side in sides(self.model, self.searching):
                if side.who == "ctrbench" or side.peer in self.pythons:
                    run(side, 0)
            peers = self.peers()
            for side in dict.fromkeys(matched_side(self.model, p, done, o) for p in peers for o in OPTIMIZERS):
                run(side, 0)
            order = finalists(self.model, done, peers)
            kept = [replace(s, kept=True) for s in order if s.who != "ctrbench"]
            for number in range(1, self.rounds + 1):
                for side in (order if number % 2 else order[::-1]) + kept * (number == 1):
                    run(side, number)
        return done, prepared

    def peers(self) -> list[Peer]:
        """Those that have the model and an environment."""
        return [p for p in MODELS[self.model][1] if p in self.pythons]

    def _command(self, side: Side, number: int, prepared: Prepared, arrays: Path, rows: int) -> list[str]:
        common = ["--threads", str(self.threads), "--seed", str(number)]
        if side.who == "ctrbench":
            what = [str(prepared.path), str(rows), self.model, self.width, json.dumps(asdict(side))]
            return [sys.executable, "-m", "ctrbench.bench.peers_ours", *what, *common]
        script = {"deepctr-torch": "peers_deepctr.py", "fuxictr": "peers_fuxictr.py"}[side.peer]
        # -P: the script's folder must not hide the standard library (bench/statistics.py)
        return [
            self.pythons[side.peer], "-P", str(Path(__file__).with_name(script)), str(arrays), "--model", self.model,
            *(["--start", str(START[self.model])] if self.model in START else []),
            "--width", self.width, "--optimizer", side.optimizer, "--scale", str(side.scale),
            "--batch", str(BATCH), "--warmup", str(WARMUP),
            *common,
        ]  # fmt: skip

    def judged(self, runs: Runs, prepared: Prepared) -> list[Verdict]:
        """A verdict for every peer that raced."""
        last = prepared.frame("test", last=min(TEST_ROWS, prepared.rows("test")), columns=["label"])["label"]
        positives = int(last.sum())
        negatives = len(last) - positives
        return [verdict(self.model, p, runs, REQUIRED[self.size], positives, negatives) for p in self.peers()]


def _process(command: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ... failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def shown(race: Race, runs: Runs, prepared: Prepared) -> Table:
    """Every side of a race."""
    tables = sum(prepared.schema.tables.values())
    rows = next(iter(runs.values()))[0].rows
    table = Table(title=f"{race.model}: {rows:,} train rows of {prepared.schema.name}, {tables:,} table rows")
    for column in ("side", "runs", "median s", "rows/s", "AUC", "weights"):
        table.add_column(column)
    for side, each in runs.items():
        seconds, aucs = median(r.seconds for r in each), " ".join(f"{r.auc:.4f}" for r in each)
        table.add_row(
            str(side), str(len(each)), f"{seconds:.2f}", f"{rows / seconds:,.0f}", aucs, f"{each[0].weights:,}"
        )
    return table


def as_json(race: Race, runs: Runs, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """All that was measured."""
    return {
        "model": race.model, "width": race.width, "size": race.size, "threads": race.threads,
        "required": REQUIRED[race.size],
        "runs": [{"side": asdict(s), "rounds": [asdict(r) for r in each]} for s, each in runs.items()],
        "verdicts": [asdict(v) for v in verdicts],
    }  # fmt: skip


def main() -> int:
    """Races and prints; exit 1 if a pair misses its ratio or its AUC."""
    parser = argparse.ArgumentParser(prog="peers", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--sizes", nargs="+", choices=get_args(Size), default=list(get_args(Size)))
    parser.add_argument("--width", choices=get_args(Width), default="default", help="of the dense layers")
    parser.add_argument("--deepctr", default=".venv-peers/bin/python", help="python of deepctr-torch's environment")
    parser.add_argument("--fuxictr", default=".venv-peers-fuxictr/bin/python", help="python of FuxiCTR's")
    parser.add_argument("--rows", type=int, help="train rows; default by size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/peers/race.json"))
    options = parser.parse_args()
    say, results = Console(), []
    pythons: dict[Peer, str] = {"deepctr-torch": options.deepctr, "fuxictr": options.fuxictr}
    for model in options.models:
        for size in options.sizes:
            race = Race(
                model=model, size=size, pythons=pythons, rounds=options.rounds, threads=options.threads,
                rows=options.rows, width=options.width,
            )  # fmt: skip
            runs, prepared = race.runs(say)
            verdicts = race.judged(runs, prepared)
            say.print(shown(race, runs, prepared))
            for v in verdicts:
                say.print(f"{model} {size}: {sentence(v)}: {'pass' if v.met else 'FAIL'}", highlight=False)
            results.append(as_json(race, runs, verdicts))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return int(not all(v["met"] for r in results for v in r["verdicts"]))


if __name__ == "__main__":
    sys.exit(main())

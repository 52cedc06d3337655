"""`make peers`: DeepFM, DCN-v2 and DIN here against deepctr-torch 0.3.0 and FuxiCTR 2.3.9: same rows, model and batch.

A peer trains in the epoch loop that it ships, with Adam and with Adagrad at the learning rates of their defaults; ours
runs its loader and `TrainStep` from rows in memory. Every run is a fresh process and runs take turns; each trains two
batches before its clock starts, then one epoch over the same rows. Round one runs everything, later rounds ours and
the faster optimizer of each peer. A pair has as many weights on both sides, or the race stops.

Learning rates: nobody is searched. A peer's optimizers keep the rates that it gives them; our tables keep that of
`TableConfig`, our dense weights take `LR`, above the default of `TrainStep` because an epoch is short: a choice in our
favour that the peers have not had. Where the better peer stays within `LEAST` of an AUC of one half, nobody is judged
to be as good.

Floor: both sides multiply the same matrices. The products of one of our steps over the rate of the fastest product of
this machine, measured in our process right after its clock stops, are seconds that no side can leave out, so the
peer's time over them is the largest ratio that can be reached.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, cast, get_args

from rich.console import Console
from rich.table import Table

from ctrbench.bench.alternate import Ratio, ratio
from ctrbench.bench.peers_data import Rows, Size, prepared_rows, write_arrays
from ctrbench.bench.peers_models import TABLES, Peer, Width, our_model
from ctrbench.bench.statistics import auc_standard_error
from ctrbench.datasets.prepared import Prepared

BATCH, WARMUP = 4096, 2 * 4096
MODELS: Mapping[str, tuple[Rows, tuple[Peer, ...]]] = {
    "deepfm": ("tabular", ("deepctr-torch",)),  # FuxiCTR's wheel has none
    "dcn_v2": ("tabular", ("deepctr-torch", "fuxictr")),
    "din": ("sequence", ("deepctr-torch", "fuxictr")),
}
OPTIMIZERS = ("adam", "adagrad")
LR = 4e-3
"""Of our dense weights' Adam: the epoch is 25 to 50 batches long, and at 1e-3 they hardly move."""
LEAST = 0.02
"""AUC above one half from which a training counts as one that learns."""
REQUIRED: Mapping[Size, float] = {"1.48m": 2.5, "5.2m": 8.0}
TRAIN_ROWS: Mapping[Size, int] = {"1.48m": 50 * BATCH, "5.2m": 25 * BATCH}
TEST_ROWS = 60_000
SAME_WEIGHTS = 1e-4
"""Share by which the weights of a pair may differ: deepctr-torch's Dice has an affine map that the paper's has not."""


@dataclass(frozen=True, slots=True)
class Side:
    """Who trains, against whom, with which optimizer of the tables."""

    who: str
    """`ctrbench` or the peer."""
    peer: Peer
    optimizer: str

    def __str__(self) -> str:
        return f"{self.who} {self.optimizer}" + (f" (as {self.peer})" if self.who == "ctrbench" else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One epoch of one side."""

    seconds: float
    rows: int
    auc: float
    weights: int
    floor_s: float = 0.0
    """Of ours: the products of the epoch at the rate of the fastest one; 0 where it was not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A pair, judged: the peer's time over ours at its faster optimizer, our AUC against the peer's better one."""

    peer: Peer
    optimizer: str
    speed: Ratio
    gap: float
    """Our AUC less the peer's better one, means over rounds."""
    standard_error: float
    met: bool
    best: float = 1.0
    """The peer's better AUC."""
    reachable: float = 0.0
    """Largest ratio that the products of the step allow; 0 where the floor was not measured."""


def sides(model: str) -> list[Side]:
    """All sides of a model's race; both peers' DIN is one model, so ours runs once."""
    _, peers = MODELS[model]
    pairs = peers[:1] if model == "din" else peers
    ours = [Side("ctrbench", p, o) for p in pairs for o in TABLES]
    return ours + [Side(p, p, o) for p in peers for o in OPTIMIZERS]


def our_side(model: str, peer: Peer) -> Side:
    """What is set against a peer."""
    return Side("ctrbench", MODELS[model][1][0] if model == "din" else peer, "fused")


def faster(runs: Mapping[Side, Sequence[Run]], peer: Peer) -> Side:
    """The peer's side that takes the fewest seconds."""
    return min((s for s in runs if s.who == peer), key=lambda s: median(r.seconds for r in runs[s]))


def verdict(
    model: str, peer: Peer, runs: Mapping[Side, Sequence[Run]], required: float, positives: int, negatives: int
) -> Verdict:
    """Met if ours is `required` times as fast, by the median over rounds, both learn, our AUC not below by two s.e.

    Args:
        runs: of every side, in the order of rounds.
        positives: test rows by label, as `negatives`.

    Raises:
        ValueError: the two sides do not have as many weights or rows.
    """
    ours, theirs = our_side(model, peer), faster(runs, peer)
    for mine, other in zip(runs[ours], runs[theirs], strict=True):
        if mine.rows != other.rows or abs(mine.weights - other.weights) > SAME_WEIGHTS * other.weights:
            raise ValueError(f"{model} is not the same on both sides: {ours} {mine}, {theirs} {other}")
    speed = ratio([r.seconds for r in runs[theirs]], [r.seconds for r in runs[ours]])
    best = max(fmean(r.auc for r in each) for s, each in runs.items() if s.who == peer)
    gap = fmean(r.auc for r in runs[ours]) - best
    error = auc_standard_error(best, positives, negatives)
    met = speed.value >= required and gap >= -2 * error and best >= 0.5 + LEAST
    floor = median(r.floor_s for r in runs[ours])
    reachable = median(r.seconds for r in runs[theirs]) / floor if floor else 0.0
    return Verdict(
        peer=peer, optimizer=theirs.optimizer, speed=speed, gap=gap, standard_error=error, met=met, best=best,
        reachable=reachable,
    )  # fmt: skip


def train_ours(
    prepared: Prepared, rows: int, model_name: str, peer: Peer, width: Width, optimizer: str, seed: int
) -> Run:
    """One epoch of our model over the most recent rows; seconds include the loader, from rows in memory."""
    from ctrbench.bench.proc import keep_freed_memory
    from ctrbench.bench.quality import auc
    from ctrbench.bench.step import TrainStep
    from ctrbench.bench.train import Budget, scores, seed_everything
    from ctrbench.datasets.loader import Loader
    from ctrbench.models.embedding import count_parameters

    keep_freed_memory()  # as every process of a suite
    seed_everything(seed)
    model = our_model(model_name, peer, TABLES[optimizer], prepared.schema, width)
    step = TrainStep(model, lr=LR)
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
    score, label, _ = scores(model, prepared, "test", budget, min(TEST_ROWS, prepared.rows("test")))
    return Run(
        seconds=seconds, rows=rows, auc=auc(label, score), weights=count_parameters(model),
        floor_s=rows / batch.size * products(step, batch) / rate,  # the step that it makes comes after the score
    )  # fmt: skip


def products(step: Callable[[Any], object], batch: object) -> float:
    """FLOPs of the matrix products of one step, which is made."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        step(batch)
    return float(counter.get_total_flops())


def gemm_rate() -> float:
    """FLOP/s of the fastest float32 product, at the present number of threads."""
    import torch

    from ctrbench.bench.targets.mfu import fastest_product

    _, flops, seconds = fastest_product(torch.float32)
    return flops / seconds


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

    def runs(self, say: Console) -> tuple[dict[Side, list[Run]], Prepared]:
        """Trains all sides in turn."""
        prepared = prepared_rows(MODELS[self.model][0], self.size)
        rows = min(self.rows or TRAIN_ROWS[self.size], prepared.rows("train"))
        order = [s for s in sides(self.model) if s.who == "ctrbench" or s.peer in self.pythons]
        done: dict[Side, list[Run]] = {s: [] for s in order}
        with tempfile.TemporaryDirectory() as folder:
            arrays = Path(folder) / "arrays.npz"
            write_arrays(prepared, rows, min(TEST_ROWS, prepared.rows("test")), arrays)
            for number in range(self.rounds):
                for side in order if number % 2 == 0 else order[::-1]:
                    body = _process(self._command(side, number, prepared, arrays, rows))
                    run = Run(**{k: body[k] for k in Run.__dataclass_fields__ if k in body})
                    done[side].append(run)
                    rate = run.rows / run.seconds
                    say.print(
                        f"{self.model} {self.width} {self.size} {number} {side}: {rate:,.0f} rows/s, AUC {run.auc:.4f}"
                    )
                if number == 0:
                    order = list(self.finalists(done))
        return done, prepared

    def finalists(self, done: Mapping[Side, Sequence[Run]]) -> Iterator[Side]:
        """Ours and the faster side of each peer, in the order of round one."""
        peers = [p for p in MODELS[self.model][1] if p in self.pythons]
        kept = {our_side(self.model, p) for p in peers} | {faster(done, p) for p in peers}
        return (s for s in done if s in kept)

    def _command(self, side: Side, number: int, prepared: Prepared, arrays: Path, rows: int) -> list[str]:
        common = ["--threads", str(self.threads), "--seed", str(number)]
        if side.who == "ctrbench":
            what = [str(prepared.path), str(rows), self.model, side.peer, self.width, side.optimizer]
            return [sys.executable, "-m", "ctrbench.bench.peers", "--ours", *what, *common]
        script = {"deepctr-torch": "peers_deepctr.py", "fuxictr": "peers_fuxictr.py"}[side.peer]
        # -P: the script's folder must not hide the standard library (bench/statistics.py)
        return [
            self.pythons[side.peer], "-P", str(Path(__file__).with_name(script)), str(arrays), "--model", self.model,
            "--width", self.width, "--optimizer", side.optimizer, "--batch", str(BATCH), "--warmup", str(WARMUP),
            *common,
        ]  # fmt: skip

    def judged(self, runs: Mapping[Side, Sequence[Run]], prepared: Prepared) -> list[Verdict]:
        """A verdict for every peer that raced."""
        last = prepared.frame("test", last=min(TEST_ROWS, prepared.rows("test")), columns=["label"])["label"]
        positives = int(last.sum())
        peers = [p for p in MODELS[self.model][1] if p in self.pythons]
        return [
            verdict(self.model, p, runs, REQUIRED[self.size], positives, len(last) - positives) for p in peers
        ]  # fmt: skip


def _process(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ... failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def shown(race: Race, runs: Mapping[Side, Sequence[Run]], prepared: Prepared) -> Table:
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


def sentence(v: Verdict) -> str:
    """A verdict in words."""
    return (
        f"{v.speed}x as fast as {v.peer} with {v.optimizer}, its faster; AUC {v.gap:+.4f} against its better one "
        f"of {v.best:.4f} (s.e. {v.standard_error:.4f})"
        + ("" if v.best >= 0.5 + LEAST else "; the peer does not learn")
        + (f"; the products of the step alone allow at most {v.reachable:.2g}x" if v.reachable else "")
    )


def as_json(race: Race, runs: Mapping[Side, Sequence[Run]], verdicts: Sequence[Verdict]) -> dict[str, Any]:
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
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--ours", nargs=6, metavar=("DIR", "ROWS", "MODEL", "PEER", "WIDTH", "TABLES"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.ours:
        import torch

        torch.set_num_threads(options.threads)
        folder, rows, model, peer, width, tables = options.ours
        pair = model, cast(Peer, peer), cast(Width, width)
        run = train_ours(Prepared.open(folder), int(rows), *pair, tables, options.seed)
        print(json.dumps(asdict(run)))
        return 0
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

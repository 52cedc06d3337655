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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
START: Mapping[str, float] = {"din": 0.3}
"""Standard deviation of the start of everybody's tables, where it is not everybody's own (.01 here, 1e-4 there): from
there the unit's products of target and event are nothing, and an epoch of twenty batches teaches nobody: AUC .50 to .53
on test rows, and .62 from .3 (ours, one seed)."""
OURS = "fused"
"""Optimizer of our tables."""
LR = 1e-3
"""Of our dense weights' Adam: the default of `TrainStep`."""
SCALES = (1.0, 4.0)
"""What a peer's rate is multiplied by. A quarter and 16 times were tried with DeepFM at 1.48 million table rows and are
worse with either optimizer (test AUC .47 to .74, where one of these two gave .76)."""
OUR_SCALES = tuple((t, d) for t in (0.5, 4.0) for d in (4.0, 16.0))
"""What our rates of tables and of dense weights are multiplied by, placed after a look at DeepFM at 5.2 million table
rows (three rates of each) and at DIN: few steps need high rates."""
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""glibc's environment that does to a peer what `keep_freed_memory` does to us."""
LEAST = 0.02
"""AUC above one half from which a training counts as one that learns."""
REQUIRED: Mapping[Size, float] = {"1.48m": 2.5, "5.2m": 8.0}
TRAIN_ROWS: Mapping[Rows, Mapping[Size, int]] = {
    "tabular": {"1.48m": 50 * BATCH, "5.2m": 25 * BATCH}, "sequence": {"1.48m": 20 * BATCH, "5.2m": 20 * BATCH},
}  # fmt: skip
TEST_ROWS, VALID_ROWS = 60_000, 30_000
SAME_WEIGHTS = 1e-4
"""Share by which the weights of a pair may differ: deepctr-torch's Dice has an affine map that the paper's has not."""


@dataclass(frozen=True, slots=True)
class Side:
    """Who trains, against whom, with which optimizer of the tables, at which learning rates."""

    who: str
    """`ctrbench` or the peer."""
    peer: Peer
    optimizer: str
    scale: float = 1.0
    """Of the default learning rate; of ours, that of the tables."""
    dense: float = 1.0
    """Of our dense weights' default learning rate."""
    kept: bool = False
    """A peer whose glibc keeps freed memory."""

    def __str__(self) -> str:
        rates = f"x{self.scale:g}" + (f" x{self.dense:g}" if self.who == "ctrbench" else "")
        notes = [f"as {self.peer}"] * (self.who == "ctrbench") + ["freed memory kept"] * self.kept
        return f"{self.who} {self.optimizer} {rates}" + (f" ({', '.join(notes)})" if notes else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One epoch of one side."""

    seconds: float
    rows: int
    valid_auc: float
    auc: float
    """On test rows."""
    weights: int
    floor_s: float = 0.0
    """Of ours: the products of the epoch at the rate of the fastest one; 0 where it was not measured."""


Runs = Mapping[Side, Sequence[Run]]
"""Of a side: its run in the search, then its rounds."""


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
    ours: Side
    better: Side
    """The peer's side whose AUC counts."""
    best: float
    """Its AUC."""
    kept: float = 0.0
    """The peer's time over ours where it keeps freed memory as we do; 0 where that was not run."""
    reachable: float = 0.0
    """Largest ratio that the products of the step allow; 0 where the floor was not measured."""


def sides(model: str, searching: bool = True) -> list[Side]:
    """All sides of a model's search, or one of each optimizer; both peers' DIN is one model, so ours runs once."""
    _, peers = MODELS[model]
    pairs = peers[:1] if model == "din" else peers
    scales, our_scales = (SCALES, OUR_SCALES) if searching else (SCALES[:1], OUR_SCALES[:1])
    ours = [Side("ctrbench", p, OURS, t, d) for p in pairs for t, d in our_scales]
    return ours + [Side(p, p, o, s) for p in peers for o in OPTIMIZERS for s in scales]


def searched(runs: Runs, who: str, peer: Peer, optimizer: str) -> Side:
    """The learning rate that validation rows pick."""
    of = [s for s in runs if (s.who, s.peer, s.optimizer, s.kept) == (who, peer, optimizer, False)]
    return max(of, key=lambda s: runs[s][0].valid_auc)


def ours_as(model: str, peer: Peer) -> Peer:
    """The peer under whose name our side of a pair runs."""
    return MODELS[model][1][0] if model == "din" else peer


def our_side(model: str, peer: Peer, runs: Runs) -> Side:
    """What is set against a peer."""
    return searched(runs, "ctrbench", ours_as(model, peer), OURS)


def matched_side(model: str, peer: Peer, runs: Runs, optimizer: str) -> Side:
    """Ours with the peer's optimizer on the tables, at the scale that the peer's search picked."""
    scale = searched(runs, peer, peer, optimizer).scale
    return replace(our_side(model, peer, runs), optimizer=optimizer, scale=scale)


def faster(runs: Runs, peer: Peer) -> Side:
    """The peer's side that takes the fewest seconds, by its rounds; before them by the search, at any learning rate."""
    ran = [s for s in runs if s.who == peer and not s.kept and len(runs[s]) > 1]
    if ran:
        return min(ran, key=lambda s: median(r.seconds for r in runs[s][1:]))

    def seconds(optimizer: str) -> float:
        of = [s for s in runs if (s.who, s.optimizer, s.kept) == (peer, optimizer, False)]
        return median(r.seconds for s in of for r in runs[s])

    return searched(runs, peer, peer, min(OPTIMIZERS, key=seconds))


def better(runs: Runs, peer: Peer) -> Side:
    """The peer's side of the highest AUC on validation rows, in the search."""
    return max((searched(runs, peer, peer, o) for o in OPTIMIZERS), key=lambda s: runs[s][0].valid_auc)


def finalists(model: str, runs: Runs, peers: Sequence[Peer]) -> list[Side]:
    """Ours, the faster and the better side of each peer, in the order of the search."""
    kept = {our_side(model, p, runs) for p in peers} | {of(runs, p) for p in peers for of in (faster, better)}
    return [s for s in runs if s in kept]


def verdict(model: str, peer: Peer, runs: Runs, required: float, positives: int, negatives: int) -> Verdict:
    """Met if ours is `required` times as fast, by the median over rounds, both learn, our AUC not below by two s.e.

    Args:
        runs: of every side, the search first, then the rounds in order.
        positives: test rows by label, as `negatives`.

    Raises:
        ValueError: the two sides do not have as many weights or rows.
    """
    ours, theirs, good = our_side(model, peer, runs), faster(runs, peer), better(runs, peer)
    mine, others = runs[ours][1:], runs[theirs][1:]
    for one, other in zip(mine, others, strict=True):
        if one.rows != other.rows or abs(one.weights - other.weights) > SAME_WEIGHTS * other.weights:
            raise ValueError(f"{model} is not the same on both sides: {ours} {one}, {theirs} {other}")
    speed = ratio([r.seconds for r in others], [r.seconds for r in mine])
    best = fmean(r.auc for r in runs[good][1:])
    gap = fmean(r.auc for r in mine) - best
    error = auc_standard_error(best, positives, negatives)
    met = speed.value >= required and gap >= -2 * error and best >= 0.5 + LEAST
    floor = median(r.floor_s for r in mine)
    kept = [r.seconds for s, each in runs.items() if s.who == peer and s.kept for r in each]
    return Verdict(
        peer=peer, optimizer=theirs.optimizer, speed=speed, gap=gap, standard_error=error, met=met, ours=ours,
        better=good, best=best, reachable=median(r.seconds for r in others) / floor if floor else 0.0,
        kept=min(kept) / median(r.seconds for r in mine) if kept else 0.0,
    )  # fmt: skip


def train_ours(
    prepared: Prepared,
    rows: int,
    model_name: str,
    peer: Peer,
    width: Width,
    optimizer: str,
    scale: float,
    dense: float,
    seed: int,
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
    tables = TABLES[optimizer]
    tables = replace(tables, lr=tables.lr * scale, init_std=START.get(model_name, tables.init_std))
    model = our_model(model_name, peer, tables, prepared.schema, width)
    step = TrainStep(model, lr=LR * dense)
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
        common = ["--threads", str(self.threads), "--seed", str(number), "--scale", str(side.scale)]
        if side.who == "ctrbench":
            what = [str(prepared.path), str(rows), self.model, side.peer, self.width, side.optimizer]
            dense = ["--dense", str(side.dense)]
            return [sys.executable, "-m", "ctrbench.bench.peers", "--ours", *what, *dense, *common]
        script = {"deepctr-torch": "peers_deepctr.py", "fuxictr": "peers_fuxictr.py"}[side.peer]
        # -P: the script's folder must not hide the standard library (bench/statistics.py)
        return [
            self.pythons[side.peer], "-P", str(Path(__file__).with_name(script)), str(arrays), "--model", self.model,
            *(["--start", str(START[self.model])] if self.model in START else []),
            "--width", self.width, "--optimizer", side.optimizer, "--batch", str(BATCH), "--warmup", str(WARMUP),
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


def sentence(v: Verdict) -> str:
    """A verdict in words."""
    return (
        f"{v.speed}x as fast as {v.peer} with {v.optimizer}, its faster; AUC {v.gap:+.4f} against {v.best:.4f} of its "
        f"better one ({v.better.optimizer} at {v.better.scale:g}x its learning rate, ours at {v.ours.scale:g}x of the "
        f"tables' and {v.ours.dense:g}x of the dense weights'; "
        f"s.e. {v.standard_error:.4f})"
        + ("" if v.best >= 0.5 + LEAST else "; the peer does not learn")
        + (f"; {v.kept:.2g}x where it keeps freed memory as we do" if v.kept else "")
        + (f"; the products of the step alone allow at most {v.reachable:.2g}x" if v.reachable else "")
    )


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
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=float, default=1.0, help=argparse.SUPPRESS)
    parser.add_argument("--dense", type=float, default=1.0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--ours", nargs=6, metavar=("DIR", "ROWS", "MODEL", "PEER", "WIDTH", "TABLES"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.ours:
        import torch

        torch.set_num_threads(options.threads)
        folder, rows, model, peer, width, tables = options.ours
        pair = model, cast(Peer, peer), cast(Width, width)
        run = train_ours(Prepared.open(folder), int(rows), *pair, tables, options.scale, options.dense, options.seed)
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

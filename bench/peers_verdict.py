"""Who races whom in `bench.peers`, which runs are kept, and what a pair comes to. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from ctrbench.bench.alternate import Ratio, ratio
from ctrbench.bench.peers_data import Rows, Size
from ctrbench.bench.peers_models import Peer
from ctrbench.bench.statistics import auc_standard_error

MODELS: Mapping[str, tuple[Rows, tuple[Peer, ...]]] = {
    "deepfm": ("tabular", ("deepctr-torch",)),  # FuxiCTR's wheel has none
    "dcn_v2": ("tabular", ("deepctr-torch", "fuxictr")),
    "din": ("sequence", ("deepctr-torch", "fuxictr")),
}
OPTIMIZERS = ("adam", "adagrad")
OURS = "fused"
"""Optimizer of our tables."""
SCALES = (1.0, 4.0)
"""What a peer's rate is multiplied by. A quarter and 16 times were tried with DeepFM at 1.48 million table rows and are
worse with either optimizer (test AUC .47 to .74, where one of these two gave .76)."""
OUR_SCALES = tuple((t, d) for t in (0.5, 4.0) for d in (4.0, 16.0))
"""What our rates of tables and of dense weights are multiplied by, placed after a look at DeepFM at 5.2 million table
rows (three rates of each) and at DIN: few steps need high rates."""
LEAST = 0.02
"""AUC above one half from which a training counts as one that learns."""
REQUIRED: Mapping[Size, float] = {"1.48m": 2.5, "5.2m": 8.0}
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
class Verdict:  # figures with a word on each, like train.Budget in form alone
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


def sentence(v: Verdict) -> str:
    """A verdict in words."""
    return (
        f"{v.speed}x as fast as {v.peer} with {v.optimizer}, its faster; AUC {v.gap:+.4f} against {v.best:.4f} of its "
        f"better one ({v.better.optimizer} at {v.better.scale:g}x its learning rate, ours at {v.ours.scale:g}x of the "
        f"tables' and {v.ours.dense:g}x of the dense weights'; "
        f"s.e. {v.standard_error:.4f})"
        + ("" if v.best >= 0.5 + LEAST else "; the peer does not learn")
        + (f"; {v.kept:.2g}x where it keeps freed memory as we do (one run of its faster side)" if v.kept else "")
        + (f"; the products of the step alone allow at most {v.reachable:.2g}x" if v.reachable else "")
    )

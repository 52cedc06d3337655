"""Training throughput against deepctr-torch and FuxiCTR (bench/peers.py): every table size and peer, a group a model.

The peers live in environments of their own, which `make peers-setup` makes; without one its rows are not testable.
Beside each verdict: ours with the peer's optimizer on the tables.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

from rich.console import Console

from ctrbench.bench.peers import TRAIN_ROWS, Race
from ctrbench.bench.peers_data import Size
from ctrbench.bench.peers_models import Peer
from ctrbench.bench.peers_ours import BATCH
from ctrbench.bench.peers_verdict import (
    MODELS,
    OPTIMIZERS,
    REQUIRED,
    Runs,
    Verdict,
    matched_side,
    searched,
    sentence,
)
from ctrbench.bench.targets.outcome import Outcome

PYTHONS: Mapping[Peer, Path] = {
    "deepctr-torch": Path(".venv-peers/bin/python"), "fuxictr": Path(".venv-peers-fuxictr/bin/python"),
}  # fmt: skip
IMPORTED: Mapping[Peer, str] = {"deepctr-torch": "deepctr_torch", "fuxictr": "fuxictr"}


def why_not(peer: Peer) -> str:
    """Why a peer cannot be run here; empty if it can."""
    python = PYTHONS[peer]
    if not python.is_file():
        return f"{python} is not there: `make peers-setup` makes it, from a package index"
    done = subprocess.run([python, "-c", f"import {IMPORTED[peer]}"], capture_output=True, text=True)
    return f"{python} does not import it: {done.stderr.strip().splitlines()[-1]}" if done.returncode else ""


def target(model: str, size: Size, peer: Peer) -> str:
    """Name of a row."""
    return f"training throughput, {model}, {size} table rows: ctrbench / {peer}"


def wanted(size: Size) -> str:
    """What a row asks."""
    return f">= {REQUIRED[size]:g}x, AUC not worse"


def outcome(model: str, size: Size, v: Verdict) -> Outcome:
    """A judged pair as a row."""
    fast = v.speed.value >= REQUIRED[size]
    low = "; fast enough, but its AUC is lower" if fast and v.gap < -2 * v.standard_error else ""
    if 0 < v.reachable < REQUIRED[size]:
        low += f"; {REQUIRED[size]:g}x is out of reach: both sides make the same products"
    return Outcome(
        group=f"peers-{model}", target=target(model, size, v.peer), wanted=wanted(size),
        measured=f"{v.speed.value:.3g}x [{v.speed.low:.3g}, {v.speed.high:.3g}], AUC {v.gap:+.4f}",
        verdict="met" if v.met else "missed",
        how=f"{v.speed.rounds} rounds of fresh processes by turns, batch {BATCH}, "
        f"{TRAIN_ROWS[MODELS[model][0]][size]:,} rows after two batches of warm-up, 2 threads, four candidates "
        f"of learning rates for every side; {sentence(v)}{low}",
    )  # fmt: skip


def matched(model: str, size: Size, peer: Peer, runs: Runs) -> Iterator[Outcome]:
    """Ours with each of the peer's optimizers on the tables, against the peer with it."""
    for optimizer in OPTIMIZERS:
        theirs, ours = searched(runs, peer, peer, optimizer), matched_side(model, peer, runs, optimizer)
        one, other = runs[ours][0], runs[theirs][0]
        yield Outcome(
            group=f"peers-{model}", target=f"{target(model, size, peer)}, both {optimizer}", wanted="",
            measured=f"{other.seconds / one.seconds:.3g}x, AUC {one.auc - other.auc:+.4f}", verdict="context",
            how=f"one run of each at {theirs.scale:g}x the default learning rate, which the peer's search picked; the "
            f"tables' optimizer is the peer's, our dense weights take Adam as always, at {ours.dense:g}x",
        )  # fmt: skip


def outcomes(model: str) -> Iterator[Outcome]:
    """Every pair of a model that can be run here, the others with the reason."""
    peers = MODELS[model][1]
    reasons = {p: why_not(p) for p in peers}
    pythons = {p: str(PYTHONS[p]) for p in peers if not reasons[p]}
    for size in get_args(Size):
        for peer in (p for p in peers if reasons[p]):
            yield Outcome(
                group=f"peers-{model}", target=target(model, size, peer), wanted=wanted(size), measured="",
                verdict="not testable here", how=reasons[peer],
            )  # fmt: skip
        if not pythons:
            continue
        race = Race(model=model, size=size, pythons=pythons)
        runs, prepared = race.runs(Console())
        for v in race.judged(runs, prepared):
            yield outcome(model, size, v)
            yield from matched(model, size, v.peer, runs)

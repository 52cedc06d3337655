"""pytest-benchmark: our training against deepctr-torch's and FuxiCTR's, in small; `make bench-targets` judges them.

Skipped, with the reason, where the peer's environment (`make peers-setup`) is not there. A race is fresh processes by
turns; pytest-benchmark's own time is the whole race, what it found is in `extra_info`. CTRBENCH_PEER_BATCHES makes the
epoch longer.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from statistics import median

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from rich.console import Console

from ctrbench.bench.hardware import this_machine
from ctrbench.bench.peers import Race
from ctrbench.bench.peers_models import Peer
from ctrbench.bench.peers_ours import BATCH
from ctrbench.bench.peers_verdict import MODELS
from ctrbench.bench.suites.kernel_counts import entry
from ctrbench.bench.targets.peers import PYTHONS, why_not

BATCHES = int(os.environ.get("CTRBENCH_PEER_BATCHES", "12"))
PAIRS = [(model, peer) for model, (_, peers) in MODELS.items() for peer in peers]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("model", "peer"), PAIRS, ids=[f"{m}-{p}" for m, p in PAIRS])
def test_race(benchmark: BenchmarkFixture, model: str, peer: Peer) -> None:
    if reason := why_not(peer):
        pytest.skip(f"PEER NOT TIMED: {reason}")
    benchmark.group, benchmark.name = f"training against peers: {model}", f"race[{model}-{peer}]"
    pythons = {peer: str(PYTHONS[peer])}
    race = Race(model=model, size="1.48m", pythons=pythons, rounds=1, rows=BATCHES * BATCH, searching=False)
    runs, _ = benchmark.pedantic(race.runs, args=(Console(),), rounds=1)
    for side, each in runs.items():
        rate = median(r.rows / r.seconds for r in each)
        benchmark.extra_info[f"rows_per_s {side}"] = entry(rate, "rows/s", "measured", auc=each[0].auc)
    benchmark.extra_info |= {"runs": [{**asdict(s), **asdict(r)} for s, each in runs.items() for r in each],
                             "machine": this_machine()}  # fmt: skip
    assert {s.who for s in runs} == {"ctrbench", peer}

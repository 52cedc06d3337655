"""The rate within a budget on a virtual clock, where a trial on the real one would take too long.

Dims: N requests
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctrbench.bench.serving.capacity import Capacity, qps_at
from ctrbench.bench.serving.load import Limits, Run

PLANNED = 10_000
"""Requests of a trial; they cost no time."""


@dataclass
class _Clock:
    time: float = 0.0

    def now(self) -> float:
        return self.time

    def wait(self, until: float) -> None:
        self.time = max(self.time, until)


def replayed(alone: Run, budget_s: float, seed: int = 0) -> Capacity:
    """`qps_at` for a server that takes one request at a time, each as long as one of those that were served alone.

    Service times are drawn from the measured ones with replacement, so that their order says nothing: an M/G/1 queue of
    the measured G. Batches, which could only help, are left out: how long they take was not measured.

    Args:
        alone: requests served one after the other.
        budget_s: of the p99.
        seed: of service times and arrivals.
    """
    clock, rng = _Clock(), np.random.default_rng(seed)
    service_N = alone.latency_N

    def serve(batch: Sequence[int]) -> None:
        clock.time += float(rng.choice(service_N, len(batch)).sum())

    mean = float(service_N.mean())
    full = Run(latency_N=service_N, sent=len(service_N), seconds=mean * len(service_N), batches=len(service_N))
    return qps_at(
        serve, range, Limits(budget_s=budget_s), alone=alone, full=full, planned=PLANNED, limit_s=float("inf"),
        seed=seed, clock=clock,
    )  # fmt: skip

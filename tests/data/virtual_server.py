"""A clock that stands still but for waiting and serving, and a server whose service times are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ctrbench.bench.serving.load import Serve


@dataclass
class VirtualClock:
    """Time that costs none."""

    time: float = 0.0

    def now(self) -> float:
        return self.time

    def wait(self, until: float) -> None:
        assert until < float("inf"), "waits for nothing"
        self.time = max(self.time, until)


@dataclass
class VirtualServer:
    """Serves a batch in `service(batch)` seconds of its clock."""

    service: Callable[[Sequence[int]], float]
    clock: VirtualClock = field(default_factory=VirtualClock)
    begun: list[tuple[float, float, list[int]]] = field(default_factory=list)
    """(begin, end, requests) of every batch."""

    def __call__(self, batch: Sequence[int]) -> None:
        begin = self.clock.now()
        self.clock.time += self.service(batch)
        self.begun.append((begin, self.clock.now(), list(batch)))


def constant(seconds: float) -> VirtualServer:
    """Every batch takes as long."""
    return VirtualServer(lambda batch: seconds)


def closed_loop(serve: Serve[int], arrivals: Sequence[float], clock: VirtualClock) -> list[float]:
    """The mistake: waits for each answer before sending the next, and counts from when it sent."""
    out = []
    for i, due in enumerate(arrivals):
        clock.wait(due)
        sent = clock.now()
        serve([i])
        out.append(clock.now() - sent)
    return out

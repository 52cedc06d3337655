"""How much a server bears: the highest rate at a p99 budget, and what it does at several times that."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import psutil

from ctrbench.bench.serving.load import (
    WALL,
    Admit,
    Clock,
    Limits,
    Run,
    Serve,
    offline,
    poisson_arrivals,
    server,
    single_stream,
)
from ctrbench.bench.statistics import P99_STEPS

T = TypeVar("T")
Stream = Callable[[int], Sequence[T]]
"""n -> that many requests, made before; e.g. `Traffic.stream`."""

BUDGETS = 40
"""A trial lasts at least this many budgets: in a shorter one a queue has no time to grow beyond the budget, and a rate
that no server could keep up with passes."""
LOWEST = 1 / 64
"""Share of the offline rate below which no rate is tried."""
TRIES = 2
"""Trials of a rate that must fail."""
WATCH_S = 0.05
"""Seconds between two looks at the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One rate tried."""

    rate: float
    planned: int
    answered: int
    """Fewer than planned where the trial was ended because too many were late."""
    late: int
    p99: float | None
    """Seconds; None where the trial was ended early."""
    passed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What `qps_at` found."""

    rate: float | None
    """Requests a second; None where none was found."""
    upper: float
    """Lowest rate that failed, or the offline rate, beyond which none is tried."""
    budget_s: float
    best_p99: float | None
    """Seconds, of requests served alone; None under 1,000 of them."""
    offline_rate: float
    trials: tuple[Trial, ...]
    limit_s: float
    """Wall-clock limit that the search was given."""
    seconds: float
    """It took."""
    reason: str
    """Why there is no rate, or why the search ended before its tolerance; empty: neither."""


def qps_at(
    serve: Serve[T], stream: Stream[T], limits: Limits, *, alone: Run | None = None, full: Run | None = None,
    planned: int = P99_STEPS, tolerance: float = 0.05, limit_s: float = 60.0, seed: int = 0, clock: Clock = WALL,
) -> Capacity:  # fmt: skip
    """Highest rate of Poisson arrivals whose p99, from the scheduled arrival, is within the budget; by bisection.

    A trial refuses nothing, and is ended once more than 1 % of its planned requests were late, which decides it. A rate
    has failed when `TRIES` trials did, as one pause of the machine decides one. All trials stretch the same draws: a
    higher rate is never luckier, and a second trial differs in what the machine did and in nothing else. With
    `planned` arrivals the rate of a trial is itself known to 1 / sqrt(planned), 3 % for 1,000.

    Args:
        serve: answers a batch.
        stream: gives the requests.
        limits: budget and batching; its bound of the queue and its refusals do not apply.
        alone: requests served one by one (`single_stream`); measured here if not given.
        full: offline run at `max_batch`, whose rate is the upper end; measured here if not given.
        planned: requests of a trial at least; a trial also lasts `BUDGETS` budgets.
        tolerance: the search ends when the lowest failed rate is within this share of the highest that passed.
        limit_s: wall clock of the whole search; no trial is begun that would end later. Requests alone, measured here,
            take half of it at most, the offline run a quarter.
        seed: of the arrivals.
        clock: whose time it is.

    Raises:
        ValueError: fewer planned than a p99 needs.
    """
    if planned < P99_STEPS:
        raise ValueError(f"planned={planned}: a p99 needs {P99_STEPS} requests")
    start = clock.now()
    alone = alone or single_stream(serve, stream(planned), limit_s=limit_s / 2, clock=clock)
    full = full or offline(serve, stream(planned), limits.max_batch, limit_s=limit_s / 4, clock=clock)
    search = _Search(serve, stream, limits, planned, seed, clock)
    reason, low, high = _hopeless(alone, limits.budget_s), 0.0, full.rate
    while not reason and high - low > tolerance * low:
        rate = (low + high) / 2
        if rate < LOWEST * full.rate:
            reason = f"p99 is above the budget at {high:.4g} requests/s, near {LOWEST:.3g} of the offline rate"
        elif (passed := search.passes(rate, start + limit_s)) is None:
            reason = f"a trial of {rate:.4g} requests/s would have ended after the limit of {limit_s:g} s"
        else:
            low, high = (rate, high) if passed else (low, rate)
    return Capacity(
        rate=low or None, upper=high, budget_s=limits.budget_s, best_p99=alone.percentiles.get("p99"),
        offline_rate=full.rate, trials=tuple(search.trials), limit_s=limit_s, seconds=clock.now() - start,
        reason=reason,
    )  # fmt: skip


def _hopeless(alone: Run, budget_s: float) -> str:
    """Why no rate can do it, or an empty string: a request that never waits is late already."""
    late = int((alone.latency_N > budget_s).sum())
    if late <= max(alone.sent, P99_STEPS) // 100:
        return ""
    return f"served alone, {late} of {alone.sent} requests take longer than the budget of {budget_s * 1e3:g} ms"


class _Search(Generic[T]):
    """Trials of rates on one server."""

    def __init__(
        self, serve: Serve[T], stream: Stream[T], limits: Limits, planned: int, seed: int, clock: Clock
    ) -> None:
        self.serve, self.stream, self.clock, self.seed = serve, stream, clock, seed
        self.limits, self.planned = limits, planned
        self.trials: list[Trial] = []

    def passes(self, rate: float, end: float) -> bool | None:
        """Tries until one trial passes or enough have failed; None if the next would end after `end` of the clock."""
        n = max(self.planned, math.ceil(rate * BUDGETS * self.limits.budget_s))
        for _ in range(TRIES):
            if self.clock.now() + n / rate > end:
                return None
            if self._try(rate, n):
                return True
        return False

    def _try(self, rate: float, n: int) -> bool:
        limits = replace(self.limits, max_queue=max(n, self.limits.max_queue), refuse_late=False)
        run = server(
            self.serve, poisson_arrivals(rate, n, self.seed), self.stream(n), limits, clock=self.clock,
            late_allowed=n // 100,
        )  # fmt: skip
        p99 = None if run.stopped else run.percentiles["p99"]
        passed = p99 is not None and p99 <= limits.budget_s
        self.trials.append(Trial(rate=rate, planned=n, answered=run.answered, late=run.late, p99=p99, passed=passed))
        return passed


@dataclass(frozen=True, kw_only=True, slots=True)
class Overload:
    """What `overload` saw."""

    rate: float
    """Requests a second that were sent."""
    sent: int
    answered: int
    refused: Mapping[str, int]
    """Reason -> requests."""
    p99: float | None
    """Seconds, of the answered; None under 1,000 of them."""
    budget_s: float
    longest_queue: int
    rss_growth: int
    """Bytes by which the resident set was at most larger than before."""
    seconds: float

    @property
    def refused_share(self) -> float:
        """Refused / sent."""
        return sum(self.refused.values()) / self.sent

    @property
    def accounted(self) -> bool:
        """Every request was answered or counted as refused."""
        return self.answered + sum(self.refused.values()) == self.sent


def overload(
    serve: Serve[T], stream: Stream[T], capacity: float, seconds: float, limits: Limits, *, factor: float = 3.0,
    admit: Admit[T] | None = None, seed: int = 0, clock: Clock = WALL,
) -> Overload:  # fmt: skip
    """Several times the rate that the server bears, for some time, under its limits.

    What is begun had waited no longer than the budget, so the answered stay within twice the budget wherever a batch
    takes no longer than one.

    Args:
        serve: answers a batch.
        stream: gives the requests.
        capacity: requests a second that it bears, e.g. its offline rate.
        seconds: of arrivals; the queue that is left is served after them.
        limits: under which requests are refused.
        factor: rate sent / capacity.
        admit: looks at each request before it is served.
        seed: of the arrivals.
        clock: whose time it is.
    """
    rate = factor * capacity
    n = max(1, round(rate * seconds))
    arrivals, requests = poisson_arrivals(rate, n, seed), stream(n)
    memory = _Memory(serve, clock)
    run = server(memory, arrivals, requests, limits, clock=clock, admit=admit)
    return Overload(
        rate=rate, sent=n, answered=run.answered, refused=run.refused, p99=run.percentiles.get("p99"),
        budget_s=limits.budget_s, longest_queue=run.longest_queue, rss_growth=memory.growth, seconds=run.seconds,
    )  # fmt: skip


class _Memory(Generic[T]):
    """Serves, and looks at the resident set of this process now and then."""

    def __init__(self, serve: Serve[T], clock: Clock) -> None:
        self.serve, self.clock, self.process = serve, clock, psutil.Process()
        self.before, self.growth, self.next = self.process.memory_info().rss, 0, -math.inf

    def __call__(self, batch: Sequence[T]) -> None:
        self.serve(batch)
        if (now := self.clock.now()) >= self.next:
            self.growth = max(self.growth, self.process.memory_info().rss - self.before)
            self.next = now + WATCH_S

"""Load on a model in this process: MLPerf's single-stream, offline and server scenarios.

A server has one worker and first-come-first-served order. The loop is one thread: what arrives while a batch is being
served is taken in when it ends, at the times scheduled ahead, which gives the queue that a second thread would have
made. A latency runs from the scheduled arrival, so a stalled server makes everything late that was due meanwhile.

Dims: N requests
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from ctrbench.bench.serving.intake import combine
from ctrbench.bench.statistics import P99_STEPS
from ctrbench.models.requests import Requests
from ctrbench.models.serving import ServingForm
from ctrbench.models.serving import serve as scores_of

T = TypeVar("T")
Serve = Callable[[Sequence[T]], object]
"""Answers a batch of requests; returns when they are answered."""
Admit = Callable[[T], tuple[T, str]]
"""The request as it may be served, and why it may not, or an empty string."""

QUEUE_FULL, TOO_LATE = "queue full", "budget spent"
P999_REQUESTS = 10_000
"""Requests from which on a p99.9 is told."""


class Clock(Protocol):
    """Time, so that tests need none."""

    def now(self) -> float:
        """Seconds."""
        ...

    def wait(self, until: float) -> None:
        """Returns when `now()` is at least `until`."""
        ...


class WallClock:
    """The machine's own."""

    SPIN = 2e-4
    """Seconds before the end from which on it looks instead of sleeping: sleeps end late."""

    def now(self) -> float:
        """Seconds of `time.perf_counter`."""
        return time.perf_counter()

    def wait(self, until: float) -> None:
        """Sleeps, then looks."""
        if (left := until - self.now() - self.SPIN) > 0:
            time.sleep(left)
        while self.now() < until:
            pass


WALL = WallClock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How a server takes requests in and puts them together."""

    budget_s: float
    """Latency from the scheduled arrival within which a request is on time."""
    max_batch: int = 1
    max_wait_s: float = 0.0
    """A smaller batch starts when its oldest request has waited this long."""
    max_queue: int = 1024
    """Requests that may wait; more are refused."""
    least_s: float = 0.0
    """No request is answered faster; one that has less left of its budget is refused."""
    refuse_late: bool = True
    """Refuse what cannot be on time any more when its turn comes."""

    def __post_init__(self) -> None:
        if not (0 <= self.max_wait_s < self.budget_s and 1 <= self.max_batch <= self.max_queue):
            raise ValueError(f"{self}: needs 0 <= max_wait_s < budget_s and 1 <= max_batch <= max_queue")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one scenario measured."""

    latency_N: np.ndarray
    """Seconds of the answered requests, in the order of their arrivals."""
    sent: int
    """Answered and refused."""
    seconds: float
    """From the start until the last answer."""
    batches: int
    refused: Mapping[str, int] = field(default_factory=dict)
    """Reason -> requests."""
    longest_queue: int = 0
    late: int = 0
    """Requests answered after their budget."""
    stopped: bool = False
    """More were late than allowed: what was scheduled after that was never sent."""

    @property
    def answered(self) -> int:
        """Requests."""
        return len(self.latency_N)

    @property
    def rate(self) -> float:
        """Answered requests a second."""
        return self.answered / self.seconds

    @property
    def percentiles(self) -> dict[str, float]:
        """See `latency_percentiles`."""
        return latency_percentiles(self.latency_N)


def latency_percentiles(seconds: Sequence[float] | np.ndarray) -> dict[str, float]:
    """p50 and p90, p99 from 1,000 requests on, p99.9 from 10,000; by linear interpolation. Empty without a request."""
    n = len(seconds)
    ranks = {"p50": 50.0, "p90": 90.0}
    ranks |= {"p99": 99.0} if n >= P99_STEPS else {}
    ranks |= {"p99.9": 99.9} if n >= P999_REQUESTS else {}
    return {k: float(np.percentile(seconds, q)) for k, q in ranks.items()} if n else {}


def server_of(form: ServingForm) -> Serve[Requests]:
    """A form of serving as what the scenarios load: the requests of a batch are put together within the time."""
    return lambda batch: scores_of(form, combine(batch))


def poisson_arrivals(rate: float, n: int, seed: int = 0) -> np.ndarray:
    """Scheduled arrivals [N], seconds from the start, of a Poisson process of `rate` requests a second.

    With one seed another rate stretches the same draws, so that rates are compared on the same bursts.

    Raises:
        ValueError: a rate that is not above 0 and finite.
    """
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"rate={rate}: arrivals need one above 0")
    arrival_N: np.ndarray = np.cumsum(np.random.default_rng(seed).standard_exponential(n)) / rate
    return arrival_N


def single_stream(serve: Serve[T], requests: Sequence[T], *, limit_s: float = math.inf, clock: Clock = WALL) -> Run:
    """One after another: the next request is sent when the last is answered; none after `limit_s` seconds.

    Raises:
        ValueError: no request.
    """
    start, ends = _back_to_back(serve, requests, 1, limit_s, clock)
    return Run(latency_N=np.diff(ends, prepend=start), sent=len(ends), seconds=ends[-1] - start, batches=len(ends))


def offline(
    serve: Serve[T], requests: Sequence[T], batch: int, *, limit_s: float = math.inf, clock: Clock = WALL
) -> Run:
    """All there at the start, served in batches; no batch is begun after `limit_s` seconds.

    The latencies are from the start: only the rate says something.

    Raises:
        ValueError: no request, or a batch of less than 1.
    """
    start, ends = _back_to_back(serve, requests, batch, limit_s, clock)
    latency_N = np.repeat(np.asarray(ends) - start, batch)[: len(requests)]
    return Run(latency_N=latency_N, sent=len(latency_N), seconds=ends[-1] - start, batches=len(ends))


def _back_to_back(
    serve: Serve[T], requests: Sequence[T], batch: int, limit_s: float, clock: Clock
) -> tuple[float, list[float]]:
    """The start, and when each batch was answered."""
    if not requests or batch < 1:
        raise ValueError(f"{len(requests)} requests in batches of {batch}: there must be at least one of each")
    start, ends = clock.now(), []
    for at in range(0, len(requests), batch):
        serve(requests[at : at + batch])
        ends.append(clock.now())
        if ends[-1] - start > limit_s:
            break
    return start, ends


def server(
    serve: Serve[T], arrivals: np.ndarray, requests: Sequence[T], limits: Limits, *, clock: Clock = WALL,
    admit: Admit[T] | None = None, late_allowed: int | None = None,
) -> Run:  # fmt: skip
    """Open loop: request i is due at `arrivals[i]` seconds from the start, whatever became of those before it.

    A batch starts when `max_batch` requests wait or the oldest has waited `max_wait_s`, and the server is free. Every
    request is answered, or refused and counted: on arrival where the queue is full; at its turn where it cannot be on
    time any more, or by `admit`. That is asked last, for the few that are served: a look at every arrival would leave
    an overloaded server no time to answer any.

    Args:
        serve: answers a batch.
        arrivals: ascending, [N].
        requests: N.
        limits: of the queue and the batches.
        clock: whose time it is.
        admit: looks at each request before it is served; see `intake.Intake`.
        late_allowed: ends the run once more than this many were answered late; None never does.

    Raises:
        ValueError: as many arrivals as requests are needed.
    """
    if len(arrivals) != len(requests):
        raise ValueError(f"{len(arrivals)} arrivals for {len(requests)} requests: one each is needed")
    start = clock.now()
    line, batches = _Line(requests, start + arrivals, limits, admit), 0
    while not line.stopped(late_allowed):
        now = clock.now()
        line.take_in(now)
        line.drop_late(now)
        if not line.open:
            break
        if (begin := line.begins()) > now:
            clock.wait(begin)
            continue
        at, batch = line.pull()
        if batch:
            serve(batch)
            line.answer(at, clock.now())
            batches += 1
    return Run(
        latency_N=line.latency_N[~np.isnan(line.latency_N)], sent=line.next - len(line.waiting),
        seconds=clock.now() - start, batches=batches, refused=dict(line.refused), longest_queue=line.longest,
        late=line.late, stopped=line.open,
    )  # fmt: skip


class _Line(Generic[T]):
    """Who waits, and what became of the others."""

    def __init__(self, requests: Sequence[T], due_N: np.ndarray, limits: Limits, admit: Admit[T] | None = None) -> None:
        self.requests, self.due, self.limits, self.admit = requests, due_N.tolist(), limits, admit
        self.latency_N = np.full(len(requests), np.nan)
        self.waiting: deque[int] = deque()
        self.refused: Counter[str] = Counter()
        self.next = self.longest = self.late = 0

    @property
    def open(self) -> bool:
        """Some request waits or is still to come."""
        return bool(self.waiting) or self.next < len(self.due)

    def stopped(self, late_allowed: int | None) -> bool:
        return late_allowed is not None and self.late > late_allowed

    def take_in(self, now: float) -> None:
        """All that is due by now: to the end of the queue, or refused."""
        while self.next < len(self.due) and self.due[self.next] <= now:
            if len(self.waiting) < self.limits.max_queue:
                self.waiting.append(self.next)
            else:
                self.refused[QUEUE_FULL] += 1
            self.next += 1
        self.longest = max(self.longest, len(self.waiting))

    def drop_late(self, now: float) -> None:
        """Refuses whoever cannot be on time any more; they stand at the head, first come being first served."""
        latest_due = now + self.limits.least_s - self.limits.budget_s
        while self.limits.refuse_late and self.waiting and self.due[self.waiting[0]] < latest_due:
            self.waiting.popleft()
            self.refused[TOO_LATE] += 1

    def begins(self) -> float:
        """When to begin the next batch, or to look again because another request is due."""
        coming = self.due[self.next] if self.next < len(self.due) else math.inf
        if len(self.waiting) >= self.limits.max_batch:
            return -math.inf
        return min(coming, self.due[self.waiting[0]] + self.limits.max_wait_s) if self.waiting else coming

    def pull(self) -> tuple[list[int], list[T]]:
        """Numbers and requests of the next batch; empty if none of those that wait may be served."""
        at: list[int] = []
        batch: list[T] = []
        while self.waiting and len(at) < self.limits.max_batch:
            i = self.waiting.popleft()
            request, reason = self.admit(self.requests[i]) if self.admit is not None else (self.requests[i], "")
            if reason:
                self.refused[reason] += 1
            else:
                at.append(i)
                batch.append(request)
        return at, batch

    def answer(self, at: Sequence[int], now: float) -> None:
        for i in at:
            self.latency_N[i] = now - self.due[i]
            self.late += int(now - self.due[i] > self.limits.budget_s)

"""Load on virtual servers, against theory and worked by hand; overload of a real model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from tests.data.virtual_server import VirtualClock, VirtualServer, closed_loop, constant

from ctrbench.bench import registry
from ctrbench.bench.serving import load
from ctrbench.bench.serving.capacity import Overload, overload, qps_at
from ctrbench.bench.serving.intake import NO_CANDIDATES, Intake
from ctrbench.bench.serving.load import (
    QUEUE_FULL,
    TOO_LATE,
    Limits,
    Run,
    latency_percentiles,
    offline,
    poisson_arrivals,
    server,
    server_of,
    single_stream,
)
from ctrbench.bench.serving.traffic import random_traffic
from ctrbench.datasets.random_batches import random_schema
from ctrbench.models.requests import Requests
from ctrbench.models.serving import REUSE, serving_forms

LONG = 1e9
"""A budget that nothing exceeds."""


def loaded(virtual: VirtualServer, arrivals: Sequence[float] | np.ndarray, **limits: float) -> Run:
    asked = Limits(**{"budget_s": LONG, "max_queue": 10**6, **limits})  # type: ignore[arg-type]
    return server(virtual, np.asarray(arrivals), range(len(arrivals)), asked, clock=virtual.clock)


def many(n: int) -> Sequence[int]:
    return range(n)


def test_single_stream_and_offline_by_hand() -> None:
    virtual = VirtualServer(lambda batch: 0.1 + 0.01 * len(batch))
    alone = single_stream(virtual, range(5), clock=virtual.clock)
    assert alone.latency_N == pytest.approx([0.11] * 5)
    assert alone.rate == pytest.approx(1 / 0.11)
    full = offline(virtual, range(10), 4, clock=virtual.clock)
    assert [len(b) for _, _, b in virtual.begun[5:]] == [4, 4, 2]
    assert full.seconds == pytest.approx(0.14 + 0.14 + 0.12)
    assert full.rate == pytest.approx(10 / 0.40)
    assert full.latency_N == pytest.approx([0.14] * 4 + [0.28] * 4 + [0.40] * 2)


def test_a_wall_clock_limit_ends_what_is_measured() -> None:
    virtual = constant(1.0)
    assert single_stream(virtual, range(100), limit_s=4.5, clock=virtual.clock).answered == 5
    assert offline(virtual, range(100), 8, limit_s=1.5, clock=virtual.clock).answered == 16


def test_even_arrivals_and_even_service() -> None:
    """D/D/1: no wait below saturation; above it each request waits (service - gap) longer than the one before."""
    assert loaded(constant(0.8), np.arange(50.0)).latency_N == pytest.approx([0.8] * 50)
    assert loaded(constant(1.5), np.arange(50.0)).latency_N == pytest.approx(1.5 + 0.5 * np.arange(50))


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_mean_wait_of_poisson_arrivals(rho: float) -> None:
    """M/D/1 (Pollaczek-Khinchine): mean wait = rho / (2 (1 - rho)) services; 4 standard errors by batch means."""
    run = loaded(constant(1.0), poisson_arrivals(rho, 70_000, seed=3))
    wait_PN = (run.latency_N - 1.0)[20_000:].reshape(50, -1)
    means_P = wait_PN.mean(axis=1)
    error = means_P.std(ddof=1) / math.sqrt(len(means_P))
    assert error < 0.05 * rho / (2 * (1 - rho))
    assert abs(means_P.mean() - rho / (2 * (1 - rho))) < 4 * error


def test_a_stall_makes_late_whatever_was_due_meanwhile() -> None:
    """1,500 requests 10 ms apart; one of them takes 1 s. All 100 due in that second wait for its end."""
    arrivals = np.arange(1500) * 0.01

    def stalls(batch: Sequence[int]) -> float:
        return 1.0 if 500 in batch else 0.001

    open_loop, naive = VirtualServer(stalls), VirtualServer(stalls)
    run = loaded(open_loop, arrivals, budget_s=0.05, refuse_late=False)
    assert run.late == pytest.approx(100 + 5, abs=3)
    assert run.percentiles["p99"] == pytest.approx(0.99, abs=0.15)
    told = closed_loop(naive, arrivals.tolist(), naive.clock)
    assert sum(s > 0.05 for s in told) == 1
    assert latency_percentiles(told)["p99"] == pytest.approx(0.001)


def test_the_planted_mistake_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that counts from the begin of the service makes the test of the stall fail."""

    def from_begin(self: load._Line[int], at: Sequence[int], now: float) -> None:
        self.latency_N[list(at)] = 0.001

    monkeypatch.setattr(load._Line, "answer", from_begin)
    with pytest.raises(AssertionError):
        test_a_stall_makes_late_whatever_was_due_meanwhile()


def test_batches_by_hand() -> None:
    """Three wait: full. Two have waited 1 s: begun. While the server was busy four came: three, then one."""
    virtual = constant(5.0)
    run = loaded(virtual, [0.0, 0.1, 0.2, 10.0, 10.5, 12, 13, 14, 15], max_batch=3, max_wait_s=1.0)
    assert [(t, b) for t, _, b in virtual.begun] == [
        (0.2, [0, 1, 2]), (11.0, [3, 4]), (16.0, [5, 6, 7]), (21.0, [8])
    ]  # fmt: skip
    assert run.latency_N == pytest.approx([5.2, 5.1, 5.0, 6.0, 5.5, 9, 8, 7, 11])
    assert (run.batches, run.longest_queue) == (4, 4)


def test_refusals_by_hand() -> None:
    """A service of 4 s, a budget of 5 s, two places: 0 is served 0-4; 1 and 2 wait, 3 finds no place; 1 is served 4-8;
    at 8 request 2 has waited 6 s."""
    virtual = constant(4.0)
    run = loaded(virtual, [0.0, 1, 2, 3, 9], budget_s=5.0, max_queue=2)
    assert [b for _, _, b in virtual.begun] == [[0], [1], [4]]
    assert run.refused == {QUEUE_FULL: 1, TOO_LATE: 1}
    assert (run.sent, run.answered, run.late) == (5, 3, 1)
    known = loaded(virtual := constant(4.0), [0.0, 1, 2, 3, 9], budget_s=5.0, max_queue=2, least_s=4.0)
    assert [b for _, _, b in virtual.begun] == [[0], [4]], "1 would have ended after its budget: not begun"
    assert known.late == 0


@pytest.mark.parametrize(
    ("n", "told"),
    [(0, []), (1, ["p50", "p90"]), (999, ["p50", "p90"]), (1000, ["p50", "p90", "p99"]),
     (9_999, ["p50", "p90", "p99"]), (10_000, ["p50", "p90", "p99", "p99.9"])],
)  # fmt: skip
def test_high_percentiles_are_withheld(n: int, told: list[str]) -> None:
    assert list(latency_percentiles(np.arange(float(n)))) == told


def test_percentiles_interpolate() -> None:
    assert latency_percentiles(np.arange(1001.0)) == pytest.approx({"p50": 500.0, "p90": 900.0, "p99": 990.0})
    assert latency_percentiles([0.0, 1.0])["p90"] == pytest.approx(0.9)


def waits_at_most(t: float, rho: float) -> float:
    """P(wait <= t services) of M/D/1 (Erlang 1909)."""
    terms = ((-rho * (t - k)) ** k / math.factorial(k) * math.exp(rho * (t - k)) for k in range(int(t) + 1))
    return (1 - rho) * sum(terms)


def test_the_known_capacity_is_found() -> None:
    """M/D/1 of 10 ms: the rate at which 1 % take more than 50 ms is where P(wait <= 4 services) = .99."""
    truth = 100 * brentq(lambda rho: waits_at_most(4.0, rho) - 0.99, 0.1, 0.95)
    virtual = constant(0.01)
    alone = single_stream(virtual, range(1000), clock=virtual.clock)
    full = offline(virtual, range(1000), 1, clock=virtual.clock)
    found = qps_at(
        virtual, many, Limits(budget_s=0.05), alone=alone, full=full, planned=20_000, tolerance=0.02, limit_s=LONG,
        clock=virtual.clock,
    )  # fmt: skip
    assert found.rate == pytest.approx(truth, rel=0.05)
    assert found.rate < found.upper <= 1.02 * found.rate
    assert found.reason == ""
    assert found.offline_rate == pytest.approx(100)
    assert found.best_p99 == pytest.approx(0.01)
    for trial in found.trials:
        assert trial.passed == (trial.rate <= found.rate)
        assert trial.passed == (trial.p99 is not None and trial.p99 <= 0.05)
        assert trial.passed or trial.answered < trial.planned, "a trial that is lost ends early"


def test_batching_bears_more() -> None:
    """9 ms a batch and 1 ms a request: alone at most 100/s, in eights 470/s."""

    def service(batch: Sequence[int]) -> float:
        return 0.009 + 0.001 * len(batch)

    rates = []
    for size in (1, 8):
        virtual = VirtualServer(service)
        limits = Limits(budget_s=0.05, max_batch=size, max_wait_s=0.005)
        rates.append(qps_at(virtual, many, limits, limit_s=LONG, clock=virtual.clock).rate)
    assert rates[0] is not None
    assert rates[1] is not None
    assert rates[0] < 100 < 300 < rates[1] < 471


def test_no_rate_where_a_request_alone_is_too_late() -> None:
    found = qps_at(virtual := constant(0.06), many, Limits(budget_s=0.05), limit_s=LONG, clock=virtual.clock)
    assert (found.rate, found.trials) == (None, ())
    assert found.best_p99 == pytest.approx(0.06)
    assert "served alone, 1000 of 1000 requests take longer than the budget of 50 ms" in found.reason


def test_a_pause_of_the_machine_fails_no_rate() -> None:
    """1 ms a request, and a pause of 100 ms in the first trial: it is tried again, and no higher rate is lost."""
    pauses = {2_500}
    virtual = VirtualServer(lambda batch: 0.1 if len(virtual.begun) in pauses else 0.001)
    found = qps_at(virtual, many, Limits(budget_s=0.05), limit_s=LONG, clock=virtual.clock)
    assert [t.passed for t in found.trials[:2]] == [False, True]
    assert found.trials[0].rate == found.trials[1].rate < found.rate


def test_the_search_keeps_to_its_time() -> None:
    """40 ms a request: a trial of 12.5/s would last 80 s. 1 ms: one of 2 s fits into 5.5 s, two do not."""
    none = qps_at(virtual := constant(0.04), many, Limits(budget_s=0.05), limit_s=60, clock=virtual.clock)
    assert none.rate is None
    assert none.best_p99 is None, "750 requests in half of the time are too few"
    assert "a trial of 12.5 requests/s would have ended after the limit of 60 s" in none.reason
    some = qps_at(virtual := constant(0.001), many, Limits(budget_s=0.05), limit_s=5.5, clock=virtual.clock)
    assert some.rate == pytest.approx(500)
    assert "after the limit of 5.5 s" in some.reason
    assert some.seconds <= 5.5
    assert none.seconds <= 60


def test_unfit_questions() -> None:
    with pytest.raises(ValueError, match="planned=999: a p99 needs 1000 requests"):
        qps_at(constant(1), many, Limits(budget_s=1), planned=999)
    with pytest.raises(ValueError, match="1 <= max_batch <= max_queue"):
        Limits(budget_s=1, max_batch=8, max_queue=4)
    with pytest.raises(ValueError, match="max_wait_s < budget_s"):
        Limits(budget_s=0.05, max_wait_s=0.05)
    with pytest.raises(ValueError, match="rate=0: arrivals need one above 0"):
        poisson_arrivals(0, 1)
    with pytest.raises(ValueError, match="2 arrivals for 3 requests"):
        server(constant(1), np.arange(2.0), range(3), Limits(budget_s=1))
    with pytest.raises(ValueError, match="0 requests in batches of 1"):
        single_stream(constant(1), [])


def test_virtual_overload() -> None:
    """3 x 100/s on 10 ms a request and a budget of 50 ms: a third is answered, and within the budget and a service."""
    virtual = constant(0.01)
    seen = overload(virtual, many, 100, 60, Limits(budget_s=0.05, max_queue=64), clock=virtual.clock)
    assert seen.accounted
    assert seen.sent == 18_000
    assert seen.refused_share == pytest.approx(2 / 3, abs=0.01)
    assert seen.p99 is not None
    assert 0.05 < seen.p99 <= 0.06 + 1e-9


def overloaded(seconds: float) -> tuple[Overload, Intake]:
    """A small DCN-v2 at three times its offline rate; one request in eight is not as it should be."""
    schema = random_schema("random_sequence", 16)
    spec = registry.model_spec("dcn_v2")
    model = spec.build(spec.config(), schema).eval()
    serve = server_of(serving_forms(spec.serving, model, schema)[REUSE])
    traffic = random_traffic(schema, 64, pool=32, full=False)

    def stream(n: int) -> list[Requests]:
        asked = traffic.stream(n)
        odd = [asked[0].candidates(0, 0), unknown(asked[1])]
        return [odd[i // 8 % 2] if i % 8 == 0 else r for i, r in enumerate(asked)]

    capacity = max(offline(serve, traffic.stream(64), 4).rate for _ in range(6))
    intake = Intake(schema, 512)
    limits = Limits(budget_s=0.25, max_batch=4, max_wait_s=0.005, max_queue=256)
    return overload(serve, stream, capacity, seconds, limits, admit=intake), intake


def unknown(request: Requests) -> Requests:
    return Requests(request.users, torch.full_like(request.ids_JN, 10**12), request.dense_NI, request.missing_NI)


def check_overload(seen: Overload, intake: Intake) -> None:
    assert seen.accounted
    assert seen.answered > 0
    assert seen.refused_share > 0.2
    assert seen.refused[NO_CANDIDATES] > 0
    assert intake.oov > 0
    assert seen.longest_queue <= 256
    assert seen.rss_growth < 64 * 2**20
    if seen.p99 is not None:
        assert seen.p99 <= 2 * seen.budget_s


def test_overload_of_a_model() -> None:
    check_overload(*overloaded(3.0))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_overload_of_a_model_for_a_minute() -> None:
    seen, intake = overloaded(60.0)
    check_overload(seen, intake)
    assert seen.p99 is not None


def test_the_wall_clock_waits_long_enough() -> None:
    clock = load.WallClock()
    until = clock.now() + 0.003
    clock.wait(until)
    assert clock.now() >= until
    clock.wait(until)


def test_a_clock_that_only_waits_is_enough() -> None:
    clock = VirtualClock()
    clock.wait(2.0)
    clock.wait(1.0)
    assert clock.now() == 2.0

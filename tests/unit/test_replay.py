"""The virtual clock against queueing theory, and against the same search on a server of equal service times."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq

from ctrbench.bench.serving.load import Run
from ctrbench.bench.serving.replay import replayed


def alone(seconds: np.ndarray) -> Run:
    return Run(latency_N=seconds, sent=len(seconds), seconds=float(seconds.sum()), batches=len(seconds))


def test_exponential_service_times_give_the_rate_of_an_mm1_queue() -> None:
    """P(sojourn > t) = exp(-(mu - lambda) t) in M/M/1: the p99 is ln 100 / (mu - lambda)."""
    mu, budget = 100.0, 0.2
    quantiles = -np.log1p(-(np.arange(2000) + 0.5) / 2000) / mu
    want = brentq(lambda rate: np.log(100) / (mu - rate) - budget, 1.0, mu - 1.0)
    found = replayed(alone(quantiles), budget)
    assert found.rate == pytest.approx(want, rel=0.08)


def test_no_rate_where_a_request_alone_is_too_slow() -> None:
    found = replayed(alone(np.full(1000, 0.06)), 0.05)
    assert found.rate is None
    assert "1000 of 1000 requests take longer than the budget of 50 ms" in found.reason

"""CPU of the feature path, step by step: a legacy ranker's hand-made features against a transformer's raw events.

Both paradigms begin with the same raw rows and end with the KeyedJaggedTensor that a model takes; both join side tables
and look every field of the schema up in its vocabulary. Then a legacy ranker counts, rates, crosses and hashes, and a
transformer finds and gathers the last events of the user. Phase `prepare` is the batch path, a whole log at once;
`serve` is the request path on what a feature server keeps in memory.

Not in these figures: reading files; the network to a feature store and its storage, which a real system pays on top
(once a key, and legacy features have more keys: one a counter of each candidate); padding, which models do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ctrbench.bench.serving.feature_batch import BatchPath
from ctrbench.bench.serving.feature_data import Steps, sides
from ctrbench.bench.serving.feature_requests import UPDATE, RequestPath
from ctrbench.bench.statistics import two_level_bootstrap
from ctrbench.datasets.feature_store import GROWTH
from ctrbench.datasets.prepared import Prepared
from ctrbench.reports.measures import make
from ctrbench.reports.records import Measurement

LEGACY = {"legacy": 40, "legacy_200": 200}
"""Legacy paradigms by their name in scopes -> hand-made columns."""
TRANSFORMER = "transformer"
TOTAL = "total"
SAMPLE = 100_000
"""Impressions of the batch path."""
WARM_UP = 2_000
ANSWERED = 8_192
"""Candidates answered a repeat, in as many requests as that takes, but two at least."""

Passes = Mapping[str, Callable[[Steps], object]]
"""Paradigm -> what it does in one pass."""


def feature_rows(
    base: Mapping[str, Any], prepared: Prepared, *, candidates: Sequence[int], repeats: int, seed: int
) -> tuple[list[Measurement], dict[str, Any]]:
    """`feature_cpu` of every step of both paths: medians over repeats, the paradigms in alternation.

    Step `update` is a mean over repeats that take in different events, and has no interval.

    Args:
        base: identifying columns of the rows; phase, scope and batch are set here.
        prepared: data with fields of a user and an item, and a history.
        candidates: C of the requests.
        repeats: passes that are counted; one more warms up.
        seed: of the users, requests and candidates that are chosen.

    Returns:
        rows, and for the record: core-seconds of every pass, sizes of the samples, bytes of what servers hold.

    Raises:
        BadInput: data without those fields, or with too few for the columns of `LEGACY`.
        ValueError: no repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: a feature path is measured once at least")
    sides(prepared.schema)
    batch = BatchPath(prepared, min(SAMPLE, prepared.rows("train")), seed)
    server = RequestPath(prepared, tuple(LEGACY.values()), seed)
    rows: list[Measurement] = []
    taken: dict[str, Any] = {}

    def measured(name: str, passes: Passes, count: int, **columns: Any) -> None:
        taken[name] = _alternated(passes, repeats)
        rows.extend(_rows({**base, **columns}, taken[name], count))

    small = BatchPath(prepared, WARM_UP, seed)
    _alternated(_batch_passes(small), 1)
    measured("prepare", _batch_passes(batch), batch.size, phase="prepare", batch=None)
    for count in candidates:
        requests = max(2, ANSWERED // count)
        _alternated(_request_passes(server, 2, count), 1)
        measured(
            f"serve:{count}", _request_passes(server, requests, count), requests * count, phase="serve", batch=count
        )
    # As many in all as make counters merge once into the largest run: that is what a mean over repeats must hold.
    updates = -(-server.known // (GROWTH * repeats))
    updates = max(1, min(updates, prepared.rows("test") // repeats, len(server.data.events.time_E) // repeats))
    measured("update", _update_passes(server, updates), updates, phase="serve", batch=None)
    counters = {name: server.counters[n].nbytes for name, n in LEGACY.items()}
    held = {"rows_counted": server.known, "counter_bytes": counters, "history_bytes": server.histories.nbytes}
    return rows, {"feature_path": {"columns": LEGACY, "core_seconds": taken, "batch_rows": batch.size, **held}}


def _batch_passes(path: BatchPath) -> Passes:
    return {name: partial(path.legacy, n) for name, n in LEGACY.items()} | {TRANSFORMER: path.transformer}


def _request_passes(server: RequestPath, requests: int, count: int) -> Passes:
    """All answer the same requests."""
    asked = server.asked(requests, count)
    legacy = {name: partial(server.legacy, n, asked) for name, n in LEGACY.items()}
    return legacy | {TRANSFORMER: partial(server.transformer, asked)}


def _update_passes(server: RequestPath, count: int) -> Passes:
    """Each pass takes in the events after those of the pass before."""
    done = dict.fromkeys((*LEGACY, TRANSFORMER), 0)

    def run(name: str, steps: Steps) -> None:
        begin = done[name]
        done[name] += count
        if name == TRANSFORMER:
            server.update_transformer(begin, begin + count, steps)
        else:
            server.update_legacy(LEGACY[name], begin, begin + count, steps)

    return {name: partial(run, name) for name in done}


def _alternated(passes: Passes, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Paradigm -> step -> core-seconds of each repeat; every other repeat goes the other way round."""
    out: dict[str, dict[str, list[float]]] = {name: {} for name in passes}
    for repeat in range(repeats):
        for name in list(passes)[:: -1 if repeat % 2 else 1]:
            steps = Steps()
            passes[name](steps)
            for step, seconds in steps.seconds.items():
                out[name].setdefault(step, []).append(seconds)
    return out


def _rows(base: Mapping[str, Any], taken: Mapping[str, Mapping[str, Sequence[float]]], count: int) -> list[Measurement]:
    """A row a step, and the total of those that every sample or candidate takes."""
    out = []
    for name, steps in taken.items():
        every = {**steps}
        if UPDATE not in steps:
            every[TOTAL] = [sum(parts) for parts in zip(*steps.values(), strict=True)]
        for step, seconds in every.items():
            per_million = [s / count * 1e6 for s in seconds]
            known: dict[str, Any] = {"scope": f"{name}:{step}", "n": count}
            if step == UPDATE:  # most repeats merge nothing, one merges a lot: only their mean is the cost of an event
                out.append(make(base, "feature_cpu", float(np.mean(per_million)), "measured", **known))
                continue
            low, high = two_level_bootstrap([[s] for s in per_million])
            value = float(np.median(per_million))
            out.append(make(base, "feature_cpu", value, "measured", p50=value, ci_low=low, ci_high=high, **known))
    return out

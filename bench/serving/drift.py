"""Process: a trained OneTrans on states kept between requests: drift of scores and of AUC, and what a cache finds.

Dims: N test rows, D draws of users
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctrbench.bench.assemble import as_record, base_columns, build
from ctrbench.bench.quality import auc
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.serving.popularity import hit_rate, user_stream, zipf_stream
from ctrbench.bench.statistics import auc_draws
from ctrbench.bench.train import budget_of, train
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepared import Prepared
from ctrbench.models.onetrans import OneTrans
from ctrbench.models.onetrans_sessions import Drift, drift
from ctrbench.models.requests import take_users
from ctrbench.models.serving import REUSE, serving_forms
from ctrbench.reports.measures import make
from ctrbench.reports.records import Measurement, RunRecord

ROWS = 1000
"""Test rows that are scored cold and on kept states."""
STEPS = (1, 4, 16)
"""Events that arrive one by one after a cold start."""
DRAWS = 400
STREAM, WARM = 40_000, 20_000
"""Requests of a stream of users, and those of them that fill the cache."""
BUDGETS_MIB = (1, 4, 16, 64, 256)
ZIPF_USERS, ZIPF_EXPONENT = 100_000, 1.0


def run_drift(spec: RunSpec, folder: Path) -> RunRecord:
    """One training to the budget of the run, then test rows in both ways.

    Raises:
        BadInput: a model that keeps no states between requests.
    """
    model_spec, _, schema, model, prepared = build(spec)
    if not isinstance(model, OneTrans):
        raise BadInput(f"drift: {spec.model} keeps no states between requests; use model=onetrans")
    base = {**base_columns(spec, model_spec.family, schema.track), "phase": "serve", "batch": None}
    train(model, prepared, budget_of(spec), spec.seed)
    model.eval()
    # Histories as long as they were prepared: a window that slides loses events that the user has.
    rows = next(iter(Loader(prepared, "test", ROWS, shuffle_seed=spec.seed, prefetch=0)))
    start = time.perf_counter()
    found = drift(model, schema, rows, rows, STEPS)
    seconds = time.perf_counter() - start
    label_N, user_N = rows.label_B.numpy(), rows.user_B.numpy()
    out = [row for k in found.kept for row in drift_rows(base, found, k, label_N, user_N)]
    lengths = rows.host["lengths"]
    assert isinstance(lengths, dict)
    longest = int(np.argmax(np.sum(list(lengths.values()), axis=0)))
    form = serving_forms(model_spec.serving, model, schema)[REUSE]
    with torch.no_grad():
        kept = int(form.context(take_users(prepared.schema, rows, longest)).nbytes)
    out += cache_rows(base, prepared, kept, spec.seed)
    return as_record(spec, out, {"title": model_spec.title, "rows": rows.size, "seconds": seconds, "user_bytes": kept})


def drift_rows(
    base: Mapping[str, Any], found: Drift, appended: int, label_N: np.ndarray, user_N: np.ndarray
) -> list[Measurement]:
    """Root mean square of the logits' differences, and the difference of AUC with its interval over users."""
    places, kept = (t.numpy() for t in found.kept[appended])
    cold, label, user = found.cold_N.numpy()[places], label_N[places], user_N[places]
    draws = [auc_draws(label, s, user, draws=DRAWS, seed=0) for s in (kept, cold)]
    low, high = np.percentile(draws[0] - draws[1], [2.5, 97.5])
    scope, rms = str(appended), float(np.sqrt(np.mean((kept - cold) ** 2)))
    return [
        make(base, "stream_drift", rms, "measured", scope=scope, n=len(places), sd=float(cold.std())),
        make(base, "stream_drift_auc", auc(label, kept) - auc(label, cold), "derived", scope=scope, n=len(places),
             ci_low=float(low), ci_high=float(high)),
    ]  # fmt: skip


def cache_rows(base: Mapping[str, Any], prepared: Prepared, user_bytes: int, seed: int) -> list[Measurement]:
    """Hit rates of the least recently used policy under memory budgets, for users of the data and Zipf's."""
    zipf = f"Zipf {ZIPF_EXPONENT:g}, {ZIPF_USERS:,} users: "
    streams = {"": user_stream(prepared, STREAM, seed), zipf: zipf_stream(ZIPF_USERS, ZIPF_EXPONENT, STREAM, seed)}
    return [
        make(base, "cache_hit_rate", hit_rate(stream.tolist(), (mib << 20) // user_bytes, warm=WARM), "derived",
             scope=f"{name}{mib} MiB", n=STREAM - WARM)
        for name, stream in streams.items() for mib in BUDGETS_MIB
    ]  # fmt: skip

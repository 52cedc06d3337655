"""A model under load: latencies of its forms, rates within a budget, overload; in one process, without any counter.

Dims: C candidates of a request
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctrbench.bench import proc, stability
from ctrbench.bench.assemble import as_record, base_columns, build, lookup, model_config
from ctrbench.bench.ceilings import Ceilings, drift, measure_ceilings
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.serving.capacity import Overload, overload, qps_at
from ctrbench.bench.serving.compiled import COMPILED, compiled
from ctrbench.bench.serving.counts import CACHED, against, request_rows, tflop_rows
from ctrbench.bench.serving.intake import Intake
from ctrbench.bench.serving.load import Limits, Run, Serve, latency_percentiles, offline, server_of, single_stream
from ctrbench.bench.serving.replay import replayed
from ctrbench.bench.serving.traffic import Traffic, data_traffic, random_traffic
from ctrbench.bench.statistics import P99_STEPS
from ctrbench.bench.train import seed_everything
from ctrbench.datasets import random_batches
from ctrbench.datasets.schema import Batch
from ctrbench.models.kv_store import KVStore
from ctrbench.models.requests import Requests
from ctrbench.models.serving import ALONE, REUSE, WHOLE, ServingForm, serve, serving_forms
from ctrbench.models.spec import ModelSpec
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement, Origin, RunRecord

TOLERANCE = 1e-5
"""Largest difference between logits of two exact forms, float32."""
LEAST_ROUNDS, MOST_ROUNDS = 5, 200
LEAST_ALONE = 3
"""Rounds of `alone`, whose requests take seconds."""
PROBED, PROBED_CANDIDATES = 4, 8
"""Requests, and candidates of each, on which all forms are held against each other before they are timed."""
WARM = 5
STORED = 32
"""Requests that fill a form's own store before it is weighed."""
STORED_ANSWERS = "stored"
"""LUM's form that keeps answers; others keep keys and values."""
PAIR_POOL = 16
"""Different requests of a pair of forms: random ones are alike."""
INPUTS = {"reuse_time": {"serve_latency": "measured"}}


class Inexact(ArithmeticError):
    """A form of serving gives other logits than the model's own forward."""


def served_model(spec: RunSpec) -> tuple[ModelSpec, nn.Module, dict[str, ServingForm], Traffic]:
    """(model's spec, the model, its forms, requests with the most candidates), on prepared data or random ones.

    Weights are those of the seed: no training changes what a request executes.
    """
    count = max(spec.serving["candidates"])
    if spec.data in random_batches.TRACKS:
        seed_everything(spec.seed)
        model_spec = lookup(spec)
        schema = random_batches.random_schema(spec.data, spec.history_length)
        model = model_spec.build(model_config(spec, model_spec), schema)
        traffic = random_traffic(schema, count, pool=PAIR_POOL)
    else:
        model_spec, _, schema, model, prepared = build(spec)
        traffic = data_traffic(prepared, count)
        intake = Intake(schema, count)
        traffic = Traffic(schema, tuple(intake(r)[0] for r in traffic.requests), traffic.seed)
    model.eval()
    return model_spec, model, serving_forms(model_spec.serving, model, schema), traffic


def of(traffic: Traffic, count: int) -> Traffic:
    """The same requests with at most so many candidates, their first ones."""
    return Traffic(traffic.schema, tuple(r.candidates(0, count) for r in traffic.requests), traffic.seed)


def largest_difference(forms: Mapping[str, ServingForm], requests: tuple[Requests, ...]) -> float:
    """Between the logits of any form and those of `whole`.

    Raises:
        Inexact: it is above the tolerance.
    """
    worst = 0.0
    for request in requests:
        want = serve(forms[WHOLE], request)
        for name, form in forms.items():
            apart = float((serve(form, request) - want).abs().max())
            if not apart <= TOLERANCE * max(1.0, float(want.abs().max())):
                raise Inexact(f"form {name}: a logit differs by {apart:.3g} from the model's own forward")
            worst = max(worst, apart)
    return worst


@dataclass(frozen=True, slots=True)
class Turns:
    """Single requests served in several forms by turns, each request in all forms."""

    seconds: Mapping[str, list[float]]
    cpu: Mapping[str, float]
    """Core-seconds of all rounds."""


def by_turns(forms: Mapping[str, ServingForm], traffic: Traffic, limit_s: float, least: int = LEAST_ROUNDS) -> Turns:
    """A B C, B C A, C A B ...: after a round that warms all up, rounds until the limit, but so many at least."""
    names = list(forms)
    seconds, cpu = {n: list[float]() for n in names}, dict.fromkeys(names, 0.0)
    for form in forms.values():
        serve(form, traffic.requests[0])
    start = time.perf_counter()
    for i, request in enumerate(traffic.stream(MOST_ROUNDS)):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            spent, begin = time.process_time(), time.perf_counter()
            serve(forms[name], request)
            seconds[name].append(time.perf_counter() - begin)
            cpu[name] += time.process_time() - spent
        if i + 1 >= least and time.perf_counter() - start > limit_s:
            break
    return Turns(seconds, cpu)


def ratio_row(base: Mapping[str, Any], scope: str, first: Sequence[float], second: Sequence[float]) -> Measurement:
    """Median of the ratios of the rounds, with its bootstrap interval."""
    ratios = np.asarray(first) / np.asarray(second)
    draws = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return make(base, "reuse_time", float(np.median(ratios)), "derived", scope=scope, n=len(ratios), ci_low=float(low),
                ci_high=float(high))  # fmt: skip


def latency_row(base: Mapping[str, Any], scope: str, seconds: Sequence[float] | np.ndarray) -> Measurement:
    """Median with percentiles; p99 is left out below 1,000 requests."""
    p = latency_percentiles(seconds)
    return make(base, "serve_latency", p["p50"], "measured", scope=scope, n=len(seconds), p50=p["p50"], p90=p["p90"],
                p99=p.get("p99"))  # fmt: skip


def run_serve(spec: RunSpec, folder: Path) -> RunRecord:
    """Process S: requests against the clock."""
    model_spec, model, forms, traffic = served_model(spec)
    base = {**base_columns(spec, model_spec.family, traffic.schema.track), "phase": "serve"}
    apart = largest_difference(forms, of(traffic, PROBED_CANDIDATES).requests[:PROBED])
    if "pair" in spec.serving:
        rows, extra = _pair(spec, base, model, forms, traffic)
    else:
        rows, extra = _under_load(spec, base, forms, traffic)
    title = {"title": model_spec.title, "family": model_spec.family, "track": traffic.schema.track,
             "control": model_spec.control, "largest_difference": apart}  # fmt: skip
    return as_record(spec, rows, title | extra | {"seconds": by_form(rows, "serve_latency")}, INPUTS)


def by_form(rows: Sequence[Measurement], metric: str) -> dict[str, dict[str, float]]:
    """form -> candidates -> value, where it is known."""
    out: dict[str, dict[str, float]] = {}
    for r in rows:
        if r.metric == metric and r.value is not None:
            out.setdefault(r.scope, {})[str(r.batch)] = r.value
    return out


def _pair(
    spec: RunSpec, base: Mapping[str, Any], model: nn.Module, forms: Mapping[str, ServingForm], traffic: Traffic
) -> tuple[list[Measurement], dict[str, Any]]:
    """The best form against another one by turns, beside what FLOPs predict; and the candidates' side alone, where the
    user's side was computed before."""
    count, other = max(spec.serving["candidates"]), spec.serving["pair"]
    base, limit = {**base, "batch": count}, spec.serving["rounds_seconds"]
    rows = request_rows(base, model, {n: forms[n] for n in (REUSE, other)}, traffic.requests[0], other)
    turned = {REUSE: forms[REUSE], CACHED: Held(forms[REUSE], traffic.requests), other: forms[other]}
    seconds = by_turns(turned, traffic, limit).seconds
    rows += [ratio_row(base, against(n, other), seconds[n], seconds[other]) for n in (REUSE, CACHED)]
    rows += [latency_row(base, n, seconds[n]) for n in turned]
    return rows, {"samples": dict(seconds)}


def _under_load(
    spec: RunSpec, base: Mapping[str, Any], forms: Mapping[str, ServingForm], traffic: Traffic
) -> tuple[list[Measurement], dict[str, Any]]:
    """Every number of candidates: latencies, sharing against none by turns, the offline rate, a rate within the budget;
    and overload at the smallest."""
    options, counts = spec.serving, sorted(spec.serving["candidates"])
    limits = Limits(budget_s=options["budget_ms"] / 1e3, max_batch=options["max_batch"], max_queue=options["queue"],
                    max_wait_s=options["max_wait_ms"] / 1e3)  # fmt: skip
    rows: list[Measurement] = []
    extra: dict[str, Any] = {"options": dict(options), "latency": {}, "turns": {}, "capacity": {}}
    ceilings = [_ceilings(spec.threads)]
    clocks, began = stability.read_clocks(), time.perf_counter()
    for count in counts:
        at, mine = {**base, "batch": count}, of(traffic, count)
        answer = server_of(forms[REUSE])
        single_stream(answer, mine.stream(WARM))
        spent = time.process_time()
        alone = single_stream(answer, mine.stream(options["requests"]))
        spent = time.process_time() - spent
        full = offline(answer, mine.stream(P99_STEPS), options["max_batch"], limit_s=options["qps_seconds"] / 4)
        rows += [
            latency_row(at, REUSE, alone.latency_N),
            make(at, "serve_cpu", spent / alone.answered, "measured", scope=REUSE, n=alone.answered),
            make(at, "serve_offline", full.rate, "measured", scope=REUSE, n=full.answered),
        ]
        extra["latency"][count] = alone.latency_N.tolist()
        offered, refused = dict(forms), ""
        if spec.model in options["compile"]:
            program, refused = compiled(forms[REUSE], mine.requests[0])
            offered |= {COMPILED: program} if program is not None else {}
        rows += [withheld(at, "reuse_time", refused, scope=COMPILED)] if refused else []
        if COMPILED in offered:
            largest_difference({WHOLE: forms[WHOLE], COMPILED: offered[COMPILED]}, mine.requests[:PROBED])
        turned, extra["turns"][count] = _against_whole(at, offered, mine, options["rounds_seconds"])
        rows += turned
        if options["qps"]:
            row, extra["capacity"][count] = _within_budget(at, answer, mine, limits, alone, full, options)
            rows.append(row)
        ceilings.append(_ceilings(spec.threads))
        if count == counts[0]:
            limits_now = replace(limits, least_s=float(np.median(alone.latency_N)))
            seen = overload(answer, mine.stream, full.rate, options["overload_seconds"], limits_now,
                            admit=Intake(mine.schema, count))  # fmt: skip
            rows += _overload_rows(at, seen)
            extra["overload"] = asdict(seen) | {"accounted": seen.accounted, "batch": count}
    rows.append(make({**base, "batch": None}, "rss_peak", proc.rss_peak(), "measured"))
    if dispatch := [c.dispatch_us for c in ceilings if c.dispatch_us is not None]:
        rows.append(
            make({**base, "batch": None}, "dispatch_us", float(np.median(dispatch)), "measured", n=len(dispatch))
        )
    return rows, extra | {
        "ceilings": [asdict(c) for c in ceilings],
        "clock_drift": max(drift(a, b) for a, b in pairwise(ceilings)),
        "hints": stability.hints(clocks, stability.read_clocks(), time.perf_counter() - began),
    }


def _ceilings(threads: int) -> Ceilings:
    with proc.memory_aside():
        return measure_ceilings(threads, quick=True)


def _against_whole(
    at: Mapping[str, Any], forms: Mapping[str, ServingForm], traffic: Traffic, limit_s: float
) -> tuple[list[Measurement], dict[str, Any]]:
    """Every form against `whole` by turns; latency and CPU of those that are timed nowhere else."""
    rows, samples = [], {}
    for name, form in forms.items():
        if name == WHOLE:
            continue
        least = LEAST_ALONE if name == ALONE else LEAST_ROUNDS
        turns = by_turns({name: form, WHOLE: forms[WHOLE]}, traffic, limit_s, least)
        rows.append(ratio_row(at, name, turns.seconds[name], turns.seconds[WHOLE]))
        samples[name] = dict(turns.seconds)
        timed = WHOLE if name == REUSE else name
        seconds = turns.seconds[timed]
        rows.append(latency_row(at, timed, seconds))
        rows.append(make(at, "serve_cpu", turns.cpu[timed] / len(seconds), "measured", scope=timed, n=len(seconds)))
    return rows, samples


def _within_budget(
    at: Mapping[str, Any], answer: Serve[Requests], traffic: Traffic, limits: Limits, alone: Run, full: Run,
    options: Mapping[str, Any],
) -> tuple[Measurement, dict[str, Any]]:  # fmt: skip
    """The highest rate within the budget; on a virtual clock where trials take too long; or why there is none, and the
    best p99 instead."""
    origin: Origin = "measured"
    found = qps_at(answer, traffic.stream, limits, alone=alone, full=full, limit_s=options["qps_seconds"])
    tried = asdict(found)
    if found.rate is None and alone.percentiles.get("p99", math.inf) <= limits.budget_s:
        found, origin = replayed(alone, limits.budget_s), "modelled"
        tried["replayed"] = asdict(found)
    if found.rate is None:
        best = "" if found.best_p99 is None else f"; p99 of a request served alone is {found.best_p99 * 1e3:.3g} ms"
        return withheld(at, "serve_qps", f"{found.reason}{best}", scope=REUSE), tried
    row = make(at, "serve_qps", found.rate, origin, scope=REUSE, n=len(found.trials), ci_low=found.rate,
               ci_high=max(found.upper, found.rate))  # fmt: skip
    return row, tried


def _overload_rows(at: Mapping[str, Any], seen: Overload) -> list[Measurement]:
    rows = [make(at, "serve_refused", seen.refused_share, "measured", scope=REUSE, n=seen.sent)]
    if seen.p99 is None:
        reason = f"too_few_repeats: {seen.answered} answered, a p99 needs {P99_STEPS}"
        return [*rows, withheld(at, "serve_overload_p99", reason, scope=REUSE)]
    return [*rows, make(at, "serve_overload_p99", seen.p99, "measured", scope=REUSE, n=seen.answered)]


class Held:
    """A form whose user's sides were all computed before: what a request costs when its user is in the cache."""

    def __init__(self, form: ServingForm, requests: Sequence[Requests]) -> None:
        self.form = form
        with torch.no_grad():
            self.contexts = {id(r.users): form.context(r.users) for r in requests}

    def context(self, users: Batch) -> Any:
        """As computed before."""
        return self.contexts[id(users)]

    def score(self, context: Any, requests: Requests) -> Tensor:
        """As the form does."""
        return self.form.score(context, requests)


def run_serve_count(spec: RunSpec, folder: Path) -> RunRecord:
    """What requests execute, operator by operator, at every number of candidates; and of published sizes the
    candidates of a TFLOP."""
    model_spec, model, forms, traffic = served_model(spec)
    base = {**base_columns(spec, model_spec.family, traffic.schema.track), "phase": "serve"}
    rows: list[Measurement] = []
    for count in sorted(spec.serving["candidates"]):
        rows += request_rows(base, model, forms, typical(of(traffic, count)))
    rows += kept_rows({**base, "batch": None}, forms, traffic)
    title = {"title": model_spec.title, "family": model_spec.family, "track": traffic.schema.track,
             "control": model_spec.control, "events": events_of(typical(traffic)),
             "flops": by_form(rows, "flops_request")}  # fmt: skip
    return as_record(spec, [*rows, *tflop_rows(base, model_spec)], title)


def kept_rows(base: Mapping[str, Any], forms: Mapping[str, ServingForm], traffic: Traffic) -> list[Measurement]:
    """Bytes that serving keeps of one user between requests: of the longest history where whole contexts are kept
    (scope `cached`), the mean over users of a form with a store of its own."""
    longest = max(traffic.requests, key=events_of)
    with torch.no_grad():
        context = forms[REUSE].context(longest.users)
    rows = []
    if (size := getattr(context, "nbytes", None)) is not None:
        rows.append(make(base, "bytes_user_cache", size, "counted", scope=CACHED))
    for name, form in forms.items():
        store = getattr(form, "store", None)
        if isinstance(store, KVStore):
            for request in traffic.requests[:STORED]:
                serve(form, request)
            metric = "bytes_knowledge" if name == STORED_ANSWERS else "bytes_user_cache"
            rows.append(make(base, metric, store.bytes_per_user, "counted", scope=name, n=len(store)))
    return rows


def events_of(request: Requests) -> int:
    """Events of all histories of a request."""
    return sum(len(t) for t in request.users.event_times.values())


def typical(traffic: Traffic) -> Requests:
    """The request with the median number of events."""
    return sorted(traffic.requests, key=events_of)[len(traffic.requests) // 2]

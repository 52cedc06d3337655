"""What requests execute: FLOPs, bytes and operators of every form of serving, and the modelled time on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ctrbench.bench.counting.counter import Recorder
from ctrbench.bench.counting.kernel_time import parameter_sets
from ctrbench.bench.counting.projection import projections
from ctrbench.bench.counting.rows import StepCounts
from ctrbench.datasets.schema import FeatureSchema
from ctrbench.models.requests import Requests
from ctrbench.models.serving import REUSE, WHOLE, ServingForm, serve
from ctrbench.models.spec import ModelSpec
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement

CACHED = "cached"
"""Scope of the candidates' side of the best form alone: a request whose user's side was computed before."""
TFLOP = 1e12
HISTORIES = (50, 200, 1000, 4000)
"""Events of a history at which the candidates of a TFLOP are asked for."""
CANDIDATES = 512
"""Of the request whose closed form is taken; a form may depend on it where candidates share conditions."""
FLOP_ROWS = ("flops_request", "flops_candidate")


def count_form(model: nn.Module, form: ServingForm, requests: Requests) -> tuple[StepCounts, StepCounts]:
    """(user's side, candidates' side) of one warm request; what a model keeps between calls is not in it."""
    serve(form, requests)
    with torch.no_grad():
        user = Recorder(model, requests.users, requests.size)
        with user.active():
            context = form.context(requests.users)
        candidates = Recorder(model, requests, requests.size * requests.count)
        with candidates.active():
            form.score(context, requests)
    return user.result(train=False, blocks={}), candidates.result(train=False, blocks={})


def joined(parts: tuple[StepCounts, StepCounts]) -> StepCounts:
    """Both sides as one count."""
    return replace(parts[1], rows=(*parts[0].rows, *parts[1].rows))


def against(name: str, other: str) -> str:
    """Scope of a ratio of two forms: `form`, or `form/other` where the other is not `whole`."""
    return name if other == WHOLE else f"{name}/{other}"


def request_rows(
    base: Mapping[str, Any], model: nn.Module, forms: Mapping[str, ServingForm], requests: Requests, other: str = WHOLE
) -> list[Measurement]:
    """Rows of one request in every form; `batch` of the rows is its candidates.

    Args:
        base: identifying columns.
        model: in eval mode.
        forms: of `serving_forms`; the other among them.
        requests: one.
        other: form that FLOPs are compared with.
    """
    base = {**base, "batch": requests.count, "phase": "serve"}
    rows: list[Measurement] = []
    counts = {name: count_form(model, form, requests) for name, form in forms.items()}
    for name, parts in counts.items():
        both = joined(parts)
        if both.unknown:
            reason = "uncounted_op: " + ", ".join(f"{op} x{n}" for op, n in sorted(both.unknown.items()))
            rows += [withheld(base, m, reason, scope=name) for m in FLOP_ROWS]
        else:
            rows += [
                make(base, "flops_request", both.flops(), "counted", scope=name),
                make(base, "flops_request", parts[0].flops(), "counted", scope=f"{name}:user"),
                make(base, "flops_candidate", both.flops() / requests.count, "counted", scope=name),
            ]
        rows += [
            make(base, "bytes_request", both.bytes_operands(), "counted", scope=name),
            make(base, "ops_request", both.ops, "counted", scope=name),
            *gpu_rows(base, name, both),
        ]
    rows += _ratio_rows(base, counts, other)
    wire = requests.nbytes + 4 * requests.count
    return [*rows, make(base, "bytes_wire", wire, "counted")]


def _ratio_rows(
    base: Mapping[str, Any], counts: Mapping[str, tuple[StepCounts, StepCounts]], other: str
) -> list[Measurement]:
    """FLOPs of every form over those of the other one; of a pair also the candidates' side of the best alone."""
    whole, out = joined(counts[other]), []
    works = {name: joined(parts) for name, parts in counts.items() if name != other}
    if other != WHOLE or set(counts) == {REUSE, WHOLE}:  # a pair is timed with the user's side computed before as well
        works[CACHED] = counts[REUSE][1]
    for name, mine in works.items():
        scope = against(name, other)
        if mine.unknown or whole.unknown or not whole.flops():
            why = "uncounted_op: see flops_request" if mine.unknown or whole.unknown else "n/a: it costs 0 FLOP"
            out.append(withheld(base, "reuse_flops", why, scope=scope))
        else:
            out.append(make(base, "reuse_flops", mine.flops() / whole.flops(), "counted", scope=scope))
    return out


def gpu_rows(base: Mapping[str, Any], name: str, counts: StepCounts) -> list[Measurement]:
    """Modelled time of a request on every GPU with parameters; the operators are those that this CPU dispatched."""
    rows = []
    for p in projections(counts, {gpu: s.dtype for gpu, s in parameter_sets().items()}):
        at = {**base, "dtype": p.dtype}
        if p.time_s is None:
            rows.append(withheld(at, "gpu_request_time", p.reason, scope=f"{name}:{p.gpu}"))
            continue
        t = p.time_s
        rows.append(make(at, "gpu_request_time", t.value, "modelled", scope=f"{name}:{p.gpu}", ci_low=t.low,
                         ci_high=t.high, n=p.fewest_shapes))  # fmt: skip
    return rows


def tflop_rows(base: Mapping[str, Any], spec: ModelSpec) -> list[Measurement]:
    """Candidates at which a request of each published size costs 1 TFLOP, at several lengths of the history.

    Closed forms of executed work without padding: `reuse` where the model has one, `whole` without sharing.
    """
    rows = []
    for preset in spec.published():
        at = {**base, "preset": f"published:{preset.label}", "phase": "serve", "device": "meta"}
        for length, schema in _lengths(preset.schema):
            alone = spec.flops(preset.config, schema, None).visible
            costs = {WHOLE: (0.0, alone)}
            if spec.request_flops is not None and schema.histories:
                costs["reuse"] = spec.request_flops(preset.config, schema, None, CANDIDATES)
            for form, (user, each) in costs.items():
                scope = f"{form}:{length}"
                if each:
                    needed = max(1.0, (TFLOP - user) / each)
                    rows.append(make(at, "tflop_candidates", needed, "counted", scope=scope))
                else:
                    rows.append(withheld(at, "tflop_candidates", "n/a: a candidate costs 0 FLOP", scope=scope))
    return rows


def _lengths(schema: FeatureSchema) -> Iterator[tuple[int, FeatureSchema]]:
    """The schema at several lengths of its histories; as it is where it has none."""
    if not schema.histories:
        yield 0, schema
        return
    for length in HISTORIES:
        fields = (replace(f, max_length=length) if f.kind == "sequence" else f for f in schema.fields)
        yield length, replace(schema, fields=tuple(fields))

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
from ctrbench.models.serving import WHOLE, ServingForm, serve
from ctrbench.models.spec import ModelSpec
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement

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


def request_rows(
    base: Mapping[str, Any], model: nn.Module, forms: Mapping[str, ServingForm], requests: Requests
) -> list[Measurement]:
    """Rows of one request in every form; `batch` of the rows is its candidates.

    Args:
        base: identifying columns.
        model: in eval mode.
        forms: of `serving_forms`; WHOLE among them.
        requests: one.
    """
    base = {**base, "batch": requests.count, "phase": "serve"}
    rows: list[Measurement] = []
    whole = joined(count_form(model, forms[WHOLE], requests))
    for name, form in forms.items():
        parts = count_form(model, form, requests)
        both = joined(parts)
        rows += _flop_rows(base, name, parts, whole, requests.count)
        rows += [
            make(base, "bytes_request", both.bytes_operands(), "counted", scope=name),
            make(base, "ops_request", both.ops, "counted", scope=name),
        ]
        rows += gpu_rows(base, name, both)
    wire = requests.nbytes + 4 * requests.count
    return [*rows, make(base, "bytes_wire", wire, "counted")]


def _flop_rows(
    base: Mapping[str, Any], name: str, parts: tuple[StepCounts, StepCounts], whole: StepCounts, count: int
) -> list[Measurement]:
    both = joined(parts)
    unknown = {**both.unknown, **whole.unknown}
    if unknown:
        reason = "uncounted_op: " + ", ".join(f"{op} x{n}" for op, n in sorted(unknown.items()))
        return [withheld(base, m, reason, scope=name) for m in (*FLOP_ROWS, "reuse_flops")]
    return [
        make(base, "flops_request", both.flops(), "counted", scope=name),
        make(base, "flops_request", parts[0].flops(), "counted", scope=f"{name}:user"),
        make(base, "flops_candidate", both.flops() / count, "counted", scope=name),
        *(
            [make(base, "reuse_flops", both.flops() / whole.flops(), "counted", scope=name)]
            if name != WHOLE and whole.flops()
            else []
        ),
    ]


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

"""What a million requests and a million training samples cost: pure functions of a run's rows, prices and assumptions.

CPU-only serving is priced from measured figures; accelerator time is the projection's, with its band. A term whose
input or price is not known is withheld with the reason, and then so is the total.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd

from ctrbench.bench.cost_amounts import Amount, Facts
from ctrbench.bench.cost_prices import Prices, usd_per_tflops
from ctrbench.bench.cost_terms import TERMS, TOTAL, TRAINING, Assumptions, request_terms, sample_terms
from ctrbench.bench.cost_whatif import break_evens, sensitivities, what_ifs
from ctrbench.bench.cost_workloads import Workload, trainings, workloads
from ctrbench.reports.records import Measurement

REQUESTS, SAMPLES = "usd_per_million_requests", "usd_per_million_samples"


def cost_rows(rows: pd.DataFrame, prices: Prices, assumptions: Assumptions, run: str = "") -> list[Measurement]:
    """The price rows of every model that the rows know.

    `usd_per_million_requests`: phase `serve`, scope `form/deployment:term`, batch the candidates of a request.
    `usd_per_million_samples`: phase `train`, scope `deployment:term`. Deployments are `cpu` and the names of GPUs;
    terms are `cost_terms.TERMS` (without `training` for samples) and `total`. The band holds the ends of the prices and
    of the inputs' own bands, all at their low or all at their high end at once.

    Args:
        rows: long-format rows with `records.COLUMNS`, of the processes of one run or of its summary.
        prices: from `load_prices`.
        assumptions: traffic, fleet, what is kept.
        run: the `run` of the new rows; that of the row that was priced by default.
    """
    facts = Facts(rows)
    out = []
    for w in workloads(facts, assumptions.legacy_features):
        base = {**w.columns, **({"run": run} if run else {}), "phase": "serve", "batch": w.batch}
        out += [x.row(base, REQUESTS, scope=f"{w.scope}:{t}") for t, x in request_terms(w, prices, assumptions).items()]
    for t in trainings(facts, assumptions.legacy_features):
        base = {**t.columns, **({"run": run} if run else {}), "phase": "train"}
        priced = sample_terms(t, prices, assumptions)
        out += [x.row(base, SAMPLES, scope=f"{t.deployment}:{name}") for name, x in priced.items()]
    return out


def cost_extra(rows: pd.DataFrame, prices: Prices, assumptions: Assumptions) -> dict[str, Any]:
    """Everything of the cost section that is no row: JSON-able lists of flat records, for `extra["cost"]`.

    All USD are per million requests, at the middle of prices and modelled times unless a key says otherwise. A number
    that is not known is None beside a `reason`; a `reason` of '' says that the record's number is known. Common keys of
    the lists about models: `data, model, variant, preset, form, deployment, batch`.

    Keys:
        prices: one record a price: `name` (`vcpu`, `ram`, `ssd`, `object`, `network_zone`, `network_zones`,
            `network_egress`, `gpu.<GPU>`), `value, low, high, currency, unit, region, provider, term, source, read_on,
            note`.
        price_file: name of the file they come from.
        assumptions: field -> value, the fields of `Assumptions`, with `headroom` and `samples_a_day` derived from them.
        terms: names of the terms in the order of the stack.
        workloads: the common keys, `basis` (`serve_qps`: threads / rate within the latency budget, `serve_cpu`:
            core-seconds of requests one after the other, `dispatch`: operators x dispatch of one), `trained_on` (the
            deployment of the term `training`: the same, or `cpu` where no training step was projected on the GPU), and
            `inputs`: term -> names of the metrics behind it.
        sensitivity: form `reuse`, the middle one of the batches, every pair of models of the same data and deployment
            whose totals are both known: `data, form, deployment, batch, a, b` (models; `a` is the cheaper one now),
            `usd_a, usd_b, knob, kind` (`price` or `assumption`), `value, low, high` (of the knob now, None where as
            measured, and its range), `unit`, `break_even` (the knob's value nearest to now at which both cost the
            same). Only the knobs that flip a pair have a record; `pairs` has every pair.
        pairs: the same pairs, one record each: `data, form, deployment, batch, a, b, usd_a, usd_b, apart` (bool: the
            bands of the totals do not overlap), `flipped_by` (names of knobs, most easily flipped first).
        what_if: common keys, `knob` (`qps`, `tables_gb`, `replicas`, `peak_to_mean`), `at` (its value), `usd, low,
            high, reason`: the total. And knob `history` with `at` events, where rows of longer workloads exist: `usd`
            is then accelerator + host CPU alone.
        break_even: `kind` `deployments`: one model (`a` = `b`) on `deployment_a` and `deployment_b`; `kind` `models`:
            two models on one deployment. `data, form, batch, a, b, deployment_a, deployment_b, axis` (`qps` or the name
            of a price), `unit, low, high` (range searched), `at` (equal cost, None where none), `cheaper_below`,
            `cheaper_above` (`a` or `b`; the same one where costs are never equal, None where not known), `reason`.
        usd_per_tflops: see `cost_prices.usd_per_tflops`: `gpu, dtype, tflops, usd_per_tflops_hour, low, high,
            times_v100_fp16, reason`.
    """
    known = workloads(Facts(rows), assumptions.legacy_features)
    pairs, flips = sensitivities(known, prices, assumptions)
    return {
        "prices": prices.records(), "price_file": prices.file,
        "assumptions": {
            **asdict(assumptions), "headroom": assumptions.headroom, "samples_a_day": assumptions.samples_a_day,
        },
        "terms": [t for t in TERMS if assumptions.training or t != TRAINING],
        "workloads": [_described(w, request_terms(w, prices, assumptions)) for w in known],
        "sensitivity": flips, "pairs": pairs,
        "what_if": what_ifs(known, prices, assumptions),
        "break_even": break_evens(known, prices, assumptions),
        "usd_per_tflops": usd_per_tflops(prices),
    }  # fmt: skip


def _described(w: Workload, terms: dict[str, Amount]) -> dict[str, Any]:
    inputs = {name: sorted(x.inputs) for name, x in terms.items() if name != TOTAL}
    who = {c: w.columns[c] for c in ("data", "model", "variant", "preset")}
    return {**who, "form": w.form, "deployment": w.deployment, "batch": w.batch, "basis": w.basis,
            "trained_on": w.training.deployment, "inputs": inputs}  # fmt: skip

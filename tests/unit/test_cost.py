"""What a million requests cost: hand-worked numbers, bands, abstentions, scale laws, break-evens."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.bench.cost import REQUESTS, SAMPLES, cost_extra, cost_rows
from ctrbench.bench.cost_amounts import Facts
from ctrbench.bench.cost_prices import Price, Prices, load_prices
from ctrbench.bench.cost_terms import SAMPLE_TERMS, TERMS, TOTAL, Assumptions, request_terms
from ctrbench.bench.cost_whatif import crossings, sensitivities
from ctrbench.bench.cost_workloads import workloads
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement, frame

A100 = "A100-40 SXM"
NEAR = pytest.approx


def price(name: str, value: float, low: float | None = None, high: float | None = None, unit: str = "USD/GB") -> Price:
    return Price(
        name=name, value=value, low=value if low is None else low, high=value if high is None else high,
        currency="USD", unit=unit, region="r", provider="p", term="t", source="s", read_on=date(2026, 11, 26),
    )  # fmt: skip


# Round prices, so that the sums below can be done by hand.
ROUND = Prices({p.name: p for p in (
    price("vcpu", 0.036, 0.018, 0.072, "USD/vCPU-h"), price("ram", 0.004, unit="USD/GB-h"),
    price("ssd", 0.073, unit="USD/GB-month"), price("object", 0.0219, unit="USD/GB-month"),
    price("network_zones", 0.02), price("network_zone", 0.0), price(f"gpu.{A100}", 1.8, 0.9, 3.6, "USD/GPU-h"),
)})  # fmt: skip
PLAN = Assumptions(
    qps=100.0, utilisation=0.5, peak_to_mean=1.0, replicas=1.0, users=1e6, cache_resident=0.25, retention_days=10.0,
    training_samples=1e6, requests_before_retraining=1e6,
)  # fmt: skip


def _band(seconds: float) -> dict[str, float]:
    return {"ci_low": seconds / 2, "ci_high": seconds * 2}


def served(
    model: str = "din", family: str = "legacy", *, cpu: float = 0.02, gpu: float = 0.001, **changes: Any
) -> list[Measurement]:
    """Rows of one model, served at 100 candidates on CPU and, projected, on one GPU; trained on a log of 1,000 rows."""
    base: dict[str, Any] = {
        "run": "r", "model": model, "family": family, "data": "d", "split": "time", "track": "sequence",
    }  # fmt: skip
    at = {"phase": "serve", "scope": "reuse", "batch": 100}
    rows = [
        make(base, "serve_cpu", cpu, "measured", **at),
        make(base, "gpu_request_time", gpu, "modelled", **{**at, **_band(gpu), "scope": f"reuse:{A100}"}),
        make(base, "ops_request", 200, "counted", **at),
        make(base, "bytes_wire", 5000, "counted", **{**at, "scope": ""}),
        make(base, "bytes_tables", 2e9, "counted", phase="train", batch=10),
        make(base, "parameters", 5.25e8, "counted", phase="train", batch=10),  # 2.1e9 B: 1e8 B of dense weights
        make(base, "bytes_optimizer", 3e8, "counted", phase="train", batch=10),  # 2e8 dense, 1e8 of the tables
        make(base, "cpu_core_s_per_million", 40.0, "measured", phase="train", scope="data", batch=10),
        make(base, "cpu_core_s_per_million", 360.0, "measured", phase="train", scope="compute", batch=10),
        make(base, "throughput", 5000.0, "measured", phase="train", batch=10),
        make(base, "ops_per_step", 50, "counted", phase="train", batch=10),
        make(base, "gpu_time_modelled", 1e-4, "modelled", phase="train", scope=A100, batch=10, **_band(1e-4)),
    ]  # fmt: skip
    return [replace(r, **changes) for r in rows]


def shared_rows() -> list[Measurement]:
    """Rows of the data set and of the machine."""
    base = {"run": "r", "model": "", "data": "d", "split": "time"}
    rows = [
        make(base, "bytes_raw", 1e6, "measured", phase="prepare", n=1000),
        make(base, "bytes_shards", 2e5, "measured", phase="prepare", n=1000),
        make(base, "dispatch_us", 10.0, "measured", phase="train"),
    ]
    for paradigm, request, sample in (
        ("legacy", 50.0, 90.0),
        ("legacy_200", 200.0, 360.0),
        ("transformer", 10.0, 30.0),
    ):
        rows += [
            make(base, "feature_cpu", request, "measured", phase="serve", scope=f"{paradigm}:total", batch=100),
            make(base, "feature_cpu", sample, "measured", phase="prepare", scope=f"{paradigm}:total"),
            make(base, "feature_cpu", sample / 10, "measured", phase="prepare", scope=f"{paradigm}:kjt"),
        ]
    return rows


def priced(rows: list[Measurement], prices: Prices = ROUND, plan: Assumptions = PLAN) -> dict[str, Measurement]:
    """`metric scope` of the price rows -> row, of one model at one number of candidates."""
    found = cost_rows(frame(rows), prices, plan)
    out = {f"{r.metric} {r.scope}": r for r in found}
    assert len(out) == len(found)
    return out


def usd(found: dict[str, Measurement], where: str, form: str = "reuse") -> dict[str, float]:
    values = {t: found[f"{REQUESTS} {form}/{where}:{t}"].value for t in (*TERMS, TOTAL)}
    return {t: v for t, v in values.items() if v is not None}


def test_the_terms_of_a_request_on_cpu_by_hand() -> None:
    found = usd(priced([*served(), *shared_rows()]), "cpu")
    # 1e6 requests at 100 a second take 1e4 s = 2.7778 h: USD an hour x 2.7778.
    assert found["accelerator"] == 0.0
    assert found["host_cpu"] == NEAR(0.4)  # 100/s x .02 core-s x 2 (half used) = 4 vCPU x .036 = .144/h
    assert found["feature_cpu"] == NEAR(0.1)  # 50 core-s/1e6 candidates x 100 = .005 core-s; x 100/s x 2 = 1 vCPU
    assert found["dram"] == NEAR(2.1 * 0.004 / 0.36)  # 2 GB tables + .1 GB weights, one copy
    # A day logs 8.64e6 samples (as many as its requests): x 10 days x (1,000 + 200) B = 103.68 GB;
    # + 2 GB tables + .1 GB weights + .3 GB state = 106.08 GB x .0219 / 730 h x 2.7778 h
    assert found["storage"] == NEAR(106.08 * 0.0219 / 730 / 0.36)
    assert found["network"] == NEAR(0.1)  # 1e6 x 5,000 B = 5 GB x .02
    # A million samples a million requests: (40 + 360) core-s + (90 - 9) core-s of features at .036/h = .00481;
    # memory 2.4 GB x 200 s (5,000 samples/s) x .004/h = .000533; network 1e6 x 200 B x .02 = .004
    assert found["training"] == NEAR(481 * 1e-5 + 2.4 * 200 / 3600 * 0.004 + 0.004)
    assert found[TOTAL] == NEAR(sum(found[t] for t in TERMS))


def test_the_terms_of_a_request_on_a_gpu_by_hand() -> None:
    rows = priced([*served(gpu=0.05), *shared_rows()])
    found = usd(rows, A100)
    assert found["accelerator"] == NEAR(50.0)  # 100/s x .05 s x 2 = 10 GPUs x 1.8 = 18/h
    band = rows[f"{REQUESTS} reuse/{A100}:accelerator"]
    assert [band.ci_low, band.ci_high] == NEAR([50.0 / 4, 50.0 * 4])  # half and twice the time, and the price
    assert band.origin == "modelled"
    assert found["host_cpu"] == NEAR(0.1)  # 200 ops x 10 us = .002 core-s x 200/s = .4 vCPU, but one runs: .036/h
    # Training: 1e-5 s a sample x 1e6 = 10 s x 1.8/h; dispatch 50 x 10 us / 10 = 50 core-s + 40 loader + 81 features;
    # memory 2.4 GB x 10 s; network .004
    assert found["training"] == NEAR(0.005 + 171e-5 + 2.4 * 10 / 3600 * 0.004 + 0.004)


@pytest.mark.parametrize("withheld_row", [True, False])
def test_a_model_is_trained_on_cpu_where_its_step_was_not_projected(withheld_row: bool) -> None:
    rows = [*served(), *shared_rows()]
    gone = next(r for r in rows if r.metric == "gpu_time_modelled")
    rows.remove(gone)
    if withheld_row:
        base = {c: getattr(gone, c) for c in ("run", "model", "family", "data", "split", "phase", "scope", "batch")}
        rows.append(withheld(base, gone.metric, "coverage_low"))
    found = priced(rows)
    assert usd(found, A100)["training"] == usd(found, "cpu")["training"]
    assert {w["trained_on"] for w in cost_extra(frame(rows), ROUND, PLAN)["workloads"]} == {"cpu"}


def test_a_fleet_is_never_smaller_than_its_replicas() -> None:
    one, three = (
        usd(priced([*served(gpu=1e-6), *shared_rows()], plan=replace(PLAN, replicas=n)), A100)["accelerator"]
        for n in (1.0, 3.0)
    )
    assert one == NEAR(1.8 / 0.36)  # one GPU that idles
    assert three == NEAR(3 * one)


def test_a_rate_within_the_budget_prices_the_machine_that_it_took() -> None:
    base = {"run": "r", "model": "din", "data": "d", "split": "time"}
    rate = make(base, "serve_qps", 50.0, "measured", phase="serve", scope="reuse", batch=100, threads=2)
    rows = [*served(), *shared_rows(), rate]
    # 2 threads / 50 a second = .04 core-s a request, twice what the process itself used
    assert usd(priced(rows), "cpu")["host_cpu"] == NEAR(0.8)
    assert {w.deployment: w.basis for w in workloads(Facts(frame(rows)))} == {"cpu": "serve_qps", A100: "dispatch"}


def test_the_terms_of_training_by_hand() -> None:
    found = {k.split(" ", 1)[1]: r.value for k, r in priced([*served(), *shared_rows()]).items() if SAMPLES in k}
    assert found["cpu:host_cpu"] == NEAR(0.004)  # 400 core-s x .036 / 3600
    # Kept 106.08 GB, as above, 259.2e6 + samples a month of 730 h: 8.64e6 x 730 / 24 = 262.8e6
    assert found["cpu:storage"] == NEAR(106.08 * 0.0219 / 262.8)
    assert found["cpu:total"] == NEAR(sum(found[f"cpu:{t}"] or 0.0 for t in SAMPLE_TERMS))


def test_caches_and_answers_are_charged_to_the_forms_that_keep_them() -> None:
    base = {"run": "r", "model": "onetrans", "data": "d", "split": "time"}
    cache = make(base, "bytes_user_cache", 4000.0, "counted", phase="serve", scope="exact")
    exact = [replace(r, scope=r.scope.replace("reuse", "exact")) for r in served("onetrans", "transformer")]
    found = priced([*served("onetrans", "transformer"), *exact, *shared_rows(), cache])
    kept, plain = usd(found, "cpu", "exact"), usd(found, "cpu")
    dram, storage = (kept[t] - plain[t] for t in ("dram", "storage"))
    assert dram == NEAR(1.0 * 0.004 / 0.36)  # 1e6 users x 4 kB = 4 GB, a quarter in memory
    assert storage == NEAR(3.0 * 0.073 / 730 / 0.36)  # the rest on SSD


def test_tables_grow_and_dense_weights_do_not() -> None:
    small, large = (
        usd(priced([*served(), *shared_rows()], plan=replace(PLAN, tables_gb=gb)), "cpu") for gb in (2.0, 200.0)
    )
    assert small == usd(priced([*served(), *shared_rows()]), "cpu")  # 2 GB is what they measure
    assert large["dram"] == NEAR(200.1 * 0.004 / 0.36)
    # state: .2 GB of dense weights, .1 GB x 100 of the tables; 198 GB more of rows
    assert large["storage"] - small["storage"] == NEAR((198 + 9.9) * 0.0219 / 730 / 0.36)


WITHHELD = {
    "bytes_tables": ("dram", "storage", "training"), "serve_cpu": ("host_cpu",), "bytes_wire": ("network",),
    "throughput": ("training",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "gone"), [(m, gone) for m in WITHHELD for gone in (True, False) if not (gone and m == "serve_cpu")]
)
def test_a_term_without_its_input_is_withheld_and_so_is_the_total(metric: str, gone: bool) -> None:
    rows = [*served(), *shared_rows()]
    lost = next(r for r in rows if r.metric == metric)
    columns = {c: getattr(lost, c) for c in ("run", "model", "family", "data", "split", "phase", "scope", "batch")}
    others = [r for r in rows if r.metric != metric]
    found = priced(others if gone else [*others, withheld(columns, metric, "oom: too large")])
    for term in (*TERMS, TOTAL):
        row = found[f"{REQUESTS} reuse/cpu:{term}"]
        assert (row.value is None) == (term in (*WITHHELD[metric], TOTAL)), term
        if row.value is None:
            assert row.reason.startswith(f"no row of {metric}" if gone else "oom: too large")


def test_a_price_that_is_missing_withholds_its_term_and_nothing_else() -> None:
    rows = [*served(), *shared_rows()]
    fewer = Prices({n: p for n, p in ROUND.by_name.items() if n != f"gpu.{A100}"}, "mine.toml")
    before, after = priced(rows), priced(rows, fewer)
    changed = {k for k in before if before[k] != after[k]}
    assert {k.split(":")[-1] for k in changed} == {"accelerator", "training", TOTAL}
    assert all(A100 in k and "price_missing" in after[k].reason and "mine.toml" in after[k].reason for k in changed)


PAID = {
    "vcpu": {"host_cpu", "feature_cpu", "training", TOTAL}, "ram": {"dram", "training", TOTAL},
    "object": {"storage", TOTAL}, "ssd": set(), "network_zones": {"network", "training", TOTAL}, "network_zone": set(),
    f"gpu.{A100}": {"accelerator", "training", TOTAL},
}  # fmt: skip


@pytest.mark.parametrize("name", PAID)
def test_a_price_changes_the_rows_that_pay_it_and_no_other(name: str) -> None:
    rows = [*served(), *shared_rows()]
    before, after = priced(rows), priced(rows, ROUND.at(name, ROUND.by_name[name].value * 3 + 1e-3))
    changed = {k for k in before if before[k].value != after[k].value}
    assert {k.split(":")[-1] for k in changed if REQUESTS in k} == PAID[name]
    if name.startswith("gpu."):
        assert all(A100 in k for k in changed)


def test_more_hand_made_columns_cost_legacy_models_more_and_no_other() -> None:
    for model, family, factor in (("din", "legacy", 4.0), ("fat", "transformer", 1.0)):
        rows = [*served(model, family), *shared_rows()]
        few, many = (usd(priced(rows, plan=replace(PLAN, legacy_features=p)), "cpu") for p in ("legacy", "legacy_200"))
        assert many["feature_cpu"] == NEAR(factor * few["feature_cpu"])
        assert (many["training"] > few["training"]) == (family == "legacy")


def test_features_measured_at_other_numbers_of_candidates_price_nothing() -> None:
    others = [replace(r, batch=16) if r.metric == "feature_cpu" and r.phase == "serve" else r for r in shared_rows()]
    row = priced([*served(), *others])[f"{REQUESTS} reuse/cpu:feature_cpu"]
    assert row.value is None
    assert "at 16 candidates, not at 100" in row.reason


def test_unstable_inputs_make_unstable_rows() -> None:
    rows = [replace(r, status="unstable", reason="clock_unstable") if r.metric == "serve_cpu" else r for r in served()]
    row = priced([*rows, *shared_rows()])[f"{REQUESTS} reuse/cpu:{TOTAL}"]
    assert (row.status, row.reason) == ("unstable", "clock_unstable")


POSITIVE = st.floats(1e-6, 1e3)


@given(cpu=POSITIVE, gpu=POSITIVE, qps=st.floats(0.1, 1e5), replicas=st.floats(0.5, 50), spread=st.floats(1, 10))
@settings(max_examples=60, deadline=None)
def test_totals_are_sums_and_lie_in_their_bands(
    cpu: float, gpu: float, qps: float, replicas: float, spread: float
) -> None:
    prices = Prices({n: replace(p, low=p.value / spread, high=p.value * spread) for n, p in ROUND.by_name.items()})
    plan = replace(PLAN, qps=qps, replicas=replicas)
    for w in workloads(Facts(frame([*served(cpu=cpu, gpu=gpu), *shared_rows()]))):
        terms = request_terms(w, prices, plan)
        total = terms.pop(TOTAL)
        assert tuple(terms) == TERMS
        for end in ("value", "low", "high"):
            assert getattr(total, end) == NEAR(sum(getattr(t, end) for t in terms.values()))
        assert total.value is not None
        assert total.low <= total.value <= total.high


@given(times=st.floats(1.5, 50), cpu=st.floats(0.02, 10))
@settings(max_examples=40, deadline=None)
def test_more_traffic_changes_only_what_stands_there_anyway(times: float, cpu: float) -> None:
    rows = [*served(cpu=cpu, gpu=0.05), *shared_rows()]
    before, after = (usd(priced(rows, plan=replace(PLAN, qps=q)), "cpu") for q in (100.0, 100.0 * times))
    for term in ("host_cpu", "feature_cpu", "network", "training"):
        assert after[term] == NEAR(before[term]), term
    assert after["dram"] == NEAR(before["dram"] / times)
    model = 2.4 * 0.0219 / 730 / 0.36  # the log grows with the traffic, tables and state do not
    assert after["storage"] == NEAR(before["storage"] - model * (1 - 1 / times))


def test_the_peak_counts_once_it_is_more_than_the_room_that_was_left() -> None:
    costs = [
        usd(priced([*served(), *shared_rows()], plan=replace(PLAN, peak_to_mean=p)), "cpu")["host_cpu"]
        for p in (1.0, 2.0, 4.0)
    ]
    assert costs == [NEAR(0.4), NEAR(0.4), NEAR(0.8)]


def test_every_replica_holds_the_tables_in_memory() -> None:
    one, three = (
        usd(priced([*served(), *shared_rows()], plan=replace(PLAN, replicas=n)), "cpu")["dram"] for n in (1.0, 3.0)
    )
    assert three == NEAR(3 * one)


def test_training_more_often_costs_a_request_more() -> None:
    """Twice the samples a request: twice its share of training and a log of twice as many samples a day."""
    rows = [*served(), *shared_rows()]
    often = replace(PLAN, requests_before_retraining=PLAN.requests_before_retraining / 2)
    once, twice = usd(priced(rows), "cpu"), usd(priced(rows, plan=often), "cpu")
    assert twice["training"] == NEAR(2 * once["training"])
    assert twice["storage"] == NEAR((2 * 103.68 + 2.4) * 0.0219 / 730 / 0.36)
    assert often.samples_a_day == 2 * PLAN.samples_a_day == 2 * 8.64e6


def test_models_are_apart_where_their_bands_are() -> None:
    """vCPU prices span half to twice: models that differ by a tenth overlap, by a hundred times they do not."""
    for cpu, apart in ((0.022, False), (20.0, True)):
        rows = frame([*served("din"), *served("fat", "transformer", cpu=cpu), *shared_rows()])
        (pair,) = [p for p in cost_extra(rows, ROUND, PLAN)["pairs"] if p["deployment"] == "cpu"]
        assert (pair["apart"], pair["usd_a"] < pair["usd_b"]) == (apart, True)


def two_models() -> pd.DataFrame:
    """`lean` computes little and waits in large tables; `busy` computes ten times as much in small ones."""
    lean = [replace(r, value=4e11) if r.metric == "bytes_tables" else r for r in served("lean", cpu=0.01)]
    lean = [replace(r, value=1e11 + 2.5e7) if r.metric == "parameters" else r for r in lean]
    busy = served("busy", cpu=0.1)
    return frame([*lean, *busy, *shared_rows()])


def test_what_flips_a_ranking_flips_it_there() -> None:
    rows = two_models()
    _, flips = sensitivities(workloads(Facts(rows)), ROUND, PLAN)
    found = {f["knob"]: f for f in flips if f["deployment"] == "cpu"}
    assert (found["qps"]["a"], found["qps"]["b"]) == ("busy", "lean")  # at 100 a second the tables cost more
    at = found["qps"]["break_even"]
    ws = {w.columns["model"]: w for w in workloads(Facts(rows)) if w.deployment == "cpu"}
    for qps, cheaper in ((at * 0.99, "busy"), (at * 1.01, "lean")):
        totals = {m: request_terms(w, ROUND, replace(PLAN, qps=qps))[TOTAL].value or 0.0 for m, w in ws.items()}
        assert min(totals, key=lambda m: totals[m]) == cheaper
    assert "tables_gb" in found  # with tables of one size only the computing is left


def test_cpu_and_gpu_cost_the_same_at_the_break_even_price() -> None:
    rows = frame([*served(cpu=0.5, gpu=0.01), *shared_rows()])
    extra = cost_extra(rows, ROUND, PLAN)
    (price_axis,) = [b for b in extra["break_even"] if b["kind"] == "deployments" and b["axis"] == f"gpu.{A100}"]
    prices = ROUND.at(f"gpu.{A100}", price_axis["at"])
    totals = [usd(priced([*served(cpu=0.5, gpu=0.01), *shared_rows()], prices), d)[TOTAL] for d in ("cpu", A100)]
    assert totals[0] == NEAR(totals[1])
    assert price_axis["cheaper_below"] == ("b" if price_axis["deployment_b"] == A100 else "a")


def test_the_summary_holds_prices_assumptions_and_tables_as_json() -> None:
    long = [replace(r, variant="history=1024", value=(r.value or 0) * 8) for r in served() if r.phase == "serve"]
    rows = frame([*two_models_rows(), *long, *shared_rows()])
    extra = json.loads(json.dumps(cost_extra(rows, load_prices(), PLAN), allow_nan=False))
    assert {p["name"] for p in extra["prices"]} >= {"vcpu", "ram", "ssd", "object", f"gpu.{A100}"}
    assert extra["assumptions"]["headroom"] == 2.0
    assert {w["knob"] for w in extra["what_if"]} == {"qps", "tables_gb", "replicas", "peak_to_mean", "history"}
    history = [w for w in extra["what_if"] if w["knob"] == "history"]
    assert {w["at"] for w in history} == {1024}
    assert all(w["usd"] > 0 for w in history)
    for pair in extra["pairs"]:
        assert pair["usd_a"] <= pair["usd_b"]
        assert set(pair["flipped_by"]) == {
            f["knob"] for f in extra["sensitivity"] if all(f[k] == pair[k] for k in ("a", "b", "deployment"))
        }
    inputs = next(w for w in extra["workloads"] if w["deployment"] == "cpu" and not w["variant"])["inputs"]
    assert inputs["host_cpu"] == ["serve_cpu"]
    assert inputs["accelerator"] == []


def two_models_rows() -> list[Measurement]:
    return [*served(), *served("fat", "transformer", cpu=0.05)]


def test_crossings_are_found_and_no_others() -> None:
    assert [at for at, _ in crossings(lambda x: (x - 3.0) * (x - 70.0), 1.0, 100.0)] == [NEAR(3.0), NEAR(70.0)]
    assert [at for at, _ in crossings(lambda x: x - 5.0, 0.0, 10.0)] == [NEAR(5.0)]  # on a step of the grid
    assert crossings(lambda x: x + 1.0, 0.0, 10.0) == []

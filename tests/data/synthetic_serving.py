"""SYNTHETIC records of a suite of serving: round numbers by a formula, for tests of the report only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement, frame

DATA = "movielens_1m"
MODELS = {"deepfm": "legacy", "dcn_v2": "legacy", "din": "legacy", "fat": "transformer", "onetrans": "transformer"}
WORK = {"deepfm": 1.0, "dcn_v2": 2.0, "din": 4.0, "fat": 10.0, "onetrans": 40.0}
"""Of a candidate, in arbitrary units."""
SIZES = (16, 128, 512)
GPUS = ("H100 SXM", "L4")
TERMS = ("accelerator", "feature_cpu", "host_cpu", "dram", "storage", "network")
BAND = 1.25
"""High end over the middle, and the middle over the low end, of every price."""
WHO = {"data": DATA, "variant": "", "preset": "small", "form": "reuse", "batch": 512}
PAIR = {"data": DATA, "form": "reuse", "deployment": "cpu", "batch": 512, "a": "deepfm", "b": "onetrans"}
COST_EXTRA: dict[str, Any] = {
    "prices": [{
        "name": "vcpu", "value": 0.03, "low": 0.01, "high": 0.04, "currency": "USD", "unit": "USD/vCPU-h",
        "region": "x", "provider": "y", "term": "on demand", "source": "<b>a page</b>", "read_on": "2026-11-26",
        "note": "",
    }],
    "price_file": "prices.toml",
    "assumptions": {"qps": 1000.0, "tables_gb": None, "training": True},
    "pairs": [{**PAIR, "usd_a": 3.4, "usd_b": 42.4, "apart": True, "flipped_by": ["utilisation"]}],
    "sensitivity": [{**PAIR, "usd_a": 3.4, "usd_b": 42.4, "knob": "utilisation", "kind": "assumption", "value": 0.5,
                     "low": 0.2, "high": 0.9, "unit": "ratio", "break_even": 0.3, "flips": True, "reason": ""}],
    "what_if": [
        *({**WHO, "model": "fat", "deployment": d, "knob": "qps", "at": q, "usd": 10 + e / q, "low": 9.0, "high": 90.0,
           "reason": ""} for q in (10.0, 100.0, 1000.0) for d, e in (("cpu", 0.0), (GPUS[0], 500.0))),
        {**WHO, "model": "din", "deployment": "cpu", "knob": "replicas", "at": 2.0, "usd": None, "low": None,
         "high": None, "reason": "no price of ram"},
        {**WHO, "model": "onetrans", "variant": "history=1024", "deployment": "cpu", "knob": "history", "at": 1024,
         "usd": 70.0, "low": 60.0, "high": 80.0, "reason": ""},
    ],
    "break_even": [{
        "kind": "deployments", "data": DATA, "form": "reuse", "batch": 512, "a": "fat", "b": "fat",
        "deployment_a": "cpu", "deployment_b": GPUS[0], "axis": "qps", "unit": "requests/s", "low": 10.0, "high": 1e5,
        "at": 100.0, "cheaper_below": "a", "cheaper_above": "b", "reason": "",
    }],
    "usd_per_tflops": [{"gpu": "V100", "dtype": "fp16", "tflops": 125.0, "usd_per_tflops_hour": 0.02, "low": 0.01,
                        "high": 0.03, "times_v100_fp16": 1.0, "reason": ""}],
}  # fmt: skip
"""What `bench.cost.cost_extra` writes, in small."""


def base(model: str, **kw: Any) -> dict[str, Any]:
    return {"run": f"serve-{model}", "model": model, "family": MODELS.get(model, ""), "data": DATA, "split": "time",
            "track": "sequence", "phase": "serve", "threads": 1, **kw}  # fmt: skip


def band(value: float, factor: float = BAND) -> dict[str, float]:
    return {"ci_low": value / factor, "ci_high": value * factor}


def request_rows(model: str, batch: int, requests: int = 2000) -> list[Measurement]:
    """A model at one number of candidates: the user's side is worth 100 candidates, sharing leaves a tenth of each."""
    here, unit = base(model, batch=batch), 1e6 * WORK[model]
    rows: list[Measurement] = []
    for form, a_user, a_candidate in (("reuse", 100.0, 0.1), ("whole", 0.0, 1.0), ("alone", 0.0, 1.0)):
        flops = unit * (a_user + a_candidate * batch)
        wait = 1e-3 + flops / 1e10 * (3 if form == "alone" else 1)
        p99 = {"p99": 3 * wait} if requests >= 1000 else {}
        at = {"scope": form}
        rows += [
            make(here, "serve_latency", wait, "measured", p50=wait, p90=2 * wait, **p99, n=requests, **at),
            make(here, "flops_request", flops, "counted", **at),
            make(here, "flops_request", unit * a_user, "counted", scope=f"{form}:user"),
            make(here, "flops_candidate", flops / batch, "counted", **at),
            make(here, "bytes_request", flops / 10, "counted", **at),
            make(here, "ops_request", 100.0, "counted", **at),
            make(here, "serve_mfu_cpu", 0.2, "derived", **at), make(here, "serve_cpu", wait, "measured", **at),
            *(make(here, "gpu_request_time", wait / k, "modelled", scope=f"{form}:{g}", **band(wait / k, 2.0))
              for g, k in zip(GPUS, (20, 5), strict=True)),
        ]  # fmt: skip
        if form == "alone":
            continue
        slow = model == "onetrans" and form == "whole"
        rows.append(
            withheld(here, "serve_qps", "the p99 of a request alone is above the budget", **at) if slow
            else make(here, "serve_qps", 0.5 / wait, "measured", **at)
        )  # fmt: skip
        rows += [make(here, "serve_offline", 0.9 / wait, "measured", **at),
                 make(here, "serve_refused", 0.66, "measured", **at),
                 make(here, "serve_overload_p99", 0.08, "measured", **at)]  # fmt: skip
    share = (100 + 0.1 * batch) / batch
    time = share * (1.2 if model != "din" else 2.0)
    return [*rows, make(here, "reuse_flops", share, "counted", scope="reuse"),
            make(here, "reuse_time", time, "measured", scope="reuse", n=30, **band(time, 1.05)),
            make(here, "bytes_wire", 100.0 * batch, "counted")]  # fmt: skip


def pair_rows() -> list[Measurement]:
    """FAT with its weights written once against made for the request, by turns; its user's side held beside."""
    here, rows = base("fat", variant="history=50", data="random_sequence", batch=512), []
    for scope, flops, time in (("reuse/on_the_fly", 0.5, 0.6), ("cached/on_the_fly", 0.4, 0.7)):
        rows += [make(here, "reuse_flops", flops, "counted", scope=scope),
                 make(here, "reuse_time", time, "derived", scope=scope, n=30, **band(time, 1.02))]  # fmt: skip
    return [*rows, *(make(here, "serve_latency", t, "measured", scope=s, p50=t, p90=t, n=50) for s, t in
                     (("reuse", 0.06), ("cached", 0.05), ("on_the_fly", 0.1)))]  # fmt: skip


def state_rows() -> list[Measurement]:
    """What OneTrans keeps, how far it drifts, two stages on its cache, and published sizes."""
    here = base("onetrans")
    rows = [make(here, "bytes_user_cache", 2e5, "counted", scope="exact"),
            make(here, "bytes_user_cache", 4e5, "counted", scope="streaming"),
            make(base("lum"), "bytes_knowledge", 640.0, "counted")]  # fmt: skip
    rows += [make(here, "cache_hit_rate", h, "counted", scope=s) for s, h in
             (("1 GB", 0.9), ("64 MB", 0.5), ("8 MB", 0.1), ("Zipf 1, 100 users: 8 MB", 0.2))]  # fmt: skip
    for events in (16, 1, 4):
        rows += [make(here, "stream_drift", 0.01 * events, "measured", scope=str(events), **band(0.01 * events)),
                 make(here, "stream_drift_auc", -1e-4 * events, "derived", scope=str(events),
                      ci_low=-2e-4 * events, ci_high=1e-4)]  # fmt: skip
    rows += stage_rows("onetrans", 1e-6)
    for model, each in (("onetrans", 1500.0), ("dcn_v2", 4e5)):
        for form, factor in (("reuse", 1.0), ("whole", 0.1)):
            rows += [
                replace(make(base(model), "tflop_candidates", factor * each * 1024 / h, "counted",
                             scope=f"{form}:{h}"), preset="published:L", data="", device="meta")
                for h in (256, 1024, 4096)
            ]  # fmt: skip
    return rows


def stage_rows(model: str, difference: float, flops: float = 0.4) -> list[Measurement]:
    """Two stages on one cache."""
    here = base(model)
    return [*(make(here, "stages_diff", difference, "measured", scope=s) for s in ("retrieve", "rank")),
            make(here, "stages_saved", flops, "counted", scope="flops"),
            make(here, "stages_saved", 0.5, "counted", scope="bytes")]  # fmt: skip


def feature_rows() -> list[Measurement]:
    """CPU of both paths; a step of the transformer's is not known."""
    rows = []
    for phase, batch in (("prepare", None), ("serve", 512)):
        here = base("", phase=phase, batch=batch)
        rows += [make(here, "feature_cpu", v, "measured", scope=f"legacy:{s}", **band(v, 1.1))
                 for s, v in (("join", 2.0), ("statistics", 8.0), ("kjt", 1.0), ("total", 11.0))]  # fmt: skip
        rows += [make(here, "feature_cpu", v, "measured", scope=f"transformer:{s}") for s, v in
                 (("join", 2.0), ("history", 3.0))]  # fmt: skip
    lost = withheld(base("", batch=512), "feature_cpu", "too_few_repeats", scope="transformer:kjt")
    return [*rows, lost, make(base("", batch=None), "feature_cpu", 0.5, "measured", scope="legacy:update")]


def cost_rows(model: str, batch: int, missing: str = "", gpu: float = 1.0) -> list[Measurement]:
    """USD by term of a million requests and of a million samples; `missing` is a term that is not known.

    Args:
        model: key.
        batch: candidates.
        missing: term that is withheld, and with it the total.
        gpu: USD of the accelerator per unit of work.
    """
    rows: list[Measurement] = []
    scale = WORK[model] * batch / 512
    for form in ("reuse", "whole"):
        for deployment in ("cpu", *GPUS):
            on_cpu = deployment == "cpu"
            usd = {"accelerator": 0.0 if on_cpu else gpu * scale, "feature_cpu": 2.0, "host_cpu": scale if on_cpu else
                   0.5, "dram": 0.25, "storage": 0.1, "network": 0.05}  # fmt: skip
            rows += _terms(base(model, batch=batch), "usd_per_million_requests", f"{form}/{deployment}", usd, missing)
    usd = dict.fromkeys(TERMS, 0.1) | {"host_cpu": WORK[model]}
    return [*rows, *_terms(base(model, phase="train"), "usd_per_million_samples", "cpu", usd, missing)]


def _terms(here: dict[str, Any], metric: str, scope: str, usd: Mapping[str, float], missing: str) -> list[Measurement]:
    origin: Any = "derived" if scope.endswith("cpu") else "modelled"
    rows = [
        withheld(here, metric, "no price of it", scope=f"{scope}:{term}") if term == missing
        else make(here, metric, value, origin, scope=f"{scope}:{term}", **band(value))
        for term, value in usd.items()
    ]  # fmt: skip
    total = sum(usd.values())
    whole = (make(here, metric, total, origin, scope=f"{scope}:total", **band(total)) if missing not in usd
             else withheld(here, metric, "no price of it", scope=f"{scope}:total"))  # fmt: skip
    return [*rows, whole]


def quality_rows(reference: str = "dcn_v2") -> list[Measurement]:
    """AUC with an interval, the paired difference with the reference, and with DeepFM; only OneTrans is better."""
    rows = []
    for model in MODELS:
        gain = 0.01 if model == "onetrans" else 0.0
        here = base(model, phase="train")
        rows.append(make(here, "auc", 0.78 + gain, "measured", ci_low=0.775 + gain, ci_high=0.785 + gain, n=3))
        if model != "deepfm":
            rows.append(make(here, "auc_pair", gain, "derived", scope="vs:deepfm", ci_low=gain - 0.002,
                             ci_high=gain + 0.002, n=3))  # fmt: skip
        if model != reference:
            rows.append(make(here, "auc_delta", gain, "derived", scope=f"vs:{reference}", ci_low=gain - 0.002,
                             ci_high=gain + 0.002, n=3))  # fmt: skip
    return rows


def serving_rows() -> list[Measurement]:
    """All rows of a finished suite; LUM was not served."""
    rows = [r for m in MODELS for n in SIZES for r in (*request_rows(m, n), *cost_rows(m, n))]
    lost = [withheld(base("lum", batch=n), "serve_latency", "its pre-training was lost", scope="reuse") for n in SIZES]
    gone = [replace(r, family="transformer") for r in lost]
    return [*rows, *gone, *state_rows(), *pair_rows(), *feature_rows(), *quality_rows()]


def serving_records() -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """SYNTHETIC (frame, bodies)."""
    summary = {"spec": {"kind": "summary", "level": "quick"}, "extra": {"cost": COST_EXTRA}}
    return frame(serving_rows()), {"summary": summary}

"""SYNTHETIC records in the shape that a suite writes: seeded random numbers, for tests of the report only."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import pandas as pd

from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement, frame

FAMILY = {
    "deepfm": "legacy",
    "dcn_v2": "legacy",
    "din": "legacy",
    "composite": "legacy",
    "fat": "transformer",
    "onetrans": "transformer",
    "gpt_block": "transformer",
    "shared_fields": "transformer",
}
JOBS = {
    "movielens_1m": (
        "sequence",
        tuple(FAMILY),
        ("popularity", "logistic", "lightgbm", "lightgbm_history"),
        "composite",
    ),
    "criteo_synthetic": ("tabular", ("deepfm", "dcn_v2", "fat"), ("logistic", "lightgbm"), "dcn_v2"),
}
GPUS = ("H100 SXM", "A100-80 SXM", "L4", "B200 SXM")
STAGES = ("data", "embedding", "interaction", "dense", "loss", "backward", "optimizer", "other")
GROUPS = ("quality", "time", "count", "trace", "published", "prepare")


def synthetic_records(
    seed: int = 0, *, groups: tuple[str, ...] = GROUPS, skip: tuple[str, ...] = (), oom: str = "gpt_block"
) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """SYNTHETIC (frame, bodies).

    Args:
        seed: of every number.
        groups: which processes wrote rows.
        skip: data sets that were skipped.
        oom: a model whose timing process ran out of memory on the sequence track; empty for none.
    """
    rng = random.Random(seed)
    rows: list[Measurement] = []
    bodies: dict[str, dict[str, Any]] = {
        "prepare": {"spec": {"kind": "prepare", "level": "quick", "tuned": False}, "extra": {}}
    }
    for data, (track, models, floors, reference) in JOBS.items():
        if data in skip:
            for model in models:
                rows += _skipped(data, track, model)
            continue
        if "prepare" in groups:
            base = {"run": f"prepare-{data}", "model": "", "data": data, "track": track, "phase": "prepare"}
            rows += [make(base, "bytes_raw", 24e6, "measured"), make(base, "bytes_shards", 9.5e6, "measured")]
        scores: dict[str, float] = {}
        for model in (*models, *floors):
            family = FAMILY.get(model, "floor")
            base = {
                "run": "summary",
                "model": model,
                "family": family,
                "data": data,
                "track": track,
                "phase": "train",
                "split": "time",
                "threads": 1,
                "batch": 512,
            }
            bodies[f"{data}-{model}"] = _body(rng, data, model, family)
            if "quality" in groups:
                scores[model] = 0.78 + 0.02 * rng.random()
                rows += _quality(rng, base, scores[model])
            if family == "floor":
                continue
            if "count" in groups:
                rows += _counts(rng, base)
            if "time" in groups:
                rows += _times(rng, base, "oom" if model == oom and track == "sequence" else "")
            if "trace" in groups:
                rows += _split(rng, base)
        if "quality" in groups:
            rows += _deltas(rng, data, track, scores, reference)
    if "published" in groups:
        for model in FAMILY:
            rows += _published(rng, model)
    return frame(rows), bodies


def _body(rng: random.Random, data: str, model: str, family: str) -> dict[str, Any]:
    spec = {
        "kind": "floor" if family == "floor" else "quality",
        "model": model,
        "variant": "",
        "data": data,
        "split": "time",
        "fingerprint": f"sha256:{data}",
        "history_length": 50 if data == "movielens_1m" else 0,
        "train_rows": 150000,
        "dtype": "float32",
        "threads": 1,
        "level": "quick",
        "seed": 0,
    }
    card = {
        "model": model,
        "paper": "arXiv:0000.00000",
        "rows": [
            {"mechanism": "interaction", "status": "faithful", "section": "3.1", "switch": "", "note": ""},
            {
                "mechanism": "residual layout",
                "status": "unknown",
                "section": "n/k",
                "switch": "residual=pre",
                "note": "our guess",
            },
        ],
    }
    environment = {"cpu_model": "Synthetic CPU @ 2.0 GHz", "cores": 2, "packages": {"torch": "2.13.0", "plotly": "7"}}
    extra = {"control": model in ("gpt_block", "shared_fields")} | ({} if family == "floor" else {"card": card})
    return {"spec": spec, "environment": environment, "extra": extra}


def _skipped(data: str, track: str, model: str) -> list[Measurement]:
    base = {
        "run": f"skipped-{data}",
        "model": model,
        "family": FAMILY[model],
        "data": data,
        "track": track,
        "phase": "train",
    }
    reason = "the wheel could not be fetched and there is no local copy; pass data.path=FILE"
    return [withheld(base, m, reason) for m in ("auc", "logloss", "step_time", "throughput", "ops_per_step")]


def _quality(rng: random.Random, base: dict[str, Any], auc: float) -> list[Measurement]:
    seeds = [auc + rng.gauss(0, 0.0007) for _ in range(3)]
    mean = sum(seeds) / 3
    rows = [make(base, "auc", v, "measured", seed=i) for i, v in enumerate(seeds)]
    rows.append(make(base, "auc", mean, "measured", n=3, sd=0.0007, ci_low=mean - 0.004, ci_high=mean + 0.004))
    for metric, value in (("logloss", 0.55), ("ne", 0.83), ("calibration", 1.01)):
        rows.append(make(base, metric, value + 0.01 * rng.random(), "measured", n=3))
    rows += [make(base, "calibration", 0.9 + 0.02 * k, "measured", scope=f"bin:{k}/10", n=3) for k in range(1, 11)]
    if base["track"] == "sequence":
        rows.append(make(base, "gauc", auc - 0.04, "measured", n=3))
        rows.append(make(base, "gauc_dropped", 0.31, "measured"))
    else:
        rows.append(withheld(base, "gauc", "field_missing: the data has no user"))
    return rows


def _deltas(rng: random.Random, data: str, track: str, scores: dict[str, float], reference: str) -> list[Measurement]:
    rows = []
    for model, auc in scores.items():
        family = FAMILY.get(model, "floor")
        base = {"run": "summary", "model": model, "family": family, "data": data, "track": track, "phase": "train"}
        for other in (reference, "lightgbm_history"):
            if other in scores and other != model:
                delta, half = auc - scores[other], 0.001 + 0.003 * rng.random()
                ci = {"ci_low": delta - half, "ci_high": delta + half}
                rows.append(make(base, "auc_delta", delta, "derived", scope=f"vs:{other}", n=3, **ci))
        if model != reference and family != "floor":
            rows.append(
                make(base, "auc_per_gflop", (auc - scores[reference]) / 0.002, "derived", scope=f"vs:{reference}")
            )
    models = [m for m in scores if FAMILY.get(m, "floor") != "floor"]
    for model, other in combinations(models, 2):
        base = {
            "run": "summary",
            "model": model,
            "family": FAMILY[model],
            "data": data,
            "track": track,
            "phase": "train",
        }
        delta, half = scores[model] - scores[other], 0.001 + 0.003 * rng.random()
        ci = {"ci_low": delta - half, "ci_high": delta + half}
        rows.append(make(base, "auc_pair", delta, "derived", scope=f"vs:{other}", n=3, **ci))
        rows.append(make(base, "auc_pair_mdd", 1.4 * half, "derived", scope=f"vs:{other}", n=3))
    return rows


def _counts(rng: random.Random, base: dict[str, Any]) -> list[Measurement]:
    forward, ops = 10 ** rng.uniform(5.3, 7.5), rng.randint(150, 900)
    bytes_ = 512 * forward * rng.uniform(0.2, 1.0)
    kernels = ops * rng.uniform(1.1, 1.6)
    return [
        make(base, "flops_fwd_per_sample", forward, "counted", phase="infer"),
        make(base, "flops_train_per_sample", 3 * forward, "counted"),
        make(base, "budget_flops", 3 * forward * 150_000, "derived"),
        make(base, "flop_coverage", 1.0, "counted"),
        make(base, "ops_per_step", ops, "counted"),
        make(base, "ops_per_sample", ops / 512, "counted"),
        make(base, "kernels_per_step", kernels, "modelled", ci_low=0.8 * kernels, ci_high=1.3 * kernels),
        make(base, "bytes_operands", bytes_, "counted"),
        make(base, "bytes_compulsory", 0.1 * bytes_, "counted"),
        make(base, "ai_operands", 512 * 3 * forward / bytes_, "counted"),
        make(base, "ai_compulsory", 5120 * 3 * forward / bytes_, "counted"),
        make(base, "bytes_tables", rng.uniform(4e6, 4e7), "counted"),
        make(base, "bytes_optimizer", rng.uniform(1e6, 1e7), "counted"),
        make(base, "bytes_checkpoint", rng.uniform(5e6, 5e7), "measured"),
        make(base, "parameters", rng.uniform(1e6, 1e7), "counted"),
        make(base, "unique_row_ratio", 0.4, "counted"),
    ]


def _times(rng: random.Random, base: dict[str, Any], status: str) -> list[Measurement]:
    owed = (
        "step_time",
        "throughput",
        "infer_latency",
        "loader_stall",
        "cpu_core_seconds",
        "rss_peak",
        "mfu_cpu",
        "mbu",
    )
    if status:
        reason = "the process was killed at 3.1 GB, limit 3.0 GB"
        return [
            withheld(base, m, reason, status="oom", phase="infer" if m == "infer_latency" else "train") for m in owed
        ]
    step = 10 ** rng.uniform(-2.3, -1.0)
    unstable: dict[str, Any] = {}
    if base["model"] == "din":
        unstable = {"status": "unstable", "reason": "clock_unstable: ceilings moved by 14 % between the alternations"}
    return [
        make(
            base,
            "step_time",
            step,
            "measured",
            n=3,
            p10=0.9 * step,
            p50=step,
            p90=1.2 * step,
            ci_low=0.95 * step,
            ci_high=1.1 * step,
        ),
        make(base, "throughput", 512 / step, "measured", n=3, ci_low=460 / step, ci_high=540 / step),
        make(
            base, "infer_latency", 0.3 * step, "measured", phase="infer", n=3, ci_low=0.28 * step, ci_high=0.33 * step
        ),
        make(base, "loader_stall", 0.02, "measured", n=3),
        make(base, "cpu_core_seconds", 1.1 * step, "measured"),
        make(base, "cpu_core_s_per_million", 3.0, "measured", scope="data"),
        make(base, "cpu_core_s_per_million", 1e6 * step / 512, "measured", scope="compute"),
        make(base, "rss_peak", rng.uniform(5e8, 1.2e9), "measured", n=3),
        make(base, "mfu_cpu", rng.uniform(0.02, 0.5), "derived", **unstable),
        make(base, "mbu", rng.uniform(0.05, 0.7), "derived", scope="bytes_operands"),
        make(base, "ceiling_gemm", 95.0 + rng.random(), "measured"),
        make(base, "ceiling_copy", 12.0 + rng.random(), "measured"),
        make(base, "ceiling_cache", 40.0 + rng.random(), "measured"),
    ]


def _split(rng: random.Random, base: dict[str, Any]) -> list[Measurement]:
    parts = [rng.random() + 0.05 for _ in STAGES]
    rows = [
        make(base, "split_host", p / sum(parts), "measured", scope=f"stage:{s}")
        for s, p in zip(STAGES, parts, strict=True)
    ]
    return [*rows, make(base, "split_host", 0.11, "measured", scope="stage:interaction/block:cross")]


def _published(rng: random.Random, model: str) -> list[Measurement]:
    base = {
        "run": f"published-{model}",
        "model": model,
        "family": FAMILY[model],
        "preset": "published:B",
        "phase": "train",
        "device": "meta",
        "dtype": "bf16",
    }
    wide = FAMILY[model] == "transformer"
    flops, kernels = 10 ** rng.uniform(8.5, 10 if wide else 9), rng.randint(200, 1500)
    rows = []
    for batch in (256, 1024, 4096, 16384):
        here = {**base, "batch": batch}
        ai = (150 if wide else 15) * rng.uniform(0.8, 1.2) * (batch / 16384) ** 0.2
        rows += [
            make(here, "kernels_per_step", kernels, "modelled", ci_low=0.8 * kernels, ci_high=1.2 * kernels),
            make(here, "flops_train_per_sample", flops, "counted"),
            make(here, "ai_operands", ai, "counted"),
            make(here, "ai_compulsory", 6 * ai, "counted"),
        ]
        for i, gpu in enumerate(GPUS):
            rows.append(
                make(here, "mfu_bound", min(1.0, ai / (60 * (i + 2)) * (batch / 4096) ** 0.3), "modelled", scope=gpu)
            )
    return rows

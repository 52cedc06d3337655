"""What every kind of process owes: the measures that a skipped or failed one withholds, each with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctrbench.reports.measures import OF_SCORES, withheld
from ctrbench.reports.records import Measurement, Status

TIMED = (
    "step_time", "throughput", "infer_latency", "loader_stall", "cpu_core_seconds", "cpu_core_s_per_million",
    "rss_peak", "mfu_cpu", "mbu",
)  # fmt: skip
TRAINED = ("auc", "gauc", "logloss", "ne", "calibration", *(m.id for m in OF_SCORES))
COUNTED = (
    "flops_fwd_per_sample", "flops_train_per_sample", "flop_coverage", "ops_per_step", "ops_per_sample",
    "kernels_per_step", "kernels_per_sample", "bytes_operands", "bytes_compulsory", "ai_operands", "ai_compulsory",
    "bytes_tables", "bytes_optimizer", "bytes_checkpoint", "parameters", "flops_elementwise",
    "unique_row_ratio", "padding_waste",
)  # fmt: skip
OWED = {
    "time": TIMED,
    "quality": TRAINED,
    "floor": TRAINED,
    "tune": ("valid_auc",),
    "pretrain": ("recall_at_k",),
    "probe": ("probe_accuracy",),
    "retrieve": ("recall_at_k", "ndcg_at_k"),
    "shuffled": ("auc_shuffled",),
    "ids_only": ("auc_ids_only",),
    "count": COUNTED,
    "trace": ("split_host", "split_component"),
    "published": ("mfu_bound",),
    "serve": ("serve_latency", "serve_qps", "reuse_time"),
    "serve_count": ("flops_request", "bytes_request", "gpu_request_time"),
    "stages": ("stages_diff", "stages_saved"),
    "drift": ("stream_drift", "stream_drift_auc"),
    "features": ("feature_cpu",),
    "backends": ("attention_time",),
    "datapath": ("path_ratio",),
}
PHASE = {"infer_latency": "infer", "flops_fwd_per_sample": "infer"} | {
    m: "serve" for kind in ("serve", "serve_count", "stages", "drift", "features") for m in OWED[kind]
}


def owed_rows(
    base: Mapping[str, Any], kind: str, status: Status, reason: str, seed: int | None = None
) -> list[Measurement]:
    """The rows that a skipped or failed process owed, each with the reason."""
    return [withheld(base, m, reason, status=status, phase=PHASE.get(m, "train"), seed=seed) for m in OWED[kind]]

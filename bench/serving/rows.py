"""Rows that join what was timed with what was counted: how much of this CPU serving uses."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from ctrbench.bench.ceilings import CLOCK_DRIFT
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement

INPUTS = {"serve_mfu_cpu": {"serve_latency": "measured", "flops": "counted", "ceiling_gemm": "measured"}}


def utilisation_rows(
    base: Mapping[str, Any], served: Mapping[str, Any], counted: Mapping[str, Any]
) -> list[Measurement]:
    """`serve_mfu_cpu` of every form and number of candidates that was timed and counted.

    Args:
        base: identifying columns.
        served: record.json of the process under load; the median over its requests.
        counted: of the counting process of the same model; its request has the median number of events.
    """
    extra, flops = served["extra"], counted["extra"]["flops"]
    if "ceilings" not in extra:  # a pair of forms is timed against each other alone
        return []
    gemm = median(c["gemm_fp32_gflops"] for c in extra["ceilings"]) * 1e9
    shaky: dict[str, Any] = {}
    if extra["clock_drift"] > CLOCK_DRIFT:
        reason = f"clock_unstable: ceilings moved by {extra['clock_drift']:.0%} between the alternations"
        shaky = {"status": "unstable", "reason": reason}
    rows = []
    for form, timed in extra["seconds"].items():
        for count, seconds in timed.items():
            at, work = {**base, "batch": int(count), "phase": "serve"}, flops.get(form, {}).get(count)
            if work is None:
                rows.append(withheld(at, "serve_mfu_cpu", "uncounted_op: see flops_request", scope=form))
            else:
                rows.append(make(at, "serve_mfu_cpu", work / seconds / gemm, "derived", scope=form, **shaky))
    return rows

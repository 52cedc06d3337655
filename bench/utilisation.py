"""MFU and MBU of timed processes on this CPU, from their samples, their ceilings and the counts of the same model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from ctrbench.bench.ceilings import CLOCK_DRIFT, gemm_ceiling
from ctrbench.bench.runspec import RunSpec
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement

if TYPE_CHECKING:
    from ctrbench.bench.summary import Run


def utilisation(
    base: Mapping[str, Any], timed: list[Run], counted: list[Run], seconds: float, batch: int
) -> list[Measurement]:
    """MFU and MBU of this CPU, withheld when the FLOPs are not fully counted."""
    extras = [r.body["extra"] for r in timed]
    if not counted or counted[0].body["extra"]["withheld"]:
        reason = counted[0].body["extra"]["withheld"] if counted else "coverage_low: the counting process failed"
        return [withheld(base, m, reason, phase="train") for m in ("mfu_cpu", "mbu")]
    counts = counted[0].body["extra"]
    ceilings = [c for e in extras for c in e["ceilings"]]
    gemm = median(c for each in ceilings if (c := gemm_ceiling(each, base["dtype"])) is not None) * 1e9
    copy = median(c["copy_gbs"] for c in ceilings) * 1e9
    cached = [c["copy_cache_gbs"] for c in ceilings if c.get("copy_cache_gbs")]
    worst = max(e["clock_drift"] for e in extras)
    shaky: dict[str, Any] = {}
    if worst > CLOCK_DRIFT:
        shaky = {
            "status": "unstable",
            "reason": f"clock_unstable: ceilings moved by {worst:.0%} between the alternations",
        }
    mfu = counts["flops_model_train"] / seconds / gemm
    return [
        make(base, "mfu_cpu", mfu, "derived", phase="train", **shaky),
        *_bandwidth(base, timed[0], counted[0], seconds, copy, shaky),
        make(base, "ceiling_gemm", gemm / 1e9, "measured", phase="train", n=len(ceilings)),
        make(base, "ceiling_copy", copy / 1e9, "measured", phase="train", n=len(ceilings)),
        *([make(base, "ceiling_cache", median(cached), "measured", phase="train", n=len(cached))] if cached else []),
    ]


def _bandwidth(
    base: Mapping[str, Any], timed: Run, counted: Run, seconds: float, copy: float, shaky: Mapping[str, Any]
) -> list[Measurement]:
    """MBU; a mode that fuses, or has narrower operands than the counted step, moves other bytes."""
    if (timed.spec.compile, timed.spec.dtype) != ("eager", counted.spec.dtype):
        reason = (
            f"bytes were counted of eager {counted.spec.dtype}; {timed.spec.compile} {timed.spec.dtype} moves others"
        )
        return [withheld(base, "mbu", reason, phase="train")]
    return [
        make(base, "mbu", counted.body["extra"][which] / seconds / copy, "derived", phase="train", scope=which, **shaky)
        for which in ("bytes_operands", "bytes_compulsory")
    ]


def counted_as(timed: RunSpec, runs: Iterable[Run]) -> list[Run]:
    """The count of the same model in another mode: the FLOPs of a step do not depend on how it is run."""
    same = ("model", "config", "preset", "data", "split", "fingerprint", "history_length", "batch")
    return [r for r in runs if r.spec.kind == "count" and all(getattr(r.spec, n) == getattr(timed, n) for n in same)][
        :1
    ]

"""Rows of what a mode costs and gains, from the records of its timed processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ctrbench.reports.measures import make
from ctrbench.reports.records import Measurement

COMPILATION = (("compile_time", "cold", "compile_cold_s"), ("compile_time", "warm", "compile_warm_s"),
               ("recompiles", "", "recompiles"), ("graph_breaks", "", "graph_breaks"))  # fmt: skip
"""(measure, scope, key of `extra.mode`)."""
COUNTS = ("recompiles", "graph_breaks")


def mode_rows(base: Mapping[str, Any], extras: Sequence[Mapping[str, Any]]) -> list[Measurement]:
    """Nothing of eager float32; else medians over the processes, the ratio with the widest of their intervals."""
    found = [e["mode"] for e in extras if e.get("mode")]
    if not found:
        return []
    against = [m["against_eager"] for m in found]
    rows = [
        make(
            base, "mode_time", median(a["value"] for a in against), "measured", phase="train", n=len(found),
            ci_low=min(a["low"] for a in against), ci_high=max(a["high"] for a in against), reason=found[0]["note"],
        )
    ]  # fmt: skip
    for metric, scope, key in COMPILATION:
        values = [m[key] for m in found if key in m]
        if values:
            origin = "counted" if metric in COUNTS else "measured"
            rows.append(make(base, metric, median(values), origin, phase="train", scope=scope, n=len(values)))
    return rows

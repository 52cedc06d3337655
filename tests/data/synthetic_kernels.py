"""SYNTHETIC launches in the columns of `reports.kernel_rows`, with the records that go with them: for tests only."""

from __future__ import annotations

import random
from typing import Any

import pandas as pd

from ctrbench.reports import kernel_rows as schema

BLOCKS = (("embedding", "tables"), ("interaction", "cross"), ("dense", "tower"), ("backward", "tower"))
UGLY = 'void gemm<float, 4>("a" & b) %{x} ' + "x" * 200
STEP_NS = 4_000_000


def synthetic_kernels(
    data: str, model: str, *, key: str = "", device: str = "cpu", steps: int = 4, seed: int = 0, variant: str = ""
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(rows, body of the trace process): operators of a CPU, or kernels where `device` is another."""
    rng = random.Random(f"{seed}{model}")
    base = {"run": key or f"{data}-{model}-trace", "model": model, "variant": variant, "data": data, "split": "time"}
    kind = schema.OPERATOR if device == "cpu" else schema.KERNEL
    origin = "measured" if device == "cpu" else "imported"
    launches: list[dict[str, Any]] = []
    for step in range(steps):
        at = 0
        for stage, block in BLOCKS:
            for name, family in (("aten::mm", "gemm"), ("aten::add", "elementwise"), (UGLY, "other")):
                ns = rng.choice((900, 5_000, 10_000, 10_001, 120_000))
                launches.append({
                    "kind": kind, "device": device, "stage": stage, "block": block, "family": family, "name": name,
                    "lane": "thread 1" if device == "cpu" else "device 0, stream 7", "step": step, "start_ns": at,
                    "duration_ns": ns, "launches": 1, "view": schema.STEP, "origin": origin,
                })  # fmt: skip
                at += ns + 50_000
    events = schema.frame(pd.DataFrame(launches), base)
    ranges = [
        {"kind": schema.RANGE, "device": "cpu", "origin": origin, "view": view, "stage": stage, "block": block,
         "name": f"stage:{stage}" + (f"/block:{block}" if block else ""), "lane": "thread 1", "step": 0, "steps": steps,
         "start_ns": i * STEP_NS // 4, "duration_ns": (STEP_NS // 4) * (steps if view == schema.TOTAL else 1)}
        for view in (schema.STEP, schema.TOTAL) for i, (stage, block) in enumerate(BLOCKS)
    ]  # fmt: skip
    rows = pd.concat(
        [schema.totals(events, steps), events[events["step"] == 0], schema.frame(pd.DataFrame(ranges), base)],
        ignore_index=True,
    )
    facts = {"device": device, "format": "kineto-json", "steps": steps, "step_ns": STEP_NS, "outside_steps": 0,
             "withheld": {}}  # fmt: skip
    spec = {**base, "kind": "trace", "tracer": "none" if device == "cpu" else "nsys"}
    return rows, {"spec": spec, "extra": {"kernels": facts}}


def counted_body(data: str, model: str) -> dict[str, Any]:
    """The body of the counting process with FLOPs and bytes of each block."""
    work = (("tower", 4e8, 5e7), ("cross", 2e8, 4e7), ("tables", 0.0, 9e7), ("", 0.0, 1e6))
    blocks = [
        {"module": b, "calls": 3, "flops": f, "bytes_own": n, "bytes_half": n / 2, "kernels": 3.0} for b, f, n in work
    ]
    spec = {"kind": "count", "model": model, "variant": "", "data": data, "split": "time"}
    return {"spec": spec, "extra": {"withheld": "", "by_block": blocks}}

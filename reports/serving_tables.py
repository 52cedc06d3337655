"""Tables of one request: latency, rate, reuse against its prediction, FLOPs, GPU time. Pure functions of tidy rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from ctrbench.reports.cells import Cell, absent, pick, where
from ctrbench.reports.names import Names
from ctrbench.reports.serving_rows import (
    Point,
    form_of,
    of_point,
    order_of,
    pair_of,
    percentile,
    points,
    served,
    times,
)

P50, P90, P99 = "p50", "p90", "p99"
QPS, OFFLINE, REFUSED, OVERLOAD = "QPS within the budget", "Offline rate", "Refused at overload", "p99 at overload"
ALONE99 = "p99, single stream"
TIME, FLOPS, OVER, WORD = (
    "Time over the other form",
    "FLOPs over the other form",
    "Time / predicted",
    "Against the prediction",
)
REQUEST, USER, CANDIDATE = "FLOPs / request", "of them the user's side", "FLOPs / candidate"
BYTES, OPS, WIRE = "Operand bytes / request", "Operators / request", "Bytes on the wire / request"
MFU = "Serving MFU on this CPU"
LIMIT = 1.5
"""Times what FLOPs predict: sharing that costs more than this has lost its point to something else than FLOPs."""
WITHIN, ABOVE, OPEN = (f"within {LIMIT:g}x of what FLOPs predict", f"more than {LIMIT:g}x what FLOPs predict",
                       f"open: the interval holds {LIMIT:g}x what FLOPs predict")  # fmt: skip
COUNTED = {REQUEST: ("flops_request", "{}"), USER: ("flops_request", "{}:user"), CANDIDATE: ("flops_candidate", "{}"),
           BYTES: ("bytes_request", "{}"), OPS: ("ops_request", "{}")}  # fmt: skip


def _table(rows: pd.DataFrame, names: Names, metrics: Iterable[str], make: Any) -> pd.DataFrame:
    """One row a model, form and number of candidates; `make(rows of it, form, point)` gives its columns."""
    out, index = [], []
    for point in points(rows, names, metrics):
        model, variant, form, batch = point
        columns = make(of_point(rows, point), form, point)
        if columns is None:
            continue
        out.append({"Model": names.title(model, variant), "Camp": names.camp(model), "Form": form,
                    "Candidates": f"{batch:,.0f}", **columns})  # fmt: skip
        index.append(model)
    return pd.DataFrame(out, index=index)


def latency(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """Percentiles of a request's latency, one at a time, and what of this CPU's ceiling they use."""

    def columns(mine: pd.DataFrame, form: str, _: Point) -> dict[str, Any]:
        found = {p: percentile(mine, "serve_latency", p, form) for p in (P50, P90, P99)}
        return {**found, "CPU core-s / request": pick(mine, "serve_cpu", scope=form),
                MFU: pick(mine, "serve_mfu_cpu", scope=form)}  # fmt: skip

    return _table(served(frame, data), names, ["serve_latency"], columns)


def rate(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """Requests a second within the budget, beside the p99 of a request alone, which says why there is none."""
    heads = {OFFLINE: "serve_offline", REFUSED: "serve_refused", OVERLOAD: "serve_overload_p99"}

    def columns(mine: pd.DataFrame, form: str, _: Point) -> dict[str, Any]:
        return {QPS: pick(mine, "serve_qps", scope=form), ALONE99: percentile(mine, "serve_latency", P99, form),
                **{head: pick(mine, m, scope=form) for head, m in heads.items()}}  # fmt: skip

    return _table(served(frame, data), names, ["serve_qps", *heads.values()], columns)


def reuse(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """Time of a form over that of another, mostly of nothing shared, beside the same ratio of FLOPs, its promise."""
    rows = served(frame, data)
    rows = rows[rows["metric"].isin(["reuse_time", "reuse_flops"]) & rows["batch"].notna()]
    keys = set(rows[["model", "variant", "scope", "batch"]].itertuples(index=False, name=None))
    out, index = [], []
    for model, variant, scope, batch in sorted(
        keys, key=lambda k: (*order_of(names, (k[0], k[1], form_of(k[2]), k[3])), k[2])
    ):
        mine = where(rows, model=model, variant=variant, batch=batch)
        time, flops = pick(mine, "reuse_time", scope=scope), pick(mine, "reuse_flops", scope=scope)
        over, (form, other) = against(time, flops), pair_of(scope)
        out.append({
            "Model": names.title(model, variant), "Camp": names.camp(model), "Form": form, "Over form": other,
            "Candidates": f"{batch:,.0f}", TIME: time, FLOPS: flops, OVER: over, WORD: promise(over),
        })  # fmt: skip
        index.append(model)
    return pd.DataFrame(out, index=index)


def against(time: Cell, flops: Cell) -> Cell:
    """Ratio of times over the ratio of FLOPs, with the band of the times."""
    lost = next((c for c in (time, flops) if c.value is None), None)
    if lost is not None or not flops.value:
        return absent("reuse_over_flops", lost.reason if lost else "no FLOPs are left")
    return times(time, 1 / flops.value, "reuse_over_flops")


def promise(over: Cell) -> str:
    """Whether the time is within `LIMIT` of the prediction, by the interval where there is one."""
    if over.value is None:
        return "—"
    if over.low is None or over.high is None:
        return f"{WITHIN if over.value <= LIMIT else ABOVE} (no interval)"
    return WITHIN if over.high <= LIMIT else ABOVE if over.low > LIMIT else OPEN


def work(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """FLOPs, bytes and operators of one request."""

    def columns(mine: pd.DataFrame, form: str, _: Point) -> dict[str, Any]:
        return {head: pick(mine, m, scope=s.format(form)) for head, (m, s) in COUNTED.items()} | {
            WIRE: pick(mine, "bytes_wire", scope=None)}  # fmt: skip

    return _table(served(frame, data), names, [m for m, _ in COUNTED.values()], columns)


def gpu(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """Modelled time of one request, a column a GPU."""
    rows = where(served(frame, data), metric="gpu_request_time")
    found = sorted({str(s).partition(":")[2] for s in rows["scope"]} - {""})

    def columns(mine: pd.DataFrame, form: str, _: Point) -> dict[str, Any]:
        return {g: pick(mine, "gpu_request_time", scope=f"{form}:{g}") for g in found}

    return _table(rows, names, ["gpu_request_time"], columns)

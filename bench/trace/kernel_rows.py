"""Fills the columns of `reports.kernel_rows` from what the readers give: one row a launch, then sums and one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ctrbench.bench.counting.ops import classify_name
from ctrbench.bench.hardware import HardwareUnknown, find
from ctrbench.bench.trace import figures
from ctrbench.bench.trace.columns import MISSING, HostEvent, HostEvents, Ints
from ctrbench.bench.trace.commands import LAUNCHES
from ctrbench.bench.trace.names import DOMAIN, ITER, OP_PREFIX, OTHER
from ctrbench.bench.trace.ncu_ranges import place_of
from ctrbench.bench.trace.ncu_table import NcuReport
from ctrbench.bench.trace.projection import innermost_of
from ctrbench.bench.trace.recording import Recording
from ctrbench.bench.trace.table import kernel_table
from ctrbench.bench.trace.time_split import Split, place, placed
from ctrbench.reports import kernel_rows as schema
from ctrbench.reports.records import Origin

Base = Mapping[str, Any]

_FAMILIES = (
    ("attention", ("flash", "fmha", "attention")),
    ("gemm", ("gemm", "gemv", "cutlass", "cublas", "xmma", "wgmma", "splitk")),
    ("norm", ("softmax", "layer_norm", "layernorm", "batch_norm")),
    ("optimizer", ("multi_tensor_apply", "adam", "adagrad")),
    ("sort", ("radix", "sort", "scan")),
    ("gather", ("index", "gather", "scatter")),
    ("copy", ("catarray", "copy")),
    ("reduction", ("reduce",)),
    ("elementwise", ("elementwise", "pointwise", "fill")),
)
"""Families by a part of the kernel's name; the first that fits."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """What becomes `kernels.parquet`, and the facts for the record's `extra`."""

    table: pd.DataFrame
    facts: dict[str, Any]
    """device, steps that launched something, step_ns of the one that is drawn, launches outside steps, steps without
    any, roofs of the device, and `withheld`: timeline | launches | blocks | roofs | l2_roof -> the reason."""


def recorded_kernels(base: Base, recording: Recording, split: Split | None, origin: Origin) -> Kernels:
    """The launches of a recording of nsys, Kineto or our own recorder.

    Args:
        base: shared columns of the run.
        recording: kernels where a device has some, else operators.
        split: of the same recording; None where it marks no step of ours.
        origin: of every row: `measured` here, `imported` of a recording made elsewhere.
    """
    marks = figures.steps(recording)
    marks = marks.take(marks.end != MISSING)
    refused, withheld = figures.refusals(recording), dict[str, str]()
    if len(recording.gpu):
        launches, withheld = _device_launches(recording, marks, refused)
    else:
        launches = _operators(recording, marks)
    if not len(launches["name"]):
        text = refused.get("graph_trace_only") or refused.get("no_kernel_table", "")
        withheld["launches"] = text if len(recording.gpu) else "the recording holds neither kernels nor operators"
    marked = bool(len(marks)) and "blocks" not in withheld
    events = schema.frame({**launches, "origin": origin, "view": schema.STEP}, base)
    events = events.assign(own_ns=launches["own_ns"])
    inside = events[events["step"] >= 0] if marked else events
    # A window often closes inside a step, which then has begun and launched nothing.
    busy = np.sort(inside["step"].unique().astype(int)) if marked and len(inside) else np.arange(len(marks))
    n = len(busy) if marked else None
    shown = _median(marks, busy) if marked else None
    parts = [schema.totals(inside.assign(duration_ns=inside["own_ns"]), n)]
    if shown is None:
        withheld.setdefault("timeline", "the recording marks no step")
    else:
        drawn = inside[(inside["step"] == shown) & (inside["family"] != "view")]
        parts.append(drawn[list(schema.COLUMNS)])
    ranges = _ranges(recording, marks, shown, split)
    parts.append(schema.frame({**ranges, "kind": schema.RANGE, "device": "cpu", "origin": origin}, base))
    roofs, why = _roofs(recording.device, []) if len(recording.gpu) else ([], "")
    if why:
        withheld["roofs"] = why
    facts = {
        "device": recording.device or ("a device that the recording does not name" if len(recording.gpu) else "cpu"),
        "roofs": roofs,
        "format": recording.format, "steps": n,
        "step_ns": None if shown is None else int(marks.end[shown] - marks.start[shown]),
        "outside_steps": len(events) - len(inside), "idle_steps": len(marks) - len(busy) if marked else 0,
        "withheld": withheld,
    }  # fmt: skip
    return Kernels(table=_joined(parts), facts=facts)


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([p for p in parts if len(p)] or [schema.empty()], ignore_index=True)


def _median(marks: HostEvents, busy: Ints) -> int:
    """Row of the step of median duration among the busy ones; of an even number the faster of the two."""
    order = busy[np.argsort((marks.end - marks.start)[busy], kind="stable")]
    return int(order[(len(order) - 1) // 2])


def _step_of(recording: Recording, marks: HostEvents, start: Ints, end: Ints, process: Ints) -> Ints:
    """Row of the step around each span, on any thread of its process; -1 for none."""
    out = np.full(len(start), -1, np.int64)
    of = recording.thread_process[marks.thread]
    for number in np.unique(of).tolist():
        rows = np.flatnonzero(of == number)
        rows = rows[np.argsort(marks.start[rows], kind="stable")]
        at = np.searchsorted(marks.start[rows], start, side="right") - 1
        inside = (at >= 0) & (end <= marks.end[rows][at]) & (process == number)
        out[inside] = rows[at[inside]]
    return out


def _since(marks: HostEvents, step: Ints, start: Ints) -> Any:
    """Start of each event since its step began; missing outside steps."""
    if not len(marks):
        return None
    return np.where(step >= 0, start - marks.start[step], 0)


def _device_launches(
    recording: Recording, marks: HostEvents, refused: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """(columns of everything that the devices executed, what must be withheld).

    With steps marked, what was launched in none of them has step -1.
    """
    withheld: dict[str, str] = {}
    table = kernel_table(recording)
    if "graph_trace_only" in refused:
        table = table.iloc[:0]
    call = recording.call_of[: len(table)]
    step = np.full(len(table), -1, np.int64)
    linked = np.flatnonzero(call >= 0)
    api, of = recording.api, call[linked]
    step[linked] = _step_of(
        recording, marks, api.start[of], api.end[of], recording.thread_process[api.thread[of]]
    )  # fmt: skip
    places = _places(recording)[: len(table)]
    if "unlinked_share" in refused:
        withheld["blocks"] = withheld["timeline"] = refused["unlinked_share"]
        places = [("", "")] * len(table)
    return {
        "kind": table["kind"], "device": [recording.devices.get(d) or recording.device or f"device {d}"
                                          for d in table["device"].tolist()],
        "stage": [s for s, _ in places], "block": [b for _, b in places],
        "family": [kernel_family(n, k) for n, k in zip(table["name"].tolist(), table["kind"].tolist(), strict=True)],
        "name": table["name"],
        "lane": [f"device {d}" + ("" if pd.isna(s) else f", stream {s}")
                 for d, s in zip(table["device"].tolist(), table["stream"].tolist(), strict=True)],
        "step": step, "start_ns": _since(marks, step, table["start_ns"].to_numpy(np.int64)),
        "duration_ns": table["ns"], "own_ns": table["ns"].to_numpy(np.int64), "launches": 1,
    }, withheld  # fmt: skip


def _places(recording: Recording) -> list[tuple[str, str]]:
    """(stage, block) of each device operation: of the innermost range of ours around its launch, others ignored."""
    mine = np.flatnonzero(recording.our_ranges)
    found = innermost_of(recording, recording.annotations.take(mine), np.arange(len(recording.gpu)))
    at, keys = recording.range_keys
    return [place(keys[at[mine[row]]]) if row >= 0 else (OTHER, "") for row in found.tolist()]


def kernel_family(name: str, kind: str = schema.KERNEL) -> str:
    """Family of a kernel by its name; of a copy or set its kind."""
    if kind != schema.KERNEL:
        return kind
    known, low = figures.family(name), name.lower()
    if known != OTHER:
        return known
    return next((f for f, parts in _FAMILIES if any(p in low for p in parts)), OTHER)


def _operators(recording: Recording, marks: HostEvents) -> dict[str, Any]:
    """Columns of the operators inside our ranges. One that works and holds no other that works is a launch."""
    ops, own = recording.events(recording.ops), recording.our_events
    lowest = _lowest(ops)
    rows = sorted(placed(ops, own))
    threads = {t: f"thread {n}" for n, t in enumerate(dict.fromkeys(r.thread for r in own), start=1)}
    codes = {t: c for c, t in enumerate(recording.threads)}
    mine = [ops[i] for i, _, _ in rows]
    start, end = (np.array([getattr(op, side) for op in mine], np.int64) for side in ("start", "end"))
    process = recording.thread_process[np.array([codes[op.thread] for op in mine], np.int64)]
    step = _step_of(recording, marks, start, end, process)
    known = {key: place(key) for key in {key for _, _, key in rows}}
    places = [known[key] for _, _, key in rows]
    return {
        "kind": [schema.OPERATOR] * len(rows), "device": "cpu",
        "stage": [s for s, _ in places], "block": [b for _, b in places], "family": [_family(op.name) for op in mine],
        "name": [op.name for op in mine], "lane": [threads[op.thread] for op in mine], "step": step,
        "start_ns": _since(marks, step, start), "duration_ns": end - start,
        "own_ns": np.array([ns for _, ns, _ in rows], np.int64),
        "launches": [int(lowest[i]) for i, _, _ in rows],
    }  # fmt: skip


def _works(name: str) -> bool:
    """Whether an operator computes or moves data itself: by the operator table, or it is another package's."""
    kind = classify_name(name)[0]
    return kind in ("F", "Z") or (
        kind == "U" and "::" in name and not name.startswith(("aten::", "autograd::", "torch::"))
    )


_ONEDNN = ("mkldnn::_linear", "aten::mkldnn_linear")
"""Linear layers that oneDNN runs below our own operator, which counts; a recording names what ran."""


def _family(name: str) -> str:
    if name.startswith(_ONEDNN):
        return "gemm"
    return classify_name(name)[1] if classify_name(name)[0] == "V" or _works(name) else "dispatch"


def _lowest(ops: Sequence[HostEvent]) -> list[bool]:
    """By operator: it works, and none inside it does."""
    out = [_works(op.name) for op in ops]
    stacks: dict[Any, list[int]] = {}
    for i in sorted(range(len(ops)), key=lambda i: (ops[i].start, -ops[i].end)):
        stack = stacks.setdefault(ops[i].thread, [])
        while stack and ops[stack[-1]].end <= ops[i].start:
            stack.pop()
        if out[i]:
            for above in stack:
                out[above] = False
        stack.append(i)
    return out


def _ranges(recording: Recording, marks: HostEvents, shown: int | None, split: Split | None) -> dict[str, Any]:
    """Columns of our ranges: those of the step shown one by one, and the exclusive time of all steps by place."""
    found: list[tuple[Any, ...]] = []
    if shown is not None:
        begin, end = int(marks.start[shown]), int(marks.end[shown])
        inside = [r for r in recording.our_events if begin <= r.start and r.end <= end and _is_place(r.name)]
        threads = {t: f"thread {n}" for n, t in enumerate(dict.fromkeys(r.thread for r in recording.our_events), 1)}
        found = [
            (schema.STEP, *place(r.name), r.name.removeprefix(f"{DOMAIN}/"), threads[r.thread], shown, None,
             r.start - begin, r.end - r.start)
            for r in inside
        ]  # fmt: skip
    if split is not None:
        found += [
            (schema.TOTAL, stage, block, "", None, None, split.steps, None, ns)
            for stage, block, ns in split.table[["stage", "block", "ns"]].values.tolist()
        ]
    names = ("view", "stage", "block", "name", "lane", "step", "steps", "start_ns", "duration_ns")
    return {name: [row[i] for row in found] for i, name in enumerate(names)}


def _is_place(key: str) -> bool:
    return key != f"{DOMAIN}/{ITER}" and f"/{OP_PREFIX}" not in key


# ------------------------------------------------------------------- counters


def counted_kernels(base: Base, reports: Mapping[str, NcuReport], origin: Origin = "imported") -> Kernels:
    """The launches of Nsight Compute with their counters.

    Args:
        base: shared columns of the run.
        reports: stage that was profiled -> its file; empty where not known.
        origin: of every row.
    """
    each = [
        (stage, launch, derived)
        for stage, report in reports.items()
        for launch, derived in zip(report.launches, report.figures, strict=True)
    ]
    timed = [(stage, launch, derived, t) for stage, launch, derived in each if (t := derived["time"].value) is not None]
    places = [place_of(launch.ranges, stage) for stage, launch, *_ in timed]
    columns: dict[str, Any] = {
        "kind": [schema.KERNEL] * len(timed), "view": schema.TOTAL, "launches": 1, "origin": origin,
        "stage": [stage for stage, _ in places], "block": [block for _, block in places],
        "name": [launch.kernel for _, launch, *_ in timed],
        "device": [launch.device or "" for _, launch, *_ in timed],
        "family": [kernel_family(launch.kernel) for _, launch, *_ in timed],
        "duration_ns": [round(t) for *_, t in timed],
    }  # fmt: skip
    columns |= {name: [derived[name].value for _, _, derived, _ in timed] for name in schema.COUNTERS}
    names = {report.device for report in reports.values()}
    device = names.pop() if len(names) == 1 else None
    roofs, why = _roofs(device, [derived for *_, derived in each])
    withheld = {
        "timeline": "Nsight Compute replays kernels one by one: its rows have no place in a step",
        "launches": f"Nsight Compute replays at most {LAUNCHES} launches of a stage and marks no step",
    }
    if why:
        withheld["roofs"] = why
    if not any(launch.ranges for _, launch, _ in each):
        withheld["blocks"] = "the files name no NVTX range, so launches are by stage: record with --nvtx"
    if all(roof["level"] != schema.L2 for roof in roofs):
        withheld["l2_roof"] = "neither the counters recorded nor the catalogue give the bandwidth of L2"
    facts = {
        "device": device or "a device that the recording does not name", "format": "ncu", "steps": None, "roofs": roofs,
        "outside_steps": 0, "untimed": len(each) - len(timed), "withheld": withheld,
    }  # fmt: skip
    return Kernels(table=schema.totals(schema.frame(columns, base), None), facts=facts)


def _roofs(device: str | None, each: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """(roofs of the device, why the catalogue gave none): datasheet peaks, and those at the clocks of the recording.

    Args:
        device: as its driver names it; None where the recording does not say.
        each: figures of launches with counters.
    """
    roofs: list[dict[str, Any]] = []

    def add(name: str, unit: str, value: float, origin: Origin, level: str = "") -> None:
        roofs.append({"name": name, "unit": unit, "value": value, "origin": origin, "level": level})

    for name, figure, unit, level in _RECORDED_PEAKS:
        values = [f[figure].value for f in each if f[figure].value is not None]
        if values:
            add(f"{name} at the recorded clocks", unit, float(np.median(values)), "imported", level)
    if device is None:
        return roofs, "device_unknown: the recording does not name one device"
    try:
        gpu = find(device)
    except HardwareUnknown as error:
        return roofs, str(error)
    for dtype, tflops in gpu.peak_tflops.items():
        if dtype in ("fp32", "tf32", "fp16", "bf16"):
            add(f"{gpu.name} {dtype} dense peak", "FLOP/s", tflops * 1e12, "cited")
    add(f"{gpu.name} DRAM", "B/s", gpu.bandwidth_gbs * 1e9, "cited", schema.DRAM)
    if gpu.l2_gbs is not None:
        add(f"{gpu.name} L2", "B/s", gpu.l2_gbs * 1e9, "cited", schema.L2)
    return roofs, ""


_RECORDED_PEAKS = (
    ("fp32", "peak_fp32", "FLOP/s", ""), ("DRAM", "peak_dram", "B/s", schema.DRAM), ("L2", "peak_l2", "B/s", schema.L2),
)  # fmt: skip
"""(name, figure of a launch, unit, memory level)."""

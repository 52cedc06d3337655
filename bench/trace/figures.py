"""The figures of a recording under the names and rules of measures.md section 4; withheld ones are None."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ctrbench.bench.trace import projection
from ctrbench.bench.trace.columns import KINDS, MEMCPY, MEMSET, MISSING, HostEvents, Ints, known, total
from ctrbench.bench.trace.idle import UNLINKED_LIMIT, device_time, idle_split, verdict
from ctrbench.bench.trace.names import DOMAIN, ITER

if TYPE_CHECKING:
    from ctrbench.bench.trace.recording import Recording

_TABLES = ("split_embedding", "embedding_codegen", "permute_", "jagged", "bucketize", "bounds_check", "asynchronous_")
_GEMMS = {"aten::mm": 0, "aten::addmm": 1, "aten::bmm": 0}
"""Operator -> place of its left factor among the inputs."""


def summary(recording: Recording) -> dict[str, Any]:
    """All figures; those that only one format has are named as in that format's recordings."""
    nsys = recording.format == "nsys-sqlite"
    refused = refusals(recording)
    hidden = "graph_trace_only" in refused or not len(recording.gpu)
    withheld = hidden or "unlinked_share" in refused
    devices = [] if hidden else recording.device_numbers
    verdicts = {str(d): recording.launch_verdict(d) for d in devices}
    found: dict[str, Any] = {
        "format": recording.format,
        **{key: value for key, value in recording.facts.items() if key != "nvtx"},
        "device": recording.device,
        "devices": {str(d): name for d, name in sorted(recording.devices.items())},
        "whole_microseconds": recording.whole_microseconds,
        "thinned": recording.thinned,
        "kernels": _withheld_if(hidden or not recording.gpu.is_kernel.any(), kernel_figures(recording)),
        "memcpy": _withheld_if(hidden, copies(recording, MEMCPY)),
        "memset": _withheld_if(hidden, copies(recording, MEMSET)),
        "gpu_time_by_device": None if hidden else {str(d): device_time(recording, d) for d in devices},
        "idle_split_by_device": None if hidden else {str(d): idle_split(recording, d) for d in devices},
        "launch_verdict": verdicts,
        "verdict": verdict(verdicts),
        "link": _withheld_if(hidden, link_figures(recording)),
        "steps": None if withheld else projection.step_figures(recording, steps(recording)),
        "gpu_time_by_range": None if withheld else projection.by_innermost(recording),
        "families": None if hidden else families(recording),
    }
    if nsys:
        api = recording.api
        found["api"] = {
            "rows": len(api),
            "distinct": len(np.unique(api.name)),
            "launches": _counts(recording, api.name[recording.is_launch[api.name]]),
        }
        found["nvtx"] = range_figures(recording, withheld)
    else:
        ops = recording.ops
        found |= {
            "ops": {"cpu_ops": len(ops), "with_input_dims": int((ops.shape >= 0).sum())},
            "kernels_by_innermost_op": _withheld_if(hidden, kernels_by_op(recording)),
            "gemm_flops_from_shapes": gemm_flops(recording),
            "user_annotations": annotation_figures(recording, withheld),
        }
    return found | {"refusals": sorted(refused), "refusal_notes": dict(sorted(refused.items()))}


def refusals(recording: Recording) -> dict[str, str]:
    """Reason code -> what is withheld and why."""
    found = dict(recording.refused)
    if not recording.gpu.is_kernel.any() and "graph_trace_only" not in found:
        found.setdefault("no_kernel_table", "no kernel rows: kernel figures, MFU and the verdict are withheld")
    shares = [recording.unlinked_share(), *(recording.unlinked_share(d) for d in recording.device_numbers)]
    worst = max((share for share in shares if share is not None), default=0.0)
    if worst > UNLINKED_LIMIT:
        found["unlinked_share"] = (
            f"{worst:.1%} of the device operations have no recorded launch (limit {UNLINKED_LIMIT:.0%}): figures per "
            "range and the verdict are withheld; record from the start of the process, or a longer window"
        )
    if recording.thinned and len(recording.ops):
        found["thinned_recording"] = "no API call besides launches, copies and sets: operator counts and host time"
    return found


def _withheld_if(hidden: bool, figures: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(figures) if hidden else figures


def kernel_figures(recording: Recording) -> dict[str, Any]:
    """Launches and times of all kernels, and the names that took most time."""
    gpu = recording.gpu
    kernel = gpu.is_kernel
    ns, name = gpu.ns[kernel], gpu.name[kernel]
    names, first, at = np.unique(name, return_index=True, return_inverse=True)
    sums, counts = np.zeros(len(names), np.int64), np.bincount(at, minlength=len(names))
    np.add.at(sums, at, ns)
    best = np.lexsort((first, -sums))
    top = [(recording.string(int(names[i])), int(counts[i]), int(sums[i])) for i in best[:10]]
    found = {
        "launches": len(ns),
        "total_ns": total(ns),
        "le_10us": int((ns <= 10_000).sum()),
        "min_ns": int(ns.min()) if len(ns) else None,
        "max_ns": int(ns.max()) if len(ns) else None,
        "top_by_time": top,
    }
    if recording.format == "nsys-sqlite":
        graph = int((gpu.graph_node[kernel] != MISSING).sum())
        return found | {"distinct_short_names": len(names), "with_graph_node": graph, "top5_by_time": top[:5]}
    short = [(text[:80], count, spent) for text, count, spent in top[:3]]
    return found | {"distinct_names": len(names), "top3_by_time": short}


def copies(recording: Recording, kind: int) -> dict[str, Any]:
    """Copies or sets; their bytes are None unless every one has them."""
    gpu = recording.gpu
    here = gpu.kind == kind
    amount, ns = gpu.bytes[here], gpu.ns[here]
    without = int((amount == MISSING).sum())
    found: dict[str, Any] = {
        "count": int(here.sum()),
        "bytes": None if without else total(amount),
        "without_bytes": without,
        "total_ns": total(ns),
    }
    if recording.format != "nsys-sqlite":
        return found | {"by_name": _counts(recording, gpu.name[here])}
    if kind == MEMCPY:
        found["by_copyKind"] = _by_copy_kind(gpu.copy_kind[here], amount, ns)
    if recording.facts["rows"].get(f"CUPTI_ACTIVITY_KIND_{KINDS[kind].upper()}") is None:
        # a lazy export makes no table for what it did not see or was not asked for
        return dict.fromkeys(found) | {"reason": "field_missing"}
    return found


def _by_copy_kind(kinds: Ints, amount: Ints, ns: Ints) -> dict[str, dict[str, int | None]]:
    found: dict[str, dict[str, int | None]] = {}
    for kind in np.unique(kinds).tolist():
        here = kinds == kind
        size = None if (amount[here] == MISSING).any() else total(amount[here])
        found[str(known(kind))] = {"count": int(here.sum()), "bytes": size, "ns": total(ns[here])}
    return found


def link_figures(recording: Recording) -> dict[str, Any]:
    """Operations and the calls that launched them."""
    gpu, api, call = recording.gpu, recording.api, recording.call_of
    kernel, linked = gpu.is_kernel, call >= 0
    launch = api.name[call[kernel & linked]]
    _, first, rows = recording.distinct_calls
    shared_calls = first[rows > 1]
    unique = np.concatenate((first, np.flatnonzero(api.correlation == MISSING)))
    found = {
        "gpu_ops": len(gpu),
        "linked": int(linked.sum()),
        "unlinked": int((recording.needs_call & ~linked).sum()),
        "unified_memory": int((~recording.needs_call & ~linked).sum()),
        "unlinked_share": recording.unlinked_share(),
        "kernels_from_graph_launch": int(recording.is_graph_launch[launch].sum()),
        "graph_launch_calls": int(recording.is_graph_launch[api.name[unique]].sum()),
    }
    linked_kernels, by_api = int((kernel & linked).sum()), _counts(recording, launch)
    unlinked_kernels, shared = int((kernel & ~linked).sum()), int(np.isin(call[linked], shared_calls).sum())
    if recording.format == "nsys-sqlite":
        return found | {
            "linked_kernels": linked_kernels, "unlinked_kernels": unlinked_kernels, "kernel_launch_api": by_api,
            "correlation_shared_by_several_api_rows": shared,
        }  # fmt: skip
    external = gpu.external[kernel]
    has = external != MISSING
    return found | {
        "kernels_linked": linked_kernels, "kernels_unlinked": unlinked_kernels, "launch_api": by_api,
        "correlation_shared_by_several_api_events": shared,
        "kernels_whose_external_id_equals_correlation": int((has & (external == gpu.correlation[kernel])).sum()),
        "kernels_whose_external_id_is_a_cpu_op": int((has & np.isin(external, recording.ops.external)).sum()),
    }  # fmt: skip


def _counts(recording: Recording, names: Ints) -> dict[str, int]:
    codes, counts = np.unique(names, return_counts=True)
    return dict(sorted((recording.string(int(c)), int(n)) for c, n in zip(codes, counts, strict=True)))


def families(recording: Recording) -> dict[str, dict[str, int]]:
    """Kernels and their time by the family of their name."""
    kernel = recording.gpu.is_kernel
    ns = recording.gpu.ns[kernel]
    names, sums = projection.grouped(recording.gpu.name[kernel], {"kernels": np.ones(len(ns), np.int64), "ns": ns})
    out: dict[str, dict[str, int]] = {}
    for code, found in zip(names.tolist(), sums, strict=True):
        row = out.setdefault(family(recording.string(code)), {"kernels": 0, "ns": 0})
        row["kernels"] += found["kernels"]
        row["ns"] += found["ns"]
    return dict(sorted(out.items()))


def family(kernel: str) -> str:
    """`nccl`, `embedding` or `other`, by the kernel's name."""
    if "nccl" in kernel:
        return "nccl"
    return "embedding" if any(part in kernel for part in _TABLES) else "other"


def kernels_by_op(recording: Recording) -> dict[str, Any]:
    """Kernels by the innermost operator around their launch."""
    call, kernel = recording.call_of, recording.gpu.is_kernel & (recording.call_of >= 0)
    graph = recording.is_graph_launch[recording.api.name[call[kernel]]]
    op = recording.op_of[kernel][~graph]
    names = _counts(recording, recording.ops.name[op[op >= 0]])
    return {
        "from_graph_launch": int(graph.sum()),
        "outside_any_op": int((op < 0).sum()),
        "inside_an_op": int((op >= 0).sum()),
        "distinct_ops": len(names),
        "top12": sorted(names.items(), key=lambda item: (-item[1], item[0]))[:12],
    }


def gemm_flops(recording: Recording) -> dict[str, dict[str, int | None]]:
    """2*b*m*k*n of every mm, addmm and bmm whose shapes are recorded; bias not counted.

    The FLOPs of an operator are None if the shapes of any of its calls are no matrices.
    """
    out: dict[str, dict[str, int | None]] = {}
    for name, first in _GEMMS.items():
        here = np.isin(recording.ops.name, [i for i, s in enumerate(recording.strings) if s == name])
        shapes, calls = np.unique(recording.ops.shape[here & (recording.ops.shape >= 0)], return_counts=True)
        for shape, n in zip(shapes.tolist(), calls.tolist(), strict=True):
            row = out.setdefault(name, {"calls": 0, "flops": 0})
            one, so_far = _gemm(recording.shapes[shape], first), row["flops"]
            row["calls"] = (row["calls"] or 0) + n
            row["flops"] = None if one is None or so_far is None else so_far + n * one
    return dict(sorted(out.items()))


def _gemm(shapes: Any, first: int) -> int | None:
    factors = shapes[first : first + 2] if isinstance(shapes, list) else []
    if len(factors) < 2 or not all(isinstance(f, list) and f and all(type(n) is int for n in f) for f in factors):
        return None
    return 2 * prod(factors[0]) * int(factors[1][-1])


def annotation_figures(recording: Recording, withheld: bool) -> dict[str, Any]:
    """Name -> kernels launched inside, on the same thread and on any (the backward has a thread of its own)."""
    events = recording.annotations
    same = projection.owned(recording, events)
    every = projection.owned(recording, events, any_thread=True)
    columns = {
        "ranges": np.ones(len(events), np.int64), "kernels_same_thread": same.kernels, "ns_same_thread": same.kernel_ns,
        "kernels_any_thread": every.kernels, "ns_any_thread": every.kernel_ns,
    }  # fmt: skip
    codes, sums = projection.grouped(events.name, columns)
    out = {recording.string(code): row for code, row in zip(codes.tolist(), sums, strict=True)}
    top = sorted(out, key=lambda n: (-out[n]["kernels_any_thread"], n))
    return {
        "events": len(events),
        "distinct": len(out),
        "by_name": None if withheld else {n: out[n] for n in top},
        "top12": None if withheld else [[n, *out[n].values()] for n in top[:12]],
    }


def range_figures(recording: Recording, withheld: bool) -> dict[str, Any] | None:
    """NVTX ranges and what was launched inside them; None without an NVTX table.

    `by_name` holds the ranges of our own domains, or of those asked for, with their time on the host; all other figures
    count every domain.
    """
    if recording.facts.get("nvtx") is None:
        return None
    events, everything = recording.annotations, np.arange(len(recording.gpu))
    owned = projection.owned(recording, events)
    inside = projection.innermost_of(recording, events, everything) >= 0
    domains, counts = np.unique(events.domain, return_counts=True)
    by_domain = {
        str(d): int((projection.innermost_of(recording, events.take(events.domain == d), everything) >= 0).sum())
        for d in domains.tolist()
    }
    closed = events.end != MISSING
    found = dict(recording.facts["nvtx"]) | {
        "ranges": len(events),
        "open_ranges": int((~closed).sum()),
        "closed_ranges": int(closed.sum()),
        "ranges_by_domain": {str(d): n for d, n in zip(domains.tolist(), counts.tolist(), strict=True)},
        "threads": len(np.unique(events.thread)),
        "distinct_names": len(np.unique(events.name)),
        "gpu_ops_inside_a_range": int(inside.sum()),
        "gpu_ops_inside_a_range_by_domain": {d: n for d, n in by_domain.items() if n},
        "linked_gpu_ops_outside_any_range": int((~inside & (recording.call_of >= 0)).sum()),
        "ranges_with_gpu_ops": int((owned.ops > 0).sum()),
    }
    every = projection.by_name(recording, events, owned)
    rows = np.flatnonzero(recording.own & closed)
    mine = events.take(rows)
    ours = projection.by_name(recording, mine, owned.take(rows))
    codes, host = projection.grouped(mine.name, {"host_ns": mine.end - mine.start})
    for code, row in zip(codes.tolist(), host, strict=True):
        name = recording.string(code)
        gpu = dict.fromkeys(ours[name]) | {"ranges": ours[name]["ranges"]} if withheld else ours[name]
        ours[name] = {**gpu, **row}
    if not len(recording.gpu):
        none = ("gpu_ops_inside_a_range", "gpu_ops_inside_a_range_by_domain", "linked_gpu_ops_outside_any_range")
        found |= dict.fromkeys((*none, "ranges_with_gpu_ops"))
    return found | {
        "top8_by_gpu_ns": None if withheld else [*every.items()][:8],
        "by_name": ours,
    }


def steps(recording: Recording) -> HostEvents:
    """The ranges that are one step each: our `iter`, or the profiler's `ProfilerStep#n`."""
    name = recording.annotations.name
    ours = [i for i, s in enumerate(recording.strings) if s in (ITER, f"{DOMAIN}/{ITER}")]
    profiled = [i for i, s in enumerate(recording.strings) if s.startswith("ProfilerStep#")]
    mine = recording.our_ranges & np.isin(name, ours)
    return recording.annotations.take(mine if mine.any() else recording.own & np.isin(name, profiled))


def sizes(times_ns: Sequence[int] | Ints) -> dict[str, tuple[float, float]]:
    """`kernel_size_hist`: class -> (share of launches, share of time)."""
    edges = np.array((2_000, 5_000, 10_000, 50_000, 200_000))
    names = ("<=2us", "<=5us", "<=10us", "<=50us", "<=200us", ">200us")
    times = np.asarray(times_ns, np.int64)
    at = np.searchsorted(edges, times, side="left")  # an edge belongs to the class below it
    count, spent = np.bincount(at, minlength=len(names)), np.bincount(at, weights=times, minlength=len(names))
    n, ns = max(1, len(times)), max(1.0, float(times.sum()))
    return {name: (float(c) / n, float(t) / ns) for name, c, t in zip(names, count, spent, strict=True)}

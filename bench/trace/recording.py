"""A recording of host and device events, whatever tool wrote it, and what can be said of it (traces: section 4, 12).

All times are integer nanoseconds of the recording's own clock. What the file does not know is None, never 0.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

LAUNCHES = frozenset({
    "cudaLaunchKernel", "cudaLaunchKernelExC", "cudaLaunchCooperativeKernel", "cuLaunchKernel", "cuLaunchKernelEx",
    "cuLaunchCooperativeKernel", "hipLaunchKernel", "hipExtLaunchKernel", "hipModuleLaunchKernel",
    "hipExtModuleLaunchKernel", "hipLaunchCooperativeKernel",
})  # fmt: skip
GRAPH_LAUNCHES = frozenset({"cudaGraphLaunch", "cuGraphLaunch", "hipGraphLaunch"})
UNLINKED_LIMIT = 0.05
HOST_LATE_LIMIT = 0.30
BUSY_LIMIT = 0.90

Thread = tuple[Hashable, Hashable]


class GpuOp(NamedTuple):
    """Something that a device executed."""

    kind: Literal["kernel", "memcpy", "memset"]
    name: str
    start: int
    end: int
    device: int
    stream: int | None
    correlation: int | None
    external: int | None
    bytes: int | None
    """Of copies and sets; None where the recording does not say."""


class ApiCall(NamedTuple):
    """A call of the CUDA or HIP runtime or driver."""

    name: str
    start: int
    end: int
    thread: Thread
    correlation: int | None


class HostEvent(NamedTuple):
    """An operator or a user annotation on a host thread."""

    name: str
    start: int
    end: int
    thread: Thread
    external: int | None
    dims: list[Any] | None
    """Shapes of the inputs; None where not recorded."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One file, in file order."""

    path: str
    gpu: tuple[GpuOp, ...]
    api: tuple[ApiCall, ...]
    ops: tuple[HostEvent, ...]
    annotations: tuple[HostEvent, ...]
    categories: dict[str, int]
    """Events by category of the tool."""
    device: str | None
    """Name of the first device listed."""
    num_sms: int | None
    devices_listed: int
    distributed: dict[str, Any] | None
    whole_microseconds: bool
    """Every device time is a whole microsecond: a kernel of 2 us may have taken 1.5 to 2.5."""

    # -------------------------------------------------------------------- links

    @property
    def kernels(self) -> list[GpuOp]:
        return [op for op in self.gpu if op.kind == "kernel"]

    @cached_property
    def launch_of(self) -> list[ApiCall | None]:
        """The call that launched `gpu[i]`: the first of its correlation id."""
        first: dict[int, ApiCall] = {}
        for call in self.api:
            if call.correlation is not None:
                first.setdefault(call.correlation, call)
        return [None if op.correlation is None else first.get(op.correlation) for op in self.gpu]

    @cached_property
    def op_of(self) -> list[HostEvent | None]:
        """Innermost operator around the launch of `gpu[i]`; None for graph launches and unlinked operations."""
        return self._innermost(self.ops)

    @cached_property
    def annotation_of(self) -> list[HostEvent | None]:
        """Innermost user annotation around the launch of `gpu[i]`, on its thread."""
        return self._innermost(self.annotations)

    def _innermost(self, events: Sequence[HostEvent]) -> list[HostEvent | None]:
        calls: dict[Thread, list[tuple[int, int, int]]] = defaultdict(list)
        for i, call in enumerate(self.launch_of):
            if call is not None and call.name not in GRAPH_LAUNCHES:
                calls[call.thread].append((call.start, call.end, i))
        by_thread: dict[Thread, list[HostEvent]] = defaultdict(list)
        for event in events:
            by_thread[event.thread].append(event)
        out: list[HostEvent | None] = [None] * len(self.gpu)
        for thread, wanted in calls.items():
            found = innermost(by_thread[thread], [(start, end) for start, end, _ in wanted])
            for (_, _, i), around in zip(wanted, found, strict=True):
                out[i] = around
        return out

    @property
    def thinned(self) -> bool:
        """Sign that its author removed events: no API call is left besides launches, copies and sets."""
        kept = LAUNCHES | GRAPH_LAUNCHES
        return bool(self.gpu and self.api) and all(
            c.name in kept or "Memcpy" in c.name or "Memset" in c.name for c in self.api
        )

    # ------------------------------------------------------------------ figures

    def summary(self) -> dict[str, Any]:
        """Every figure of the recording; names and rules of measures.md section 4. Withheld figures are None."""
        return {
            "device": self.device,
            "num_sms": self.num_sms,
            "devices_listed": self.devices_listed,
            "distributed": self.distributed,
            "whole_microseconds": self.whole_microseconds,
            "thinned": self.thinned,
            "categories": self.categories,
            "kernels": self._kernel_figures(),
            "memcpy": self._copies("memcpy"),
            "memset": self._copies("memset"),
            "gpu_time_by_device": {str(d): _device_time(ops) for d, ops in self._by_device().items()},
            "idle_split_by_device": {str(d): self.idle_split(d) for d in self._by_device()},
            "launch_verdict": {str(d): self.launch_verdict(d) for d in self._by_device()},
            "link": self._link_figures(),
            "ops": {"cpu_ops": len(self.ops), "with_input_dims": sum(op.dims is not None for op in self.ops)},
            "kernels_by_innermost_op": self._kernels_by_op(),
            "gemm_flops_from_shapes": gemm_flops(self.ops),
            "user_annotations": self._annotation_figures(),
            "families": self._families(),
        }

    def _by_device(self) -> dict[int, list[GpuOp]]:
        out: dict[int, list[GpuOp]] = defaultdict(list)
        for op in self.gpu:
            out[op.device].append(op)
        return dict(sorted(out.items()))

    def _kernel_figures(self) -> dict[str, Any]:
        times: dict[str, list[int]] = defaultdict(list)
        for op in self.kernels:
            times[op.name].append(op.end - op.start)
        every = [t for ts in times.values() for t in ts]
        top = sorted(times, key=lambda n: -sum(times[n]))[:10]
        return {
            "launches": len(every),
            "total_ns": sum(every),
            "distinct_names": len(times),
            "le_10us": sum(t <= 10_000 for t in every),
            "min_ns": min(every, default=None),
            "max_ns": max(every, default=None),
            "top_by_time": [(n, len(times[n]), sum(times[n])) for n in top],
        }

    def _copies(self, kind: str) -> dict[str, Any]:
        ops = [op for op in self.gpu if op.kind == kind]
        without = sum(op.bytes is None for op in ops)
        return {
            "count": len(ops),
            "bytes": None if without else sum(op.bytes or 0 for op in ops),
            "without_bytes": without,
            "total_ns": sum(op.end - op.start for op in ops),
            "by_name": dict(sorted(Counter(op.name for op in ops).items())),
        }

    def unlinked_share(self, device: int | None = None) -> float | None:
        """Device operations without a recorded launch / all; None without operations."""
        linked = [c is not None for op, c in zip(self.gpu, self.launch_of, strict=True) if device in (None, op.device)]
        return 1 - sum(linked) / len(linked) if linked else None

    def _link_figures(self) -> dict[str, Any]:
        pairs = list(zip(self.gpu, self.launch_of, strict=True))
        kernels = [(op, call) for op, call in pairs if op.kind == "kernel"]
        launch_api = Counter(call.name for _, call in kernels if call is not None)
        shared = Counter(c.correlation for c in self.api if c.correlation is not None)
        op_ids = {op.external for op in self.ops if op.external is not None}
        return {
            "gpu_ops": len(pairs),
            "linked": sum(call is not None for _, call in pairs),
            "unlinked": sum(call is None for _, call in pairs),
            "unlinked_share": self.unlinked_share(),
            "kernels_linked": sum(launch_api.values()),
            "kernels_unlinked": len(kernels) - sum(launch_api.values()),
            "kernels_from_graph_launch": sum(n for name, n in launch_api.items() if name in GRAPH_LAUNCHES),
            "launch_api": dict(sorted(launch_api.items())),
            "graph_launch_calls": sum(c.name in GRAPH_LAUNCHES for c in self.api),
            "correlation_shared_by_several_api_events": sum(n > 1 for n in shared.values()),
            "kernels_whose_external_id_equals_correlation": sum(
                op.external is not None and op.external == op.correlation for op, _ in kernels
            ),
            "kernels_whose_external_id_is_a_cpu_op": sum(op.external in op_ids for op, _ in kernels),
        }

    def _kernels_by_op(self) -> dict[str, Any]:
        names: Counter[str] = Counter()
        graph = outside = 0
        for op, call, host in zip(self.gpu, self.launch_of, self.op_of, strict=True):
            if op.kind != "kernel" or call is None:
                continue
            if call.name in GRAPH_LAUNCHES:
                graph += 1
            elif host is None:
                outside += 1
            else:
                names[host.name] += 1
        top = sorted(names.items(), key=lambda item: (-item[1], item[0]))
        return {
            "from_graph_launch": graph,
            "outside_any_op": outside,
            "inside_an_op": sum(names.values()),
            "distinct_ops": len(names),
            "top12": top[:12],
        }

    def _annotation_figures(self) -> dict[str, Any]:
        """name -> kernels launched inside, on the same thread and on any (the backward has a thread of its own)."""
        linked = [
            (op, c) for op, c in zip(self.gpu, self.launch_of, strict=True) if op.kind == "kernel" and c is not None
        ]
        start_K = np.array([c.start for _, c in linked], dtype=np.int64)
        end_K = np.array([c.end for _, c in linked], dtype=np.int64)
        ns_K = np.array([op.end - op.start for op, _ in linked], dtype=np.int64)
        threads = {t: i for i, t in enumerate(dict.fromkeys(c.thread for _, c in linked))}
        thread_K = np.array([threads[c.thread] for _, c in linked], dtype=np.int64)
        out: dict[str, list[int]] = defaultdict(lambda: [0] * 5)
        for range_ in self.annotations:
            inside_K = (start_K >= range_.start) & (end_K <= range_.end)
            own_K = inside_K & (thread_K == threads.get(range_.thread, -1))
            row = (1, own_K.sum(), ns_K[own_K].sum(), inside_K.sum(), ns_K[inside_K].sum())
            out[range_.name] = [int(a + b) for a, b in zip(out[range_.name], row, strict=True)]
        columns = ("ranges", "kernels_same_thread", "ns_same_thread", "kernels_any_thread", "ns_any_thread")
        top = sorted(out, key=lambda n: (-out[n][3], n))
        return {
            "events": len(self.annotations),
            "distinct": len(out),
            "by_name": {n: dict(zip(columns, out[n], strict=True)) for n in top},
        }

    def _families(self) -> dict[str, dict[str, int]]:
        out: dict[str, dict[str, int]] = {}
        for op in self.kernels:
            row = out.setdefault(family(op.name), {"kernels": 0, "ns": 0})
            row["kernels"] += 1
            row["ns"] += op.end - op.start
        return dict(sorted(out.items()))

    def idle_split(self, device: int) -> dict[str, int | None]:
        """Why a device had nothing to do: gaps in which the next launch came too late, by `host_late`'s formula."""
        pairs = [(op, c) for op, c in zip(self.gpu, self.launch_of, strict=True) if op.device == device]
        pairs.sort(key=lambda pair: pair[0].start)
        fastest = min((op.start - c.start for op, c in pairs if c is not None), default=None)
        gaps = late = unknown = idle = 0
        busy_until = pairs[0][0].end
        for op, call in pairs[1:]:
            gap = op.start - busy_until
            if gap > 0:
                gaps, idle = gaps + 1, idle + gap
                if call is None or fastest is None:
                    unknown += gap
                else:
                    ready = call.start + fastest
                    if call.name in LAUNCHES:
                        ready = max(ready, call.end)
                    late += max(0, min(op.start, ready) - busy_until)
            busy_until = max(busy_until, op.end)
        return {
            "gaps": gaps,
            "idle_ns": idle,
            "min_launch_to_start_ns": fastest,
            "idle_host_late_ns": late,
            "idle_unknown_ns": unknown,
            "idle_other_ns": idle - late - unknown,
        }

    def launch_verdict(self, device: int) -> dict[str, Any]:
        """`launch-bound`, `gpu-bound`, `mixed`, or None with the reason it is withheld."""
        share = self.unlinked_share(device)
        if share is None or not any(op.kind == "kernel" and op.device == device for op in self.gpu):
            return {"verdict": None, "reason": "no_kernel_table"}
        time = _device_time(self._by_device()[device])
        if share > UNLINKED_LIMIT or not time["span_ns"]:
            return {"verdict": None, "reason": f"unlinked_share: {share:.3f} of the operations have no recorded launch"}
        late = (self.idle_split(device)["idle_host_late_ns"] or 0) / time["span_ns"]
        busy = time["busy_ns"] / time["span_ns"]
        verdict = "launch-bound" if late >= HOST_LATE_LIMIT else "gpu-bound" if busy >= BUSY_LIMIT else "mixed"
        return {"verdict": verdict, "host_late": late, "gpu_busy": busy}


def innermost(events: Iterable[HostEvent], spans: Sequence[tuple[int, int]]) -> list[HostEvent | None]:
    """For each span the innermost event of its thread that contains it: the last to start, the shorter on a tie."""
    ordered = sorted(events, key=lambda e: (e.start, -e.end))
    out: list[HostEvent | None] = [None] * len(spans)
    stack: list[HostEvent] = []
    at = 0
    for i in sorted(range(len(spans)), key=lambda i: spans[i]):
        start, end = spans[i]
        while at < len(ordered) and ordered[at].start <= start:
            stack.append(ordered[at])
            at += 1
        while stack and stack[-1].end < start:
            stack.pop()
        out[i] = next((e for e in reversed(stack) if e.end >= end), None)
    return out


def gemm_flops(ops: Iterable[HostEvent]) -> dict[str, dict[str, int]]:
    """2*b*m*k*n of every mm, addmm and bmm whose shapes are recorded; bias not counted."""
    first = {"aten::mm": 0, "aten::addmm": 1, "aten::bmm": 0}
    out: dict[str, dict[str, int]] = {}
    for op in ops:
        if op.name not in first or op.dims is None:
            continue
        left, right = op.dims[first[op.name] : first[op.name] + 2]
        row = out.setdefault(op.name, {"calls": 0, "flops": 0})
        row["calls"] += 1
        row["flops"] += 2 * int(np.prod(left, dtype=np.int64)) * right[-1]
    return dict(sorted(out.items()))


_TABLES = ("split_embedding", "embedding_codegen", "permute_", "jagged", "bucketize", "bounds_check", "asynchronous_")


def family(kernel: str) -> str:
    """`nccl`, `embedding` or `other`, by the kernel's name."""
    if "nccl" in kernel:
        return "nccl"
    return "embedding" if any(part in kernel for part in _TABLES) else "other"


def _device_time(ops: Sequence[GpuOp]) -> dict[str, Any]:
    """Union and span of the operations of one device."""
    busy, until = 0, min(op.start for op in ops)
    begin = until
    for op in sorted(ops, key=lambda op: op.start):
        busy += max(0, op.end - max(op.start, until))
        until = max(until, op.end)
    span = until - begin
    return {"ops": len(ops), "busy_ns": busy, "span_ns": span, "idle_share": 1 - busy / span if span else None}


def sizes(times_ns: Sequence[int]) -> dict[str, tuple[float, float]]:
    """`kernel_size_hist`: class -> (share of launches, share of time)."""
    edges = (2_000, 5_000, 10_000, 50_000, 200_000)
    names = ("<=2us", "<=5us", "<=10us", "<=50us", "<=200us", ">200us")
    count, total = [0] * len(names), [0] * len(names)
    for t in times_ns:
        # an edge belongs to the class below it
        at = bisect_right(edges, t - 1)
        count[at] += 1
        total[at] += t
    n, ns = max(1, len(times_ns)), max(1, sum(times_ns))
    return {name: (c / n, t / ns) for name, c, t in zip(names, count, total, strict=True)}

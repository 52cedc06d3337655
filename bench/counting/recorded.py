"""Operator calls of a recording with their shapes and the kernels they launched: what the kernel-time model is fit on.

The only module of `bench.counting` that knows `bench.trace`.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctrbench.bench.trace.kineto import read_kineto


@dataclass(frozen=True, kw_only=True, slots=True)
class OpCall:
    """One call of an operator on the host."""

    name: str
    dims: tuple[Any, ...]
    """Shapes of the arguments, () for what is no tensor; empty where the recording has none."""
    types: tuple[str, ...]
    """Types of the arguments as Kineto writes them (`float`, `c10::BFloat16`, `Scalar`, ...)."""
    start: int
    """ns."""
    end: int
    thread: Any
    sequence: int | None
    """Autograd's number of the node that this call made, or ran."""
    kernels: tuple[tuple[str, int], ...]
    """(name, ns) of the kernels launched in this call and in no call inside it."""
    copies: int
    """Device copies and sets launched like that."""

    @property
    def seconds(self) -> float:
        """Time of its kernels, added up."""
        return sum(ns for _, ns in self.kernels) * 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedCalls:
    """A recording as operator calls, in file order."""

    name: str
    """Of the file, suffixes left out."""
    device: str | None
    whole_microseconds: bool
    calls: tuple[OpCall, ...]
    annotations: tuple[tuple[str, int, int, Any], ...]
    """(name, start ns, end ns, thread) of user ranges."""
    kernels: int
    """Of the recording, all of them."""
    kernels_ns: int
    from_graphs: int
    """Kernels that graph launches ran: no operator owns them."""
    unlinked: int
    """Kernels without a recorded launch."""

    def launching(self) -> list[OpCall]:
        """Calls that launched a kernel themselves."""
        return [c for c in self.calls if c.kernels]


def recorded_calls(path: str | Path) -> RecordedCalls:
    """Reads a Kineto recording.

    Raises:
        BadRecording: missing, truncated, or not Kineto JSON.
    """
    path = Path(path)
    recording = read_kineto(path)
    args = _arguments(path)
    kernels: dict[int, list[tuple[str, int]]] = defaultdict(list)
    copies: dict[int, int] = defaultdict(int)
    gpu, launched = recording.gpu, recording.call_of
    of_kernel = launched[gpu.is_kernel]
    graphs = recording.is_graph_launch[recording.api.name[of_kernel[of_kernel >= 0]]]
    rows = zip(gpu.is_kernel.tolist(), gpu.name.tolist(), gpu.ns.tolist(), recording.op_of.tolist(), strict=True)
    for is_kernel, name, ns, host in rows:
        if host >= 0 and is_kernel:
            kernels[host].append((recording.string(name), ns))
        elif host >= 0:
            copies[host] += 1
    calls = [
        OpCall(
            name=op.name, dims=tuple(a.get("Input Dims") or ()), types=tuple(a.get("Input type") or ()),
            start=op.start, end=op.end, thread=op.thread, sequence=a.get("Sequence number"),
            kernels=tuple(kernels[i]), copies=copies[i],
        )
        for i, (op, a) in enumerate(zip(recording.events(recording.ops), args, strict=True))
    ]  # fmt: skip
    return RecordedCalls(
        name=path.name.split(".")[0], device=recording.device, whole_microseconds=recording.whole_microseconds,
        calls=tuple(calls),
        annotations=tuple((a.name, a.start, a.end, a.thread) for a in recording.events(recording.annotations)),
        kernels=len(of_kernel), kernels_ns=int(gpu.ns[gpu.is_kernel].sum()), from_graphs=int(graphs.sum()),
        unlinked=int((of_kernel < 0).sum()),
    )  # fmt: skip


def _arguments(path: Path) -> list[dict[str, Any]]:
    """`args` of every operator, in file order: types and sequence numbers, which `Recording` does not keep."""
    raw = path.read_bytes()
    body = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    events: Iterable[Any] = body["traceEvents"] if isinstance(body, dict) else body
    return [
        e.get("args", {}) for e in events if isinstance(e, dict) and e.get("ph") == "X" and e.get("cat") == "cpu_op"
    ]

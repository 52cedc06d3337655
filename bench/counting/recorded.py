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
from ctrbench.bench.trace.recording import GRAPH_LAUNCHES


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
    number = {id(op): i for i, op in enumerate(recording.ops)}
    kernels: dict[int, list[tuple[str, int]]] = defaultdict(list)
    copies: dict[int, int] = defaultdict(int)
    graphs = unlinked = 0
    for op, launch, host in zip(recording.gpu, recording.launch_of, recording.op_of, strict=True):
        if op.kind == "kernel":
            unlinked += launch is None
            graphs += launch is not None and launch.name in GRAPH_LAUNCHES
        if host is not None and op.kind == "kernel":
            kernels[number[id(host)]].append((op.name, op.end - op.start))
        elif host is not None:
            copies[number[id(host)]] += 1
    calls = [
        OpCall(
            name=op.name, dims=tuple(a.get("Input Dims") or ()), types=tuple(a.get("Input type") or ()),
            start=op.start, end=op.end, thread=op.thread, sequence=a.get("Sequence number"),
            kernels=tuple(kernels[i]), copies=copies[i],
        )
        for i, (op, a) in enumerate(zip(recording.ops, args, strict=True))
    ]  # fmt: skip
    return RecordedCalls(
        name=path.name.split(".")[0], device=recording.device, whole_microseconds=recording.whole_microseconds,
        calls=tuple(calls), annotations=tuple((a.name, a.start, a.end, a.thread) for a in recording.annotations),
        kernels=len(recording.kernels), kernels_ns=sum(k.end - k.start for k in recording.kernels),
        from_graphs=graphs, unlinked=unlinked,
    )  # fmt: skip


def _arguments(path: Path) -> list[dict[str, Any]]:
    """`args` of every operator, in file order: types and sequence numbers, which `Recording` does not keep."""
    raw = path.read_bytes()
    body = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    events: Iterable[Any] = body["traceEvents"] if isinstance(body, dict) else body
    return [
        e.get("args", {}) for e in events if isinstance(e, dict) and e.get("ph") == "X" and e.get("cat") == "cpu_op"
    ]

"""A recording of host and device events in columns, whatever tool wrote it, and the links between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ctrbench.bench.trace import figures
from ctrbench.bench.trace.columns import (
    MISSING,
    BadRecording,
    Calls,
    HostEvent,
    HostEvents,
    Ints,
    Mask,
    Operations,
    Thread,
    known,
)
from ctrbench.bench.trace.idle import GRAPH_LAUNCHES, LAUNCHES, launch_verdict
from ctrbench.bench.trace.names import DOMAIN
from ctrbench.bench.trace.projection import innermost_of, paths

TIME_LIMIT = 2**62
"""ns; the epoch time of today is under half of it."""
UNIFIED_MEMORY = (11, 12, 13)
"""CUPTI copy kinds that the driver starts by itself: no call launches them."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One file."""

    path: str
    format: Literal["kineto-json", "nsys-sqlite"]
    strings: Sequence[str]
    """Names by index; the first one stands for a name that the file lacks."""
    threads: Sequence[Thread]
    shapes: Sequence[list[Any]] = ()
    gpu: Operations
    api: Calls
    ops: HostEvents
    """Operators of the framework."""
    annotations: HostEvents
    """NVTX ranges, or Kineto's user annotations."""
    devices: Mapping[int, str] = field(default_factory=dict)
    """Device number of the operations -> its name, where recorded."""
    device: str | None
    """Name of the first device listed."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further figures of the file that only its format has, by their key in the summary."""
    own_ranges: Mask | None = None
    """By range: names a part of the program. NVTX: of the default domain or our own, or of the one asked for; None
    where every range does."""
    our_ranges: Mask
    """By range: emitted by this project (stages and blocks)."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Reason code -> text, as far as the reader found them."""
    whole_microseconds: bool = False
    """Every device time is a whole microsecond: a kernel of 2 us may have taken 1.5 to 2.5."""

    def __post_init__(self) -> None:
        """Raises:
        BadRecording: times so large that sums of them would not be exact.
        """
        for events in (self.gpu, self.api, self.ops, self.annotations):
            shut = events.end != MISSING
            start, end = events.start[shut].astype(np.float64), events.end[shut].astype(np.float64)
            far = max(
                (float(np.abs(t).max()) for t in (start, end, events.start.astype(np.float64)) if len(t)), default=0
            )
            if far >= TIME_LIMIT or float((end - start).sum()) >= TIME_LIMIT:
                raise BadRecording(f"{self.path}: times of more than 146 years: not nanoseconds; record it again")

    # -------------------------------------------------------------------- names

    def string(self, code: int) -> str:
        """The name of this index."""
        return self.strings[code]

    def events(self, columns: HostEvents) -> list[HostEvent]:
        """The closed events as objects, in file order."""
        rows = zip(*(getattr(columns, c).tolist() for c in ("name", "start", "end", "thread", "external", "shape")),
                   strict=True)  # fmt: skip
        return [
            HostEvent(
                self.strings[name], start, end, self.threads[thread], known(external),
                self.shapes[shape] if shape >= 0 else None,
            )
            for name, start, end, thread, external, shape in rows if end != MISSING
        ]  # fmt: skip

    @cached_property
    def range_keys(self) -> tuple[Ints, list[str]]:
        """(index of each range's key, keys).

        A range of ours has the record's key, `ctrbench/stage:x/block:y`; any other the names around it and its own.
        """
        if self.format == "kineto-json":  # a mirrored range carries its key as its name
            codes, at = np.unique(self.annotations.name, return_inverse=True)
            return at, [self.strings[c] for c in codes.tolist()]
        at, texts = np.full(len(self.annotations), -1, np.int64), list[str]()
        for rows, ours in ((np.flatnonzero(self.our_ranges), True), (np.flatnonzero(~self.our_ranges), False)):
            found, of_rows = paths(self, self.annotations.take(rows))
            at[rows] = found + len(texts)
            texts += [_key(text) for text in of_rows] if ours else of_rows
        return at, texts

    @cached_property
    def our_events(self) -> list[HostEvent]:
        """Our closed ranges as objects, named by their key."""
        rows = np.flatnonzero(self.our_ranges & (self.annotations.end != MISSING))
        at, keys = self.range_keys
        events = self.events(self.annotations.take(rows))
        return [e._replace(name=keys[k]) for e, k in zip(events, at[rows].tolist(), strict=True)]

    @cached_property
    def is_launch(self) -> Mask:
        """By string: names a call that launches one kernel."""
        return np.array([s in LAUNCHES for s in self.strings], bool)

    @cached_property
    def is_graph_launch(self) -> Mask:
        """By string: names a call that launches a graph."""
        return np.array([s in GRAPH_LAUNCHES for s in self.strings], bool)

    @cached_property
    def thread_process(self) -> Ints:
        """By thread: number of its process within this recording."""
        numbers: dict[Any, int] = {}
        return np.array([numbers.setdefault(process, len(numbers)) for process, _ in self.threads], np.int64)

    # -------------------------------------------------------------------- links

    @cached_property
    def _call_ids(self) -> tuple[Ints, Ints]:
        """Processes and correlation ids of the calls, sorted."""
        return np.unique(self.api.process), np.unique(self.api.correlation[self.api.correlation != MISSING])

    def _key(self, process: Ints, correlation: Ints) -> Ints:
        """One number a pair that some calls can have, -1 for all others."""
        processes, ids = self._call_ids
        if not len(ids):
            return np.full(len(process), -1, np.int64)
        row = np.minimum(np.searchsorted(processes, process), len(processes) - 1)
        place = np.minimum(np.searchsorted(ids, correlation), len(ids) - 1)
        return np.where((processes[row] == process) & (ids[place] == correlation), row * len(ids) + place, -1)

    @cached_property
    def distinct_calls(self) -> tuple[Ints, Ints, Ints]:
        """(key, first row, rows) of each correlation id of each process: old exports hold a call twice."""
        key = self._key(self.api.process, self.api.correlation)
        has = np.flatnonzero(key >= 0)
        keys, first, rows = np.unique(key[has], return_index=True, return_counts=True)
        return keys, has[first], rows

    @cached_property
    def call_of(self) -> Ints:
        """Row of the call that launched each operation: the first of its process and correlation id; -1 for none."""
        keys, first, _ = self.distinct_calls
        if not len(keys):
            return np.full(len(self.gpu), -1, np.int64)
        wanted = self._key(self.gpu.process, self.gpu.correlation)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where((wanted >= 0) & (keys[at] == wanted), first[at], -1)

    @cached_property
    def op_of(self) -> Ints:
        """Row of the innermost operator around the launch of each operation; -1 for graph launches and unlinked."""
        return self._around(self.ops)

    @cached_property
    def annotation_of(self) -> Ints:
        """Row of the innermost range of our own domains around the launch of each operation, on its thread."""
        rows = np.flatnonzero(self.own)
        found = innermost_of(self, self.annotations.take(rows), np.arange(len(self.gpu)))
        return np.where(found >= 0, rows[found] if len(rows) else -1, -1)

    def _around(self, events: HostEvents) -> Ints:
        out = np.full(len(self.gpu), -1, np.int64)
        single = np.flatnonzero(self.call_of >= 0)
        single = single[~self.is_graph_launch[self.api.name[self.call_of[single]]]]
        out[single] = innermost_of(self, events, single)
        return out

    @cached_property
    def own(self) -> Mask:
        """By range: names a part of the program."""
        return np.ones(len(self.annotations), bool) if self.own_ranges is None else self.own_ranges

    @cached_property
    def device_numbers(self) -> list[int]:
        """Devices that executed something."""
        return [int(d) for d in np.unique(self.gpu.device)]

    @cached_property
    def needs_call(self) -> Mask:
        """By operation: started by a call; copies of unified memory are not."""
        return ~np.isin(self.gpu.copy_kind, UNIFIED_MEMORY)

    def unlinked_share(self, device: int | None = None) -> float | None:
        """Operations without a recorded launch / all that need one; None without operations."""
        here = self.needs_call if device is None else self.needs_call & (self.gpu.device == device)
        return float((self.call_of[here] < 0).mean()) if here.any() else None

    @cached_property
    def thinned(self) -> bool:
        """Sign that its author removed events: no API call is left besides launches, copies and sets."""
        names = [self.strings[code] for code in np.unique(self.api.name).tolist()]
        kept = LAUNCHES | GRAPH_LAUNCHES
        return bool(len(self.gpu) and names) and all(
            n in kept or "Memcpy" in n or "Memset" in n for n in names
        )  # fmt: skip

    # ------------------------------------------------------------------ figures

    def launch_verdict(self, device: int) -> dict[str, Any]:
        """`launch-bound`, `gpu-bound`, `mixed`, or None with the reason it is withheld."""
        return launch_verdict(self, device)

    def summary(self) -> dict[str, Any]:
        """Every figure of the recording; names and rules of measures.md section 4. Withheld figures are None."""
        return figures.summary(self)


def _key(path: str) -> str:
    """`ctrbench/stage:x/block:y` of the names on the stack; what lies in no stage goes by its own name."""
    parts = path.split("/")
    stages = [i for i, part in enumerate(parts) if part.startswith("stage:")]
    return "/".join((DOMAIN, *parts[stages[-1] if stages else -1 :]))

"""Columns of a recording: one NumPy array a field instead of one object an event.

Times are integer nanoseconds of the recording's own clock. An integer that the file does not know is `MISSING` in its
column and None in every figure, never 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Thread = tuple[Hashable, Hashable]
"""Process id and thread id as the file writes them."""

MISSING = int(np.iinfo(np.int64).min)
UNNAMED, NO_NAME = 0, "(no name in the file)"
"""First of every recording's strings."""
KERNEL, MEMCPY, MEMSET = 0, 1, 2
KINDS = ("kernel", "memcpy", "memset")


class BadRecording(ValueError):
    """A file that is no whole recording; says which, why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Operations:
    """What devices executed, in file order; row i of every column is the same operation."""

    kind: Ints
    """`KERNEL`, `MEMCPY` or `MEMSET`."""
    name: Ints
    """Index into the recording's strings, as every `name` column."""
    start: Ints
    end: Ints
    device: Ints
    stream: Ints
    process: Ints
    """What correlation ids are unique within."""
    correlation: Ints
    external: Ints
    """Kineto's `External id`."""
    bytes: Ints
    """Of copies and sets."""
    copy_kind: Ints
    """CUPTI's: 1 HtoD, 2 DtoH, 8 DtoD, 10 PtoP, 11 to 13 unified memory."""
    graph_node: Ints

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def ns(self) -> Ints:
        """Durations."""
        return self.end - self.start

    @property
    def is_kernel(self) -> Mask:
        return self.kind == KERNEL


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Calls of the CUDA or HIP runtime and driver, in file order."""

    name: Ints
    start: Ints
    end: Ints
    """`MISSING` of a call that had not returned."""
    thread: Ints
    """Index into the recording's threads."""
    process: Ints
    correlation: Ints

    def __len__(self) -> int:
        return len(self.name)


class HostEvent(NamedTuple):
    """One operator or range of a host thread as an object, for code that walks few of them."""

    name: str
    start: int
    end: int
    thread: Thread
    external: int | None
    dims: list[Any] | None
    """Shapes of the inputs; None where not recorded."""


@dataclass(frozen=True, kw_only=True)
class HostEvents:
    """Operators, or ranges, of host threads in file order."""

    name: Ints
    start: Ints
    end: Ints
    """`MISSING` of a range that was still open."""
    thread: Ints
    external: Ints
    shape: Ints
    """Index into the recording's shapes; -1 where not recorded."""
    domain: Ints
    """NVTX domain id; 0 is the default domain, and all that Kineto knows."""
    category: Ints
    payload: Ints
    """Integer payload."""

    def __len__(self) -> int:
        return len(self.name)

    def take(self, rows: Ints | Mask) -> HostEvents:
        """The events of these rows."""
        return HostEvents(**{field: getattr(self, field)[rows] for field in self.__dataclass_fields__})


def host_events(**columns: Ints) -> HostEvents:
    """Host events whose unnamed columns are unknown; domain 0 and no shape where not given."""
    n = len(columns["name"])
    fill = {"external": MISSING, "shape": -1, "domain": 0, "category": MISSING, "payload": MISSING}
    return HostEvents(**{field: np.full(n, value, np.int64) for field, value in fill.items()} | columns)


def operations(**columns: Ints) -> Operations:
    """Operations whose unnamed columns are unknown."""
    n = len(columns["kind"])
    fields = ("external", "bytes", "copy_kind", "graph_node", "stream", "correlation")
    return Operations(**{field: np.full(n, MISSING, np.int64) for field in fields} | columns)


def joined(parts: Sequence[Operations]) -> Operations:
    """All operations of several tables, in the order of the tables."""
    return Operations(**{
        field: np.concatenate([getattr(part, field) for part in parts]) if parts else np.empty(0, np.int64)
        for field in Operations.__dataclass_fields__
    })  # fmt: skip


def known(value: Any) -> int | None:
    """A cell as a Python integer; None where missing."""
    return None if int(value) == MISSING else int(value)


def total(values: Ints) -> int:
    """Exact sum: as Python integers where int64 could overflow."""
    if not len(values):
        return 0
    largest = max(abs(int(values.max())), abs(int(values.min())))
    return int(values.sum()) if largest < 2**62 // len(values) else sum(values.tolist())

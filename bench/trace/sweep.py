"""Which ranges contain which launch calls: interval queries on one host thread.

`[start, end]` contains `[a, c]` if start <= a and c <= end. Ranges may nest, touch and overlap in any way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrbench.bench.trace.columns import MISSING, Ints, Mask


def innermost(start: Ints, end: Ints, span_start: Ints, span_end: Ints) -> Ints:
    """For each span the index of the innermost range that contains it, -1 for none.

    Innermost is the last in the order (start, longer first, file order). Every range keeps a pointer to the one below
    it on a stack from which ended ranges were popped; a span starts at the last range that began before it and
    follows the pointers, so the work is linear in ranges, spans and nesting depth.
    """
    if not len(start) or not len(span_start):
        return np.full(len(span_start), -1, np.int64)
    order = np.lexsort((-end, start))
    start, end = start[order], end[order]
    below = _below(start, end)
    found = np.searchsorted(start, span_start, side="right") - 1
    _descend(found, end, below, span_end)
    return np.where(found >= 0, order[found], -1)


def parents(start: Ints, end: Ints) -> Ints:
    """For each range the index of the innermost other range around it, -1 for none.

    Of equal ranges the first is outer; a range that starts at the instant at which another ends lies outside it.
    """
    order = np.lexsort((-end, start))
    found = _below(start[order], end[order])
    _descend(found, end[order], found.copy(), end[order])
    out = np.empty(len(order), np.int64)
    out[order] = np.where(found >= 0, order[found], -1)
    return out


def _below(start: Ints, end: Ints) -> Ints:
    """The range under each one on the stack.

    A range that ends where the next one starts is popped: a span that both contain belongs to the next one.
    """
    ends = end.tolist()
    below, stack = [-1] * len(ends), list[int]()
    for i, begin in enumerate(start.tolist()):
        while stack and ends[stack[-1]] <= begin:
            stack.pop()
        if stack:
            below[i] = stack[-1]
        stack.append(i)
    return np.array(below, np.int64)


def _descend(found: Ints, end: Ints, below: Ints, span_end: Ints) -> None:
    """Moves every `found` down its stack, in place, to the first range that ends no earlier than the span."""
    at = np.flatnonzero(found >= 0)
    while len(at):
        at = at[end[found[at]] < span_end[at]]
        found[at] = below[found[at]]
        at = at[found[at] >= 0]


@dataclass(frozen=True, kw_only=True)
class Owned:
    """What each range owns; row i belongs to range i."""

    ops: Ints
    kernels: Ints
    gpu_ns: Ints
    kernel_ns: Ints
    first_start: Ints
    """Device time; `MISSING` of a range that owns nothing."""
    last_end: Ints

    def take(self, rows: Ints) -> Owned:
        """What these ranges own."""
        return Owned(**{field: getattr(self, field)[rows] for field in self.__dataclass_fields__})


def nothing_owned(n: int) -> Owned:
    """Rows of `n` ranges, to be filled by `add_owned`."""
    zero = [np.zeros(n, np.int64) for _ in range(4)]
    late, early = np.full(n, MISSING, np.int64), np.full(n, MISSING, np.int64)
    return Owned(ops=zero[0], kernels=zero[1], gpu_ns=zero[2], kernel_ns=zero[3], first_start=late, last_end=early)


def add_owned(
    out: Owned, rows: Ints, start: Ints, end: Ints, call: tuple[Ints, Ints], gpu: tuple[Ints, Ints], is_kernel: Mask
) -> None:
    """Adds the operations launched by one thread to the ranges that contain their calls.

    Args:
        out: changed in place.
        rows: rows of `out` that `start` and `end` belong to.
        start, end: the ranges, host ns.
        call: start and end of the call that launched each operation, host ns.
        gpu: start and end of each operation, device ns.
        is_kernel: of each operation.
    """
    order = np.lexsort((call[1], call[0]))
    for chain in _chains(order, call[1][order]):
        lo = np.searchsorted(call[0][chain], start, side="left")
        hi = np.maximum(np.searchsorted(call[1][chain], end, side="right"), lo)
        begin, finish = gpu[0][chain], gpu[1][chain]
        ns, kernel = finish - begin, is_kernel[chain]
        out.ops[rows] += hi - lo
        for column, values in ((out.kernels, kernel), (out.gpu_ns, ns), (out.kernel_ns, np.where(kernel, ns, 0))):
            before = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
            column[rows] += before[hi] - before[lo]
        some = hi > lo
        mine, lo, hi = rows[some], lo[some], hi[some]
        first, last = _least(begin, lo, hi), -_least(-finish, lo, hi)
        seen = out.first_start[mine] != MISSING
        out.first_start[mine] = np.where(seen, np.minimum(out.first_start[mine], first), first)
        out.last_end[mine] = np.where(seen, np.maximum(out.last_end[mine], last), last)


def _chains(order: Ints, ends: Ints) -> list[Ints]:
    """Splits calls in order of start so that the ends never fall inside a part; one part unless calls nest."""
    if np.all(ends[1:] >= ends[:-1]):
        return [order]
    tails: list[int] = []
    parts: list[list[int]] = []
    for row, end in zip(order.tolist(), ends.tolist(), strict=True):
        at = next((i for i, tail in enumerate(tails) if tail <= end), len(tails))
        if at == len(tails):
            tails.append(end)
            parts.append([])
        tails[at] = end
        parts[at].append(row)
    return [np.array(part, np.int64) for part in parts]


def _least(values: Ints, lo: Ints, hi: Ints) -> Ints:
    """Smallest value of each non-empty `values[lo:hi]`; a sparse table, one level at a time."""
    out = np.empty(len(lo), np.int64)
    level = np.frexp((hi - lo).astype(np.float64))[1] - 1  # floor(log2(length))
    table = values
    for k in range(int(level.max(initial=-1)) + 1):
        if k:
            table = np.minimum(table[: -(2 ** (k - 1))], table[2 ** (k - 1) :])
        at = level == k
        out[at] = np.minimum(table[lo[at]], table[hi[at] - 2**k])
    return out

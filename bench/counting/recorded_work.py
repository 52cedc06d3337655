"""FLOPs and operand bytes of a recorded operator call from its `Input Dims` and `Input type`: measures.md section 3.

The same rules as `ops` and `traffic`, which see tensors; a test compares the two. What a recording does not hold is
left out, never guessed: outputs of reductions, the tensors of a list, the width of a table's rows.

Dims: N lookups, D columns of a row
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch

from ctrbench.bench.counting.kernel_time import time_family
from ctrbench.bench.counting.recorded import OpCall

WIDTHS = {
    "float": 4, "double": 8, "long": 8, "long int": 8, "int": 4, "bool": 1, "unsigned char": 1, "signed char": 1,
    "c10::BFloat16": 2, "c10::Half": 2,
}  # fmt: skip
"""Bytes of an element, by the names that Kineto uses."""
_BOOLEAN = frozenset({
    "aten::eq", "aten::ne", "aten::lt", "aten::le", "aten::gt", "aten::ge", "aten::logical_and", "aten::logical_or",
    "aten::logical_not", "aten::isnan", "aten::isinf",
})  # fmt: skip
_WRITE_ONLY = frozenset({"aten::fill", "aten::zero"})
_LISTS = frozenset({"TensorList", "OptionalTensorList"})

Tensors = Sequence[tuple[int, int]]
"""(elements, bytes of an element) of each tensor argument."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a call had to do."""

    family: str
    flops: float
    bytes: float
    dtype: str
    """Of its first tensor, as Kineto writes it."""


def work_of(call: OpCall) -> Work | None:
    """FLOPs and bytes of a call; None where its arguments do not tell them."""
    family = time_family(call.name)
    rule = _RULES.get(family)
    dims, types = _without_out(call)
    tensors = [(prod(d), WIDTHS[t]) for d, t in zip(dims, types, strict=True) if t in WIDTHS]
    if rule is None or not tensors or any(t in _LISTS for t in types):
        return None
    found = rule(call.name.rstrip("_"), dims, types, tensors, call.name.endswith("_"))
    if found is None:
        return None
    dtype = next(t for t in types if t in WIDTHS)
    return Work(family=family, flops=found[0], bytes=found[1], dtype=dtype)


def _without_out(call: OpCall) -> tuple[list[Any], list[str]]:
    """Arguments without the tensor of an `out=` overload, which is written and not read."""
    dims, types = list(call.dims), list(call.types)
    most = _arguments(call.name)
    if most and len(dims) > most:
        last = max((i for i, t in enumerate(types) if t in WIDTHS), default=None)
        if last is not None:
            del dims[last], types[last]
    return dims, types


@cache
def _arguments(op: str) -> int:
    """Most arguments that an overload without `out` takes; 0 where the operator is not known here."""
    packet = getattr(torch.ops.aten, op.removeprefix("aten::"), None) if op.startswith("aten::") else None
    if packet is None:
        return 0
    schemas = [getattr(packet, o)._schema for o in packet.overloads()]
    return max((len(s.arguments) for s in schemas if not any(a.is_out for a in s.arguments)), default=0)


def _broadcast(dims: Sequence[Sequence[int]]) -> int:
    rank = max(len(d) for d in dims)
    padded = [[1] * (rank - len(d)) + list(d) for d in dims]
    return prod(0 if 0 in sizes else max(sizes) for sizes in zip(*padded, strict=True))


def _read(tensors: Tensors) -> float:
    return float(sum(n * width for n, width in tensors))


Found = tuple[float, float] | None
Rule = Callable[[str, Sequence[Any], Sequence[str], Tensors, bool], Found]


def _gemm(name: str, dims: Sequence[Any], types: Sequence[str], tensors: Tensors, in_place: bool) -> Found:
    at = 1 if name in ("aten::addmm", "aten::baddbmm", "aten::_addmm_activation") else 0
    a, b = dims[at], dims[at + 1]
    if len(a) < 2 or len(b) < 2 or types[at] not in WIDTHS:
        return None
    rows = prod(a[:-1]) * b[-1]
    return 2.0 * prod(a) * b[-1], _read(tensors) + rows * WIDTHS[types[at]]


def _elementwise(name: str, dims: Sequence[Any], types: Sequence[str], tensors: Tensors, in_place: bool) -> Found:
    if in_place:
        read = tensors[1:] if name in _WRITE_ONLY else tensors
        return 0.0, _read(read) + _read(tensors[:1])
    shapes = [d for d, t in zip(dims, types, strict=True) if t in WIDTHS]
    # A 0-dimensional operand (a Python number as a tensor) does not widen the result.
    wide = [t for t, d in zip((t for t in types if t in WIDTHS), shapes, strict=True) if d and t != "bool"]
    width = 1 if name in _BOOLEAN else max((WIDTHS[t] for t in wide), default=tensors[0][1])
    return 0.0, _read(tensors) + _broadcast(shapes) * width


def _copy(name: str, dims: Sequence[Any], types: Sequence[str], tensors: Tensors, in_place: bool) -> Found:
    """`copy_(target, source)` writes its first argument; other copies write what they read."""
    return 0.0, _read(tensors) if in_place and len(tensors) > 1 else 2 * _read(tensors[:1])


def _reduction(name: str, dims: Sequence[Any], types: Sequence[str], tensors: Tensors, in_place: bool) -> Found:
    return 0.0, _read(tensors)


def _norm(name: str, dims: Sequence[Any], types: Sequence[str], tensors: Tensors, in_place: bool) -> Found:
    """Writes one tensor of its first argument's shape; statistics and weight gradients are small beside it."""
    return 0.0, _read(tensors) + _read(tensors[:1])


def _gather(name: str, dims: Sequence[Any], types: Sequence[str], tensors: Tensors, in_place: bool) -> Found:
    """Rows touched: each is read and written once, in a scatter its source is read too."""
    table, width = tensors[0]
    index = [i for i, t in enumerate(types) if i and t in ("long", "long int", "int")]
    if not index:
        return None
    n = prod(dims[index[0]])
    if in_place:
        return 0.0, n * WIDTHS[types[index[0]]] + 3.0 * max(n, tensors[-1][0]) * width
    row = table / max(dims[0][0], 1) if name in ("aten::index_select", "aten::embedding") else 1.0
    return 0.0, n * WIDTHS[types[index[0]]] + 2.0 * n * row * width


def _jagged(name: str, dims: Sequence[Any], types: Sequence[str], tensors: Tensors, in_place: bool) -> Found:
    """Everything is read and written once."""
    return 0.0, 2 * _read(tensors)


_RULES: dict[str, Rule] = {
    "gemm": _gemm, "elementwise": _elementwise, "copy": _copy, "reduction": _reduction, "norm": _norm,
    "norm_backward": _norm, "gather": _gather, "jagged": _jagged,
}  # fmt: skip

"""Operand bytes of one operator call: distinct input storages read plus distinct output storages written.

Rules: measures.md section 3. No fusion and no cache is assumed; broadcast inputs count at storage size, gathers at the
rows touched (every lookup, duplicates included: an upper estimate, as the whole figure is).

Dims: N lookups, D columns of a row, V rows of a table
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from ctrbench.bench.counting.ops import arguments, base_name

STATE_BYTES: dict[str, Callable[[float], float]] = {
    "rowwise_adagrad": lambda d: 4.0,
    "adagrad": lambda d: 4.0 * d,
    "sgd": lambda d: 0.0,
    "adam": lambda d: 8.0 * d,
}
"""Table optimizer -> bytes of state a row (fp32), by row width."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes at the tensors' own width, and with every float at 2 bytes (`half`)."""

    own: float = 0.0
    half: float = 0.0

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(self.own + other.own, self.half + other.half)

    def __mul__(self, n: float) -> Bytes:
        return Bytes(self.own * n, self.half * n)


def fixed(n: float) -> Bytes:
    """Bytes whose width does not depend on the precision (indices, fp32 optimizer state)."""
    return Bytes(n, n)


def values(n: float, like: Tensor) -> Bytes:
    """`n` elements of the type of a tensor."""
    size = like.element_size()
    return Bytes(n * size, n * (min(size, 2) if like.is_floating_point() else size))


def extent(t: Tensor) -> int:
    """Elements that a (possibly expanded) view really covers."""
    n = 1
    for size, stride in zip(t.shape, t.stride(), strict=True):
        n *= size if stride else min(size, 1)
    return n


def tensors(tree: Any) -> list[Tensor]:
    """Tensor leaves; a sparse tensor counts as its indices and values."""
    found: list[Tensor] = []
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            found.extend((leaf._indices(), leaf._values()) if leaf.is_sparse else (leaf,))
    return found


def distinct(found: Iterable[Tensor]) -> Bytes:
    """Bytes of the distinct storages behind some tensors, each at the part its views cover."""
    views: dict[int, dict[tuple[Any, ...], Tensor]] = {}
    for t in found:
        key = (t.storage_offset(), tuple(t.shape), t.stride())
        views.setdefault(t.untyped_storage()._cdata, {})[key] = t
    total = Bytes()
    for group in views.values():
        like = next(iter(group.values()))
        whole = like.untyped_storage().nbytes() // like.element_size()
        total += values(min(sum(extent(t) for t in group.values()), whole), like)
    return total


_WRITE_ONLY = tuple(f"aten::{n}_" for n in ("fill", "zero", "bernoulli", "copy", "normal", "uniform", "random"))


def operand_bytes(
    func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, table_optimizer: str
) -> Bytes:
    """Bytes of one call; `table_optimizer` prices the state of the shape-only table operator."""
    x = arguments(func, args, kwargs)
    rule = _rule(func)
    if rule is not None:
        return rule(func, x, out, table_optimizer)
    sparse = [t for t in tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor) and t.is_sparse]
    if sparse:
        return _beside_sparse(sparse[0], x, out)
    written = [
        v for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write for v in [x.get(a.name)]
    ]
    read = [v for k, v in x.items() if not (func._schema.name in _WRITE_ONLY and k == "self")]
    return distinct(tensors(read)) + distinct(tensors([out, written]))


def _beside_sparse(sparse: Tensor, x: Mapping[str, Any], out: Any) -> Bytes:
    """Dense operands of a sparse operator are touched at the sparse rows only."""
    n = sparse._values().numel()
    total = distinct([t for v in x.values() if isinstance(v, Tensor) and v.is_sparse for t in tensors(v)])
    dense = [v for v in x.values() if isinstance(v, Tensor) and not v.is_sparse and v.numel() > 1]
    for t in dense:
        total += values(min(n, t.numel()), t)
    if isinstance(out, Tensor):
        total += values(min(n, out.numel()), out) if not out.is_sparse else distinct(tensors(out))
    return total


Rule = Callable[[OpOverload, Mapping[str, Any], Any, str], Bytes]


def _gathered(index: str) -> Rule:
    def rule(func: OpOverload, x: Mapping[str, Any], out: Any, optimizer: str) -> Bytes:
        return distinct(tensors(x[index])) + values(out.numel(), out) * 2

    return rule


def _scattered(index: str, source: str) -> Rule:
    """In place: read the source, read and write the rows it lands on."""

    def rule(func: OpOverload, x: Mapping[str, Any], out: Any, optimizer: str) -> Bytes:
        src = x[source]
        n = src.numel() if isinstance(src, Tensor) else max(t.numel() for t in tensors(x[index]))
        return distinct(tensors(x[index])) + values(n, x["self"]) * 3

    return rule


def _bag(func: OpOverload, x: Mapping[str, Any], out: Any, optimizer: str) -> Bytes:
    weight, pooled = x["weight"], out[0]
    rows = values(x["indices"].numel() * weight.shape[1], weight)
    return (
        distinct(tensors([x["indices"], x["offsets"], x.get("per_sample_weights")]))
        + rows
        + values(pooled.numel(), pooled)
    )


def _dense_gradient(func: OpOverload, x: Mapping[str, Any], out: Any, optimizer: str) -> Bytes:
    """Zero-fill of the whole table, then a read-modify-write a lookup."""
    indices, grad = x["indices"], x.get("grad_output", x.get("grad"))
    width = out.shape[1]
    return distinct(tensors([indices, grad])) + values(out.numel(), out) + values(indices.numel() * width, out) * 2


def _coalesce(func: OpOverload, x: Mapping[str, Any], out: Any, optimizer: str) -> Bytes:
    given = x["self"]
    rows = given._values()
    return _sorted(given._nnz()) + values(rows.numel(), rows) * 2 + values(out._values().numel(), rows)


def _sorted(n: float, index_bytes: int = 8) -> Bytes:
    """Two passes over keys and 4-byte payload, each read and written."""
    return fixed(4 * n * (index_bytes + 4))


def _table_forward(func: OpOverload, x: Mapping[str, Any], out: Any, optimizer: str) -> Bytes:
    indices: Tensor = x["values_N"] if "values_N" in x else x["indices"]
    rows: Tensor = out if isinstance(out, Tensor) else out[0]
    if "offsets" in x:
        bags = x["offsets"].numel() - 1
        width = rows.numel() / max(bags, 1)
    else:
        width = x["weight"].shape[1]
        bags = rows.numel() // width
    offsets = fixed((bags + 1) * 8)
    return distinct([indices]) + offsets + values(indices.numel() * width, rows) + values(rows.numel(), rows)


def _table_backward(func: OpOverload, x: Mapping[str, Any], out: Any, optimizer: str) -> Bytes:
    grad: Tensor = x["grad"] if "grad" in x else x["grad_output"]
    indices: Tensor = x["values_N"] if "values_N" in x else x["indices"]
    if "offsets" in x:
        width = grad.numel() / max(x["offsets"].numel() - 1, 1)
        name = func._schema.name
        optimizer = next((o for o in STATE_BYTES if o in name), optimizer)
    else:
        width = x["weight"].shape[1]
    n = indices.numel()
    state = fixed(n * STATE_BYTES[optimizer](width))
    return values(n * width, grad) + _sorted(n, indices.element_size()) + (values(n * width, grad) + state) * 2


_RULES: dict[str, Rule] = {
    "aten::embedding": _gathered("indices"),
    "aten::index_select": _gathered("index"),
    "aten::gather": _gathered("index"),
    "aten::index": _gathered("indices"),
    "aten::_unsafe_index": _gathered("indices"),
    "aten::take": _gathered("index"),
    "aten::_embedding_bag": _bag,
    "aten::_embedding_bag_forward_only": _bag,
    "aten::embedding_dense_backward": _dense_gradient,
    "aten::_embedding_bag_dense_backward": lambda f, x, out, o: _dense_gradient(
        f, {**x, "grad_output": x["grad"]}, out, o
    ),
    "aten::_coalesce": _coalesce,
}
_IN_PLACE_RULES: dict[str, Rule] = {
    "aten::index_put_": _scattered("indices", "values"),
    "aten::_index_put_impl_": _scattered("indices", "values"),
    "aten::index_add_": _scattered("index", "source"),
    "aten::scatter_add_": _scattered("index", "src"),
    "aten::scatter_": _scattered("index", "src"),
}


def _rule(func: OpOverload) -> Rule | None:
    name = base_name(func)
    if name.startswith("ctrbench::tbe") or (name.startswith("fbgemm::") and "embedding" in name):
        return _table_backward if "backward" in name else _table_forward
    return _IN_PLACE_RULES.get(func._schema.name) or _RULES.get(name)

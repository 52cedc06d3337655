"""Sums of embedding rows in C (table_rows.c), Adagrad by row or by element in their backward, for tables on a CPU.

What FBGEMM's table-batched operator does, on its storage; its CPU form reads each row when it comes to it, this one
asks for rows early. Operators `ctrbench::tbe_rows` and `ctrbench::tbe_rows_backward`, so that counters and traces see
them. Without a compiler there are none, and the tables take FBGEMM's.

Dims: B batch, F features, N ids of all features, R rows of all tables, D columns of a row
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ctrbench.kernels.cpu.build import library

MOST = 2**32 - 1
"""Rows and ids are numbered in 32 bits."""

_ops = torch.library.Library("ctrbench", "FRAGMENT")
_ops.define(
    "tbe_rows(Tensor weight, Tensor values_N, Tensor? bags, Tensor segments, Tensor starts, Tensor rows, int batch) "
    "-> Tensor"
)
_ops.define(
    "tbe_rows_backward(Tensor grad, Tensor(a!) weight, Tensor(b!) state, Tensor values_N, Tensor? bags, "
    "Tensor segments, Tensor starts, Tensor rows, int batch, float lr, float eps) -> ()"
)


def available() -> bool:
    """Whether the source builds here."""
    return library("table_rows") is not None


@dataclass(frozen=True, eq=False, slots=True)
class Tables:
    """Tables that lie one after another, and which of them each feature reads."""

    weight_RD: Tensor
    state: Tensor
    """Of Adagrad: sum over steps of the squares of a gradient [R, D], or of their mean over a row [R]."""
    starts_F: Tensor
    """First row of each feature's table."""
    rows_F: Tensor
    """How many it has."""
    eps: float


def table_rows(tables: Tables, values_N: Tensor, per_feature: Sequence[int], bags: Tensor | None, lr: float) -> Tensor:
    """Sums of rows; backward moves the rows of `tables` and returns no gradient.

    Args:
        tables: where the rows lie.
        values_N: ids, feature by feature.
        per_feature: how many ids each has.
        bags: [F * B + 1] offsets of bags, feature by feature; without, every id is a bag.
        lr: learning rate of the step that this lookup belongs to.

    Returns:
        [B, F * D] with bags, [N, D] without.

    Raises:
        IndexError: an id outside its table.
        ValueError: `per_feature` and `bags` do not share out the ids in the same way.
    """
    # TorchRec keeps lengths, and so offsets, in 32 bits where they fit
    ids, offsets = (t if t is None else t.long().contiguous() for t in (values_N, bags))
    out: Tensor = _Rows.apply(tables.weight_RD, tables, ids, tuple(per_feature), offsets, lr)
    return out


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight_RD: Tensor, tables: Tables, values_N: Tensor, per_feature: tuple[int, ...],
        bags: Tensor | None, lr: float,
    ) -> Tensor:  # fmt: skip
        segments = torch.tensor([*accumulate(per_feature, initial=0)])
        batch = (len(bags) - 1) // len(per_feature) if bags is not None else 0
        # C reads what it is told to: a wrong share would be foreign memory
        shares = bags is None or not batch or torch.equal(bags[::batch], segments)
        if int(segments[-1]) != len(values_N) or not shares:
            raise ValueError(f"{len(values_N)} ids, {list(per_feature)} by feature: bags or ids do not add up to that")
        ctx.tables, ctx.lr, ctx.batch = tables, lr, batch
        ctx.ids = values_N, bags, segments
        return torch.ops.ctrbench.tbe_rows(
            weight_RD.detach(), values_N, bags, segments, tables.starts_F, tables.rows_F, batch
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        t: Tables = ctx.tables
        torch.ops.ctrbench.tbe_rows_backward(
            grad.contiguous(), t.weight_RD.detach(), t.state.detach(), *ctx.ids, t.starts_F, t.rows_F, ctx.batch,
            ctx.lr, t.eps,
        )  # fmt: skip
        return (None,) * 6


def _pointer(t: Tensor | None) -> ctypes.c_void_p:
    assert t is None or t.is_contiguous()
    return ctypes.c_void_p(None if t is None else t.data_ptr())


def _sizes(weight: Tensor, starts: Tensor, batch: int) -> tuple[Any, ...]:
    long = ctypes.c_long
    return long(batch), long(len(starts)), long(weight.shape[1]), ctypes.c_int(torch.get_num_threads())


def _sum(
    weight: Tensor, values_N: Tensor, bags: Tensor | None, segments: Tensor, starts: Tensor, rows: Tensor, batch: int
) -> Tensor:
    _check(weight, values_N, bags)
    features, width = len(starts), weight.shape[1]
    shape = (len(values_N), width) if bags is None else (batch, features * width)
    out, wrong = weight.new_empty(shape), torch.zeros(1, dtype=torch.int64)
    c: Any = library("table_rows")
    c.rows_sum(*_sizes(weight, starts, batch), *map(_pointer, (values_N, bags, segments, starts, rows)),
               *map(_pointer, (weight, out, wrong)))  # fmt: skip
    if n := int(wrong):
        feature = int(torch.searchsorted(segments, n - 1, right=True)) - 1
        raise IndexError(f"id {int(values_N[n - 1])} of feature {feature} is outside its table of {int(rows[feature])}")
    return out


def _adagrad(
    grad: Tensor, weight: Tensor, state: Tensor, values_N: Tensor, bags: Tensor | None, segments: Tensor,
    starts: Tensor, rows: Tensor, batch: int, lr: float, eps: float,
) -> None:  # fmt: skip
    _check(grad, values_N, bags)
    c: Any = library("table_rows")
    failed = c.rows_adagrad(
        *_sizes(weight, starts, batch), *map(_pointer, (values_N, bags, segments, starts, rows)),
        *map(_pointer, (grad, weight, state)), ctypes.c_float(lr), ctypes.c_float(eps), ctypes.c_int(state.dim() == 2),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory to sort {len(values_N):,} ids")


def _check(floats: Tensor, values_N: Tensor, bags: Tensor | None) -> None:
    assert floats.dtype == torch.float32
    assert values_N.dtype == torch.int64
    assert bags is None or bags.dtype == torch.int64


_ops.impl("tbe_rows", _sum, "CPU")
_ops.impl("tbe_rows_backward", _adagrad, "CPU")

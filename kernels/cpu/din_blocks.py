"""The steps of din_blocks.c as operators `ctrbench::...`, so that counters and traces see them.

All take contiguous float32 tensors of one block of events and write into the ones they are given.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ctrbench.kernels.cpu.build import library

CHUNK = 256
"""Events of one partial sum of `dice_back`, as in the source."""

_ops = torch.library.Library("ctrbench", "FRAGMENT")
_ops.define("dice_out(Tensor x, Tensor scale, Tensor shift, Tensor alpha, Tensor(a!) y) -> ()")
_ops.define(
    "dice_back(Tensor x, Tensor scale, Tensor shift, Tensor alpha, Tensor dy, "
    "Tensor(a!) y, Tensor(b!) dx, Tensor(c!) sums) -> ()"
)
_ops.define("dice_finish(Tensor x, Tensor slope, Tensor base, Tensor(a!) dx) -> ()")
_ops.define("din_pairs(Tensor q, Tensor h, Tensor row, Tensor(a!) pair) -> ()")
_ops.define("din_add_rows(Tensor by_row, Tensor row, Tensor(a!) x) -> ()")
_ops.define("din_scores_back(Tensor du, Tensor h, Tensor row, Tensor(a!) da) -> ()")
_ops.define(
    "din_first_back(Tensor dpair, Tensor dx, Tensor q, Tensor h, Tensor at, Tensor a, Tensor du, "
    "Tensor(a!) dh, Tensor(b!) dq, Tensor(c!) drow) -> ()"
)


def available() -> bool:
    """Whether the source builds here."""
    return library("din_blocks") is not None


def _call(name: str, sizes: tuple[int, ...], *parts: Tensor) -> None:
    for part in parts:
        assert part.is_contiguous()
        assert part.dtype in (torch.float32, torch.int64)
    function: Any = getattr(library("din_blocks"), name)
    ints = [ctypes.c_long(s) for s in sizes]
    function(*ints, ctypes.c_int(torch.get_num_threads()), *(ctypes.c_void_p(p.data_ptr()) for p in parts))


def _per_event(name: str, at: int) -> Any:
    """An operator whose sizes are those of its argument `at`."""

    def run(*parts: Tensor) -> None:
        _call(name, (parts[at].shape[0], parts[at].shape[1]), *parts)

    return run


def _first_back(dpair: Tensor, dx: Tensor, q: Tensor, *rest: Tensor) -> None:
    _call("din_first_back", (q.shape[0], q.shape[1], dx.shape[1]), dpair, dx, q, *rest)


for _name, _at in {
    "dice_out": 0, "dice_back": 0, "dice_finish": 0, "din_pairs": 1, "din_add_rows": 2, "din_scores_back": 1,
}.items():  # fmt: skip
    _ops.impl(_name, _per_event(_name, _at), "CPU")
_ops.impl("din_first_back", _first_back, "CPU")

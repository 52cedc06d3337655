"""The operators of `kernels/` as suites and targets time and count them: a way of computing, a shape, a pass."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import ctrbench.kernels.operator as operator_module
from ctrbench.bench.counting.counter import Recorder
from ctrbench.bench.counting.rows import StepCounts
from ctrbench.kernels.operator import Operator, Shape, tensors

Pass = Literal["fwd", "fwd+bwd"]
PASSES: tuple[Pass, ...] = ("fwd", "fwd+bwd")
NO_OPERATOR = frozenset({"cost", "operator"})
"""Files of the room that compute nothing."""
TWIN, RUN = "twin", "run"
Way = Callable[..., Any]


def operators() -> dict[str, Operator]:
    """File of `kernels/` -> its operator.

    Raises:
        AttributeError: a file that has none.
    """
    room = Path(operator_module.__file__).parent
    names = sorted(p.stem for p in room.glob("*.py") if p.stem not in NO_OPERATOR)
    return {n: importlib.import_module(f"ctrbench.kernels.{n}").OPERATOR for n in names}


def ways(op: Operator) -> Mapping[str, Way]:
    """Twin, each fast path, and what models call, by name."""
    return {TWIN: op.twin, **op.paths, RUN: op.run}


def arguments(op: Operator, shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Arguments of one call, the same at every time."""
    torch.manual_seed(0)
    return op.inputs(shape, dtype, torch.device(device))


def call_of(way: Way, args: tuple[Any, ...], passes: Pass) -> Callable[[], object]:
    """One call without gradient, or one with the gradients of everything that takes one.

    The gradient of the outputs is drawn once, so that no way gets a constant one by chance of a sum.
    """
    if passes == "fwd":

        def forward() -> object:
            with torch.no_grad():
                return way(*args)

        return forward
    wanted = [a for a in tensors(args) if a.requires_grad]
    grads = [torch.randn_like(t) for t in _differentiable(way(*args))]
    return lambda: torch.autograd.grad(_differentiable(way(*args)), wanted, grads, allow_unused=True)


def _differentiable(result: Any) -> list[Tensor]:
    return [t for t in tensors(result) if t.requires_grad]


def count_call(op: Operator, way: Way, shape: Shape, passes: Pass, device: str = "cpu") -> StepCounts:
    """Operators, FLOPs and bytes of one call; on `meta` also what it would launch on a GPU.

    Never in a process that times.
    """
    args = arguments(op, shape, device)
    call = call_of(way, args, passes)
    holder = nn.Module()
    holder.register_parameter("device", nn.Parameter(torch.empty(0, device=device)))
    recorder = Recorder(holder, args, int(shape.get("batch", 1)))
    call()  # what is kept between calls is made
    with recorder.active():
        call()
    return recorder.result(train=passes == "fwd+bwd", blocks={})

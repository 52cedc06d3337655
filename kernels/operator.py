"""What every file of this room states of itself: twin, fast paths, inputs, cost and shapes.

Tests and benchmarks walk the room and take each file's `OPERATOR`; a file without one fails them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ctrbench.kernels.cost import Cost

Shape = Mapping[str, float]
"""Dims by name, e.g. batch, history, width; a fill rate is one of them."""
Inputs = Callable[[Shape, torch.dtype, torch.device], tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """One operator with all that is needed to test, time and price it."""

    title: str
    twin: Callable[..., Any]
    """The plain definition: any device and dtype, slow, right."""
    run: Callable[..., Any]
    """What models call: picks the fastest path by device and dtype."""
    inputs: Inputs
    """Arguments of one call, seeded by torch's generator; tensors that get a gradient require it."""
    cost: Callable[[Shape], Cost]
    """Forward cost of one call of a shape."""
    small: tuple[Shape, ...]
    """Shapes of the gradient check in float64 and of the comparison with the twin."""
    shapes: Mapping[str, Shape]
    """Benchmarked shapes by a label that reads well, e.g. `B4096 T50 C32`."""
    paths: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Fast paths by name, same arguments as the twin; `run` is one of them or picks among them."""
    served: bool = False
    """Serving alone calls it: it is timed without its backward pass."""
    gpu: str = ""
    """File of `kernels/gpu` with its Triton kernels."""
    no_gpu: str = ""
    """Why it has no Triton kernel of its own."""

    def __post_init__(self) -> None:
        if bool(self.gpu) == bool(self.no_gpu):
            raise ValueError(f"{self.title}: exactly one of gpu and no_gpu must be given")


def tensors(result: Any) -> list[Tensor]:
    """Floating-point tensors of a result: one tensor, or nested tuples of tensors and None."""
    if isinstance(result, Tensor):
        return [result] if result.is_floating_point() else []
    return [t for part in result for t in tensors(part)] if isinstance(result, tuple | list) else []


@cache
def _triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def on_gpu(name: str, x: Tensor) -> Callable[..., Any] | None:
    """The Triton path `name` of `kernels/gpu/<name>.py` for a CUDA tensor; None on CPU or without Triton.

    Imported when first needed: Triton takes longer to import than a small model to build, and CPU installs lack it.
    """
    if not x.is_cuda or not _triton():
        return None
    path: Callable[..., Any] = getattr(importlib.import_module(f"ctrbench.kernels.gpu.{name}"), name)
    return path

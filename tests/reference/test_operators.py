"""Every file of kernels/ that computes something has a twin, a gradient check, a price and a benchmark.

The offline compile of its Triton kernels is tests/reference/test_triton_offline.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ctrbench.kernels.operator as operator_module
from ctrbench.kernels.operator import Operator, Shape, tensors

ROOM = Path(operator_module.__file__).parent
NO_OPERATOR = {"cost", "operator"}
"""Files of the room that compute nothing."""
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}


def operators() -> dict[str, Operator]:
    names = sorted(p.stem for p in ROOM.glob("*.py") if p.stem not in NO_OPERATOR)
    return {n: importlib.import_module(f"ctrbench.kernels.{n}").OPERATOR for n in names}


def cases() -> Iterator[Any]:
    for name, op in operators().items():
        for number, shape in enumerate(op.small):
            yield pytest.param(op, shape, id=f"{name}-{number}")


def run_both_ways(op: Operator, run: Any, shape: Shape, dtype: torch.dtype) -> list[torch.Tensor]:
    """Outputs and all gradients of a call, for the same inputs and the same gradient of the outputs."""
    torch.manual_seed(0)
    args = op.inputs(shape, dtype, torch.device("cpu"))
    out = tensors(run(*args))
    torch.manual_seed(1)
    grads = [torch.randn(t.shape, dtype=t.dtype) for t in out]
    wanted = [a for a in tensors(args) if a.requires_grad]
    found = torch.autograd.grad(out, wanted, grads, allow_unused=True) if wanted else ()
    return [*out, *(torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize(("op", "shape"), cases())
def test_every_path_gives_what_the_twin_gives(op: Operator, shape: Shape, dtype: torch.dtype) -> None:
    expected = run_both_ways(op, op.twin, shape, dtype)
    for path in (op.run, *op.paths.values()):
        for mine, theirs in zip(run_both_ways(op, path, shape, dtype), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("op", "shape"), cases())
def test_gradients_are_those_of_finite_differences(op: Operator, shape: Shape) -> None:
    torch.manual_seed(2)
    args = op.inputs(shape, torch.float64, torch.device("cpu"))
    flat = [a for a in tensors(args) if a.requires_grad]
    assert flat, "no input gets a gradient"

    def call(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left = iter(given)

        def filled(part: Any) -> Any:
            if isinstance(part, torch.Tensor):
                return next(left) if part.is_floating_point() and part.requires_grad else part
            return type(part)(filled(p) for p in part) if isinstance(part, tuple | list) else part

        return tuple(tensors(op.run(*(filled(a) for a in args))))

    assert torch.autograd.gradcheck(call, flat, eps=1e-6, atol=1e-5, fast_mode=False)


@pytest.mark.parametrize("name", operators())
def test_it_is_priced_and_benchmarked(name: str) -> None:
    op = operators()[name]
    assert op.shapes, "no shape to benchmark"
    for shape in (*op.small, *op.shapes.values()):
        cost = op.cost(shape)
        assert cost.flops > 0 or cost.elementwise > 0
    assert op.no_gpu or (ROOM / "gpu" / f"{op.gpu}.py").is_file()


def test_the_room_has_no_other_files() -> None:
    assert {p.name for p in ROOM.iterdir() if p.suffix != ".py" and p.name != "__pycache__"} <= {
        "gpu",
        "cpu",
        "py.typed",
    }

"""FLOPs and bytes of a recorded call: by hand, and against what the operator counter says of the same call on meta."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ctrbench.bench.counting.ops import arguments, flops_of
from ctrbench.bench.counting.recorded import OpCall, recorded_calls
from ctrbench.bench.counting.recorded_work import work_of
from ctrbench.bench.counting.traffic import operand_bytes

_NAMES = {torch.float32: "float", torch.bfloat16: "c10::BFloat16", torch.int64: "long int", torch.bool: "bool"}


def call(name: str, dims: list[Any], types: list[str]) -> OpCall:
    return OpCall(
        name=name, dims=tuple(dims), types=tuple(types), start=0, end=1, thread=0, sequence=None, kernels=(), copies=0
    )


class _Watch(TorchDispatchMode):
    """Keeps the last operator as Kineto would record it, with the counter's FLOPs and bytes."""

    seen: tuple[OpCall, float, float]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [a if isinstance(a, Tensor) else None for a in args]
        dims = [[] if t is None else list(t.shape) for t in tensors]
        kinds = ["Scalar" if t is None else _NAMES[t.dtype] for t in tensors]
        moved = operand_bytes(func, args, kwargs or {}, out, "sgd").own
        self.seen = (call(func._schema.name, dims, kinds), flops_of(func, arguments(func, args, kwargs or {}), out),
                     moved)  # fmt: skip
        return out


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


SAME: dict[str, Callable[[], Any]] = {
    "mm": lambda: torch.mm(meta(64, 32), meta(32, 16)),
    "mm, bf16": lambda: torch.mm(meta(64, 32, dtype=torch.bfloat16), meta(32, 16, dtype=torch.bfloat16)),
    "addmm": lambda: torch.addmm(meta(16), meta(64, 32), meta(32, 16)),
    "bmm": lambda: torch.bmm(meta(4, 64, 32), meta(4, 32, 16)),
    "add": lambda: torch.ops.aten.add.Tensor(meta(64, 32), meta(64, 32)),
    "mul, broadcast": lambda: torch.ops.aten.mul.Tensor(meta(64, 32), meta(32)),
    "sigmoid": lambda: torch.sigmoid(meta(64, 32)),
    "gt": lambda: torch.ops.aten.gt.Tensor(meta(64), meta(64)),
    "mul_": lambda: meta(64, 32).mul_(meta(64, 32)),
    "fill_": lambda: meta(64, 32).fill_(0.0),
    "copy_": lambda: torch.ops.aten.copy_.default(meta(64, 32), meta(64, 32)),
    "where": lambda: torch.where(meta(64, dtype=torch.bool), meta(64), meta(64)),
    "index_select": lambda: torch.index_select(meta(100, 8), 0, meta(64, dtype=torch.int64)),
}


@pytest.mark.parametrize("name", SAME)
def test_equal_to_the_counter(name: str) -> None:
    with _Watch() as watch:
        SAME[name]()
    seen, flops, nbytes = watch.seen
    work = work_of(seen)
    assert work is not None
    assert (work.flops, work.bytes) == (flops, nbytes)


@pytest.mark.parametrize(
    ("recorded", "nbytes"),
    [
        # (64 x 32) fp32 is 8192 B
        (call("aten::sum", [[64, 32], [], [], []], ["float", "", "Scalar", ""]), 8192),  # output not recorded
        (call("aten::native_layer_norm", [[64, 32], [], [32], [32], []], ["float", "", "float", "float", "Scalar"]),
         2 * 8192 + 2 * 128),
        (call("aten::mul", [[64, 32], [], [64, 32]], ["float", "double", "float"]), 2 * 8192 + 8),  # third is `out`
        (call("aten::add", [[8], [], []], ["float", "double", "Scalar"]), 32 + 8 + 32),  # a number widens nothing
        (call("aten::scatter_add_", [[50], [], [64], [64]], ["float", "Scalar", "long", "float"]), 64 * 8 + 3 * 64 * 4),
        (call("fbgemm::asynchronous_complete_cumsum", [[100]], ["int"]), 800),
    ],
)  # fmt: skip
def test_by_hand(recorded: OpCall, nbytes: float) -> None:
    work = work_of(recorded)
    assert work is not None
    assert (work.flops, work.bytes) == (0.0, nbytes)


@pytest.mark.parametrize(
    "recorded",
    [
        call("aten::cat", [[], []], ["TensorList", "Scalar"]),  # tensors of a list are not recorded
        call("aten::mm", [], []),
        call("record_param_comms", [[8]], ["float"]),
        call("torch::autograd::CppNode<SplitLookupFunction_rowwise_adagrad_Op>", [[8, 8]], ["float"]),
        call("aten::gather", [[8], [], []], ["float", "Scalar", "Scalar"]),
    ],
)
def test_nothing_is_guessed(recorded: OpCall) -> None:
    assert work_of(recorded) is None


def test_calls_of_a_synthetic_recording(tmp_path: Path) -> None:
    """Two nested operators, a launch in the inner one, a copy, and a kernel that a graph launched."""

    def event(category: str, name: str, start: float, length: float, tid: int, **args: Any) -> dict[str, Any]:
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "pid": 1, "tid": tid,
                "args": args}  # fmt: skip

    shapes = {"Input Dims": [[2, 3], [3, 4]], "Input type": ["float", "float"]}
    file = tmp_path / "synthetic_calls.json"
    file.write_text(json.dumps({"traceEvents": [
        event("cpu_op", "aten::matmul", 0, 50, 7, **shapes),
        event("cpu_op", "aten::mm", 10, 20, 7, **shapes, **{"Sequence number": 5}),
        event("cuda_runtime", "cudaLaunchKernel", 12, 3, 7, correlation=1),
        event("cuda_runtime", "cudaMemcpyAsync", 16, 3, 7, correlation=2),
        event("cuda_runtime", "cudaGraphLaunch", 60, 3, 7, correlation=3),
        event("kernel", "gemm", 100, 4.5, 0, device=0, correlation=1),
        event("gpu_memcpy", "Memcpy HtoD", 110, 1, 0, device=0, correlation=2, bytes=8),
        event("kernel", "replayed", 120, 2, 0, device=0, correlation=3),
        event("kernel", "orphan", 130, 2, 0, device=0, correlation=9),
    ]}))  # fmt: skip
    found = recorded_calls(file)
    assert (found.name, found.kernels, found.from_graphs, found.unlinked) == ("synthetic_calls", 3, 1, 1)
    (inner,) = found.launching()
    assert (inner.name, inner.sequence, inner.kernels, inner.copies) == ("aten::mm", 5, (("gemm", 4500),), 1)
    assert inner.seconds == pytest.approx(4.5e-6)
    work = work_of(inner)
    assert work is not None
    assert (work.family, work.flops, work.bytes) == ("gemm", 2 * 2 * 3 * 4, 4 * (6 + 12 + 8))

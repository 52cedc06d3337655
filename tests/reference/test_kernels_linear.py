"""`kernels.linear`: oneDNN path and ATen twin, forward and backward, and when each is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import ctrbench.kernels.linear as module
from ctrbench.bench.counting.ops import base_name, classify, flops_of
from ctrbench.kernels.linear import MIN_MACS, MIN_WEIGHT_WIDTH, Linear, linear, linear_cost

SHAPES = [((600, 208), 200), ((4096, 48), 64), ((64, 20, 128), 160), ((512, 192), 192)]  # all at least MIN_MACS


class Seen(TorchDispatchMode):
    """Operators that ran, with their FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str, float]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
        self.calls.append((base_name(func), classify(func)[0], flops_of(func, named, out)))
        return out

    @property
    def flops(self) -> float:
        return sum(f for _, _, f in self.calls)


def inputs(shape: tuple[int, ...], out: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g, dtype=dtype, requires_grad=True) for s in (shape, (out, shape[-1]), (out,))]


@pytest.fixture(params=[True, False], ids=["avx512", "avx2"], autouse=True)
def weight_by_dnn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both CPUs, whichever this one is: oneDNN runs on either."""
    monkeypatch.setattr(module, "WEIGHT_BY_DNN", request.param)
    return bool(request.param)


@pytest.mark.parametrize("transposed", [False, True], ids=["own", "transposed"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(("shape", "out"), SHAPES, ids=str)
def test_fast_path_equals_its_twin(shape: tuple[int, ...], out: int, bias: bool, transposed: bool) -> None:
    x, w, b = inputs(shape, out)
    given = [x, w.detach().t().contiguous().requires_grad_() if transposed else w, *([b] if bias else [])]

    def run(impl: str) -> tuple[Tensor, ...]:
        weight = given[1].t() if transposed else given[1]
        y = linear(x, weight, b if bias else None, impl)  # type: ignore[arg-type]
        up = torch.linspace(0, 1, y.numel()).view_as(y)
        return (y.detach(), *torch.autograd.grad(y, given, up))

    with Seen() as seen:
        fast = run("fast")
    assert "ctrbench::linear" in {n for n, _, _ in seen.calls}
    for got, want in zip(fast, run("plain"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize(("shape", "out"), SHAPES, ids=str)
def test_counted_flops_are_those_of_the_twin(shape: tuple[int, ...], out: int, weight_by_dnn: bool) -> None:
    x, w, b = inputs(shape, out)
    seen = {}
    for impl in ("fast", "plain"):
        with FlopCounterMode(display=False) as stock, Seen() as mode:
            linear(x, w, b, impl).sum().backward()  # type: ignore[arg-type]
        assert stock.get_total_flops() == mode.flops
        seen[impl] = mode
        assert "U" not in {c for _, c, _ in mode.calls}
    rows = x.numel() // x.shape[-1]
    assert seen["fast"].flops == seen["plain"].flops == 3 * rows * linear_cost(shape[-1], out).flops
    wide = weight_by_dnn and min(out, shape[-1]) >= MIN_WEIGHT_WIDTH
    assert ("ctrbench::linear_grad_weight" in {n for n, _, _ in seen["fast"].calls}) is wide


def test_gradients_not_asked_for_are_not_computed(weight_by_dnn: bool) -> None:
    x, w, b = inputs((600, 208), 200)
    with Seen() as seen:
        linear(x.detach(), w, b).sum().backward()
    names = {n for n, _, _ in seen.calls}
    assert ("ctrbench::linear_grad_weight" in names) is weight_by_dnn
    assert "ctrbench::linear_grad_input" not in names
    with Seen() as seen:
        linear(x, w.detach(), None).sum().backward()
    assert "ctrbench::linear_grad_weight" not in {n for n, _, _ in seen.calls}


@pytest.mark.parametrize(
    ("shape", "out", "dtype", "device"),
    [
        ((64, 64), 64, torch.float32, "cpu"),  # too little work
        ((MIN_MACS // 64, 64), 1, torch.float32, "cpu"),  # too narrow
        ((600, 208), 200, torch.float64, "cpu"),
        ((600, 208), 200, torch.float32, "meta"),
    ],
    ids=["small", "narrow", "float64", "meta"],
)
def test_everything_else_stays_in_aten(shape: tuple[int, ...], out: int, dtype: torch.dtype, device: str) -> None:
    x, w, b = (t.detach().to(device) for t in inputs(shape, out, dtype))
    with Seen() as seen:
        linear(x, w, b)
    assert not any(n.startswith("ctrbench::") for n, _, _ in seen.calls)


def test_autocast_stays_in_aten() -> None:
    x, w, b = inputs((600, 208), 200)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, w, b).dtype == torch.bfloat16


def test_module_has_the_parameters_of_torch_and_its_result() -> None:
    ours, theirs = Linear(208, 200), nn.Linear(208, 200)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(600, 208)
    torch.testing.assert_close(ours(x), theirs(x))

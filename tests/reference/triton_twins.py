"""Every public function of kernels/gpu against its plain twin: in Triton's interpreter, or on a CUDA device.

    TRITON_INTERPRET=1 python -m tests.reference.triton_twins [FILE ...]   # prints JSON: case -> what differs
    python -m tests.reference.triton_twins --device bfloat16 [FILE ...]    # prints JSON: case -> largest distance

Run by test_triton_interpreter.py and test_triton_gpu.py in processes of their own: TRITON_INTERPRET must be set before
Triton is imported. The interpreter takes float32 alone: its products of bfloat16 are wrong in Triton 3.7.1. On a device
the twin computes in float64 on the same rounded inputs, and the shapes that are benchmarked are compared too.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ctrbench.kernels.operator import tensors

Call = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call: the arguments with a gradient are the floating-point ones that require it."""

    file: str
    label: str
    twin: Call
    args: tuple[Any, ...]
    run: Call | None = None
    """What is compared with the twin; the file's public function if None."""
    tolerance: float = 2e-4
    kernels: set[str] = field(default_factory=set)
    """Kernels that it must launch; empty where the fallback is what is checked."""


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).requires_grad_()


def leaves(args: Any) -> list[Tensor]:
    return [t for t in tensors(args) if t.requires_grad]


def called(run: Call, args: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """(outputs, gradients) of one call, for the same gradient of the outputs every time."""
    out = tensors(run(*args))
    differentiable = [t for t in out if t.requires_grad]
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(t.shape, generator=generator) for t in differentiable]
    found = torch.autograd.grad(differentiable, leaves(args), grads, allow_unused=True)
    return out, [torch.zeros_like(a) if g is None else g for a, g in zip(leaves(args), found, strict=True)]


def difference(case: Case, run: Call) -> str:
    """Empty if forward and backward agree with the twin, else what does not."""
    (mine, my_grads), (theirs, their_grads) = called(run, case.args), called(case.twin, case.args)
    pairs = [("output", *p) for p in zip(mine, theirs, strict=True)]
    pairs += [("gradient", *p) for p in zip(my_grads, their_grads, strict=True)]
    wrong = []
    for number, (what, got, wanted) in enumerate(pairs):
        if got.shape != wanted.shape:
            wrong.append(f"{what} {number}: {tuple(got.shape)}, not {tuple(wanted.shape)}")
        elif got.numel() and not torch.allclose(got, wanted, rtol=case.tolerance, atol=case.tolerance):
            wrong.append(f"{what} {number}: {(got - wanted).abs().max().item():.2e} away")
    return "; ".join(wrong)


def cases(name: str) -> Iterator[Case]:
    """Cases of a file: the operator's own small shapes through its dispatch, and odd ones around the size of a tile."""
    file = importlib.import_module(f"ctrbench.kernels.{name}")
    file.on_gpu = lambda asked, _: getattr(importlib.import_module(f"ctrbench.kernels.gpu.{asked}"), asked)
    operator = file.OPERATOR
    for number, shape in enumerate(operator.small):
        args = operator.inputs(shape, torch.float32, torch.device("cpu"))
        yield Case(file=name, label=f"small {number}", twin=operator.twin, args=args, run=operator.run)
    yield from globals()[f"{name}_cases"]()


def cross_cases() -> Iterator[Case]:
    from ctrbench.kernels.cross import cross_plain as twin

    for batch, width in ((3, 5), (70, 67)):
        args = (normal(batch, width), normal(batch, width), normal(width, width, scale=width**-0.5), normal(width))
        yield Case(file="cross", label=f"{batch}x{width}", twin=twin, args=args, kernels={"_forward", "_backward"})


def fm_cases() -> Iterator[Case]:
    from ctrbench.kernels.fm import fm_pairs as twin

    for batch, fields, width in ((1, 2, 1), (5, 7, 10), (40, 3, 33)):
        args = (normal(batch, fields, width),)
        yield Case(
            file="fm", label=f"{batch}x{fields}x{width}", twin=twin, args=args, kernels={"_forward", "_backward"}
        )


def bce_cases() -> Iterator[Case]:
    from torch.nn.functional import binary_cross_entropy_with_logits as twin

    for batch in (1, 1500):
        args = (normal(batch, scale=8.0), (torch.rand(batch) < 0.3).float())
        yield Case(file="bce", label=f"{batch}", twin=twin, args=args, kernels={"_forward"})


def dice_cases() -> Iterator[Case]:
    from ctrbench.kernels.dice import dice_plain

    def twin(*args: Any) -> tuple[Tensor, ...]:
        out, mean, var = dice_plain(*args)
        return out, mean.detach(), var.detach()

    for batch, history, width in ((2, 3, 5), (3, 40, 70)):
        args = (normal(batch, history, width), torch.rand(batch, history) < 0.7, normal(width))
        launched = {"_moments", "_apply", "_sums", "_backward"}
        yield Case(file="dice", label=f"{batch}x{history}x{width}", twin=twin, args=args, kernels=launched)


def field_linear_cases() -> Iterator[Case]:
    from ctrbench.kernels.field_linear import field_linear_plain as twin

    for fields, batch, width, out in ((3, 5, 4, 7), (2, 70, 33, 66)):
        args = (normal(fields, batch, width), normal(fields, width, out, scale=width**-0.5))
        yield Case(
            file="field_linear", label=f"{fields}x{batch}x{width}x{out}", twin=twin, args=args, kernels={"_product"}
        )


def mixed_linear_cases() -> Iterator[Case]:
    from ctrbench.kernels.mixed_linear import mixed_linear_plain as twin

    for batch, tokens, own, width, out in ((2, 3, 2, 5, 4), (35, 2, 3, 33, 70)):
        args = (normal(batch, tokens, width), normal(batch, own, width), normal(width, out), normal(own, width, out))
        label = f"{batch}x{tokens}+{own}x{width}x{out}"
        yield Case(file="mixed_linear", label=label, twin=twin, args=args, kernels={"_forward"}, tolerance=1e-3)
    args = (normal(2, 3, 5), None, normal(5, 4), None)
    yield Case(file="mixed_linear", label="one side", twin=twin, args=args)


def rms_norm_cases() -> Iterator[Case]:
    from ctrbench.kernels.rms_norm import rms_norm_plain as twin

    for shape, add in (((3, 5), True), ((2, 3, 130), True), ((300, 33), False)):
        args = (normal(*shape), normal(*shape) if add else None, normal(shape[-1]), 1e-6)
        yield Case(file="rms_norm", label=f"{shape}", twin=twin, args=args, kernels={"_forward", "_backward"})


def pair_attention_cases() -> Iterator[Case]:
    from ctrbench.kernels.pair_attention import pair_attention_plain as twin

    for batch, heads, fields, width, pair in (
        (2, 2, 3, 5, (3, 3)), (1, 1, 1, 1, (1, 1)), (130, 1, 20, 18, (1, 20, 20)),
    ):  # fmt: skip
        args = (*(normal(batch, heads, fields, width) for _ in range(3)), normal(*pair))
        launched = {"_forward", "_backward_queries", "_backward_keys"}
        yield Case(
            file="pair_attention", label=f"{batch}x{heads}x{fields}x{width}", twin=twin, args=args, kernels=launched
        )


def jagged_attention_cases() -> Iterator[Case]:
    from ctrbench.kernels.jagged_attention import jagged_attention_plain as twin

    for queries, keys, heads, width in (
        ([0, 1, 3, 2], [0, 1, 3, 5], 2, 3), ([1], [1], 1, 1), ([35, 0, 4], [35, 7, 40], 1, 18), ([3], [70], 2, 4),
    ):  # fmt: skip
        q, k, v = (normal(sum(n), heads, width) for n in (queries, keys, keys))
        offsets = (torch.tensor([0, *n]).cumsum(0) for n in (queries, keys))
        yield Case(
            file="jagged_attention", label=f"{queries} of {keys}", twin=twin, args=(q, k, v, *offsets, max(keys)),
            kernels={"_forward", "_backward_queries", "_backward_keys"},
        )  # fmt: skip


def din_attention_cases() -> Iterator[Case]:
    from ctrbench.kernels.din_attention import din_padded as twin

    for lengths, width, outs, dice, softmax, given in (
        ([40, 0, 1], 18, (33,), False, True, False), ([3, 4], 4, (65, 6), True, False, False),
        ([2, 0, 34], 5, (7, 3), True, True, True),
    ):  # fmt: skip
        sizes = [4 * width, *outs, 1]
        weights = tuple(normal(o, i, scale=i**-0.5) for i, o in pairwise(sizes))
        alphas = tuple(normal(o) if dice else None for o in outs)
        stats = tuple((torch.randn(o), torch.rand(o) + 0.1) if given else None for o in outs)
        q, h, offsets = normal(len(lengths), width), normal(sum(lengths), width), torch.tensor([0, *lengths]).cumsum(0)
        args = (q, h, offsets, weights, tuple(normal(o) for o in sizes[1:]), alphas, stats, softmax)
        launched = {"_first", "_first_backward", "_row_sums", "_pool", "_pool_backward"}
        yield Case(
            file="din_attention",
            label=f"{lengths}x{width} {outs}",
            twin=twin,
            args=args,
            kernels=launched,
            tolerance=1e-3,
        )


def pointwise_attention_cases() -> Iterator[Case]:
    from ctrbench.kernels.pointwise_attention import pointwise_attention_plain as twin

    for batch, heads, queries, keys, qk, v, biased in ((2, 2, 3, 4, 5, 3, True), (1, 1, 18, 35, 2, 17, False)):
        args = (
            normal(batch, heads, queries, qk), normal(batch, heads, keys, qk), normal(batch, heads, keys, v),
            torch.rand(batch, queries, keys) < 0.7, normal(batch, queries, keys) if biased else None, 0.5, 7.0,
        )  # fmt: skip
        launched = {"_forward", "_backward_queries", "_backward_keys"} | ({"_backward_bias"} if biased else set())
        label = f"{batch}x{heads}x{queries}x{keys}x{qk}x{v}"
        yield Case(file="pointwise_attention", label=label, twin=twin, args=args, kernels=launched)


def watched(module: Any, launched: set[str]) -> None:
    """Notes the names of a file's kernels when they are launched."""
    for kernel in {k.fn for k in module.KERNELS}:
        name = kernel.fn.__name__
        launcher = type(kernel).__getitem__

        class Watching:
            def __getitem__(self, grid: Any, kernel: Any = kernel, name: str = name, at: Any = launcher) -> Any:
                launched.add(name)
                return at(kernel, grid)

        setattr(module, name, Watching())


SLACK = 4.0
"""Times the plain twin's own rounding that a kernel may be off, whatever the tolerance says."""


def moved(given: Any, dtype: torch.dtype) -> Any:
    """The arguments on the device, numbers with a fraction in that type; what takes a gradient still does."""
    if isinstance(given, Tensor):
        there = given.detach().to("cuda", dtype if given.is_floating_point() else None)
        return there.requires_grad_(given.requires_grad)
    return type(given)(moved(g, dtype) for g in given) if isinstance(given, tuple | list) else given


def called_there(run: Call, args: tuple[Any, ...]) -> list[Tensor]:
    """Outputs and gradients of one call on the device, in float64, for the same gradient of the outputs."""
    out = tensors(run(*args))
    differentiable = [t for t in out if t.requires_grad]
    generator = torch.Generator("cuda").manual_seed(1)
    grads = [torch.randn(t.shape, generator=generator, device="cuda").bfloat16().to(t.dtype) for t in differentiable]
    found = torch.autograd.grad(differentiable, leaves(args), grads, allow_unused=True)
    gradients = [torch.zeros_like(a) if g is None else g for a, g in zip(leaves(args), found, strict=True)]
    return [t.detach().double() for t in (*out, *gradients)]


def distance(case: Case, run: Call, dtype: torch.dtype) -> dict[str, float]:
    """How far outputs and gradients are from the twin's in float64, by norms of each tensor, the worst of them.

    Returns:
        `twin`: |got - wanted| / |wanted|, a tenth a value at least; 0 where the plain twin in this type is as far off
        (`SLACK`): gradients that cancel have no size of their own. `again`: the same call once more, against the first.
    """
    args = moved(case.args, dtype)
    got, again, plain = (called_there(r, args) for r in (run, run, case.twin))
    wanted = called_there(case.twin, moved(args, torch.float64))
    if any(a.shape != b.shape for a, b in zip(got, wanted, strict=True)):
        return {"twin": float("inf"), "again": 0.0}
    worst = {"twin": 0.0, "again": 0.0}
    for mine, second, theirs, right in zip(got, again, plain, wanted, strict=True):
        size = max(float(right.norm()), 0.1 * right.numel() ** 0.5)
        off, allowed = float((mine - right).norm()), SLACK * float((theirs - right).norm())
        far = 0.0 if off <= allowed else off / size
        worst["twin"] = max(worst["twin"], far if far == far else float("inf"))
        worst["again"] = max(worst["again"], float((second - mine).norm()) / size)
    return worst


def benchmarked(name: str) -> Iterator[Case]:
    """The shapes that suites time."""
    operator = importlib.import_module(f"ctrbench.kernels.{name}").OPERATOR
    for label, shape in operator.shapes.items():
        args = operator.inputs(shape, torch.float32, torch.device("cpu"))
        yield Case(file=name, label=label, twin=operator.twin, args=args, run=operator.run)


def on_device(names: list[str], dtype: torch.dtype) -> dict[str, Any]:
    """Case -> how far it is from its twin, and from itself called again, and which of its kernels did not run."""
    from ctrbench.kernels.gpu.offline import files

    torch.set_float32_matmul_precision("highest")
    found: dict[str, Any] = {}
    for name in names or files():
        module = importlib.import_module(f"ctrbench.kernels.gpu.{name}")
        launched: set[str] = set()
        watched(module, launched)
        torch.manual_seed(0)
        for case in (*cases(name), *benchmarked(name)):
            launched.clear()
            try:
                of = distance(case, case.run or getattr(module, name), dtype)
                found[f"{name} {case.label}"] = {**of, "idle": sorted(case.kernels - launched), "error": ""}
            except Exception as error:  # a kernel that fails is a finding; the others are still wanted
                found[f"{name} {case.label}"] = {"error": f"{type(error).__name__}: {error}"[:500]}
    import ctrbench.kernels.fm as fm_module

    *_, planted = fm_cases()
    found["planted"] = distance(planted, lambda x: 1.05 * fm_module.fm_sum(x), dtype)
    return found


def main(names: list[str]) -> None:
    """Prints what differs; a planted mistake must differ, or nothing here can."""
    if names[:1] == ["--device"]:
        print(json.dumps(on_device(names[2:], getattr(torch, names[1])), indent=1))
        return
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("set TRITON_INTERPRET=1: without it kernels need a GPU")
    from ctrbench.kernels.gpu.offline import files

    found: dict[str, str] = {}
    for name in names or files():
        module = importlib.import_module(f"ctrbench.kernels.gpu.{name}")
        launched: set[str] = set()
        watched(module, launched)
        torch.manual_seed(0)
        for case in cases(name):
            launched.clear()
            wrong = difference(case, case.run or getattr(module, name))
            idle = case.kernels - launched
            found[f"{name} {case.label}"] = "; ".join(filter(None, [wrong, f"not launched: {idle}" if idle else ""]))
    import ctrbench.kernels.fm as fm_module

    *_, planted = fm_cases()
    found["planted"] = difference(planted, lambda x: 1.01 * fm_module.fm_sum(x))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])

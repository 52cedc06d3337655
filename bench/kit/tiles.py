"""Tile sizes of Triton kernels on the CUDA device that is here: what the fixed choices of `kernels/gpu` come from.

    python -m ctrbench.bench.kit.tiles warm field_linear 0     one choice compiled, to fill Triton's cache side by side
    python -m ctrbench.bench.kit.tiles time [OPERATOR ...]     every choice by replays of a CUDA graph, microseconds

Each choice compiles its kernels anew, about a second each: `warm` them in as many processes as there are cores first.
Float32 products are TF32.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch

from ctrbench.bench.kit.operators import captured
from ctrbench.bench.operator_calls import PASSES, arguments, call_of, operators
from ctrbench.kernels.gpu.kernel import Tiles, padded

DTYPES = {"tf32": torch.float32, "bf16": torch.bfloat16}
PRODUCTS = (
    (64, 64, 16, 8, 2), (64, 64, 32, 4, 3), (128, 64, 32, 4, 3), (128, 128, 32, 8, 3), (64, 128, 32, 4, 3),
    (128, 64, 64, 4, 3), (128, 128, 64, 8, 3), (128, 128, 32, 4, 3), (128, 64, 32, 8, 3),
)  # fmt: skip
"""BLOCK_M, BLOCK_N, BLOCK_K, num_warps, num_stages."""
PAIRS = ((16, 1), (16, 2), (16, 4), (32, 1), (32, 2), (64, 1), (64, 2), (64, 4))
"""BLOCK_I, num_warps."""
CHOICES: dict[str, tuple[tuple[int, ...], ...]] = {
    "pair_attention": PAIRS, "field_linear": PRODUCTS, "mixed_linear": PRODUCTS, "cross": PRODUCTS,
}  # fmt: skip
REPLAYS, TIMES = 30, 7


def choose(name: str, choice: tuple[int, ...]) -> None:
    """Gives a file's kernels a choice in place of their own."""
    module: Any = importlib.import_module(f"ctrbench.kernels.gpu.{name}")
    if name == "pair_attention":
        block, warps = choice

        def tiles(dtype: str, fields: int, width: int) -> Tiles:
            return {"D": width, "BLOCK_D": padded(width), "BLOCK_F": padded(fields), "BLOCK_I": block,
                    "num_warps": warps, "num_stages": 1}  # fmt: skip

        module._tiles = tiles
        return
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages")
    of = "_forward_tiles" if name == "cross" else "product_tiles"
    setattr(module, of, lambda dtype: dict(zip(names, choice, strict=True)))


def calls(name: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every benchmarked shape, type and pass of an operator, by a label."""
    op = operators()[name]
    for dtype, kind in DTYPES.items():
        for label, shape in op.shapes.items():
            args = arguments(op, shape, "cuda", kind)
            for passes in PASSES:
                yield f"{name} {dtype} {label} {passes}", call_of(op.run, args, passes)


def microseconds(call: Callable[[], object]) -> float:
    """Median of a call's replays."""
    replay, took = captured(call), []
    for _ in range(TIMES):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(REPLAYS):
            replay()
        end.record()
        torch.cuda.synchronize()
        took.append(begin.elapsed_time(end) / REPLAYS * 1e3)
    return median(took)


def main(argv: list[str]) -> int:
    """0 done, 2 no CUDA device or no such operator."""
    names = argv[1:2] if argv[:1] == ["warm"] else argv[1:] or list(CHOICES)
    if not torch.cuda.is_available() or argv[:1] not in (["warm"], ["time"]) or set(names) - set(CHOICES):
        print(f"error: needs a CUDA device, `warm` or `time`, and operators of {', '.join(CHOICES)}", file=sys.stderr)
        return 2
    torch.set_float32_matmul_precision("high")
    if argv[0] == "warm":
        choose(names[0], CHOICES[names[0]][int(argv[2])])
        for _, call in calls(names[0]):
            call()
        torch.cuda.synchronize()
        return 0
    for name in names:
        found: dict[str, list[tuple[float, tuple[int, ...]]]] = {}
        for choice in CHOICES[name]:
            choose(name, choice)
            for label, call in calls(name):
                try:
                    found.setdefault(label, []).append((microseconds(call), choice))
                except (RuntimeError, torch.OutOfMemoryError) as error:  # a choice that the device cannot hold
                    print(f"{label} {choice}: {str(error).splitlines()[0]}", flush=True)
        for label, each in found.items():
            print(label, "; ".join(f"{us:.1f} {choice}" for us, choice in sorted(each)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

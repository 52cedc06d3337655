"""What a file of kernels/gpu says of its kernels, and the tile of a matrix product that several of them share.

Products accumulate in float32. Float32 inputs are multiplied as float32 (`ieee`) unless torch was told otherwise with
`torch.set_float32_matmul_precision`; halves run on tensor cores.

Dims: M rows, K inner width, N columns
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

Tiles = dict[str, Any]
"""Block sizes, `num_warps` and `num_stages`: what a launch passes and what the offline compile compiles."""
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One kernel as it is launched, for compilation without a device."""

    fn: Any
    """The jit function."""
    args: str
    """Types of its arguments that are not constexpr, in order: `T` is the element type, `*` a pointer, `I32` an integer
    that is a multiple of 16 at the models' sizes, which Triton's launcher finds out and compiles in."""
    tiles: Mapping[str, Mapping[str, Any]]
    """Constexprs, num_warps and num_stages by element type (`fp32`, `bf16`, of some `tf32`)."""
    dot: bool = False
    """Multiplies matrices: of halves with tensor-core instructions."""
    variant: str = ""
    """Tells two entries of one function apart."""
    ones: tuple[str, ...] = field(default=())
    """Strides that are 1 at every launch; Triton's launcher compiles them in."""


def by_type(tiles: Any, *args: Any, **fixed: Any) -> dict[str, Tiles]:
    """`tiles(element type, *args)` for the types that are compiled offline."""
    return {name: {**tiles(name, *args), **fixed} for name in ("fp32", "bf16")}


def element_type(x: Tensor) -> str:
    """What its products are made of: a name of `TYPES`, or `tf32` for float32 where torch allows it."""
    return "tf32" if x.dtype == torch.float32 and precision() == "tf32" else TYPES[x.dtype]


def precision() -> str:
    """How float32 products are made: `ieee` unless torch allows TF32."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def by_product(tiles: Any) -> dict[str, Tiles]:
    """`tiles(element type)` of a product for the types that are compiled offline: TF32 has its own."""
    return {**by_type(tiles, PRECISION="ieee"), "tf32": {**tiles("tf32"), "PRECISION": "tf32"}}


def takes(*tensors: Tensor | None) -> bool:
    """Whether kernels can take them: one element type that they know, and something to do."""
    given = [t for t in tensors if t is not None]
    return given[0].dtype in TYPES and all(t.dtype == given[0].dtype and t.numel() > 0 for t in given)


def cast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast its type, as torch's own products do; else as they are."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(t.to(torch.get_autocast_dtype(device)) for t in tensors)


def padded(width: int) -> int:
    """The power of two that holds a width, at least 16: less cannot be multiplied."""
    return max(16, triton.next_power_of_2(width))


def rows_per_program(width: int, most: int = 64, values: int = 4096) -> int:
    """Rows of padded `width` whose values a program of four warps keeps in registers."""
    return max(1, min(most, values // width))


def product_tiles(dtype: str) -> Tiles:
    """Tiles of `product`: a small fixed choice, nothing is tuned at the first call.

    That of `tf32` was the best of eight in most products of this room on an H100 (docs/performance/triton.md).
    """
    if dtype == "tf32":
        return {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}
    if dtype == "fp32":
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}


@triton.jit
def tile(x, first, last, stride, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows first .. first + BLOCK, [BLOCK, d], of which one is `stride` from the next; from `last` on they are zero."""
    rows, width = first + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < last) & (width[None, :] < D)
    return tl.load(x + rows[:, None].to(tl.int64) * stride + width[None, :], mask=inside, other=0.0)


@triton.jit
def put(x, value, first, last, stride, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Stores what `tile` would load."""
    rows, width = first + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < last) & (width[None, :] < D)
    tl.store(x + rows[:, None].to(tl.int64) * stride + width[None, :], value, mask=inside)


@triton.jit
def product(
    a, b, row, col, M, N, K, a_m, a_k, b_k, b_n,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """float32 tile of A B at (row, col); A is [M, K] and B is [K, N], both by strides. Beyond the edges it is zero."""
    rows = row + tl.arange(0, BLOCK_M)
    cols = col + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    a_at = a + rows[:, None].to(tl.int64) * a_m + inner[None, :] * a_k
    b_at = b + inner[:, None] * b_k + cols[None, :] * b_n
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        left = K - k
        a_tile = tl.load(a_at, mask=(rows[:, None] < M) & (inner[None, :] < left), other=0.0)
        b_tile = tl.load(b_at, mask=(inner[:, None] < left) & (cols[None, :] < N), other=0.0)
        acc = tl.dot(a_tile, b_tile, acc, input_precision=PRECISION)
        a_at += BLOCK_K * a_k
        b_at += BLOCK_K * b_k
    return acc

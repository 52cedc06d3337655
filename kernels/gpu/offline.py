"""Compiles the room's kernels for GPUs that are not there, and reads what the assembler says of each.

    python -m ctrbench.kernels.gpu.offline [FILE ...]            # the table of docs/performance/triton.md

Registers, shared memory and spills are facts about the compiled code. Nothing here is a time.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ctrbench.kernels.gpu.kernel import Kernel

ARCHITECTURES = (80, 90)
"""Compute capabilities: A100 and H100."""
NO_KERNELS = {"kernel", "offline"}
"""Files of the room that hold no operator."""
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
TENSOR_CORES = re.compile(r"\b(wgmma\.mma_async|mma\.sync)\S*?\.(f16|bf16|tf32)\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """What one compiled kernel uses."""

    registers: int
    """32-bit registers a thread."""
    shared: int
    """Bytes of shared memory a block."""
    spilled: int
    """Bytes of registers stored to memory and loaded from it, and of stack."""
    tensor_cores: str
    """`wgmma` or `mma.sync` with the type that it multiplies; empty without."""


def files() -> list[str]:
    """Files with kernels."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in NO_KERNELS)


def kernels(name: str) -> tuple[Kernel, ...]:
    """Kernels of a file."""
    found: tuple[Kernel, ...] = importlib.import_module(f"ctrbench.kernels.gpu.{name}").KERNELS
    return found


def label(kernel: Kernel) -> str:
    """Name of a kernel in tables and test ids."""
    return kernel.fn.__name__.strip("_") + (f" {kernel.variant}" if kernel.variant else "")


def source(kernel: Kernel, dtype: str) -> tuple[ASTSource, dict[str, int]]:
    """The kernel with the types of an element type filled in, and the options of its launch."""
    fixed = dict(kernel.tiles[dtype])
    options = {name: fixed.pop(name) for name in ("num_warps", "num_stages")}
    fixed.update(dict.fromkeys(kernel.ones, 1))
    open_names = [name for name in kernel.fn.arg_names if name not in fixed]
    types = [re.sub(r"\bT$", "fp32" if dtype == "tf32" else dtype, kind).lower() for kind in kernel.args.split()]
    if len(types) != len(open_names):
        raise ValueError(f"{label(kernel)}: {len(types)} types for the arguments {', '.join(open_names)}")
    given = dict(zip(open_names, types, strict=True))
    signature = {name: given.get(name, "constexpr") for name in kernel.fn.arg_names}
    # torch's allocations start at multiples of 16 bytes; the launcher tells the compiler so, as it does of integers
    even = {name for name, kind in zip(open_names, kernel.args.split(), strict=True) if kind[0] in "*I"}
    attrs = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(kernel.fn.arg_names) if name in even}
    return ASTSource(fn=kernel.fn, signature=signature, constexprs=fixed, attrs=attrs), options


def compiled(kernel: Kernel, dtype: str, architecture: int) -> Compiled:
    """Compiles for a GPU that need not be there. Reads the assembler's own report, so it never takes from a cache."""
    what, options = source(kernel, dtype)
    log = io.StringIO()
    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope(), contextlib.redirect_stdout(log):
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True
        found = triton.compile(what, target=GPUTarget("cuda", architecture, 32), options=options)
    spills, registers = SPILLS.search(log.getvalue()), REGISTERS.search(log.getvalue())
    if spills is None or registers is None:
        raise RuntimeError(f"{label(kernel)}: no resource usage in what ptxas said:\n{log.getvalue()}")
    cores = TENSOR_CORES.search(found.asm["ptx"])
    return Compiled(
        registers=int(registers[1]),
        shared=int(found.metadata.shared),
        spilled=sum(int(n) for n in spills.groups()),
        tensor_cores=f"{cores[1].split('.mma_async')[0]} {cores[2]}" if cores else "",
    )


def table(names: list[str]) -> Iterator[str]:
    """Markdown rows: every kernel of the files, element type and architecture."""
    yield "| file | kernel | type | arch | warps | registers | shared KiB | spilled bytes | tensor cores |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name in names:
        for kernel in kernels(name):
            for dtype in kernel.tiles:
                for arch in ARCHITECTURES:
                    c = compiled(kernel, dtype, arch)
                    yield (
                        f"| {name} | {label(kernel)} | {dtype} | sm_{arch} | {kernel.tiles[dtype]['num_warps']} "
                        f"| {c.registers} | {c.shared / 1024:.1f} | {c.spilled} | {c.tensor_cores or '-'} |"
                    )


def main(names: list[str]) -> None:
    """Prints the table, of all files if none is named."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        for row in table(names or files()):
            print(row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Every Triton kernel compiled for A100 and H100 without either: nothing spilled, tensor cores where halves multiply.

Bfloat16 runs by default; float32 is `slow`: as `ieee`, which never meets a tensor core, and as TF32.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from dataclasses import replace
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip(
        "TRITON IS NOT INSTALLED: no kernel of kernels/gpu was compiled. pip install triton==3.7.1 (Linux)",
        allow_module_level=True,
    )

from ctrbench.kernels.gpu.offline import ARCHITECTURES, compiled, files, kernels, label

pytestmark = pytest.mark.usefixtures("own_cache")
HALVES, SINGLES, TF32 = "bf16", "fp32", "tf32"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def check(name: str, dtype: str, architecture: int) -> None:
    for kernel in (k for k in kernels(name) if dtype in k.tiles):
        found = compiled(kernel, dtype, architecture)
        where = f"{name} {label(kernel)} {dtype} sm_{architecture}"
        assert found.spilled == 0, f"{where}: {found.spilled} bytes spilled with {found.registers} registers a thread"
        assert bool(found.tensor_cores) == (kernel.dot and dtype != SINGLES), f"{where}: {found.tensor_cores!r}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", files())
def test_halves_spill_nothing_and_use_tensor_cores(name: str, architecture: int) -> None:
    check(name, HALVES, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", files())
def test_float32_spills_nothing(name: str, architecture: int) -> None:
    check(name, SINGLES, architecture)
    check(name, TF32, architecture)


def test_a_kernel_that_spills_is_seen() -> None:
    kernel = next(k for k in kernels("rms_norm") if k.fn.__name__ == "_backward")
    greedy = replace(kernel, tiles={HALVES: {**kernel.tiles[HALVES], "BLOCK_D": 1024, "BLOCK_N": 16, "num_warps": 1}})
    assert compiled(greedy, HALVES, 80).spilled > 0


def test_every_operator_that_names_a_file_has_its_kernels_and_no_file_is_left_over() -> None:
    from tests.reference.test_operators import operators

    named = sorted(op.gpu for op in operators().values() if op.gpu)
    assert named == files()
    for name in named:
        assert kernels(name), f"{name} lists no kernel"
        public, fast = (
            getattr(importlib.import_module(f"ctrbench.{at}.{name}"), name) for at in ("kernels", "kernels.gpu")
        )
        given = inspect.signature(fast).parameters
        wanted = [p for p in inspect.signature(public).parameters if p != "impl"]
        assert list(given) == wanted, f"kernels.{name} calls it with {wanted}"


@pytest.mark.parametrize("name", files())
def test_every_kernel_of_a_file_is_listed(name: str) -> None:
    module = importlib.import_module(f"ctrbench.kernels.gpu.{name}")
    launched = {line.split("[")[0].strip() for line in inspect.getsource(module).splitlines() if is_launch(line)}
    assert launched == {k.fn.__name__ for k in module.KERNELS}


def is_launch(line: str) -> bool:
    """`_kernel[grid](...)`."""
    before, bracket, after = line.strip().partition("[")
    return bool(bracket) and before.startswith("_") and before.isidentifier() and "](" in after

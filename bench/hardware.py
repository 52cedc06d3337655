"""The catalogue of accelerators and CPU hosts, and what this machine is.

An unknown device, or a dtype without a dense peak, gives a reason and never another device's figure.
"""

from __future__ import annotations

import os
import platform
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from ctrbench.bench.proc import allocator

_HERE = Path(__file__).resolve().parent
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class HardwareUnknown(LookupError):
    """A figure that the catalogue does not have; `reason` is a code of measures.md section 1."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One accelerator of `hardware.toml`."""

    name: str
    device_names: tuple[str, ...]
    """Names that its driver reports."""
    peak_tflops: Mapping[str, float]
    """dtype -> dense TFLOP/s (no 2:4 sparsity)."""
    bandwidth_gbs: float
    """DRAM, 1e9 bytes a second."""
    l2_mb: float
    """Last-level cache, 1e6 bytes."""
    memory_gb: float
    l2_gbs: float | None = None
    """Reads of the L2 cache, 1e9 bytes a second."""
    watts: float | None = None
    usd_per_hour: tuple[float, float] | None = None
    """Lowest and highest price seen."""
    price_source: str = ""
    cc: str | None = None
    """CUDA compute capability."""
    sms: int | None = None
    """Streaming multiprocessors or compute units."""
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> keys of `source_texts()`."""
    verified: tuple[str, ...] = ()
    """Columns found in a recording or in two sources that agree; all others are unchecked datasheet values."""
    contradicted: Mapping[str, str] = field(default_factory=dict)
    """Column -> the other figure and who gives it."""
    note: str = ""

    def figures(self) -> dict[str, float | int | str]:
        """Every figure by column: dtypes of `peak_tflops`, then the others that are known."""
        names = ("bandwidth_gbs", "l2_mb", "l2_gbs", "memory_gb", "watts", "sms", "cc")
        others = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {**self.peak_tflops, **others}

    def mark(self, column: str) -> str:
        """`?` contradicted, `` verified, `*` not checked again; a recording outweighs a contradiction."""
        return "" if column in self.verified else "?" if column in self.contradicted else "*"

    def ridge(self, dtype: str) -> float:
        """FLOP per DRAM byte at which the dense peak and the bandwidth meet."""
        return peak(self, dtype) / (self.bandwidth_gbs * 1e9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cpu:
    """One CPU socket of `hardware.toml`; compute peaks are measured, never catalogued."""

    name: str
    model_names: tuple[str, ...]
    """As /proc/cpuinfo gives them."""
    cores: int
    bandwidth_gbs: float
    llc_mb: float
    """Last-level cache, 2^20 bytes."""
    watts: float
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    verified: tuple[str, ...] = ()
    note: str = ""


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads((_HERE / "hardware.toml").read_text(encoding="utf-8"))


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    out = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    out["sources"] = {column: tuple(keys) for column, keys in row.get("sources", {}).items()}
    return out


@cache
def catalogue() -> dict[str, Gpu]:
    """Every known accelerator by its short name."""
    return {name: Gpu(name=name, **_columns(row)) for name, row in _tables()["gpu"].items()}


@cache
def cpu_catalogue() -> dict[str, Cpu]:
    """Every known CPU socket by its short name."""
    return {name: Cpu(name=name, **_columns(row)) for name, row in _tables()["cpu"].items()}


def source_texts() -> dict[str, str]:
    """What the keys in `sources` stand for."""
    return dict(_tables()["sources"])


def find(device_name: str) -> Gpu:
    """The accelerator of this exact short or driver name.

    Raises:
        HardwareUnknown: `device_unknown`.
    """
    for gpu in catalogue().values():
        if device_name == gpu.name or device_name in gpu.device_names:
            return gpu
    raise HardwareUnknown(
        "device_unknown",
        f"no accelerator is named exactly {device_name!r}; add it to bench/hardware.toml with its source",
    )


def peak(gpu: Gpu, dtype: str) -> float:
    """Dense peak in FLOP/s.

    Raises:
        HardwareUnknown: `peak_missing_for_dtype`.
    """
    short = _SHORT.get(dtype, dtype)
    if short not in gpu.peak_tflops:
        raise HardwareUnknown("peak_missing_for_dtype", f"{gpu.name} has no dense {short} peak in bench/hardware.toml")
    return gpu.peak_tflops[short] * 1e12


def _first_line(path: str, key: str = "") -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    found = next((line for line in lines if line.startswith(key)), "")
    return found.split(":", 1)[-1].strip() if key else found.strip()


def _version(*names: str) -> str:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(_HERE), *args], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


NO_UNITS = "no units: products are emulated in float32"


@cache
def bf16_units() -> str:
    """Which bfloat16 instructions this CPU multiplies with; empty if such products are computed in float32."""
    flags = _first_line("/proc/cpuinfo", "flags").split()
    return ", ".join(f for f in ("avx512_bf16", "amx_bf16", "bf16") if f in flags)


def this_machine() -> dict[str, Any]:
    """Manifest of this machine and its software; no user, host or path names."""
    import torch  # the catalogue is read without it

    from ctrbench.kernels.cpu.build import library

    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "cpu": _first_line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count(),
        "bf16": bf16_units() or NO_UNITS,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not visible",
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchrec": _version("torchrec"),
        "fbgemm": _version("fbgemm-gpu-cpu", "fbgemm-gpu"),
        "torch_threads": torch.get_num_threads(),
        "allocator": allocator(),
        "in_c": [name for name in ("din_blocks", "table_rows") if library(name) is not None],
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "commit": _git("rev-parse", "HEAD") or "not a git checkout",
        "dirty": None if changes is None else bool(changes),
    }

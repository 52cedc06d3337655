"""What the kit says of its device: names and versions, no serial number, host or user."""

from __future__ import annotations

import subprocess
from typing import Any

import torch

from ctrbench.bench.hardware import HardwareUnknown, find
from ctrbench.bench.kit.cases import kit_dtype
from ctrbench.datasets.errors import BadInput

_STATE = ("clocks.sm", "clocks.mem", "power.limit", "power.draw", "temperature.gpu", "utilization.gpu")
"""Columns of nvidia-smi, read before and after."""


def cuda_device() -> dict[str, Any]:
    """The current CUDA device.

    Raises:
        BadInput: there is none.
    """
    if not torch.cuda.is_available():
        raise BadInput("no CUDA device is visible to torch: check nvidia-smi and TARGET=cuda, or dry-run: --device cpu")
    index = torch.cuda.current_device()
    p = _properties()
    try:
        gpu, reason = find(p.name), ""
    except HardwareUnknown as error:
        gpu, reason = None, str(error)
    return {
        "name": p.name, "torch": f"cuda:{index}", "capability": f"{p.major}.{p.minor}", "sms": p.multi_processor_count,
        "memory_bytes": p.total_memory, "catalogue": gpu.name if gpu else None,
        "catalogue_reason": reason, "cuda": torch.version.cuda, "driver": _smi("driver_version"),
        "state_before": state(False), "dtype": kit_dtype(gpu, (p.major, p.minor)),
    }  # fmt: skip


def cpu_device() -> dict[str, Any]:
    """Stands for a device in a dry run."""
    return {
        "name": "cpu", "torch": "cpu", "catalogue": None, "catalogue_reason": "device_unknown: dry run on a CPU",
        "driver": None, "cuda": None, "state_before": None, "dtype": "fp32",
    }  # fmt: skip


def state(dry_run: bool) -> dict[str, str | None] | None:
    """Clocks, power and temperature as nvidia-smi gives them; None in a dry run."""
    return None if dry_run else {column: _smi(column) for column in _STATE}


def _properties() -> Any:
    return torch.cuda.get_device_properties(torch.cuda.current_device())


def _smi(column: str) -> str | None:
    """One column of nvidia-smi; None where it does not answer."""
    # By its identifier, which is not kept: CUDA_VISIBLE_DEVICES renumbers devices for torch, not for nvidia-smi.
    command = ["nvidia-smi", f"--id=GPU-{_properties().uuid}", f"--query-gpu={column}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None

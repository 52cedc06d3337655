"""Fits the kernel-time model on recordings: `python -m ctrbench.bench.counting.fit RECORDING=GPU... [--out FILE]`.

Prints, per device and family, the parameters, and on shapes held out of the fit the error of the model beside that of
the ideal roofline. With --out it replaces the fitted sets of that file and leaves the cited ones as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log2
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ctrbench.bench.counting.kernel_time import FamilyFit
from ctrbench.bench.counting.recorded import RecordedCalls, recorded_calls
from ctrbench.bench.counting.recorded_work import Work, work_of
from ctrbench.bench.hardware import Gpu, HardwareUnknown, find, peak
from ctrbench.bench.trace.columns import BadRecording

SPLITS, HELD_OUT, SEED = 20, 0.2, 0
_EC_GRID = np.arange(0.05, 1.01, 0.05)
_EM_GRID = np.arange(0.05, 1.01, 0.05)
_C_GRID_US = np.arange(0.5, 20.1, 0.5)
_HALF_US = 0.5
"""A time read in whole microseconds may be off by this much on average over the calls of a shape."""
_DTYPES = {"float": "fp32", "c10::BFloat16": "bf16", "c10::Half": "fp16"}

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """Distinct shapes of one family: arrays along S shapes."""

    flops_S: Floats
    bytes_S: Floats
    seconds_S: Floats
    """Median over the calls of a shape."""
    group_S: NDArray[np.int64]
    """Kind of shape: the operator and its work to a quarter of a factor 2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Error on shapes held out of the fit, mean over the splits; `sd` is the spread of the splits."""

    mape: float
    mape_sd: float
    within_2x: float
    within_2x_widened: float
    """The same where a time in whole microseconds is an interval of +-0.5 us."""
    ideal_mape: float
    ideal_within_2x: float


def gemm_dtype(recorded: RecordedCalls) -> str:
    """Dtype whose peak most of the recording's GEMM time runs against; fp32 inputs on tensor cores are tf32."""
    time: dict[str, float] = defaultdict(float)
    for call in recorded.launching():
        work = work_of(call)
        if work is None or work.family != "gemm":
            continue
        tensor_cores = any("1688" in name or "tf32" in name for name, _ in call.kernels)
        time["tf32" if work.dtype == "float" and tensor_cores else _DTYPES.get(work.dtype, "")] += call.seconds
    return max(time, key=lambda d: time[d], default="")


def shapes_of(recorded: RecordedCalls) -> dict[str, Shapes]:
    """Family -> its distinct shapes with their times."""
    times: dict[tuple[str, str, Work], list[float]] = defaultdict(list)
    for call in recorded.launching():
        work = work_of(call)
        if work is not None:
            times[call.name, str((call.dims, call.types)), work].append(call.seconds)
    groups: dict[tuple[str, int, int], int] = {}
    rows: dict[str, list[tuple[float, float, float, int]]] = defaultdict(list)
    for (name, _, work), seconds in times.items():
        kind = (name, _quarter(work.flops), _quarter(work.bytes))
        group = groups.setdefault(kind, len(groups))
        rows[work.family].append((work.flops, work.bytes, float(np.median(seconds)), group))
    return {family: shapes(found) for family, found in sorted(rows.items())}


def shapes(rows: Sequence[tuple[float, float, float, int]]) -> Shapes:
    """Columns of (FLOPs, bytes, seconds, group) rows."""
    flops_S, bytes_S, seconds_S, group_S = np.array(rows, dtype=np.float64).T
    return Shapes(flops_S=flops_S, bytes_S=bytes_S, seconds_S=seconds_S, group_S=group_S.astype(np.int64))


def _quarter(amount: float) -> int:
    return floor(4 * log2(amount)) if amount > 0 else -1


def fit_family(data: Shapes, top: float, bandwidth: float) -> tuple[float | None, float, float]:
    """(e_c or None, e_m, c in us) of the smallest mean |log(modelled / recorded)|, on a grid.

    Args:
        data: the shapes.
        top: dense peak, FLOP/s.
        bandwidth: DRAM, byte/s.
    """
    memory_MS = data.bytes_S / (_EM_GRID[:, None] * bandwidth)
    target_S = np.log(data.seconds_S)
    computes = data.flops_S.any()
    best: tuple[float, float | None, float, float] = (np.inf, None, 0.0, 0.0)
    for e_c in _EC_GRID if computes else (None,):
        base_MS = memory_MS if e_c is None else np.maximum(memory_MS, data.flops_S / (e_c * top))
        error_CM = np.abs(np.log(base_MS + _C_GRID_US[:, None, None] * 1e-6) - target_S).mean(axis=2)
        c, m = np.unravel_index(int(error_CM.argmin()), error_CM.shape)
        if error_CM[c, m] < best[0]:
            best = (float(error_CM[c, m]), None if e_c is None else float(e_c), float(_EM_GRID[m]), _C_GRID_US[c])
    return None if best[1] is None else round(best[1], 2), round(best[2], 2), round(float(best[3]), 1)


def modelled(
    data: Shapes, parameters: tuple[float | None, float, float], top: float, bandwidth: float
) -> Floats:  # fmt: skip
    """Seconds of each shape."""
    e_c, e_m, c_us = parameters
    compute_S = data.flops_S / (e_c * top) if e_c else np.zeros_like(data.flops_S)
    return np.asarray(np.maximum(compute_S, data.bytes_S / (e_m * bandwidth)) + c_us * 1e-6, dtype=np.float64)


def held_out(data: Shapes, top: float, bandwidth: float, *, whole_microseconds: bool) -> HeldOut | None:
    """Errors on a fifth of the groups, held out of the fit in random splits; None with fewer than two groups."""
    groups = np.unique(data.group_S)
    if len(groups) < 2:
        return None
    rng = np.random.default_rng(SEED)
    rows = []
    for _ in range(SPLITS):
        out = rng.permutation(groups)[: max(1, round(HELD_OUT * len(groups)))]
        test_S = np.isin(data.group_S, out)
        train, test = pick(data, ~test_S), pick(data, test_S)
        said_S = modelled(test, fit_family(train, top, bandwidth), top, bandwidth)
        ideal_S = modelled(test, (1.0, 1.0, 0.0), top, bandwidth)
        slack = _HALF_US * 1e-6 if whole_microseconds else 0.0
        rows.append((_mape(said_S, test), _within(said_S, test), _within(said_S, test, slack), _mape(ideal_S, test),
                     _within(ideal_S, test)))  # fmt: skip
    mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0)
    return HeldOut(
        mape=float(mean[0]), mape_sd=float(spread[0]), within_2x=float(mean[1]), within_2x_widened=float(mean[2]),
        ideal_mape=float(mean[3]), ideal_within_2x=float(mean[4]),
    )  # fmt: skip


def pick(data: Shapes, mask_S: NDArray[np.bool_]) -> Shapes:
    """The shapes where the mask is set."""
    return Shapes(
        flops_S=data.flops_S[mask_S], bytes_S=data.bytes_S[mask_S], seconds_S=data.seconds_S[mask_S],
        group_S=data.group_S[mask_S],
    )  # fmt: skip


def _mape(said_S: Floats, data: Shapes) -> float:
    return float(np.mean(np.abs(said_S / data.seconds_S - 1)))


def _within(said_S: Floats, data: Shapes, slack: float = 0.0) -> float:
    low_S, high_S = (data.seconds_S - slack) / 2, (data.seconds_S + slack) * 2
    return float(np.mean((said_S >= low_S) & (said_S <= high_S)))


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFit:
    """What one recording gave."""

    gpu: Gpu
    dtype: str
    source: str
    families: Mapping[str, tuple[FamilyFit, HeldOut | None]]


def fit_recording(recorded: RecordedCalls, gpu: Gpu) -> DeviceFit:
    """Fits every family of one recording.

    Raises:
        HardwareUnknown: the GPU has no dense peak for the dtype of its GEMMs.
    """
    dtype = gemm_dtype(recorded)
    top, bandwidth = peak(gpu, dtype), gpu.bandwidth_gbs * 1e9
    found: dict[str, tuple[FamilyFit, HeldOut | None]] = {}
    for family, data in shapes_of(recorded).items():
        e_c, e_m, c_us = fit_family(data, top, bandwidth)
        error = held_out(data, top, bandwidth, whole_microseconds=recorded.whole_microseconds)
        fit = FamilyFit(
            e_c=e_c, e_m=e_m, c_us=c_us, shapes=len(data.seconds_S), groups=len(np.unique(data.group_S)),
            within_2x=None if error is None else round(error.within_2x, 2),
            mape=None if error is None else round(error.mape, 2),
        )  # fmt: skip
        found[family] = (fit, error)
    return DeviceFit(gpu=gpu, dtype=dtype, source=recorded.name, families=found)


def table_of(fits: Sequence[DeviceFit]) -> Table:
    """The table that docs/projection.md holds."""
    table = Table(title=f"held-out shapes: mean of {SPLITS} random splits, {HELD_OUT:.0%} of the groups held out")
    for column in ("device, family", "e_c", "e_m", "c us", "shapes", "groups", "MAPE", "within 2x", "widened",
                   "ideal MAPE", "ideal 2x"):  # fmt: skip
        table.add_column(column, justify="left" if column == "device, family" else "right", no_wrap=True)
    for device in fits:
        for family, (fit, error) in device.families.items():
            shown = ("-",) * 5 if error is None else (
                f"{error.mape:.0%} +-{error.mape_sd:.0%}", f"{error.within_2x:.0%}", f"{error.within_2x_widened:.0%}",
                f"{error.ideal_mape:.0%}", f"{error.ideal_within_2x:.0%}",
            )  # fmt: skip
            e_c = "-" if fit.e_c is None else f"{fit.e_c:g}"
            table.add_row(f"{device.gpu.name} {device.dtype} {family}", e_c, f"{fit.e_m:g}", f"{fit.c_us:g}",
                          str(fit.shapes), str(fit.groups), *shown)  # fmt: skip
    return table


def toml_of(fit: DeviceFit, path: Path) -> str:
    """The fitted set as a block of kernel_time.toml."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [f'[set."{fit.gpu.name}"]', f'dtype = "{fit.dtype}"', 'origin = "fitted"',
             f'source = "{fit.source}"', f'sha256 = "{digest}"', "recordings = 1", ""]  # fmt: skip
    for family, (f, _) in fit.families.items():
        values = {"e_c": f.e_c, "e_m": f.e_m, "c_us": f.c_us, "shapes": f.shapes, "groups": f.groups,
                  "within_2x": f.within_2x, "mape": f.mape}  # fmt: skip
        lines.append(f'[set."{fit.gpu.name}".family.{family}]')
        lines += [f"{k} = {v}" for k, v in values.items() if v is not None]
        lines.append("")
    return "\n".join(lines)


_MARK = "# --- fitted sets below: written by `python -m ctrbench.bench.counting.fit`, do not edit ---\n"


def write_toml(out: Path, blocks: Sequence[str]) -> None:
    """Replaces what follows the mark in a parameter file."""
    head = out.read_text(encoding="utf-8").split(_MARK)[0] if out.is_file() else ""
    out.write_text(head + _MARK + "\n" + "\n".join(blocks), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 if a recording or a GPU cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m ctrbench.bench.counting.fit", description=__doc__)
    parser.add_argument("recordings", nargs="+", metavar="FILE=GPU", help="Kineto file and its name in hardware.toml")
    parser.add_argument("--out", type=Path, help="parameter file whose fitted sets are replaced")
    options = parser.parse_args(argv)
    fits, blocks = [], []
    try:
        for given in options.recordings:
            path, _, name = given.rpartition("=")
            recorded = recorded_calls(path or name)
            fits.append(fit_recording(recorded, find(name if path else recorded.device or "not recorded")))
            blocks.append(toml_of(fits[-1], Path(path or name)))
    except (BadRecording, HardwareUnknown) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console(width=160).print(table_of(fits))
    if options.out:
        write_toml(options.out, blocks)
    return 0


if __name__ == "__main__":
    sys.exit(main())

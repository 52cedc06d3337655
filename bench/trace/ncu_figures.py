"""Figures of one launch from its counters; formulas and metric names of measures.md section 11.

Each figure names the metrics that it comes from, or is None with a reason code: a counter that was not recorded is
never read as 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ctrbench.bench.trace.ncu_launch import NcuLaunch


class Figure(NamedTuple):
    """A figure of a launch: a value and the metrics it comes from, or None and the reason."""

    value: float | None
    unit: str
    basis: str
    reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        if self.value is None:
            return {"value": None, "unit": self.unit, "reason": self.reason}
        return {"value": self.value, "unit": self.unit, "basis": self.basis}


class _Unknown(Exception):
    """Why a figure cannot be had."""


Value = tuple[float, str]
"""(value, metrics it comes from)."""


def figures(launch: NcuLaunch) -> dict[str, Figure]:
    """Every figure of `FIGURES` for one launch."""
    out: dict[str, Figure] = {}
    for name, (unit, compute) in FIGURES.items():
        try:
            value, basis = compute(launch)
            out[name] = Figure(value, unit, basis)
        except _Unknown as why:
            out[name] = Figure(None, unit, "", f"field_missing: {why}")
    return out


def _read(launch: NcuLaunch, name: str, units: tuple[str, ...], section: str | None = None) -> float:
    """A number in one of the expected base units.

    Raises:
        _Unknown: absent, no number, or in a unit that the formula does not expect.
    """
    metric = launch.get(name, section)
    if metric is None:
        raise _Unknown(f"no {name}")
    if not isinstance(metric.value, float):
        raise _Unknown(f"{name} is {metric.value!r}, no number")
    if metric.unit not in units:
        raise _Unknown(f"{name} is in {metric.unit!r}, not in {units[0]!r}")
    return metric.value


def _first(launch: NcuLaunch, *ways: Callable[[NcuLaunch], Value]) -> Value:
    """The first way that works; the reasons of all if none does."""
    reasons = []
    for way in ways:
        try:
            return way(launch)
        except _Unknown as why:
            reasons.append(str(why))
    raise _Unknown("; ".join(dict.fromkeys(reasons)))


def _one(name: str, unit: str, section: str | None = None, factor: float = 1.0) -> Callable[[NcuLaunch], Value]:
    basis = name if factor == 1 else f"{factor:g} * {name}"
    return lambda launch: (factor * _read(launch, name, (unit,), section), basis)


def _sum(names: tuple[str, ...], unit: str) -> Callable[[NcuLaunch], Value]:
    return lambda launch: (sum(_read(launch, name, (unit,)) for name in names), " + ".join(names))


def _product(factor: float, names: tuple[str, str], units: tuple[str, str]) -> Callable[[NcuLaunch], Value]:
    def compute(launch: NcuLaunch) -> Value:
        a, b = (_read(launch, name, (unit,)) for name, unit in zip(names, units, strict=True))
        return factor * a * b, " * ".join(names)

    return compute


def _time(launch: NcuLaunch) -> Value:
    return _first(launch, _one("gpu__time_duration.sum", "ns"), _one("Duration", "ns"))


def _dram_rate(launch: NcuLaunch) -> Value:
    """The details page has the rate only, under a display name."""
    section, name = "Memory Workload Analysis", "Memory Throughput"
    rate, (time, basis) = _read(launch, name, ("byte/s",), section), _time(launch)
    return rate * time * 1e-9, f"{section} / {name} * {basis}"


def _dram_bytes(launch: NcuLaunch) -> Value:
    return _first(
        launch,
        _sum(("dram__bytes_read.sum", "dram__bytes_write.sum"), "byte"),
        _sum(("dram__bytes_op_read.sum", "dram__bytes_op_write.sum"), "byte"),
        _one("dram__bytes.sum", "byte"),
        _dram_rate,
    )


def _count(launch: NcuLaunch, op: str) -> float:
    """Executed thread instructions of one kind; from the rate where the sum was not recorded. A rate of 0 is a 0."""
    name = f"smsp__sass_thread_inst_executed_op_{op}_pred_on.sum"
    try:
        return _read(launch, name, ("inst", ""))
    except _Unknown:
        try:
            rate = _read(launch, f"{name}.per_cycle_elapsed", ("inst/cycle", "1/cycle"))
        except _Unknown as why:
            raise _Unknown(f"no {name}, {why}") from None
        return rate * _read(launch, "smsp__cycles_elapsed.max", ("cycle",)) if rate else 0.0


def _flops(prefix: str, lanes: int = 1) -> Callable[[NcuLaunch], Value]:
    """add + mul + 2 fma, times the values an instruction works on."""

    def compute(launch: NcuLaunch) -> Value:
        add, mul, fma = (_count(launch, prefix + op) for op in ("add", "mul", "fma"))
        basis = f"{prefix}add + {prefix}mul + 2 * {prefix}fma of smsp__sass_thread_inst_executed"
        return lanes * (add + mul + 2 * fma), basis if lanes == 1 else f"{lanes} * ({basis}), packed instructions"

    return compute


def _tensor_ops(*sources: str) -> Callable[[NcuLaunch], Value]:
    """Operations by source type, as the op counters of sm_90 and later have them; types add up."""

    def compute(launch: NcuLaunch) -> Value:
        total, used = 0.0, []
        for source in sources:
            prefix = f"sm__ops_path_tensor_src_{source}"
            names = sorted({n for _, n in launch.metrics if n.startswith(prefix) and n.endswith(".sum")})
            # counters by sparsity are parts of the one without
            whole = [n for n in names if "_sparsity_" not in n]
            split = [n for n in names if "_sparsity_" in n]
            if not whole and len(split) % 2:
                raise _Unknown(f"{split[0]} without its other half")
            if not names:
                raise _Unknown(f"no {prefix}_dst_*.sum")
            for name in whole or split:
                total += _read(launch, name, ("", "op", "ops", "inst", "FLOP"))
                used.append(name)
        return total, " + ".join(used)

    return compute


_WITHOUT_DMMA = {"7.0", "7.2", "7.5", "8.6", "8.7", "8.9"}


def _no_tensor_instruction(*pipes: str) -> Callable[[NcuLaunch], Value]:
    """0 if the instruction counters (sm_75 to sm_86) read 0. Otherwise the work an instruction does depends on a shape
    that no counter tells.
    """

    def compute(launch: NcuLaunch) -> Value:
        used = []
        for pipe in pipes:
            name = f"sm__inst_executed_pipe_tensor_op_{pipe}"
            if pipe == "dmma" and launch.cc in _WITHOUT_DMMA and not any(n.startswith(name) for _, n in launch.metrics):
                continue
            count, metric = _first(
                launch,
                _one(f"{name}.sum", "inst"),
                _one(f"{name}.avg.pct_of_peak_sustained_active", "%"),
            )
            if count:
                raise _Unknown(f"{metric} is {count:g}, and no counter tells the FLOPs of one {pipe} instruction")
            used.append(metric)
        return 0.0, " = ".join([*used, "0"])

    return compute


def _tensor_flops(launch: NcuLaunch) -> Value:
    """By op counters only: the tensor pipe's busy share read 1 % on a kernel without one tensor operation."""
    return _first(launch, _tensor_ops("bf16", "fp16", "tf32"), _no_tensor_instruction("hmma", "dmma"))


def _total_flops(launch: NcuLaunch) -> Value:
    parts = [compute(launch) for compute in (_flops("f"), _flops("h", lanes=2), _flops("d"), _tensor_flops)]
    total, basis = sum(value for value, _ in parts), "fp32 + fp16 + fp64 + tensor bf16, fp16, tf32"
    try:
        total, basis = total + _tensor_ops("fp64")(launch)[0], f"{basis}, fp64"
    except _Unknown:
        basis += " (tensor fp64 only where counted)"
    return total, basis


def _ratio(above: Callable[[NcuLaunch], Value], below: Callable[[NcuLaunch], Value], factor: float = 1.0) -> Any:
    def compute(launch: NcuLaunch) -> Value:
        (a, what), (b, by) = above(launch), below(launch)
        if not b:
            raise _Unknown(f"{by} is 0: the data stayed in a cache")
        return factor * a / b, f"({what}) / ({by})"

    return compute


_SECTOR = 32
_L2 = _one("lts__t_sectors.sum", "sector", factor=_SECTOR)
_FFMA, _DFMA = (f"sm__sass_thread_inst_executed_op_{op}_pred_on.sum.peak_sustained" for op in ("ffma", "dfma"))
_SM_CLOCK, _DRAM_CLOCK, _L2_CLOCK = (f"{unit}__cycles_elapsed.avg.per_second" for unit in ("sm", "dram", "lts"))


def _l2_peak(launch: NcuLaunch) -> Value:
    """As Nsight Compute's own hierarchical roofline has it; else of the rate and its share of the peak."""
    return _first(
        launch, _product(1, ("lts__t_bytes.sum.peak_sustained", _L2_CLOCK), ("byte/cycle", "hz")), _l2_peak_of_share
    )


def _l2_peak_of_share(launch: NcuLaunch) -> Value:
    rate, share = "lts__t_sectors.sum.per_second", "lts__t_sectors.avg.pct_of_peak_sustained_elapsed"
    percent = _read(launch, share, ("%",))
    if not percent:
        raise _Unknown(f"{share} is 0")
    return 100 * _SECTOR * _read(launch, rate, ("sector/s",)) / percent, f"{_SECTOR} * {rate} / {share}"


FIGURES: dict[str, tuple[str, Callable[[NcuLaunch], Value]]] = {
    "time": ("ns", _time),
    "dram_bytes": ("byte", _dram_bytes),
    "l2_bytes": ("byte", _L2),
    "flops_fp32": ("FLOP", _flops("f")),
    "flops_fp16": ("FLOP", _flops("h", lanes=2)),
    "flops_fp64": ("FLOP", _flops("d")),
    "tensor_flops": ("FLOP", _tensor_flops),
    "tensor_ops_fp8": ("op", _tensor_ops("fp8")),
    "tensor_ops_int8": ("op", lambda launch: _first(launch, _tensor_ops("int8"), _no_tensor_instruction("imma"))),
    "tensor_pipe": ("%", _one("sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed", "%")),
    "flops": ("FLOP", _total_flops),
    "ai_dram": ("FLOP/byte", _ratio(_total_flops, _dram_bytes)),
    "ai_l2": ("FLOP/byte", _ratio(_total_flops, _L2)),
    "flop_rate": ("FLOP/s", _ratio(_total_flops, _time, factor=1e9)),
    "dram_rate": ("byte/s", _ratio(_dram_bytes, _time, factor=1e9)),
    "peak_fp32": ("FLOP/s", _product(2, (_FFMA, _SM_CLOCK), ("inst/cycle", "hz"))),
    "peak_fp64": ("FLOP/s", _product(2, (_DFMA, _SM_CLOCK), ("inst/cycle", "hz"))),
    "peak_dram": ("byte/s", _product(1, ("dram__bytes.sum.peak_sustained", _DRAM_CLOCK), ("byte/cycle", "hz"))),
    "peak_l2": ("byte/s", _l2_peak),
}  # fmt: skip
"""name -> (unit, how); peaks are those at the clocks of that run."""

"""What a counted step would take on a given GPU: measures.md section 6.

On a device with parameters (`kernel_time.toml`), at their dtype: a time as an interval [t/2, 2t], which host would make
the step launch-bound, and where the time goes. On any catalogued device: a time that the step cannot beat. Never an
MFU, MBU or energy: those need a measured time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ctrbench.bench.counting.bound import T_MIN_S
from ctrbench.bench.counting.kernel_time import (
    GENERIC,
    FamilyFit,
    ParameterSet,
    call_seconds,
    compute_seconds,
    memory_seconds,
    parameter_sets,
    time_family,
)
from ctrbench.bench.counting.rows import COMPILED, OpRow, StepCounts
from ctrbench.bench.hardware import Gpu, catalogue, peak

FACTOR = 2.0
"""Half-width of the band of a modelled time: [t/2, 2t]."""
MAX_UNFITTED = 0.20
"""Largest share of the modelled time in families without usable parameters."""
_HALF = ("bf16", "fp16")

Term = Literal["flops", "bytes", "launches"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A modelled value with its band."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Costly:
    """Modelled time of one family, block or module of a step."""

    name: str
    seconds: float
    share: float
    """Of the step's modelled time."""
    term: Term
    """What most of it goes to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """One step on one GPU; `modelled`, except the counts behind it."""

    gpu: str
    dtype: str
    bound_s: float
    """No run of these operators, eager and on one stream, takes less; tagged `modelled, unfitted`."""
    parameters: ParameterSet | None
    """None where the device has none at this dtype: then there is a bound and no time."""
    time_s: Interval | None
    break_even_host_us: Interval | None
    """On a host slower than this per launch the step is launch-bound."""
    unfitted_share: float | None
    """Share of the modelled time in families without usable parameters."""
    families: tuple[Costly, ...]
    blocks: tuple[Costly, ...]
    """Costliest first; the first is what to fix first."""
    reason: str
    """Why there is no time, or ''."""

    @property
    def fewest_shapes(self) -> int | None:
        """Shapes behind the weakest family that the time rests on."""
        if self.parameters is None:
            return None
        used = [self.parameters.families[c.name] for c in self.families if c.name in self.parameters.families]
        return min((f.shapes for f in used if f.usable), default=None)


def project(
    counts: StepCounts, gpu: Gpu, dtype: str, *, uncachable: float = 0.0, idle_flops: float = 0.0, mode: str = "eager"
) -> Projection:
    """Projects one counted step.

    Args:
        counts: from `meta`, so that attention and dropout are the operators that a GPU runs.
        gpu: catalogue entry.
        dtype: of weights and activations: `bf16` and `fp16` count floats at 2 bytes, `fp32` and `tf32` as they are.
        uncachable: bytes that must cross DRAM (`Bound.bytes`); 0 claims none.
        idle_flops: FLOPs counted on masked pairs, which a kernel may skip.
        mode: `eager`; in any other only FLOPs and bytes bound the time, for fusion removes kernels.

    Raises:
        HardwareUnknown: `peak_missing_for_dtype`.
    """
    rows = [r for r in counts.rows if r.kernels > 0]
    shortest = T_MIN_S if mode == "eager" else 0.0
    bound = lower_bound_s(rows, gpu, dtype, uncachable=uncachable, idle_flops=idle_flops, shortest=shortest)
    if mode != "eager":
        return _without_time(gpu, dtype, bound, COMPILED)
    parameters = parameter_sets().get(gpu.name)
    if parameters is None or parameters.dtype != dtype:
        return _without_time(gpu, dtype, bound, _no_parameters(gpu, dtype, parameters))
    parts = [(r, *_row_seconds(r, parameters, gpu, dtype)) for r in rows]
    total = sum(seconds for _, seconds, _ in parts)
    families = _grouped(((time_family(r.op), s, terms) for r, s, terms in parts), total)
    blocks = _grouped(((_place(r, counts), s, terms) for r, s, terms in parts), total)
    unfitted = {c.name: c.share for c in families if not _fit(c.name, parameters).usable}
    share = sum(unfitted.values())
    reason = _withhold(counts, unfitted, share)
    time = None if reason else Interval(total, total / FACTOR, total * FACTOR)
    return Projection(
        gpu=gpu.name, dtype=dtype, bound_s=bound, parameters=parameters, time_s=time,
        break_even_host_us=_break_even(time, counts), unfitted_share=share, families=families, blocks=blocks,
        reason=reason,
    )  # fmt: skip


def projections(
    counts: StepCounts,
    gpus: Mapping[str, str],
    *,
    uncachable: Mapping[str, float] | None = None,
    idle_flops: float = 0.0,
    mode: str = "eager",
) -> tuple[Projection, ...]:
    """The step on several GPUs, each at the dtype of its parameters where it has some.

    Args:
        counts: the step.
        gpus: catalogue name -> dtype, used where the device has no parameters.
        uncachable: catalogue name -> bytes that must cross DRAM at that dtype.
        idle_flops: as in `project`.
        mode: as in `project`.

    Raises:
        HardwareUnknown: `peak_missing_for_dtype`.
    """
    out = []
    for name, dtype in gpus.items():
        fitted = parameter_sets().get(name)
        mine = fitted.dtype if fitted else dtype
        must = (uncachable or {}).get(name, 0.0) if mine == dtype else 0.0
        out.append(project(counts, catalogue()[name], mine, uncachable=must, idle_flops=idle_flops, mode=mode))
    return tuple(out)


def step_seconds(counts: StepCounts, parameters: ParameterSet, gpu: Gpu) -> float:
    """Modelled GPU time of a step with the parameters given, whether or not they may be published."""
    rows = [r for r in counts.rows if r.kernels > 0]
    return sum(_row_seconds(r, parameters, gpu, parameters.dtype)[0] for r in rows)


def lower_bound_s(
    rows: Iterable[OpRow],
    gpu: Gpu,
    dtype: str,
    *,
    uncachable: float = 0.0,
    idle_flops: float = 0.0,
    shortest: float = T_MIN_S,
) -> float:
    """Time that these operators cannot beat, run one after the other: each call takes its FLOPs at the dense peak or
    one shortest kernel (seconds), whichever is more, and the step the bytes that must cross DRAM.

    Raises:
        HardwareUnknown: `peak_missing_for_dtype`.
    """
    top = peak(gpu, dtype)
    kernels = sum(max(r.flops / top, min(r.calls, r.kernels) * shortest) for r in rows)
    return max(kernels - idle_flops / top, uncachable / (gpu.bandwidth_gbs * 1e9))


def _fit(family: str, parameters: ParameterSet) -> FamilyFit:
    return parameters.families.get(family, GENERIC)


def _row_seconds(row: OpRow, parameters: ParameterSet, gpu: Gpu, dtype: str) -> tuple[float, dict[Term, float]]:
    """(time of all calls of a row, its terms); the calls of a row are taken as equal."""
    fit = _fit(time_family(row.op), parameters)
    flops, nbytes = row.flops / row.calls, (row.bytes_half if dtype in _HALF else row.bytes_own) / row.calls
    compute, memory = compute_seconds(fit, flops, gpu, dtype), memory_seconds(fit, nbytes, gpu)
    terms: dict[Term, float] = {"launches": fit.c_us * 1e-6 * row.calls}
    terms["flops" if compute > memory else "bytes"] = max(compute, memory) * row.calls
    return call_seconds(fit, flops, nbytes, gpu, dtype) * row.calls, terms


def _place(row: OpRow, counts: StepCounts) -> str:
    """Block of a row; the module where the model declares no blocks."""
    name = row.block if any(r.block for r in counts.rows) else row.module
    return name or f"({row.part})"


def _grouped(parts: Iterable[tuple[str, float, dict[Term, float]]], total: float) -> tuple[Costly, ...]:
    seconds: dict[str, float] = defaultdict(float)
    terms: dict[str, dict[Term, float]] = defaultdict(lambda: defaultdict(float))
    for name, time, found in parts:
        seconds[name] += time
        for term, value in found.items():
            terms[name][term] += value
    ranked = sorted(seconds, key=lambda n: (-seconds[n], n))
    return tuple(
        Costly(
            name=n, seconds=seconds[n], share=seconds[n] / total if total else 0.0,
            term=max(terms[n], key=lambda t: terms[n][t]),
        )
        for n in ranked
    )  # fmt: skip


def _no_parameters(gpu: Gpu, dtype: str, parameters: ParameterSet | None) -> str:
    if parameters is None:
        return f"field_missing: no kernel-time parameters for {gpu.name}; a time needs a recording made on it"
    return f"field_missing: the kernel-time parameters of {gpu.name} are for {parameters.dtype}, not {dtype}"


def _without_time(gpu: Gpu, dtype: str, bound: float, reason: str) -> Projection:
    return Projection(
        gpu=gpu.name, dtype=dtype, bound_s=bound, parameters=None, time_s=None, break_even_host_us=None,
        unfitted_share=None, families=(), blocks=(), reason=reason,
    )  # fmt: skip


def _withhold(counts: StepCounts, unfitted: dict[str, float], share: float) -> str:
    if counts.unknown:
        return "uncounted_op: " + ", ".join(f"{op} x{n}" for op, n in sorted(counts.unknown.items()))
    if share > MAX_UNFITTED:
        named = ", ".join(f"{f} {s:.0%}" for f, s in sorted(unfitted.items(), key=lambda x: -x[1])[:4])
        return f"coverage_low: families without fitted parameters hold {share:.0%} of the modelled time ({named})"
    return ""


def _break_even(time: Interval | None, counts: StepCounts) -> Interval | None:
    """Time / launches; its band takes both bands at their worst."""
    k = counts.kernels
    if time is None or k.value is None or k.low is None or k.high is None:
        return None
    return Interval(time.value / k.value * 1e6, time.low / k.high * 1e6, time.high / k.low * 1e6)

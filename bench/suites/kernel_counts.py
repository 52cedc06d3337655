"""What a way of computing an operator executes, as `extra_info` has it: counted in a process that times nothing."""

from __future__ import annotations

from typing import Any

from ctrbench.bench.operator_calls import Pass, count_call, operators, ways

Entry = dict[str, Any]
TRAINED = 3
"""Products of a training call for each of its forward: one more by each side of the product."""


def entry(value: float | None, unit: str, origin: str, **details: Any) -> Entry:
    """As benchmark_json has them."""
    return {"value": value, "unit": unit, "origin": origin, **details}


def counts(name: str, label: str, way: str, passes: Pass) -> dict[str, Entry]:
    """Entries of one benchmark that need no clock.

    Args:
        name: file of `kernels/`.
        label: of one of its shapes.
        way: of `ways()`.
        passes: of `PASSES`.
    """
    op = operators()[name]
    shape, run = op.shapes[label], ways(op)[way]
    found = count_call(op, run, shape, passes)
    flops, moved = found.flops(), found.bytes_operands()
    unknown = {"reason": f"coverage_low: no formula for {', '.join(found.unknown)}"} if found.unknown else {}
    return {
        "flops": _useful(name, label, passes),
        "flops_executed": entry(flops, "FLOP", "counted", **unknown),
        "flops_elementwise": entry(found.flops_elementwise(), "FLOP", "counted"),
        "bytes_operands": entry(moved, "B", "counted"),
        "ai_operands": entry(flops / moved, "FLOP/B", "counted"),
        "operator_calls": entry(found.ops, "ops", "counted"),
        "kernels": _launches(name, label, way, passes),
    }


def uncounted(name: str, label: str, passes: Pass, reason: str) -> dict[str, Entry]:
    """The same entries where nothing was counted: the formula's alone has a value."""
    units = {
        "flops_executed": "FLOP", "flops_elementwise": "FLOP", "bytes_operands": "B", "ai_operands": "FLOP/B",
        "operator_calls": "ops", "kernels": "launches",
    }  # fmt: skip
    withheld = {name: entry(None, unit, "abstained", reason=reason) for name, unit in units.items()}
    return {"flops": _useful(name, label, passes), **withheld}


def _useful(name: str, label: str, passes: Pass) -> Entry:
    op, times = operators()[name], TRAINED if passes == "fwd+bwd" else 1
    how = "the operator's own formula" + (f" x {times}" if times > 1 else "")
    return entry(op.cost(op.shapes[label]).flops * times, "FLOP", "derived", words=f"useful: {how}")


def _launches(name: str, label: str, way: str, passes: Pass) -> Entry:
    """CUDA kernels that these operators would launch, by the table; not those of a Triton path."""
    op = operators()[name]
    try:
        kernels = count_call(op, ways(op)[way], op.shapes[label], passes, "meta").kernels
    except RuntimeError as error:  # NotImplementedError is one
        if "meta" not in str(error):  # torch names the device when it asks a tensor without data for some
            raise
        said = str(error).splitlines()[0][:120]
        return entry(None, "launches", "abstained", reason=f"does not run on shapes alone: {said}")
    if kernels.value is None:
        return entry(None, "launches", "abstained", reason=kernels.reason)
    return entry(kernels.value, "launches", "modelled", ci_low=kernels.low, ci_high=kernels.high)

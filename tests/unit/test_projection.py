"""Projection of hand-made counts: the sum, its band, what withholds it, lower bound, break-even, rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ctrbench.bench.counting.bound import T_MIN_S
from ctrbench.bench.counting.kernel_time import GENERIC, parameter_sets
from ctrbench.bench.counting.launches import BAND
from ctrbench.bench.counting.projection import MAX_UNFITTED, lower_bound_s, project, projections, step_seconds
from ctrbench.bench.counting.rows import OpRow, StepCounts
from ctrbench.bench.counting.traffic import Bytes
from ctrbench.bench.hardware import HardwareUnknown, catalogue
from ctrbench.bench.projection_rows import projection_rows

A100, L4, H100 = (catalogue()[g] for g in ("A100-40 SXM", "L4", "H100 SXM"))
FITS = parameter_sets()["A100-40 SXM"].families


def row(op: str, calls: int = 1, flops: float = 0.0, nbytes: float = 0.0, **kw: Any) -> OpRow:
    values: dict[str, Any] = {
        "op": op, "module": "m", "block": "", "stage": "dense", "part": "forward", "kind": "Z", "calls": calls,
        "flops": flops, "flops_elementwise": 0.0, "bytes_own": nbytes, "bytes_half": nbytes / 2,
        "kernels": float(calls), "covered_calls": calls, "unfusable": calls,
    }  # fmt: skip
    return OpRow(**(values | kw))


def counts(*rows: OpRow) -> StepCounts:
    none = Bytes()
    return StepCounts(
        rows=rows, train=False, batch=64, device="meta", frozen_parts=False, saved=none, inputs=none, parameters=none
    )


GEMM = row("aten.mm", calls=4, flops=4e12, nbytes=4e6, block="tower")
ADD = row("aten.add", calls=10, nbytes=10e9, block="head")
STEP = counts(GEMM, ADD)


def by_hand() -> tuple[float, float]:
    """Seconds of GEMM and ADD on an A100 by the formula."""
    gemm, add = FITS["gemm"], FITS["elementwise"]
    assert gemm.e_c is not None
    return (4 * (1e12 / (gemm.e_c * 156e12) + gemm.c_us * 1e-6), 10 * (1e9 / (add.e_m * 1555e9) + add.c_us * 1e-6))


def test_time_is_the_sum_over_calls_with_a_factor_two_on_either_side() -> None:
    found = project(STEP, A100, "tf32")
    assert found.reason == ""
    assert found.time_s is not None
    total = sum(by_hand())
    assert found.time_s.value == pytest.approx(total, rel=1e-9)
    assert (found.time_s.low, found.time_s.high) == (found.time_s.value / 2, found.time_s.value * 2)
    assert step_seconds(STEP, parameter_sets()["A100-40 SXM"], A100) == found.time_s.value
    assert found.fewest_shapes == min(FITS["gemm"].shapes, FITS["elementwise"].shapes)


def test_break_even_takes_both_bands_at_their_worst() -> None:
    found = project(STEP, A100, "tf32")
    assert found.break_even_host_us is not None
    even, time = found.break_even_host_us, sum(by_hand()) * 1e6
    assert even.value == pytest.approx(time / 14)
    assert even.low == pytest.approx(time / 2 / (14 * (1 + BAND)))
    assert even.high == pytest.approx(time * 2 / (14 * (1 - BAND)))


def test_what_to_fix_first_is_the_costliest_block_and_its_main_term() -> None:
    found = project(STEP, A100, "tf32")
    gemm, add = by_hand()
    assert [(c.name, c.term) for c in found.blocks] == [("tower", "flops"), ("head", "bytes")]
    assert [c.name for c in found.families] == ["gemm", "elementwise"]
    assert found.blocks[0].share == pytest.approx(gemm / (gemm + add))
    small = project(counts(row("aten.add", calls=100, nbytes=1e4, module="tail")), A100, "tf32")
    assert [(c.name, c.term) for c in small.blocks] == [("tail", "launches")]


def test_unfitted_families_above_a_fifth_withhold_the_time() -> None:
    """A lookup sized so that its stand-in time is just under, then just over, a fifth of the whole."""
    fitted = sum(by_hand())
    for share, withheld in ((MAX_UNFITTED - 0.01, False), (MAX_UNFITTED + 0.01, True)):
        seconds = fitted * share / (1 - share) - GENERIC.c_us * 1e-6
        table = row("ctrbench.tbe", nbytes=seconds * GENERIC.e_m * 1555e9)
        found = project(counts(GEMM, ADD, table), A100, "tf32")
        assert found.unfitted_share == pytest.approx(share)
        assert (found.time_s is None) is withheld
        assert (found.break_even_host_us is None) is withheld
        assert found.reason.startswith("coverage_low") is withheld
        assert ("table_forward 21%" in found.reason) is withheld


def test_an_unknown_operator_withholds_the_time() -> None:
    found = project(counts(GEMM, row("mine.hidden", kind="U")), A100, "tf32")
    assert found.time_s is None
    assert found.reason == "uncounted_op: mine.hidden x1"


def test_few_covered_calls_withhold_the_break_even_only() -> None:
    found = project(counts(GEMM, replace(ADD, covered_calls=0)), A100, "tf32")
    assert found.time_s is not None
    assert found.break_even_host_us is None


@pytest.mark.parametrize(("gpu", "dtype"), [(L4, "bf16"), (A100, "bf16"), (H100, "tf32")])
def test_a_device_or_dtype_without_parameters_gets_a_bound_and_no_time(gpu: Any, dtype: str) -> None:
    found = project(STEP, gpu, dtype)
    assert (found.time_s, found.break_even_host_us, found.parameters, found.fewest_shapes) == (None,) * 4
    assert found.reason.startswith("field_missing")
    assert found.bound_s > 0


def test_compiled_steps_have_no_kernels_and_no_time() -> None:
    found = project(STEP, A100, "tf32", mode="inductor")
    assert found.time_s is None
    assert "torch.compile" in found.reason
    assert found.bound_s == pytest.approx(4e12 / 156e12), "FLOPs bound it, launches do not"
    assert STEP.kernels_in("inductor").value is None
    assert STEP.kernels_in("inductor").reason == found.reason
    assert STEP.kernels_in("eager") == STEP.kernels


def test_lower_bound_by_hand() -> None:
    rows = [GEMM, row("aten.add", calls=7), row("aten.detach", calls=5, kernels=0.0)]
    compute = 4e12 / 156e12
    assert lower_bound_s(rows, A100, "tf32") == pytest.approx(compute + 7 * T_MIN_S)
    assert lower_bound_s(rows, A100, "tf32", idle_flops=1e12) == pytest.approx(compute * 0.75 + 7 * T_MIN_S)
    assert lower_bound_s(rows, A100, "tf32", uncachable=1555e9) == pytest.approx(1.0)
    with pytest.raises(HardwareUnknown, match="peak_missing_for_dtype"):
        lower_bound_s(rows, A100, "fp8")


def test_the_time_is_above_the_bound() -> None:
    for step in (STEP, counts(ADD), counts(row("aten.mm", calls=100, flops=1e3, nbytes=1e3))):
        found = project(step, A100, "tf32")
        assert found.time_s is not None
        assert found.time_s.value > found.bound_s


def test_half_precision_counts_floats_at_two_bytes() -> None:
    """On an H100 in bf16 the addition moves half the bytes."""
    fit = parameter_sets()["H100 SXM"].families["elementwise"]
    found = project(counts(ADD), H100, "bf16")
    assert found.time_s is not None
    assert found.time_s.value == pytest.approx(10 * (0.5e9 / (fit.e_m * 3350e9) + fit.c_us * 1e-6))


def test_several_gpus_each_at_the_dtype_of_its_parameters() -> None:
    found = projections(STEP, {"A100-40 SXM": "bf16", "L4": "bf16"}, uncachable={"A100-40 SXM": 1e15, "L4": 300e9})
    assert [(p.gpu, p.dtype) for p in found] == [("A100-40 SXM", "tf32"), ("L4", "bf16")]
    assert found[0].bound_s < 1, "bytes meant at bf16 say nothing of tf32"
    assert found[1].bound_s == pytest.approx(1.0)


def test_rows_carry_band_shapes_and_dtype_and_never_a_utilisation() -> None:
    table = row("ctrbench.tbe", nbytes=1e12)
    gpus = {"A100-40 SXM": "bf16", "L4": "bf16"}
    base = {"run": "r", "model": "m", "phase": "train"}
    rows = projection_rows(base, projections(STEP, gpus))
    known = {(r.scope, r.metric): r for r in rows}
    assert set(known) == {
        ("A100-40 SXM", "gpu_time_bound"), ("A100-40 SXM", "gpu_time_modelled"), ("A100-40 SXM", "break_even_host_us"),
        ("L4", "gpu_time_bound"),
    }  # fmt: skip
    time = known["A100-40 SXM", "gpu_time_modelled"]
    assert time.value == pytest.approx(sum(by_hand()))
    assert (time.ci_low, time.ci_high) == (pytest.approx(time.value / 2), pytest.approx(time.value * 2))
    assert (time.dtype, time.n, time.origin, time.unit) == ("tf32", 142, "modelled", "s")
    assert known["A100-40 SXM", "break_even_host_us"].better == "up"
    withheld = projection_rows(base, projections(counts(GEMM, table), gpus))
    missing = {r.metric: r for r in withheld if r.value is None}
    assert set(missing) == {"gpu_time_modelled", "break_even_host_us"}
    assert all(r.reason.startswith("coverage_low") and r.origin == "abstained" for r in missing.values())

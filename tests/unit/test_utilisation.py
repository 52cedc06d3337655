"""MFU and MBU of a CPU by hand: useful FLOPs of a step over its time and the measured ceilings."""

from __future__ import annotations

from typing import Any

import pytest

from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.summary import Run
from ctrbench.bench.utilisation import counted_as, utilisation

BASE = {"run": "r", "model": "din", "dtype": "float32"}
COUNTED: dict[str, Any] = {
    "withheld": "", "flops_model_train": 2e9, "flops_executed_train": 3e9, "bytes_operands": 4e8,
    "bytes_compulsory": 1e8,
}  # fmt: skip
SECONDS, BATCH = 0.1, 256


def timed(*gemm_gflops: float, drift: float = 0.01, **spec: Any) -> Run:
    """A timing whose ceilings were measured before and after."""
    ceilings = [{"gemm_fp32_gflops": g, "gemm_bf16_gflops": None, "copy_gbs": 20.0} for g in gemm_gflops]
    return Run(RunSpec(kind="time", model="din", **spec), {"extra": {"ceilings": ceilings, "clock_drift": drift}})


def count(**extra: Any) -> Run:
    return Run(RunSpec(kind="count", model="din"), {"extra": COUNTED | extra})


def found(runs: list[Run], counted: list[Run]) -> dict[tuple[str, str], Any]:
    return {(r.metric, r.scope): r for r in utilisation(BASE, runs, counted, SECONDS, BATCH)}


def test_useful_flops_a_second_over_the_middle_ceiling() -> None:
    rows = found([timed(80.0, 100.0), timed(300.0, 90.0)], [count()])
    assert rows["ceiling_gemm", ""].value == 95.0  # the middle of 80, 90, 100, 300 GFLOP/s
    assert rows["mfu_cpu", ""].value == pytest.approx(2e9 / 0.1 / 95e9)
    assert rows["mbu", "bytes_operands"].value == pytest.approx(4e8 / 0.1 / 20e9)
    assert rows["mbu", "bytes_compulsory"].value == pytest.approx(1e8 / 0.1 / 20e9)
    assert rows["ceiling_copy", ""].value == 20.0
    assert {r.status for r in rows.values()} == {"ok"}


def test_what_is_not_counted_is_withheld_with_its_reason() -> None:
    for counted, why in (([], "counting process failed"), ([count(withheld="uncounted_op: x")], "uncounted_op: x")):
        rows = found([timed(80.0)], counted)
        assert {m for m, _ in rows} == {"mfu_cpu", "mbu"}
        assert all(r.value is None and why in r.reason for r in rows.values())


def test_a_moving_clock_and_another_mode_are_said() -> None:
    rows = found([timed(80.0), timed(80.0, drift=0.5)], [count()])
    assert (rows["mfu_cpu", ""].status, rows["mbu", "bytes_operands"].status) == ("unstable", "unstable")
    assert "50%" in rows["mfu_cpu", ""].reason
    moved = found([timed(80.0, compile="compile")], [count()])
    assert moved["mbu", ""].value is None
    assert moved["mfu_cpu", ""].value is not None


def test_a_count_serves_every_mode_of_its_configuration_and_no_other() -> None:
    other = timed(80.0, dtype="bfloat16").spec
    assert counted_as(other, [timed(80.0), count()]) == [count()]
    assert counted_as(timed(80.0, batch=512).spec, [count()]) == []

"""The catalogue: units and directions come from it, unknown names are refused."""

from __future__ import annotations

import pytest

from ctrbench.reports.cells import text_of
from ctrbench.reports.measures import MEASURES, _table, make, measure, withheld

BASE = {"run": "r", "model": "fat", "phase": "train", "data": "d", "track": "sequence"}
OWED = (
    "step_time", "throughput", "ops_per_step", "ops_per_sample", "kernels_per_step", "kernels_per_sample",
    "flops_fwd_per_sample", "flops_train_per_sample", "flops_elementwise", "flop_coverage", "bytes_operands",
    "bytes_compulsory", "ai_operands", "ai_compulsory", "mfu_cpu", "mbu", "mfu_bound", "infer_latency", "rss_peak",
    "cpu_core_seconds", "cpu_core_s_per_million", "bytes_raw", "bytes_shards", "bytes_tables", "bytes_optimizer",
    "bytes_checkpoint", "loader_stall", "padding_waste", "unique_row_ratio", "split_host", "break_even_host_us",
    "auc", "gauc", "logloss", "ne", "calibration", "auc_delta", "auc_per_gflop", "parameters", "train_rows",
    "ceiling_gemm", "ceiling_copy", "ceiling_cache",
)  # fmt: skip


@pytest.mark.parametrize("metric", OWED)
def test_every_owed_measure_is_declared(metric: str) -> None:
    m = MEASURES[metric]
    assert m.id == metric
    assert m.title
    assert m.unit
    assert m.words
    assert m.source


def test_make_fills_unit_and_direction() -> None:
    row = make(BASE, "step_time", 0.01, "measured", n=3)
    assert (row.unit, row.better, row.n, row.status) == ("s", "down", 3, "ok")
    assert make(BASE, "auc", 0.7, "measured").better == "up"


def test_make_lets_the_call_win_over_the_base() -> None:
    assert make(BASE, "infer_latency", 0.01, "measured", phase="infer").phase == "infer"


def test_unknown_measure_names_the_nearest() -> None:
    with pytest.raises(KeyError, match="step_time"):
        make(BASE, "step_tme", 1.0, "measured")
    with pytest.raises(KeyError, match="logloss"):
        withheld(BASE, "loglos", "because")
    with pytest.raises(KeyError, match="not declared"):
        measure("zzzzzz")


def test_two_declarations_of_one_id_are_refused() -> None:
    row = ("mine", "Mine", "s", "down", "time", "words", "source")
    with pytest.raises(ValueError, match="mine is declared twice"):
        _table(row, row)  # type: ignore[arg-type]


def test_withheld_has_no_value_and_a_reason() -> None:
    row = withheld(BASE, "mfu_cpu", "coverage_low", status="failed")
    assert (row.value, row.origin, row.status, row.reason) == (None, "abstained", "failed", "coverage_low")
    with pytest.raises(ValueError, match="reason"):
        withheld(BASE, "mfu_cpu", "")


@pytest.mark.parametrize(
    ("metric", "value", "text"),  # by hand
    [
        ("step_time", 0.0123, "12.3 ms"),
        ("step_time", 2e-6, "2.00 µs"),
        ("rss_peak", 873e6, "873 MB"),
        ("flops_train_per_sample", 1.5e9, "1.50 GFLOP"),
        ("parameters", 8.19e6, "8.19 M"),
        ("mfu_cpu", 0.358, "35.8 %"),
        ("mfu_cpu", 0.00123, "0.12 %"),
        ("auc", 0.78963, "0.7896"),
        ("ops_per_step", 1234.0, "1,234"),
        ("ai_operands", 0.0, "0"),
    ],
)
def test_values_print_in_the_style_of_their_measure(metric: str, value: float, text: str) -> None:
    assert text_of(value, metric) == text

"""The kernel-time model: the formula by hand, families, what parameters may bear a projection, the shipped file."""

from __future__ import annotations

import pytest

from ctrbench.bench.counting.kernel_time import (
    GENERIC,
    MIN_GROUPS,
    FamilyFit,
    call_seconds,
    parameter_sets,
    time_family,
)
from ctrbench.bench.hardware import HardwareUnknown, catalogue

A100 = catalogue()["A100-40 SXM"]
GEMM = FamilyFit(e_c=0.5, e_m=0.4, c_us=8.0, shapes=100, groups=50, within_2x=0.9)


@pytest.mark.parametrize(
    ("flops", "nbytes", "expected"),
    [
        (78e9, 1.0, 1e-3 + 8e-6),  # 78 GFLOP at half of 156 TFLOP/s
        (1.0, 622e6, 1e-3 + 8e-6),  # 622 MB at 0.4 of 1555 GB/s
        (78e9, 2 * 622e6, 2e-3 + 8e-6),  # the longer of the two
        (0.0, 0.0, 8e-6),
    ],
)
def test_time_of_a_call(flops: float, nbytes: float, expected: float) -> None:
    assert call_seconds(GEMM, flops, nbytes, A100, "tf32") == pytest.approx(expected, rel=1e-6)


def test_a_family_without_flops_needs_no_peak() -> None:
    fit = FamilyFit(e_c=None, e_m=1.0, c_us=3.0, shapes=1, groups=1)
    assert call_seconds(fit, 1e9, 1.555e6, A100, "fp8") == pytest.approx(4e-6)
    with pytest.raises(HardwareUnknown, match="peak_missing_for_dtype"):
        call_seconds(GEMM, 1e9, 1.0, A100, "fp8")


@pytest.mark.parametrize(
    ("groups", "within", "usable"), [(MIN_GROUPS, 0.85, True), (MIN_GROUPS - 1, 1.0, False), (99, 0.84, False)]
)
def test_what_may_bear_a_projection(groups: int, within: float, usable: bool) -> None:
    fit = FamilyFit(e_c=None, e_m=1.0, c_us=3.0, shapes=200, groups=groups, within_2x=within)
    assert fit.usable is usable


def test_the_stand_in_bears_nothing() -> None:
    assert not GENERIC.usable
    assert not FamilyFit(e_c=None, e_m=1.0, c_us=3.0, shapes=99, groups=99).usable, "no error was ever measured"


@pytest.mark.parametrize(
    ("op", "family"),
    [
        ("aten::addmm", "gemm"),
        ("aten.addmm", "gemm"),
        ("aten::add_", "elementwise"),
        ("aten.add_", "elementwise"),
        ("aten::cat", "copy"),
        ("aten::copy_", "copy"),
        ("aten::native_layer_norm", "norm"),
        ("aten::native_layer_norm_backward", "norm_backward"),
        ("aten::_softmax_backward_data", "norm_backward"),
        ("aten::sum", "reduction"),
        ("ctrbench::tbe", "table_forward"),
        ("ctrbench.tbe_backward", "table_backward"),
        ("fbgemm::split_embedding_codegen_lookup_rowwise_adagrad_function", "table_forward"),
        ("torch::autograd::CppNode<SplitLookupFunction_rowwise_adagrad_Op>", "table_backward"),
        ("torch::autograd::CppNode<Unheard>", "other"),
        ("fb::offsets_range", "other"),
        ("aten::view", "view"),
        ("autograd::engine::evaluate_function: MulBackward0", "other"),
    ],
)
def test_family_of_an_operator_by_name(op: str, family: str) -> None:
    assert time_family(op) == family


def test_shipped_parameters_name_catalogued_devices_and_their_source() -> None:
    sets = parameter_sets()
    assert {g for g, s in sets.items() if s.origin == "fitted"} == {"A100-40 SXM", "V100 SXM2"}
    assert {g for g, s in sets.items() if s.origin == "cited"} == {"H100 SXM", "MI300X"}
    for gpu, found in sets.items():
        assert found.dtype in catalogue()[gpu].peak_tflops
        assert found.source in found.id
        assert (found.recordings == 1) is (found.origin == "fitted")
        for family in ("gemm", "elementwise"):
            assert found.families[family].usable, (gpu, family)
        for family, fit in found.families.items():
            assert 0 < fit.e_m <= 1, (gpu, family)
            assert (fit.e_c is None) is (family != "gemm"), (gpu, family)
            assert fit.shapes >= fit.groups > 0
    assert not sets["A100-40 SXM"].families["gather"].usable

"""Five files of Nsight Compute against the values computed from the original files (../shared/traces), one by one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.ncu import looks_like_ncu, read_ncu

TRACES = Path(__file__).resolve().parents[2].parent / "shared" / "traces"
FILES = (
    "ncu/t4_copy_blocked.csv", "ncu/rtx5070_saxpy.csv", "ncu/rtx5070_gemm_tiled.csv", "ncu/a40_two_kernels.ncu-rep",
    "ncu/a100_int8_gemm.ncu-rep",
)  # fmt: skip
NAME_LENGTH = 90
"""expected.json keeps that much of a kernel's name."""

needs_recordings = pytest.mark.skipif(
    not (TRACES / "expected.json").is_file(), reason="../shared/traces is not beside this checkout"
)


def expected(file: str) -> dict[str, Any]:
    return json.loads((TRACES / "expected.json").read_text())[file]


@cache
def summary(file: str) -> dict[str, Any]:
    if file.endswith(".ncu-rep"):
        pytest.importorskip("ncu_report", reason="the extra `ncu` is not installed: .ncu-rep not tested")
    return read_ncu(TRACES / file).summary()


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value with its path; a [value, unit] pair and a list of names are one value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for at, inner in enumerate(value):
            yield from leaves(inner, (*path, at))
    else:
        yield path, value


def cases() -> list[Any]:
    return [
        pytest.param(file, path, value, id=f"{Path(file).stem}-{'-'.join(map(str, path))}")
        for file in FILES
        if (TRACES / "expected.json").is_file()
        for path, value in leaves(expected(file))
        if path[0] not in ("size", "sha256")  # of the file, not of what a reader says
    ]


@needs_recordings
@pytest.mark.parametrize(("file", "path", "value"), cases())
def test_value(file: str, path: tuple[Any, ...], value: Any) -> None:
    found: Any = summary(file)
    for key in path:
        found = found[key]
    if path[-1] == "kernel":
        found = found[:NAME_LENGTH]
    if path[-1] == "missing":
        assert set(value) <= set(found)
    else:
        assert found == value


@needs_recordings
@pytest.mark.parametrize("file", FILES)
def test_counts_cover_the_whole_file(file: str) -> None:
    """Nothing of expected.json is left out by the walk above."""
    want = expected(file)
    assert sum(want.get("sections", {}).values()) == want.get("rows", 0)
    assert len(summary(file).get("launch", [])) == want.get("launches", 0)
    assert len(summary(file).get("actions", [])) == len(want.get("actions", []))


DERIVED = {
    # file, launch: figure -> value; from the raw values of expected.json by the formulas of measures.md section 11
    ("ncu/rtx5070_saxpy.csv", 0): {"time": 292928, "dram_bytes": 134221568 + 43631104, "flops_fp32": None},
    ("ncu/rtx5070_gemm_tiled.csv", 0): {"dram_bytes": 53261312 + 3377920, "ai_dram": None, "tensor_flops": None},
    ("ncu/t4_copy_blocked.csv", 0): {"time": 21058944, "dram_bytes": 196456177859.63 * 0.021058944, "l2_bytes": None},
    ("ncu/a40_two_kernels.ncu-rep", 1): {
        "dram_bytes": 1690000256 + 328820608, "l2_bytes": 32 * 53085800, "flops_fp32": 0, "tensor_flops": 0,
        "tensor_ops_int8": None, "tensor_pipe": 53.799882972326984, "peak_dram": 96 * 7233798772.457794,
        "ai_dram": None, "peak_l2": 32 * 5915205632.336371 / 0.10032779944228375,
    },
    ("ncu/a100_int8_gemm.ncu-rep", 0): {
        "dram_bytes": 320768, "l2_bytes": 32 * 51432, "tensor_pipe": 2.32258064516129, "tensor_ops_int8": None,
        "peak_dram": 1280 * 1508923076.9230769, "flops_fp64": 0,
        "peak_l2": 32 * 4945384615.384615 / 0.020324355083459786,
    },
    ("ncu/a100_int8_gemm.ncu-rep", 1): {"tensor_ops_int8": 0, "tensor_flops": 0, "dram_bytes": 448128},
}  # fmt: skip


@needs_recordings
@pytest.mark.parametrize(("file", "launch"), DERIVED)
def test_derived_figures(file: str, launch: int) -> None:
    rows = summary(file).get("launch") or summary(file)["actions"]
    for name, value in DERIVED[file, launch].items():
        figure = rows[launch]["figures"][name]
        assert figure["value"] == (None if value is None else pytest.approx(value, rel=1e-12)), name
        assert figure["reason"].startswith("field_missing: ") if value is None else figure["basis"]


@needs_recordings
def test_peaks_of_a_run_stay_below_the_datasheet() -> None:
    """At the clocks under ncu the A100 80GB PCIe reaches its catalogued bandwidth, and less than its FLOP/s."""
    for row in summary("ncu/a100_int8_gemm.ncu-rep")["actions"]:
        assert row["figures"]["peak_fp32"]["value"] == pytest.approx(19.5e12, rel=0.3)
        assert row["figures"]["peak_dram"]["value"] == pytest.approx(1935e9, rel=0.01)


@needs_recordings
def test_peak_of_l2_is_its_slices_at_its_clock() -> None:
    """A40: 48 slices of one 32-byte sector a cycle; A100: 80 slices of three, at 10544 cycles in 10.4 us."""
    a40 = summary("ncu/a40_two_kernels.ncu-rep")["actions"][1]["figures"]["peak_l2"]["value"]
    assert a40 / (48 * 32) == pytest.approx(1.2e9, rel=0.05)
    a100 = summary("ncu/a100_int8_gemm.ncu-rep")["actions"][0]
    clock = 10544 / (a100["figures"]["time"]["value"] * 1e-9)
    assert a100["figures"]["peak_l2"]["value"] == pytest.approx(80 * 3 * 32 * clock, rel=0.01)


@needs_recordings
def test_ranges_of_a_report() -> None:
    assert summary("ncu/a100_int8_gemm.ncu-rep")["nvtx"] == {
        "launches_by_domain": {"default": 2}, "by_name": {"NCUTEST": {"launches": 2, "total_ns": 10400 + 322592}},
    }  # fmt: skip
    assert summary("ncu/a40_two_kernels.ncu-rep")["nvtx"] is None
    assert summary("ncu/rtx5070_saxpy.csv")["nvtx"] is None


@needs_recordings
def test_device_verdict_and_refusals() -> None:
    assert summary("ncu/a40_two_kernels.ncu-rep")["device"] == "NVIDIA A40"
    assert summary("ncu/a100_int8_gemm.ncu-rep")["device"] == "NVIDIA A100 80GB PCIe"
    for file in FILES:
        found = summary(file)
        assert found["verdict"] is None
        assert any(reason.startswith("device_unknown") for reason in found["refusals"]) == (found["device"] is None)


@needs_recordings
@pytest.mark.parametrize("file", FILES)
def test_gzipped_input_and_recognition(file: str, tmp_path: Path) -> None:
    raw = (TRACES / file).read_bytes()
    assert looks_like_ncu(file, raw[:4096])
    packed = tmp_path / (Path(file).name + ".gz")
    packed.write_bytes(gzip.compress(raw, 1))
    assert looks_like_ncu(packed, packed.read_bytes()[:4096])
    summary(file)
    assert read_ncu(packed).summary() == summary(file)


@needs_recordings
def test_recordings_of_other_tools_are_not_taken_for_ncu() -> None:
    for other in [*TRACES.glob("nsys/*"), *TRACES.glob("kineto/*")]:
        assert not looks_like_ncu(other, other.read_bytes()[:4096]), other


@needs_recordings
@pytest.mark.parametrize("keep", [0, 3, 16, 1000, 50_000, 200_000, 400_000, 587_896])
def test_cut_report_is_refused(keep: int, tmp_path: Path) -> None:
    """The library reads most cut reports without an error; it gives launches without metrics."""
    pytest.importorskip("ncu_report", reason="the extra `ncu` is not installed: .ncu-rep not tested")
    cut = tmp_path / "synthetic_cut.ncu-rep"
    cut.write_bytes((TRACES / FILES[4]).read_bytes()[:keep])
    with pytest.raises(BadRecording, match=r"synthetic_cut.*(cut|begin)"):
        read_ncu(cut)


@needs_recordings
def test_altered_report_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ncu_report", reason="the extra `ncu` is not installed: .ncu-rep not tested")
    raw = bytearray((TRACES / FILES[4]).read_bytes())
    for at in range(1000, len(raw), 25_000):
        raw[at] ^= 0xFF
    altered = tmp_path / "synthetic_altered.ncu-rep"
    altered.write_bytes(raw)
    with pytest.raises(BadRecording, match="damaged"):
        read_ncu(altered)

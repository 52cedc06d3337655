"""The accelerator catalogue: dense peaks, exact names, reasons instead of guesses; the machine manifest."""

from __future__ import annotations

import getpass
import json
import socket

import pytest

from ctrbench.bench.hardware import (
    HardwareUnknown,
    catalogue,
    cpu_catalogue,
    find,
    peak,
    source_texts,
    this_machine,
)
from ctrbench.bench.hardware_page import contradictions

# measures.md section 8: dense bf16 TFLOP/s and GB/s
SECTION_8 = {
    "A100-40 SXM": (312, 1555), "A100-80 SXM": (312, 2039), "A100-80 PCIe": (312, 1935), "A10": (125, 600),
    "A40": (149.7, 696), "L4": (121, 300), "L40S": (362, 864), "RTX 4090": (165, 1008), "H100 PCIe": (756, 2000),
    "H100 SXM": (989, 3350), "H200 SXM": (989, 4800), "B200 SXM": (2250, 8000), "MI300X": (1307, 5300),
}  # fmt: skip
SPARSE_H100_SXM = 1979
"""Its bf16 peak with 2:4 sparsity, which must never be used."""


@pytest.mark.parametrize("name", SECTION_8)
def test_dense_peaks_and_bandwidth_are_those_of_the_design(name: str) -> None:
    gpu = catalogue()[name]
    assert (gpu.peak_tflops["bf16"], gpu.bandwidth_gbs) == SECTION_8[name]


def test_every_device_of_the_design_is_there() -> None:
    assert len(catalogue()) == 19
    assert {"P100 PCIe", "V100 SXM2", "T4", "RTX 3080", "RTX 5060 Ti", "RTX 5070", *SECTION_8} == set(catalogue())


def test_sparse_peaks_are_never_used() -> None:
    h100 = find("NVIDIA H100 80GB HBM3")
    assert peak(h100, "bf16") == peak(h100, "bfloat16") == 989e12 != SPARSE_H100_SXM * 1e12
    assert h100.ridge("bf16") == pytest.approx(295.2, abs=0.1)
    for gpu in catalogue().values():
        dense = gpu.peak_tflops
        assert dense.get("bf16", 0) in (dense.get("fp16", 0), 0)
        assert dense.get("fp8", 0) == 0 or 1.9 < dense["fp8"] / dense["bf16"] < 2.1


def test_unknown_devices_and_dtypes_give_a_reason() -> None:
    with pytest.raises(HardwareUnknown, match="device_unknown") as device:
        find("NVIDIA H100")
    assert device.value.reason == "device_unknown"
    for name, dtype in (("V100 SXM2", "bf16"), ("A100-80 SXM", "fp8"), ("RTX 5060 Ti", "fp32"), ("B200 SXM", "fp32")):
        with pytest.raises(HardwareUnknown) as missing:
            peak(find(name), dtype)
        assert missing.value.reason == "peak_missing_for_dtype"


def test_device_names_are_unique_and_prices_have_a_source() -> None:
    names = [n for g in catalogue().values() for n in g.device_names]
    assert len(names) == len(set(names))
    for gpu in catalogue().values():
        assert (gpu.usd_per_hour is None) == (gpu.price_source == "")


def test_every_figure_has_its_sources_and_nothing_else_has() -> None:
    known = source_texts()
    for gpu in catalogue().values():
        assert set(gpu.sources) == set(gpu.figures()), gpu.name
        for column, keys in gpu.sources.items():
            assert keys, (gpu.name, column)
            assert set(keys) <= set(known), (gpu.name, column)
    for cpu in cpu_catalogue().values():
        assert set(cpu.sources) == {"cores", "bandwidth_gbs", "llc_mb", "watts"}
        assert {key for keys in cpu.sources.values() for key in keys} <= set(known)
    used = {
        key for entry in [*catalogue().values(), *cpu_catalogue().values()] for k in entry.sources.values() for key in k
    }
    assert used == set(known), "a source that no figure names"


def test_verified_means_a_recording_or_two_sources_that_agree() -> None:
    for entry in [*catalogue().values(), *cpu_catalogue().values()]:
        assert set(entry.verified) <= set(entry.sources), entry.name
        for column in entry.verified:
            assert "rec" in entry.sources[column] or len(entry.sources[column]) > 1, (entry.name, column)
    for gpu in catalogue().values():
        assert set(gpu.contradicted) <= set(gpu.figures()), gpu.name
        for column in set(gpu.contradicted) & set(gpu.verified):
            assert "rec" in gpu.sources[column], (gpu.name, column)


def test_marks_say_how_well_a_figure_is_known() -> None:
    assert find("H100 SXM").mark("bf16") == ""
    assert find("A10").mark("bf16") == "*"
    assert find("L40S").mark("l2_mb") == "?"
    assert find("RTX 5070").mark("fp32") == "", "a recording outweighs another source"
    assert "L40S, l2_mb: 96, but 48" in "\n".join(contradictions())


def test_recorded_devices_have_the_recorded_processors() -> None:
    """smCount and compute capability of the kept recordings and of measures.md section 8."""
    seen = {
        "T4": (40, "7.5"), "V100 SXM2": (80, "7.0"), "A40": (84, "8.6"), "A100-40 SXM": (108, "8.0"),
        "A100-80 PCIe": (108, "8.0"), "RTX 3080": (68, "8.6"), "RTX 5060 Ti": (36, "12.0"), "RTX 5070": (48, "12.0"),
        "H100 SXM": (132, "9.0"), "B200 SXM": (148, "10.0"), "MI300X": (304, None),
    }  # fmt: skip
    for name, expected in seen.items():
        assert (find(name).sms, find(name).cc) == expected, name


def test_manifest_names_the_machine_and_nobody() -> None:
    here = this_machine()
    for key in (
        "cpu",
        "cores",
        "threads",
        "memory_gb",
        "governor",
        "torch",
        "torchrec",
        "fbgemm",
        "commit",
        "tf32_matmul",
    ):
        assert here[key] not in ("", None), key
    assert "dirty" in here
    text = json.dumps(here)
    words = {w.strip('",:{}[]') for w in text.split()}
    assert socket.gethostname() not in words
    assert f"/{getpass.getuser()}" not in text
    assert "/home" not in text


def test_manifest_says_what_runs_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrbench.kernels.cpu.build.library", lambda name: object() if name == "table_rows" else None)
    assert this_machine()["in_c"] == ["table_rows"]

"""Nsight Compute's CSV: both pages, units, locales, damaged rows, figures from counters; all files synthetic."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from tests.data.synthetic_ncu import METRIC, SASS, WHO, counters, line, long_form, nvtx_cell, raw_form, who

from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.ncu import looks_like_ncu, read_ncu
from ctrbench.bench.trace.ncu_table import NcuReport
from ctrbench.bench.trace.ncu_units import BadNumber, number, to_base, wrong_locale


def read(tmp_path: Path, text: str | bytes, name: str = "synthetic.csv") -> NcuReport:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_ncu(file)


def figure(report: NcuReport, name: str, launch: int = 0) -> float | None:
    return report.figures[launch][name].value


@pytest.mark.parametrize(
    ("value", "unit", "base"),
    [
        ("134.22", "Mbyte", (134_220_000, "byte", True)), ("1.5", "Kbyte", (1500, "byte", True)),
        ("2", "usecond", (2000, "ns", True)), ("10", "ms", (10_000_000, "ns", True)), ("3", "s", (3e9, "ns", True)),
        ("292928", "nsecond", (292_928, "ns", False)), ("1.41", "Ghz", (1.41e9, "hz", True)),
        ("585", "Mhz", (585e6, "hz", True)), ("1.2", "cycle/nsecond", (1.2e9, "hz", True)),
        ("196.46", "Gbyte/s", (196.46e9, "byte/s", True)), ("5", "Gbyte/second", (5e9, "byte/s", True)),
        ("5", "cycle/second", (5, "hz", False)), ("16.38", "Kbyte/block", (16_380, "byte/block", True)),
        ("32", "register/thread", (32, "register/thread", False)), ("61.84", "%", (61.84, "%", False)),
        ("7", "Mystery", (7, "Mystery", False)), ("7", "", (7, "", False)),
        ("4", "inst/cycle", (4, "inst/cycle", False)),
    ],
)  # fmt: skip
def test_units(value: str, unit: str, base: tuple[float, str, bool]) -> None:
    assert to_base(Decimal(value), unit) == base


def test_numbers() -> None:
    assert number("4,963,609,951.19") == Decimal("4963609951.19")
    assert number("1e-3") == Decimal("0.001")
    assert [number(text) for text in ("", "n/a", "nan", "(!) n/a")] == [None] * 4
    assert number("CachePreferNone") == "CachePreferNone"
    for text in ("12,34", "1,2345", "1.234.567", "65,77", "1 234"):
        with pytest.raises(BadNumber):
            number(text)


@pytest.mark.parametrize(
    ("cells", "wrong"),
    [
        (["27.595.520", "117.344"], True), (["65,77", "100"], True), (["117.344", "12"], True),
        (["117.344", "65.77"], False), (["1,234", "12"], False), (["1,234,567", "117.344"], False),
        (["0.125", "117.344"], False), (["1.234.567,89"], True), (["python", "n/a", "3"], False),
    ],
)  # fmt: skip
def test_locale_is_certain_or_refused(cells: list[str], wrong: bool) -> None:
    assert (wrong_locale(cells) is not None) == wrong


def test_raw_page_equals_the_details_page(tmp_path: Path) -> None:
    launches = [counters(), counters(gpu__time_duration__dot__sum=("ns", "30,000"))]
    wide, long = read(tmp_path, raw_form(launches, cc="9.0")), read(tmp_path, long_form(launches, cc="9.0"))
    assert (wide.format, long.format) == ("ncu-raw-csv", "ncu-csv")
    assert wide.figures == long.figures
    assert wide.launches[1].grid == (64, 2, 1)
    assert wide.launches[0].block == (128, 1, 1)
    assert (wide.launches[0].cc, wide.device) == ("9.0", "NVIDIA H100 80GB HBM3")
    assert wide.total("time").value == 40_000
    assert wide.table()["dram_bytes"].to_list() == [1.5e6, 1.5e6]


def test_figures_by_formula(tmp_path: Path) -> None:
    """counters(): fadd 1000, fmul 2000, ffma 3000, hadd 4000 ... dfma 9000; tensor bf16 1e6, fp16 2e6, tf32 3e6."""
    report = read(tmp_path, raw_form([counters()], cc="9.0"))
    fp32, fp16, fp64 = 1000 + 2000 + 2 * 3000, 2 * (4000 + 5000 + 2 * 6000), 7000 + 8000 + 2 * 9000
    want = {
        "time": 10_000, "dram_bytes": 1_500_000, "l2_bytes": 3_200_000, "flops_fp32": fp32, "flops_fp16": fp16,
        "flops_fp64": fp64, "tensor_flops": 6e6, "tensor_ops_fp8": 4e6, "tensor_ops_int8": 5e6, "tensor_pipe": 12.5,
        "flops": fp32 + fp16 + fp64 + 6e6, "ai_dram": (fp32 + fp16 + fp64 + 6e6) / 1.5e6,
        "ai_l2": (fp32 + fp16 + fp64 + 6e6) / 3.2e6, "flop_rate": (fp32 + fp16 + fp64 + 6e6) / 1e-5,
        "dram_rate": 1.5e11, "peak_fp32": 2 * 16_896 * 1.5e9, "peak_fp64": None, "peak_dram": 1280 * 2.6e9,
        "peak_l2": 5120 * 1.6e9,
    }  # fmt: skip
    assert set(want) == set(report.figures[0])
    for name, value in want.items():
        assert figure(report, name) == (None if value is None else pytest.approx(value)), name


@pytest.mark.parametrize(
    ("metric", "gone"),
    [
        ("dram__bytes_write.sum", {"dram_bytes", "ai_dram", "dram_rate"}),
        (SASS.format("ffma"), {"flops_fp32", "flops", "ai_dram", "ai_l2", "flop_rate"}),
        (SASS.format("hmul"), {"flops_fp16", "flops", "ai_dram", "ai_l2", "flop_rate"}),
        ("sm__ops_path_tensor_src_tf32_dst_fp32.sum", {"tensor_flops", "flops", "ai_dram", "ai_l2", "flop_rate"}),
        ("gpu__time_duration.sum", {"time", "flop_rate", "dram_rate"}),
        ("lts__t_sectors.sum", {"l2_bytes", "ai_l2"}),
        ("lts__cycles_elapsed.avg.per_second", {"peak_l2"}),
    ],
)
def test_a_counter_that_is_missing_is_never_zero(tmp_path: Path, metric: str, gone: set[str]) -> None:
    whole = read(tmp_path, long_form([counters()], cc="9.0")).figures[0]
    missing = read(tmp_path, long_form([{k: v for k, v in counters().items() if k != metric}], cc="9.0")).figures[0]
    for name, value in missing.items():
        if name in gone:
            assert value.value is None, name
            assert (value.reason or "").startswith("field_missing: "), name
        else:
            assert value == whole[name], name


def test_peak_of_l2_from_a_rate_and_its_share(tmp_path: Path) -> None:
    """30 % of the peak at 18e9 sectors of 32 bytes a second; a share of 0 tells nothing."""
    bare = {k: v for k, v in counters().items() if not k.startswith(("lts__t_bytes", "lts__cycles"))}
    rate = {"lts__t_sectors.sum.per_second": ("sector/s", "18,000,000,000.00")}
    share = "lts__t_sectors.avg.pct_of_peak_sustained_elapsed"
    report = read(tmp_path, long_form([bare | rate | {share: ("%", "30.00")}, bare | rate | {share: ("%", "0.00")}]))
    assert figure(report, "peak_l2") == pytest.approx(18e9 * 32 / 0.3)
    assert f"{share} is 0" in (report.figures[1]["peak_l2"].reason or "")


def ranged(form: Callable[..., str] = raw_form) -> str:
    """Three launches: in two nested ranges of the default domain, in one of another, in none."""
    cells = [(nvtx_cell("step", "layer:1"), ""), ("", nvtx_cell("copy", thread=None, domain="loader")), ("", "")]
    return form([counters()] * 3, cc="9.0", ranges=cells)


@pytest.mark.parametrize("form", [raw_form, long_form])
def test_ranges_around_a_launch(tmp_path: Path, form: Callable[..., str]) -> None:
    report = read(tmp_path, ranged(form))
    assert [launch.ranges for launch in report.launches] == [
        (("default", "step"), ("default", "layer:1")), (("loader", "copy"),), (),
    ]  # fmt: skip
    assert report.summary()["nvtx"] == {
        "launches_by_domain": {"default": 1, "loader": 1},
        "by_name": {name: {"launches": 1, "total_ns": 10_000} for name in ("layer:1", "step")},
    }
    assert not any("Range" in name for _, name in report.launches[0].metrics), "a range is no metric"
    assert ("inside step", "1 launches, 0.010 ms") in list(report.lines())


def test_the_domain_asked_for_is_the_one_that_is_summed(tmp_path: Path) -> None:
    file = tmp_path / "synthetic.csv"
    file.write_text(ranged())
    assert read_ncu(file, domain="loader").by_range() == {"copy": {"launches": 1, "total_ns": 10_000}}
    with pytest.raises(BadRecording, match=r"--domain mine: no launch is inside a range of it; the file has default, "):
        read_ncu(file, domain="mine")
    file.write_text(raw_form([counters()]))
    with pytest.raises(BadRecording, match=r"--domain mine: .* no range at all; record with --nvtx"):
        read_ncu(file, domain="mine")
    assert read_ncu(file).summary()["nvtx"] is None


def test_time_inside_a_range_is_withheld_where_a_launch_has_none(tmp_path: Path) -> None:
    untimed = {k: v for k, v in counters().items() if k != "gpu__time_duration.sum"}
    cells = [(nvtx_cell("a"), ""), (nvtx_cell("a"), "")]
    report = read(tmp_path, raw_form([counters(), untimed], ranges=cells))
    assert report.by_range() == {"a": {"launches": 2, "total_ns": None}}


def test_instruction_counters_prove_the_absence_of_tensor_work_only(tmp_path: Path) -> None:
    pipe = "sm__inst_executed_pipe_tensor_op_{}.sum"
    base = {k: v for k, v in counters().items() if "sm__ops_path" not in k}
    none = base | {pipe.format(p): ("inst", "0") for p in ("hmma", "imma", "dmma")}
    assert figure(read(tmp_path, long_form([none])), "tensor_flops") == 0
    some = none | {pipe.format("hmma"): ("inst", "4,096")}
    assert figure(read(tmp_path, long_form([some])), "tensor_flops") is None
    without_dmma = {k: v for k, v in none.items() if "dmma" not in k}
    assert figure(read(tmp_path, long_form([without_dmma], cc="8.6")), "tensor_flops") == 0
    assert figure(read(tmp_path, long_form([without_dmma], cc="8.0")), "tensor_flops") is None
    # the pipe's busy share proves nothing either way
    assert figure(read(tmp_path, long_form([base])), "tensor_flops") is None


def test_counters_by_sparsity_are_parts_of_the_whole(tmp_path: Path) -> None:
    stem = "sm__ops_path_tensor_src_bf16_dst_fp32"
    split = {f"{stem}_sparsity_{s}.sum": ("", n) for s, n in (("off", "900,000"), ("on", "100,000"))}
    both = counters() | split
    assert figure(read(tmp_path, long_form([both], cc="9.0")), "tensor_flops") == 6e6
    parts = {k: v for k, v in both.items() if k != f"{stem}.sum"}
    assert figure(read(tmp_path, long_form([parts], cc="9.0")), "tensor_flops") == 6e6
    del parts[f"{stem}_sparsity_on.sum"]
    assert figure(read(tmp_path, long_form([parts], cc="9.0")), "tensor_flops") is None


def test_rates_times_cycles_where_sums_were_not_recorded(tmp_path: Path) -> None:
    rates = {f"{SASS.format(op)}.per_cycle_elapsed": ("inst/cycle", "2.50") for op in ("fadd", "fmul", "ffma")}
    with_cycles = rates | {"smsp__cycles_elapsed.max": ("cycle", "11,034")}
    assert figure(read(tmp_path, long_form([with_cycles])), "flops_fp32") == 4 * 2.5 * 11_034
    assert figure(read(tmp_path, long_form([rates])), "flops_fp32") is None


def test_scaled_units_are_converted_and_said(tmp_path: Path) -> None:
    scaled = counters(gpu__time_duration__dot__sum=("us", "10.00"), dram__bytes_read__dot__sum=("Mbyte", "1.00"))
    report = read(tmp_path, long_form([scaled]))
    assert (figure(report, "time"), figure(report, "dram_bytes")) == (10_000, 1_500_000)
    assert "--print-units base" in report.notes[0]
    odd = read(tmp_path, long_form([counters(gpu__time_duration__dot__sum=("fortnight", "1"))]))
    assert figure(odd, "time") is None


def test_zero_traffic_gives_no_intensity(tmp_path: Path) -> None:
    none = counters(dram__bytes_read__dot__sum=("byte", "0"), dram__bytes_write__dot__sum=("byte", "0"))
    report = read(tmp_path, long_form([none], cc="9.0"))
    assert figure(report, "dram_bytes") == 0
    assert "cache" in (report.figures[0]["ai_dram"].reason or "")


def test_old_files_without_sizes_and_devices(tmp_path: Path) -> None:
    old = [c for c in WHO if c not in ("Block Size", "Grid Size", "Device", "CC")]
    text = line((*old, *METRIC)) + line(("0", "1", "p", "h", "k", "1", "7", "s", "gpu__time_duration.sum", "ns", "5"))
    launch = read(tmp_path, text).launches[0]
    assert (launch.grid, launch.block, launch.cc, launch.device_index) == (None, None, None, None)


def test_windows_shell_output_in_utf_16_and_byte_order_marks(tmp_path: Path) -> None:
    text = "==PROF== Connected\nhello\n" + long_form([counters()])
    want = read(tmp_path, text)
    assert want.facts["lines_before_header"] == 2
    for raw in (text.encode("utf-16"), text.encode("utf-8-sig"), gzip.compress(text.encode())):
        assert read(tmp_path, raw).figures == want.figures


def test_log_lines_below_the_table_are_no_rows(tmp_path: Path) -> None:
    report = read(tmp_path, long_form([counters()]) + "==PROF== Disconnected from process 1\n")
    assert report.facts["rows"] == len(counters())


def test_no_permission_is_explained(tmp_path: Path) -> None:
    log = "==PROF== Connected\n==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access counters\n"
    summary = read(tmp_path, log).summary()
    assert summary["refusals"][0].startswith("no_permission: ")
    assert "NVreg_RestrictProfilingToAdminUsers=0" in summary["refusals"][0]
    assert summary["kernels"]["launches"] is None
    assert summary["kernels"]["total_ns"] is None
    assert looks_like_ncu("run.csv", log.encode())
    assert read(tmp_path, log + long_form([counters()])).summary()["kernels"]["launches"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing of the kind\n", 'no line starts with "ID"'),
        ("==ERROR== The application returned an error code (11)\n", "ncu said: ==ERROR== The application"),
        (long_form([]), "synthetic.csv:1: a header without launches"),
        (long_form([counters()]) + long_form([counters()]), r"synthetic.csv:\d+: a second header"),
        (long_form([counters()]) + '"1","2"\n', r"synthetic.csv:\d+: 2 cells under a header of 15"),
        (long_form([counters()]) + '"1","2\n', "cut or damaged row"),
        (long_form([{"a__b.sum": ("byte", "12,34")}]), "decimal comma"),
        (long_form([{"a__b.sum": ("byte", "12 34")}]), r"synthetic.csv:2: a__b.sum: '12 34'"),
        (line((*WHO, *METRIC)) + line((*who(0), "s", "", "", "")), r"synthetic.csv:2: neither a metric nor a rule"),
        (line((*WHO, *METRIC[:3])) + line((*who(0), "s", "m", "")), "the header lacks Metric Value"),
        (line(WHO) + line(who(0)), "neither Metric Name nor metric columns"),
        (line((*WHO, "a__b.sum")) + line((*who(0), "5")), "no row of units"),
        (line((*WHO, "a__b.sum", "a__b.sum")), "names a__b.sum twice"),
        (raw_form([counters()]) + raw_form([counters()]), "a second header"),
        (raw_form([counters()]) + raw_form([counters()]).splitlines(True)[2], "launch 0 occurs twice"),
        (
            line((*WHO, *METRIC)) + "".join(line((*who(0), "s", "a__b.sum", "byte", v)) for v in ("1", "2")),
            r"synthetic.csv:3: launch 0: s / a__b.sum has two different values",
        ),
        (
            line((*WHO, *METRIC)) + "".join(line((*who(0, k), "s", k, "byte", "1")) for k in ("a", "b")),
            "launch 0 is two different kernels",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadRecording, match=message):
        read(tmp_path, text).summary()


def test_signs_of_a_cut_file_are_flagged(tmp_path: Path) -> None:
    text = long_form([counters(), counters()])
    assert read(tmp_path, text).partial == ()
    assert "no last line end" in read(tmp_path, text[:-1]).partial[0]
    shorter = "".join(text.splitlines(True)[:-1])
    assert "the last launch has" in read(tmp_path, shorter).partial[0]


def test_console_lines_give_totals_or_the_reason(tmp_path: Path) -> None:
    shown = dict(read(tmp_path, long_form([counters(), counters()], cc="9.0")).lines())
    assert shown["profiled launches"] == "2"
    assert shown["kernel time under ncu"] == "20000 ns"
    assert shown["DRAM traffic"] == "3e+06 byte"
    assert shown["tensor pipe"] == "12.5 %"
    bare = dict(read(tmp_path, long_form([{"a__b.sum": ("byte", "1")}])[:-1]).lines())
    assert bare["FLOPs"].startswith("withheld: field_missing")
    assert "device_unknown" in bare["device"]
    assert "line end" in bare["partial"]


def test_damaged_gzip_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(BadRecording, match="gzip"):
        read(tmp_path, gzip.compress(long_form([counters()]).encode())[:-20])
    with pytest.raises(BadRecording, match="no such file"):
        read_ncu(tmp_path / "absent.csv")


def test_report_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncu_report", None)
    with pytest.raises(BadRecording, match=r"pip install ctrbench\[ncu\]"):
        read(tmp_path, b"NVR\x00" + bytes(100), "synthetic.ncu-rep")


def test_other_formats_are_not_recognised() -> None:
    assert not looks_like_ncu("a.csv", b"id,name\n1,x\n")
    assert not looks_like_ncu("a.json", b'{"traceEvents": []}')
    assert not looks_like_ncu("a.json", b'==PROF== x\n{"traceEvents": []}')
    assert looks_like_ncu("a.bin", b"NVR\x00\x02")

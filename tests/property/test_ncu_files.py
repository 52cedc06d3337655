"""Nsight Compute's CSV, damaged at random (synthetic): a refusal, a missing figure or the right value, never another.

The twin is a dictionary that the test filled itself: what a cell said before anything was damaged.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.synthetic_ncu import SASS, Metrics, long_form, raw_form

from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.ncu import read_ncu
from ctrbench.bench.trace.ncu_table import NcuReport

NAMES = (
    "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum", "lts__t_sectors.sum",
    *(SASS.format(f"f{op}") for op in ("add", "mul", "fma")),
)  # fmt: skip
UNITS = {"gpu": ("ns", "usecond", "ms"), "dra": ("byte", "Kbyte", "Mbyte"), "lts": ("sector",), "sms": ("inst",)}
FACTOR = {"ns": 1, "usecond": 10**3, "ms": 10**6, "byte": 1, "Kbyte": 10**3, "Mbyte": 10**6, "sector": 1, "inst": 1}
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=True
)


@st.composite
def cell(draw: st.DrawFn, name: str) -> tuple[str, str, float]:
    """(unit, as printed with or without thousands separators, value in base units)."""
    unit = draw(st.sampled_from(UNITS[name[:3]]))
    if FACTOR[unit] == 1:
        whole = draw(st.integers(0, 10**12))
        return unit, draw(st.sampled_from((f"{whole:,}", f"{whole}", f"{whole:,}.00"))), float(whole)
    cents = draw(st.integers(0, 10**9))
    return unit, f"{cents // 100:,}.{cents % 100:02d}", cents * FACTOR[unit] / 100


@st.composite
def launches(draw: st.DrawFn) -> tuple[list[Metrics], list[dict[str, float]]]:
    """(what is written, what it means), some metrics left out."""
    written: list[Metrics] = []
    meant: list[dict[str, float]] = []
    for _ in range(draw(st.integers(1, 3))):
        chosen = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
        cells = {name: draw(cell(name)) for name in chosen}
        written.append({name: (unit, text) for name, (unit, text, _) in cells.items()})
        meant.append({name: value for name, (_, _, value) in cells.items()})
    return written, meant


def twin(meant: dict[str, float]) -> dict[str, float | None]:
    """Figures of one launch, the plain way; None where an input is missing."""

    def of(*names: str) -> list[float] | None:
        return [meant[name] for name in names] if all(name in meant for name in names) else None

    time, dram = of(NAMES[0]), of(NAMES[1], NAMES[2])
    l2, fp32 = of(NAMES[3]), of(*NAMES[4:])
    return {
        "time": time[0] if time else None,
        "dram_bytes": sum(dram) if dram else None,
        "l2_bytes": 32 * l2[0] if l2 else None,
        "flops_fp32": fp32[0] + fp32[1] + 2 * fp32[2] if fp32 else None,
        "flops": None,
    }


def read(folder: Path, text: str) -> NcuReport | None:
    file = folder / "synthetic.csv"
    file.write_bytes(text.encode())
    try:
        return read_ncu(file)
    except BadRecording:
        return None


@SETTINGS
@given(case=launches(), raw=st.booleans(), noise=st.integers(0, 5))
def test_whole_files_are_read_exactly(
    tmp_path: Path, case: tuple[list[Metrics], list[dict[str, float]]], raw: bool, noise: int
) -> None:
    written, meant = case
    if raw:  # one unit a column
        units = [{name: unit for name, (unit, _) in launch.items()} for launch in written]
        if any(a[name] != b[name] for a in units for b in units for name in a.keys() & b.keys()):
            return
    head = "".join(f"step {i}: loss, {i},5\n" for i in range(noise))
    report = read(tmp_path, head + (raw_form if raw else long_form)(written))
    assert report is not None
    assert len(report.launches) == len(written)
    assert report.facts["lines_before_header"] == noise
    for found, values in zip(report.figures, meant, strict=True):
        for name, value in twin(values).items():
            assert found[name].value == (None if value is None else pytest.approx(value, rel=1e-12)), name


def never_wrong(report: NcuReport | None, meant: list[dict[str, float]]) -> None:
    """Every launch and figure that is reported is one that was written."""
    if report is None:
        return
    assert len(report.launches) <= len(meant)
    for launch, found in zip(report.launches, report.figures, strict=True):
        for name, value in twin(meant[int(launch.id)]).items():
            figure = found[name]
            assert figure.value is None or (value is not None and figure.value == pytest.approx(value, rel=1e-12))
            assert (figure.value is None) == (figure.reason is not None)


@SETTINGS
@given(case=launches(), raw=st.booleans(), data=st.data())
def test_cut_files(
    tmp_path: Path, case: tuple[list[Metrics], list[dict[str, float]]], raw: bool, data: st.DataObject
) -> None:
    written, meant = case
    if raw:
        written, meant = written[:1], meant[:1]
    text = (raw_form if raw else long_form)(written)
    kept = text[: data.draw(st.integers(0, len(text) - 1))]
    report = read(tmp_path, kept)
    never_wrong(report, meant)
    if report is not None and not kept.endswith("\n"):
        assert report.partial


@SETTINGS
@given(case=launches(), data=st.data())
def test_lost_rows(tmp_path: Path, case: tuple[list[Metrics], list[dict[str, float]]], data: st.DataObject) -> None:
    written, meant = case
    rows = long_form(written).splitlines(keepends=True)
    lost = data.draw(st.sets(st.integers(1, len(rows) - 1), max_size=5))
    never_wrong(read(tmp_path, "".join(row for i, row in enumerate(rows) if i not in lost)), meant)


@SETTINGS
@given(case=launches(), column=st.integers(0, 14), data=st.data())
def test_lost_columns(
    tmp_path: Path, case: tuple[list[Metrics], list[dict[str, float]]], column: int, data: st.DataObject
) -> None:
    """One column gone from every row, or from one row only."""
    written, meant = case
    rows = [row.rstrip("\n").split('","') for row in long_form(written).splitlines()]
    only = data.draw(st.none() | st.integers(0, len(rows) - 1))
    for number, row in enumerate(rows):
        if only in (None, number):
            del row[column]
    text = "".join('"' + '","'.join(row).strip('"') + '"\n' for row in rows)
    never_wrong(read(tmp_path, text), meant)


@SETTINGS
@given(case=launches(), data=st.data())
def test_altered_characters(
    tmp_path: Path, case: tuple[list[Metrics], list[dict[str, float]]], data: st.DataObject
) -> None:
    """Separators moved or broken inside numbers: refused, or still the same number."""
    written, meant = case
    name = data.draw(st.sampled_from(sorted(written[-1])))
    unit, printed = written[-1][name]
    at = data.draw(st.integers(0, len(printed)))
    broken = printed[:at] + data.draw(st.sampled_from((",", ".", " ", "x", "'"))) + printed[at:]
    spoiled = [*written[:-1], {**written[-1], name: (unit, broken)}]
    report = read(tmp_path, long_form(spoiled))
    if report is None:
        return
    metric = report.launches[-1].get(name)
    if metric is None or not isinstance(metric.value, float):
        never_wrong(report, meant)
    elif broken.strip() != printed:
        # a mark that makes another number of it in the same notation was not damage that anyone could see
        assert metric.value == pytest.approx(float(broken.replace(",", "")) * FACTOR[unit], rel=1e-12)
    else:
        never_wrong(report, meant)

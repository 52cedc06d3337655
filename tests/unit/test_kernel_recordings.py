"""Recordings become launches in columns and then a section of the page: nsys, Kineto and ncu, small and synthetic."""

from __future__ import annotations

import json
import runpy
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from ctrbench.bench import profile
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.trace.kernel_rows import Kernels, counted_kernels, kernel_family, recorded_kernels
from ctrbench.bench.trace.kineto import read_kineto
from ctrbench.bench.trace.ncu import read_ncu
from ctrbench.bench.trace.nsys import read_nsys
from ctrbench.bench.trace.time_split import split_of
from ctrbench.reports import kernel_rows as schema
from ctrbench.reports import records
from ctrbench.reports.block_rooflines import NO_COUNTERS
from ctrbench.reports.page import make_report, render

DATA = Path(__file__).parents[1] / "data"
_nsys, _ncu = (runpy.run_path(str(DATA / f"synthetic_{name}.py")) for name in ("nsys", "ncu"))
BASE = {"run": "k", "model": "din", "variant": "", "preset": "small", "family": "legacy", "data": "ml", "split": "time",
        "track": "sequence", "phase": "train"}  # fmt: skip
SPEC = RunSpec(kind="trace", model="din")
QUIET = Console(quiet=True)


def with_steps(path: Path) -> Path:
    """The synthetic export with two steps of ours: the first as it is, an empty and longer one behind it."""
    _nsys["write_nsys"](path)
    ours = [("iter", 0, 70), ("stage:dense", 26, 69), ("iter", 1000, 1200), ("stage:dense", 1001, 1199)]
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE NVTX_EVENTS SET start = 1 WHERE textId = 3 AND start = 5")
        db.executemany(
            "INSERT INTO NVTX_EVENTS VALUES (?, ?, 60, ?, NULL, ?, 1, NULL, NULL, NULL, NULL)",
            [(start, end, text, _nsys["TID"]) for text, start, end in ours],
        )
        db.commit()
    return path


def totals(found: Kernels) -> pd.DataFrame:
    table = found.table
    return table[(table["view"] == schema.TOTAL) & (table["kind"] != schema.RANGE)]


def test_kernels_of_an_export_without_steps_have_places_and_no_timeline(tmp_path: Path) -> None:
    recording = read_nsys(_nsys["write_nsys"](tmp_path / "a.sqlite"))
    found = recorded_kernels(BASE, recording, None, "imported")
    rows = totals(found)
    assert found.facts["steps"] is None
    assert found.facts["withheld"]["timeline"] == "the recording marks no step"
    assert {(r["kind"], r["stage"], r["launches"], r["duration_ns"]) for r in rows.to_dict("records")} == {
        ("kernel", "embedding", 1, 100), ("kernel", "other", 1, 150), ("memcpy", "other", 1, 100),
    }  # fmt: skip
    assert not (found.table["view"] == schema.STEP).any()


def test_an_export_goes_through_profile_into_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The split by leaving components out trains a model; the export has none.
    monkeypatch.setattr(profile, "_left_out", lambda *_: [])
    monkeypatch.setattr(profile, "_work", lambda _: {"withheld": "uncounted_op: mine::fused x1", "by_block": []})
    folder = tmp_path / "records" / "k"
    folder.mkdir(parents=True)
    file = with_steps(folder / "nsys.sqlite")
    rows, extra = profile._ingest(BASE, SPEC, [file], "imported", QUIET)
    spec = {**BASE, "kind": "trace", "tracer": "nsys"}
    records.save(records.RunRecord(key="k", spec=spec, rows=tuple(rows), extra=extra), tmp_path)
    kernels = schema.load([tmp_path])
    step = kernels[kernels["view"] == schema.STEP]
    # the second step launches nothing
    assert {(r["kind"], r["stage"], r["lane"], r["start_ns"], r["duration_ns"]) for r in step.to_dict("records")} == {
        ("range", "embedding", "thread 1", 1, 24), ("range", "dense", "thread 1", 26, 43),
        ("kernel", "embedding", "device 0, stream 7", 100, 100), ("kernel", "dense", "device 0, stream 7", 300, 150),
        ("memcpy", "dense", "device 0", 500, 100),
    }  # fmt: skip
    report = make_report(*records.load(tmp_path), kernels)
    mine = next(s for s in report.sections if s.id == "kernels")
    assert [e.title for e in mine.exhibits] == [
        "Recordings", "Timeline", "Treemap", "Sizes", "Roofline by block: withheld",
    ]  # fmt: skip
    assert {e.group for e in mine.exhibits[1:]} == {"DIN on ml, Tesla T4 (nsys)"}
    assert mine.exhibits[0].table["Launches / step"].iloc[0].value == 2, "of the step that launched any"
    assert mine.exhibits[-1].table["Reason"].iloc[0] == f"uncounted_op: mine::fused x1; {NO_COUNTERS}"
    page = render(report)
    assert "device 0, stream 7" in page
    for secret in _nsys["SECRETS"]:
        assert secret not in page


def event(name: str, cat: str, ts: float, dur: float) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 1, "tid": 1}


def kineto(path: Path, ops: Mapping[str, tuple[float, float]], steps: int = 1) -> Path:
    """`steps` equal steps of 100 us with these operators in the block `tower`."""
    events = []
    for at in range(0, 1000 * steps, 1000):
        ranges = {"iter": (0, 100), "stage:dense": (1, 99), "stage:dense/block:tower": (2, 97)}
        events += [event(f"ctrbench/{n}", "user_annotation", at + a, d) for n, (a, d) in ranges.items()]
        events += [event(n.split("#")[0], "cpu_op", at + a, d) for n, (a, d) in ops.items()]
    path.write_text(json.dumps({"traceEvents": events}))
    return path


def test_an_operator_that_holds_another_is_no_launch(tmp_path: Path) -> None:
    ops = {
        "aten::linear": (10, 30), "aten::t": (11, 2), "aten::addmm": (15, 20), "aten::expand": (16, 1),
        "AddmmBackward0": (50, 20), "aten::mm": (52, 5), "mine::fused": (80, 5),
    }  # fmt: skip
    recording = read_kineto(kineto(tmp_path / "a.json", ops, steps=3))
    found = recorded_kernels(BASE, recording, split_of(recording), "measured")
    by_name = totals(found).groupby("name")[["launches", "duration_ns"]].sum().to_dict("index")
    assert {n: v["launches"] for n, v in by_name.items()} == {
        "aten::linear": 0, "aten::t": 0, "aten::addmm": 3, "aten::expand": 0, "AddmmBackward0": 0, "aten::mm": 3,
        "mine::fused": 3,
    }  # fmt: skip
    assert by_name["aten::linear"]["duration_ns"] == 3 * 8_000, "without what runs inside"
    assert by_name["aten::addmm"]["duration_ns"] == 3 * 19_000
    assert set(totals(found)["block"]) == {"tower"}
    step = found.table[found.table["view"] == schema.STEP]
    assert set(step["step"]) == {1}, "the middle one of three equal steps"
    assert step.set_index("name").loc["aten::addmm", ["start_ns", "duration_ns"]].tolist() == [15_000, 20_000]
    assert "aten::t" not in set(step["name"])
    whole = found.table[(found.table["view"] == schema.TOTAL) & (found.table["kind"] == schema.RANGE)]
    assert int(whole["duration_ns"].sum()) == 3 * 100_000, "exclusive times add up to the steps"


def test_a_recording_of_ranges_alone_withholds_launches(tmp_path: Path) -> None:
    recording = read_kineto(kineto(tmp_path / "a.json", {}))
    found = recorded_kernels(BASE, recording, split_of(recording), "measured")
    assert "neither kernels nor operators" in found.facts["withheld"]["launches"]
    assert set(found.table["kind"]) == {schema.RANGE}


def ncu(path: Path, *launches: Mapping[str, tuple[str, str]], blocks: Sequence[str] = ()) -> Path:
    """Launches with counters, each in our range of a block if any are named."""
    cells = [("", _ncu["nvtx_cell"]("iter", f"block:{b}", thread=None, domain="ctrbench")) for b in blocks]
    path.write_text(_ncu["raw_form"](launches, cc="9.0", ranges=cells))
    return path


def test_counters_go_through_profile_under_the_roofs_of_the_device(tmp_path: Path) -> None:
    folder = tmp_path / "records" / "k"
    folder.mkdir(parents=True)
    whole = _ncu["counters"]()
    lacking = {n: v for n, v in whole.items() if not n.startswith("dram__bytes_")}
    files = [ncu(folder / "ncu-dense.csv", whole, whole), ncu(folder / "ncu-backward.csv", whole, lacking)]
    rows, extra = profile._ingest(BASE, SPEC, files, "imported", QUIET)
    spec = {**BASE, "kind": "trace", "tracer": "ncu"}
    records.save(records.RunRecord(key="k", spec=spec, rows=tuple(rows), extra=extra), tmp_path)
    kernels = schema.load([tmp_path])
    dense = kernels[kernels["stage"] == "dense"].iloc[0]
    assert (dense["launches"], dense["duration_ns"], dense["dram_bytes"], dense["l2_bytes"]) == (
        2, 20_000, 3e6, 2 * 32e5,
    )  # fmt: skip
    assert kernels[kernels["stage"] == "backward"]["dram_bytes"].isna().all(), "one launch lacks the counter"
    roofs = {r["name"]: (r["value"], r["origin"]) for r in extra["kernels"]["roofs"]}
    assert roofs["H100 SXM DRAM"] == (3350e9, "cited")
    assert roofs["DRAM at the recorded clocks"] == (1280 * 2.6e9, "imported")
    report = make_report(*records.load(tmp_path), kernels)
    mine = next(s for s in report.sections if s.id == "kernels")
    roof = next(e for e in mine.exhibits if e.title == "Roofline by block")
    assert "By stage alone: the files name no NVTX range" in roof.note
    assert roofs["L2 at the recorded clocks"] == (5120 * 1.6e9, "imported")
    assert roofs["H100 SXM L2"] == (8986e9, "cited")
    lines = {t.name: t.line.dash for t in roof.figures[0][1].data if t.mode == "lines"}
    assert {dash for name, dash in lines.items() if " L2" in name or name.startswith("L2")} == {"dash"}
    assert sum(dash == "solid" for dash in lines.values()) == 2, "DRAM at the recorded clocks, and of the catalogue"
    cells = roof.table.set_index("Block")
    assert cells.loc["dense", "Intensity (DRAM)"].value == pytest.approx(dense["flops"] / 3e6)
    assert cells.loc["backward", "Intensity (DRAM)"].reason.startswith("field_missing")
    assert cells.loc["backward", "Intensity (L2)"].value == pytest.approx(dense["flops"] / 64e5)
    assert len(roof.figures) == 1
    assert "Timeline" not in {e.title for e in mine.exhibits}
    assert "replays kernels one by one" in mine.exhibits[0].table["Note"].iloc[0]


def test_counters_are_told_by_block_where_ranges_were_recorded(tmp_path: Path) -> None:
    whole = _ncu["counters"]()
    file = ncu(tmp_path / "ncu-dense.csv", whole, whole, whole, blocks=("tower", "head", "tower"))
    found = counted_kernels(BASE, {"dense": read_ncu(file)})
    rows = found.table.set_index("block")
    assert rows["launches"].to_dict() == {"tower": 2, "head": 1}
    assert rows.loc["tower", "dram_bytes"] == 3e6
    assert set(rows["stage"]) == {"dense"}
    assert "blocks" not in found.facts["withheld"]


def test_a_device_without_a_known_l2_has_no_roof_of_it(tmp_path: Path) -> None:
    bare = {n: v for n, v in _ncu["counters"](device__attribute_display_name=("", "Tesla T4")).items()
            if not n.startswith("lts__c")}  # fmt: skip
    found = counted_kernels(BASE, {"dense": read_ncu(ncu(tmp_path / "a.csv", bare))})
    assert found.facts["withheld"]["l2_roof"].startswith("neither the counters recorded nor the catalogue")
    assert {r["level"] for r in found.facts["roofs"]} == {"", "dram"}


def test_a_device_that_nobody_knows_has_no_cited_roof(tmp_path: Path) -> None:
    launch = _ncu["counters"](device__attribute_display_name=("", "Imaginary 9000"))
    found = counted_kernels(BASE, {"dense": read_ncu(ncu(tmp_path / "a.csv", launch))})
    assert {r["origin"] for r in found.facts["roofs"]} == {"imported"}
    assert "device_unknown" in found.facts["withheld"]["roofs"]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("ampere_sgemm_128x64_tn", "gemm"), ("void cutlass::Kernel<x>(y)", "gemm"),
        ("void at::native::vectorized_elementwise_kernel<4>", "elementwise"),
        ("void at::native::reduce_kernel<512>", "reduction"), ("ncclDevKernel_AllReduce", "nccl"),
        ("split_embedding_codegen_forward", "embedding"), ("void multi_tensor_apply_kernel<x>", "optimizer"),
        ("flash_fwd_kernel", "attention"), ("void mystery<1>", "other"),
    ],
)  # fmt: skip
def test_families_by_name(name: str, family: str) -> None:
    assert kernel_family(name) == family
    assert kernel_family(name, "memcpy") == "memcpy"

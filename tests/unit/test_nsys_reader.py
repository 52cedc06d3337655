"""Small synthetic exports of Nsight Systems for what the recorded ones lack or hide, and files that are none."""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from ctrbench.bench.suites.synthetic_traces import (
    GRAPH_TRACE,
    KERNEL,
    MEMCPY,
    MEMSET,
    RUNTIME,
    thread_id,
    write_nsys,
)
from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.command import read, run_trace
from ctrbench.bench.trace.nsys import read_nsys
from ctrbench.bench.trace.recording import Recording
from ctrbench.bench.trace.table import kernel_table
from ctrbench.bench.trace.time_split import split_of

STRINGS = ("k", "cudaLaunchKernel_v7000", "cudaGraphLaunch_v10000", "step", "block", "cudaMemcpyAsync_v3020")


def kernel(start: int, end: int, correlation: int, process: int = 9, **more: Any) -> dict[str, Any]:
    return {"start": start, "end": end, "deviceId": 0, "streamId": 7, "correlationId": correlation,
            "globalPid": thread_id(process), "shortName": 0} | more  # fmt: skip


def call(
    start: int, end: int | None, correlation: int, name: int = 1, thread: int = 9, process: int = 9
) -> dict[str, Any]:
    return {"start": start, "end": end, "globalTid": thread_id(process, thread), "correlationId": correlation,
            "nameId": name, "eventClass": 0}  # fmt: skip


def nvtx(
    start: int | None, end: int | None, text: str, *, kind: int = 59, thread: int = 9, **more: Any
) -> dict[str, Any]:
    row = {
        "start": start,
        "end": end,
        "eventType": kind,
        "text": text,
        "globalTid": thread_id(9, thread),
        "domainId": 0,
    }
    return row | more


def export(folder: Path, tables: dict[str, Any], name: str = "synthetic.sqlite", **more: Any) -> Recording:
    return read_nsys(write_nsys(folder / name, tables, STRINGS, **more))


def test_one_correlation_id_in_two_processes_links_within_each(tmp_path: Path) -> None:
    found = export(tmp_path, {
        KERNEL: [kernel(100, 110, 5, process=9), kernel(200, 230, 5, process=8), kernel(300, 301, 5, process=7)],
        RUNTIME: [call(10, 12, 5, process=8), call(20, 22, 5, process=9)],
    })  # fmt: skip
    assert found.call_of.tolist() == [1, 0, -1]
    assert found.summary()["link"]["unlinked"] == 1


def test_two_rows_of_one_call_count_once_and_the_first_gives_the_times(tmp_path: Path) -> None:
    rows = [call(10, 20, 5), call(11, 19, 5), call(30, 31, 6)]
    summary = export(tmp_path, {KERNEL: [kernel(100, 110, 5)], RUNTIME: rows}).summary()
    assert summary["api"]["launches"] == {"cudaLaunchKernel": 3}
    assert summary["link"]["kernel_launch_api"] == {"cudaLaunchKernel": 1}
    assert summary["link"]["correlation_shared_by_several_api_rows"] == 1
    assert summary["idle_split_by_device"]["0"]["min_launch_to_start_ns"] == 90


def test_start_end_ranges_belong_to_the_thread_that_started_them(tmp_path: Path) -> None:
    """Ranges may overlap, and end on another thread."""
    tables = {
        KERNEL: [kernel(100, 110, 1), kernel(120, 150, 2), kernel(160, 161, 3)],
        RUNTIME: [call(10, 12, 1), call(30, 32, 2), call(50, 52, 3, thread=10)],
        "NVTX_EVENTS": [
            nvtx(5, 31, "a", kind=60, endGlobalTid=thread_id(9, 10)),
            nvtx(8, 60, "b", kind=60, endGlobalTid=thread_id(9, 9)),
        ],
    }
    found = export(tmp_path, tables).summary()["nvtx"]
    # "a" ended while the second call ran, and the third call is of another thread
    assert {n: (r["ops"], r["gpu_ns"]) for n, r in found["by_name"].items()} == {"b": (2, 40), "a": (1, 10)}
    assert found["ended_on_another_thread"] == 1
    assert found["linked_gpu_ops_outside_any_range"] == 1


def test_open_ranges_own_nothing_and_are_flagged(tmp_path: Path) -> None:
    tables = {
        KERNEL: [kernel(100, 110, 1)], RUNTIME: [call(10, 12, 1)],
        "NVTX_EVENTS": [nvtx(-50, None, "open"), nvtx(-5, 20, "negative start")],
    }  # fmt: skip
    summary = export(tmp_path, tables).summary()
    assert summary["nvtx"]["open_ranges"] == 1
    assert summary["nvtx"]["by_name"].keys() == {"negative start"}
    assert summary["nvtx"]["gpu_ops_inside_a_range"] == 1
    assert "1 ranges without an end" in summary["refusal_notes"]["field_missing"]


def test_names_in_text_and_in_string_ids_domains_categories_marks_and_threads(tmp_path: Path) -> None:
    rows = [
        nvtx(0, 10, "by text"),
        nvtx(0, 10, "x") | {"text": None, "textId": 4, "domainId": 3},
        nvtx(0, None, "ctrbench", kind=75, domainId=3), nvtx(0, None, "dense", kind=33, domainId=3, category=1),
        nvtx(2, None, "here", kind=34), nvtx(None, None, "autograd", kind=39), nvtx(0, 10, "theirs", domainId=4),
    ]  # fmt: skip
    summary = export(tmp_path, {"NVTX_EVENTS": rows}).summary()
    found = summary["nvtx"]
    assert (found["name_in_text"], found["name_in_textId"]) == (2, 1)
    assert found["domains"] == {"3": "ctrbench"}
    assert (found["categories"], found["named_threads"], found["marks"]) == (["dense"], ["autograd"], 1)
    # ranges of the default domain and of ours; a domain without a name is somebody else's
    assert found["by_name"].keys() == {"by text", "block"}
    assert found["by_name"]["block"]["host_ns"] == 10
    assert found["by_name"]["block"]["ops"] is None
    assert summary["refusals"] == ["no_kernel_table"]
    assert summary["kernels"]["launches"] is None
    assert found["gpu_ops_inside_a_range"] is None


def test_a_graph_launch_owns_its_kernels_in_the_step_of_its_call(tmp_path: Path) -> None:
    tables = {
        KERNEL: [kernel(100 + 10 * i, 105 + 10 * i, 5, graphNodeId=i) for i in range(4)] + [kernel(500, 510, 6)],
        RUNTIME: [call(10, 90, 5, name=2), call(300, 310, 6)],
        "NVTX_EVENTS": [nvtx(0, None, "ctrbench", kind=75, domainId=1), nvtx(5, 95, "iter", domainId=1),
                        nvtx(290, 320, "iter", domainId=1)],
    }  # fmt: skip
    summary = export(tmp_path, tables).summary()
    assert summary["steps"]["kernels_per_step"] == [4, 1]
    assert summary["steps"]["launch_calls_per_step"] == [1, 1]
    assert summary["steps"]["kernels_from_graph_launch"] == 4
    assert summary["kernels"]["with_graph_node"] == 4
    # the kernels of a graph run on after its call: the gap before the last kernel is that of its own late launch
    assert summary["idle_split_by_device"]["0"]["idle_host_late_ns"] == 500 - 135 - (500 - max(300 + 90, 310))


def test_graphs_traced_as_a_whole_withhold_all_device_figures(tmp_path: Path) -> None:
    tables = {
        KERNEL: [kernel(100, 110, 1)], RUNTIME: [call(10, 12, 1)],
        GRAPH_TRACE: [{"start": 200, "end": 300, "deviceId": 0, "correlationId": 2, "globalPid": thread_id(9)}],
    }  # fmt: skip
    summary = export(tmp_path, tables).summary()
    assert summary["refusals"] == ["graph_trace_only"]
    assert "--cuda-graph-trace=node" in summary["refusal_notes"]["graph_trace_only"]
    assert set(summary["kernels"].values()) == {None}
    assert summary["gpu_time_by_device"] is None
    assert summary["verdict"] is None
    tables[KERNEL].append(kernel(120, 130, 2, graphNodeId=1))
    assert export(tmp_path, tables, "synthetic_nodes.sqlite").summary()["kernels"]["launches"] == 2


def test_unified_memory_copies_are_left_out_of_the_unlinked_share(tmp_path: Path) -> None:
    copies = [kernel(1000 + i, 1001 + i, 0, bytes=4096, copyKind=11 + i % 3) for i in range(30)]
    tables = {KERNEL: [kernel(100, 110, 1)], MEMCPY: copies, RUNTIME: [call(10, 12, 1)]}
    summary = export(tmp_path, tables).summary()
    assert summary["link"]["unlinked_share"] == 0
    assert summary["link"]["unified_memory"] == 30
    assert summary["memcpy"]["bytes"] == 30 * 4096
    copies[0]["copyKind"] = 1
    again = export(tmp_path, tables, "synthetic_unlinked.sqlite").summary()
    assert again["link"]["unlinked_share"] == 0.5
    assert "unlinked_share" in again["refusals"]
    assert again["verdict"] is None
    assert again["gpu_time_by_range"] is None


def test_the_unlinked_limit_is_five_percent(tmp_path: Path) -> None:
    for n, refused in ((20, []), (19, ["unlinked_share"])):
        kernels = [kernel(100 * i, 100 * i + 5, i) for i in range(n)]
        calls = [call(100 * i - 50, 100 * i - 40, i) for i in range(1, n)]
        found = export(tmp_path, {KERNEL: kernels, RUNTIME: calls}, f"synthetic_{n}.sqlite").summary()
        assert found["refusals"] == refused


def test_missing_tables_are_not_recorded_and_empty_ones_hold_nothing(tmp_path: Path) -> None:
    summary = export(tmp_path, {KERNEL: [kernel(100, 110, 1)], MEMSET: [], RUNTIME: [call(10, 12, 1)]}).summary()
    assert summary["memset"]["count"] == 0
    assert summary["memcpy"]["count"] is None
    assert summary["memcpy"]["reason"] == "field_missing"
    empty = export(tmp_path, {KERNEL: [], RUNTIME: [call(10, 12, 1)]}, "synthetic_empty.sqlite").summary()
    assert empty["kernels"]["launches"] is None
    assert empty["refusals"] == ["no_kernel_table"]


def test_a_call_without_an_end_withholds_the_verdict(tmp_path: Path) -> None:
    tables = {
        KERNEL: [kernel(100, 110, 1)], RUNTIME: [call(10, None, 1)], "NVTX_EVENTS": [nvtx(0, 50, "r")],
    }  # fmt: skip
    summary = export(tmp_path, tables).summary()
    assert summary["verdict"] is None
    assert "1 calls without an end" in summary["refusal_notes"]["field_missing"]
    assert summary["nvtx"]["gpu_ops_inside_a_range"] == 0


def test_names_that_the_file_lacks_are_flagged(tmp_path: Path) -> None:
    tables = {KERNEL: [kernel(100, 110, 1, shortName=99), kernel(120, 130, 2, shortName=None, demangledName=0)],
              RUNTIME: [call(10, 12, 1), call(20, 22, 2, name=77)]}  # fmt: skip
    summary = export(tmp_path, tables).summary()
    assert summary["kernels"]["launches"] == 2
    assert {name for name, _, _ in summary["kernels"]["top_by_time"]} == {"(no name in the file)", "k"}
    assert summary["refusal_notes"]["field_missing"] == "1 kernels without a name, 1 calls without a name"
    assert summary["verdict"] is None


def test_events_that_the_tool_collected_but_the_file_lacks_are_flagged(tmp_path: Path) -> None:
    told = [{"severity": 1, "text": "Number of CUDA events collected: \t9."}]
    tables = {KERNEL: [kernel(100, 110, 1)], RUNTIME: [call(10, 12, 1)], "DIAGNOSTIC_EVENT": told}
    summary = export(tmp_path, tables).summary()
    assert summary["refusals"] == ["thinned_recording"]
    assert "2 of the 9 CUDA events" in summary["refusal_notes"]["thinned_recording"]
    assert summary["kernels"]["launches"] == 1
    assert summary["verdict"] is None


def test_an_unknown_schema_is_read_by_its_columns_with_a_warning(tmp_path: Path) -> None:
    tables = {KERNEL: [kernel(100, 110, 1)], RUNTIME: [call(10, 12, 1)]}
    for schema, warned in (("3.20.2", False), ("2.9.1", False), ("4.0.0", True), ("2.8.9", True), (None, True)):
        name = f"synthetic_{schema}.sqlite"
        summary = export(tmp_path, tables, name, schema=schema, without=[(KERNEL, "graphNodeId")]).summary()
        assert summary["kernels"]["launches"] == 1
        assert bool(summary["warnings"]) == warned, schema


def test_one_device_number_of_two_processes_may_be_two_gpus(tmp_path: Path) -> None:
    """CUDA_VISIBLE_DEVICES makes every process's only GPU number 0."""
    tables = {
        KERNEL: [kernel(100, 200, 1, process=8), kernel(150, 250, 1, process=9)],
        RUNTIME: [call(10, 12, 1, process=8), call(10, 12, 1, process=9)],
        "TARGET_INFO_GPU": [{"id": i, "name": f"GPU {i}"} for i in (0, 1)],
        "TARGET_INFO_CUDA_DEVICE": [{"gpuId": 0, "cudaId": 0, "pid": 8}, {"gpuId": 1, "cudaId": 0, "pid": 9}],
    }
    summary = export(tmp_path, tables).summary()
    assert {d: t["busy_ns"] for d, t in summary["gpu_time_by_device"].items()} == {"0": 100, "1": 100}
    assert summary["devices"] == {"0": "GPU 0", "1": "GPU 1"}


def test_the_split_of_a_step_is_read_from_nvtx_ranges(tmp_path: Path) -> None:
    def mine(start: int, end: int, text: str, thread: int = 9) -> dict[str, Any]:
        return nvtx(start, end, text, kind=60, thread=thread, domainId=1)

    rows = [
        nvtx(0, None, "ctrbench", kind=75, domainId=1), mine(0, 100, "iter"), mine(0, 60, "stage:dense"),
        mine(10, 30, "block:mlp"), mine(60, 99, "stage:backward"), mine(61, 98, "stage:backward", 10),
        mine(70, 90, "block:mlp", 10), nvtx(20, 25, "iter"),
    ]  # fmt: skip
    tables = {
        KERNEL: [kernel(200, 210, 1), kernel(220, 225, 2)], RUNTIME: [call(11, 12, 1), call(71, 72, 2, thread=10)],
        "NVTX_EVENTS": rows,
    }  # fmt: skip
    found = export(tmp_path, tables)
    shares = split_of(found).shares()
    assert shares["stage:dense/block:mlp"] == pytest.approx(0.2)
    assert shares["stage:backward"] == pytest.approx(0.39)
    assert split_of(found).coverage == pytest.approx(0.99)
    keys = {f"ctrbench/stage:{s}/block:mlp": ns for s, ns in (("dense", 10), ("backward", 5))}
    assert {k: row["gpu_ns"] for k, row in found.summary()["gpu_time_by_range"].items()} == keys
    table = kernel_table(found)
    assert table["path"].tolist() == list(keys)
    assert table["launch_thread"].tolist() == ["9/9", "9/10"]
    assert table["launch_to_start_ns"].tolist() == [189, 149]
    assert found.summary()["steps"]["kernels_per_step"] == [2]


def test_domain_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [nvtx(0, None, "CCCL", kind=75, domainId=2), nvtx(0, 9, "theirs", domainId=2), nvtx(0, 9, "ours")]
    path = write_nsys(tmp_path / "synthetic_domains.sqlite", {"NVTX_EVENTS": rows})
    shown = {}
    for domain in (None, "CCCL", "default"):
        assert run_trace([path], json=True, domain=domain) == 0
        shown[domain] = [*json.loads(capsys.readouterr().out)["nvtx"]["by_name"]]
    assert shown == {None: ["ours"], "CCCL": ["theirs"], "default": ["ours"]}
    assert run_trace([path], domain="CUB") == 2
    assert "no range of it; the file has CCCL, default" in capsys.readouterr().err


def test_gzip_and_content_decide_not_the_suffix(tmp_path: Path) -> None:
    plain = write_nsys(tmp_path / "a.sqlite", {KERNEL: [kernel(1, 2, 1)], RUNTIME: [call(0, 1, 1)]}, STRINGS)
    packed = tmp_path / "report.json"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    before = plain.read_bytes()
    assert read(packed).summary()["kernels"]["launches"] == read(plain).summary()["kernels"]["launches"] == 1
    assert plain.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.sqlite", "report.json"]


GOOD: dict[str, Any] = {KERNEL: [kernel(100, 110, 1)], RUNTIME: [call(10, 12, 1)]}


@pytest.mark.parametrize(
    ("tables", "without", "reason"),
    [
        (GOOD, [(KERNEL, "correlationId")], f"table {KERNEL} lacks the column correlationId"),
        (GOOD, [(RUNTIME, "globalTid")], f"table {RUNTIME} lacks the column globalTid"),
        ({KERNEL: [kernel(1, 2, 1), kernel(100, 110, 1) | {"end": None}]}, [], f"table {KERNEL}, row 2: end is NULL"),
        ({KERNEL: [kernel(100, 90, 1)]}, [], "row 1: ends before it starts"),
        ({KERNEL: [kernel(-(2**62), 2**62, 1)]}, [], "times of more than 146 years"),
        ({KERNEL: [kernel(0, 2**61, 1), kernel(0, 2**61, 2)]}, [], "times of more than 146 years"),
        ({KERNEL: [kernel(100, 110, 1, deviceId="first")]}, [], "column deviceId is no integer"),
        ({KERNEL: [kernel(100, 110, 1) | {"end": 110.5}]}, [], "column end is no integer"),
        ({"NVTX_EVENTS": [nvtx(None, 5, "r")]}, [], "row 1: the range has no start"),
        ({"NVTX_EVENTS": [nvtx(9, 5, "r")]}, [], "row 1: the range ends before it starts"),
        ({"TARGET_INFO_GPU": []}, [], "no export of Nsight Systems"),
    ],
)
def test_what_counts_rest_on_is_refused_with_table_and_column(
    tmp_path: Path, tables: dict[str, Any], without: list[tuple[str, str]], reason: str
) -> None:
    schema = None if "TARGET_INFO_GPU" in tables else "3.20.2"
    path = write_nsys(tmp_path / "synthetic_bad.sqlite", tables, STRINGS, without=without, schema=schema)
    with pytest.raises(BadRecording) as caught:
        read_nsys(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_a_damaged_page_is_refused(tmp_path: Path) -> None:
    path = write_nsys(tmp_path / "a.sqlite", {KERNEL: [kernel(i, i + 1, i) for i in range(2000)]}, STRINGS)
    with sqlite3.connect(path) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (KERNEL,)).fetchone()[0]
    raw = bytearray(path.read_bytes())
    raw[(page - 1) * 4096 : (page - 1) * 4096 + 64] = b"\x07" * 64
    path.write_bytes(raw)
    with pytest.raises(BadRecording, match="SQLite cannot read it"):
        read_nsys(path)

"""Small synthetic Kineto files for what the recorded ones lack or hide, and files that are none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctrbench.bench.trace.command import run_trace
from ctrbench.bench.trace.figures import sizes
from ctrbench.bench.trace.json_events import JsonEvents
from ctrbench.bench.trace.kineto import nanoseconds, read_kineto
from ctrbench.bench.trace.sweep import innermost
from ctrbench.bench.trace.table import kernel_table


def event(cat: str, name: str, ts: float, dur: float, *, tid: int = 7, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 7, "tid": tid, "args": args}


def gpu(name: str, ts: float, dur: float, correlation: int, cat: str = "kernel", **args: Any) -> dict[str, Any]:
    return event(cat, name, ts, dur, device=0, stream=7, correlation=correlation, **args)


def write(path: Path, events: list[dict[str, Any]], **top: Any) -> Path:
    text = json.dumps({"schemaVersion": 1, "traceEvents": events, **top})
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def test_nanoseconds_are_exact_for_integers_and_rounded_for_floats() -> None:
    big = 1_661_203_462_598_738  # above 2**50: as a float times 1000 it would lose the last digits
    assert nanoseconds(big) == big * 1000
    assert nanoseconds(1419247332972.313) == 1_419_247_332_972_313
    assert nanoseconds(0.0004) == 0


def test_missing_bytes_are_unknown_not_zero(tmp_path: Path) -> None:
    events = [
        gpu("Memcpy HtoD", 10.5, 2.0, 1, "gpu_memcpy", bytes=100),
        gpu("Memcpy HtoD", 20.5, 2.0, 2, "gpu_memcpy"),
        gpu("Memset", 30.5, 2.0, 3, "gpu_memset", bytes=8),
    ]
    recording = read_kineto(write(tmp_path / "synthetic_missing_bytes.json", events))
    summary = recording.summary()
    assert summary["memcpy"]["bytes"] is None
    assert summary["memcpy"]["without_bytes"] == 1
    assert summary["memset"]["bytes"] == 8
    assert kernel_table(recording)["bytes"].isna().tolist() == [False, True, False]
    assert summary["launch_verdict"]["0"] == {"verdict": None, "reason": "no_kernel_table"}


def test_graph_launch_owns_many_kernels_and_is_no_kernel_launch_call(tmp_path: Path) -> None:
    events = [
        event("cpu_op", "aten::replay", 0.0, 50.0),
        event("cuda_runtime", "cudaGraphLaunch_v10000", 1.0, 40.0, correlation=5),
        gpu("a", 11.0, 4.0, 5),
        gpu("b", 20.0, 5.0, 5),
        event("cuda_runtime", "cudaDeviceSynchronize", 45.0, 2.0, correlation=6),
    ]
    summary = read_kineto(write(tmp_path / "synthetic_graph.json.gz", events)).summary()
    assert summary["link"]["launch_api"] == {"cudaGraphLaunch": 2}
    assert summary["link"]["graph_launch_calls"] == 1
    assert summary["link"]["kernels_from_graph_launch"] == 2
    assert summary["kernels_by_innermost_op"] == {
        "from_graph_launch": 2, "outside_any_op": 0, "inside_an_op": 0, "distinct_ops": 0, "top12": [],
    }  # fmt: skip
    # The gap from 15 to 20 us: launched at 1 + smallest latency 10 = 11 us, so the host was not late, although its
    # call still ran until 41 us. For a plain launch call the same gap would be late.
    assert summary["idle_split_by_device"]["0"]["idle_host_late_ns"] == 0
    events[1]["name"] = "cudaLaunchKernel"
    again = read_kineto(write(tmp_path / "synthetic_plain.json", events)).summary()
    assert again["idle_split_by_device"]["0"]["idle_host_late_ns"] == 5000
    assert not again["thinned"]


def test_whole_microseconds_are_flagged_on_values_not_on_number_types(tmp_path: Path) -> None:
    whole = [gpu("k", 10, 2.0, 1), event("cpu_op", "aten::mm", 1.25, 3.0)]
    assert read_kineto(write(tmp_path / "synthetic_whole.json", whole)).whole_microseconds
    fine = [gpu("k", 10, 2.001, 1)]
    assert not read_kineto(write(tmp_path / "synthetic_fine.json", fine)).whole_microseconds


def test_unlinked_operations_withhold_the_verdict(tmp_path: Path) -> None:
    events = [gpu("k", 10.0 * i, 5.0, 100 + i) for i in range(20)]
    events += [event("cuda_runtime", "cudaLaunchKernel", 10.0 * i - 5, 2.0, correlation=100 + i) for i in range(18)]
    summary = read_kineto(write(tmp_path / "synthetic_unlinked.json", events)).summary()
    assert summary["link"]["unlinked"] == 2
    assert summary["launch_verdict"]["0"]["verdict"] is None
    assert "unlinked_share" in summary["launch_verdict"]["0"]["reason"]
    assert summary["idle_split_by_device"]["0"]["idle_unknown_ns"] == 10_000


def test_operations_overlap_and_devices_stay_apart(tmp_path: Path) -> None:
    other = gpu("k", 500.0, 1.0, 4)
    other["args"]["device"] = 1
    events = [gpu("k", 0.0, 10.0, 1), gpu("k", 5.0, 10.0, 2), gpu("k", 20.0, 1.0, 3), other]
    times = read_kineto(write(tmp_path / "synthetic_two.json", events)).summary()["gpu_time_by_device"]
    assert times["0"] == {"ops": 3, "busy_ns": 16_000, "span_ns": 21_000, "idle_share": pytest.approx(5 / 21)}
    assert times["1"]["span_ns"] == 1000


def test_innermost_prefers_the_last_started_that_holds_the_whole_call() -> None:
    names, start, end = ["t", "i", "o"], np.array([30, 10, 0]), np.array([60, 20, 100])
    found = innermost(start, end, np.array([12, 12, 40, 90]), np.array([18, 25, 50, 110]))
    assert [names[i] if i >= 0 else None for i in found] == ["i", "o", "t", None]


def test_size_classes_hold_their_upper_edge() -> None:
    classes = sizes([2_000, 2_001, 10_000, 300_000])
    assert {n: c for n, (c, _) in classes.items()} == {
        "<=2us": 0.25, "<=5us": 0.25, "<=10us": 0.25, "<=50us": 0, "<=200us": 0, ">200us": 0.25,
    }  # fmt: skip
    assert sum(t for _, t in classes.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.json", None, "no such file"),
        ("cut.json.gz", gzip.compress(b'{"traceEvents": []}' * 50, mtime=0)[:-12], "truncated or damaged gzip"),
        ("cut.json", b'{"traceEvents": [{"ph": "X"', "no whole JSON (line 1"),
        ("empty.json", b"", "empty file"),
        ("other.json", b'{"rows": 3}', "JSON without `traceEvents`"),
        ("web.json", b'{"traceEvents": [{"ph": "X", "cat": "blink", "ts": 1, "dur": 1}]}', "without a torch.profiler"),
        ("binary.json", b"\xff\xfe\x00\x01", "format not recognised"),
        ("report.nsys-rep", b"NVR", "export it with nsys export"),
        ("report.sqlite", b"SQLite format 3\x00", "no whole SQLite file"),
        ("nots.json", b'{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k", "dur": 1}]}', "event 0 (kernel)"),
        (
            "back.json",
            b'{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k", "ts": 5, "dur": -1, "args": {"device": 0}}]}',
            "dur: it is negative",
        ),
        (
            "words.json",
            b'{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k", "ts": "5", "dur": 1, "args": {"device": 0}}]}',
            "event 0 (kernel) holds a value of the wrong kind",
        ),
    ],
)
def test_what_is_no_recording_is_refused_with_file_and_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert run_trace([path]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert reason in error


def test_trace_command_prints_the_good_files_beside_a_bad_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "my_kernel [with T] :gear: [/end]"  # a console must not take any of it for markup
    events = [gpu(name, 10.0, 2.0, 1), event("cuda_runtime", "cudaLaunchKernel", 5.0, 2.0, correlation=1)]
    good = write(tmp_path / "good.json", events, deviceProperties=[{"name": "Test GPU", "numSms": 4}])
    assert run_trace([good]) == 0
    shown = capsys.readouterr().out
    assert "Test GPU" in shown
    assert name in shown
    assert '[gpu."..."]' in shown
    assert run_trace([good, tmp_path / "bad.json"], json=True) == 2
    out = capsys.readouterr()
    body = json.loads(out.out)
    assert body["file"] == str(good)
    assert body["kernels"]["launches"] == 1
    assert body["origin"] == "imported"
    # a GPU that the catalogue does not know: the message names the table to add
    assert body["catalogue"] is None
    assert body["refusals"] == ["device_unknown"]
    assert 'device_names = ["Test GPU"]' in body["refusal_notes"]["device_unknown"]
    assert "bench/hardware.toml" in body["refusal_notes"]["device_unknown"]
    assert "no such file" in out.err


def test_a_recording_without_device_events_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpu = write(tmp_path / "cpu.json", [event("cpu_op", "aten::mm", 1.0, 2.0)])
    assert run_trace([cpu]) == 0
    assert "no_kernel_table" in capsys.readouterr().out
    assert read_kineto(cpu).summary()["launch_verdict"] == {}


def test_several_files_are_one_json_object_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write(tmp_path / f"{i}.json", [gpu("k", 1.0, float(i), 1)]) for i in (1, 2)]
    assert run_trace(files, json=True) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kernels"]["total_ns"] for line in lines] == [1000, 2000]
    assert run_trace(files[:1], domain="x") == 2
    assert "Kineto JSON holds no NVTX domains" in capsys.readouterr().err


def test_figures_of_a_recording_without_kernels_are_null(tmp_path: Path) -> None:
    summary = read_kineto(write(tmp_path / "synthetic_cpu.json", [event("cpu_op", "aten::mm", 1.0, 2.0)])).summary()
    assert summary["kernels"]["launches"] is None
    assert summary["memcpy"]["bytes"] is None
    assert summary["gpu_time_by_device"] is None
    assert summary["refusals"] == ["no_kernel_table"]


@pytest.mark.parametrize("piece", [1, 7, 40, 300, 5000])
def test_pieces_hold_the_events_of_the_whole_file(tmp_path: Path, piece: int) -> None:
    """Braces, brackets and `traceEvents` inside strings and arguments are no places to cut."""
    tricky = [
        event("cpu_op", 'a}, {"b": [1, 2]', 1, 2, dims=[{"a": 1}, {"b": [{}, {}]}]),
        event("cpu_op", '"traceEvents": [', 2, 2, text="]}, {"),
        {"ph": "M", "args": {"labels": [{"x": 1}, {"y": 2}]}}, 5, None,
    ] * 9  # fmt: skip
    body = {"schemaVersion": 1, "deviceProperties": [{"id": 0}], "traceEvents": tricky, "last": [1, [2]], "name": "]"}
    for text in (json.dumps(body, indent=1), json.dumps(body, separators=(",", ":")), json.dumps(tricky)):
        pieces = JsonEvents(tmp_path / "x.json", text.encode(), piece)
        assert [e for part in pieces for e in part] == tricky
        assert pieces.top in ({k: v for k, v in body.items() if k != "traceEvents"}, {})


def test_flops_of_shapes_that_are_no_matrices_are_unknown(tmp_path: Path) -> None:
    def mm(name: str, dims: Any) -> dict[str, Any]:
        return event("cpu_op", name, 1.0, 2.0, **{"Input Dims": dims})

    events = [mm("aten::mm", [[2, 3], [3, 4]]), mm("aten::bmm", [[2, 3, 4], [2, 4, 5]]), mm("aten::bmm", [[], []])]
    found = read_kineto(write(tmp_path / "synthetic_dims.json", [*events, mm("aten::mm", [[5, 3], [3, 4]])])).summary()
    assert found["gemm_flops_from_shapes"] == {
        "aten::mm": {"calls": 2, "flops": 2 * (2 + 5) * 3 * 4}, "aten::bmm": {"calls": 2, "flops": None},
    }  # fmt: skip


def test_numbers_written_as_text_link_as_numbers(tmp_path: Path) -> None:
    """Old profilers quote their ids."""
    events = [gpu("k", 10.0, 2.0, 1), event("cuda_runtime", "cudaLaunchKernel", 5.0, 2.0, correlation="1")]
    summary = read_kineto(write(tmp_path / "synthetic_text.json", events)).summary()
    assert summary["link"]["launch_api"] == {"cudaLaunchKernel": 1}


def test_not_a_number_in_an_argument_does_not_spoil_a_file(tmp_path: Path) -> None:
    path = tmp_path / "synthetic_nan.json"
    write(path, [gpu("k", 1.0, 2.0, 1, occupancy=float("nan"))])
    assert "NaN" in path.read_text()
    assert read_kineto(path, piece=10).summary()["kernels"]["total_ns"] == 2000

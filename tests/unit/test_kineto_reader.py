"""Small synthetic Kineto files for what the recorded ones lack or hide, and files that are none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ctrbench.bench.trace.kineto import BadRecording, kernel_table, nanoseconds, read_kineto, run_trace
from ctrbench.bench.trace.recording import HostEvent, innermost, sizes


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
    outer, inner, tail = (
        HostEvent(n, s, e, (1, 1), None, None) for n, s, e in (("o", 0, 100), ("i", 10, 20), ("t", 30, 60))
    )
    found = innermost([tail, inner, outer], [(12, 18), (12, 25), (40, 50), (90, 110)])
    assert [e.name if e else None for e in found] == ["i", "o", "t", None]


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
        ("cut.json.gz", gzip.compress(b'{"traceEvents": []}' * 50)[:-12], "truncated or damaged gzip"),
        ("cut.json", b'{"traceEvents": [{"ph": "X"', "no whole JSON (line 1"),
        ("empty.json", b"", "no whole JSON"),
        ("other.json", b'{"rows": 3}', "JSON without `traceEvents`"),
        ("web.json", b'{"traceEvents": [{"ph": "X", "cat": "blink", "ts": 1, "dur": 1}]}', "without a torch.profiler"),
        ("binary.json", b"\xff\xfe\x00\x01", "format not read yet: Kineto JSON only"),
        ("report.sqlite", b"SQLite format 3\x00", "format not read yet: Kineto JSON only"),
        ("report.ncu-rep", b"NVR", "format not read yet: Kineto JSON only"),
        ("nots.json", b'{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k", "dur": 1}]}', "event 0 (kernel)"),
    ],
)
def test_what_is_no_recording_is_refused_with_file_and_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadRecording) as caught:
        read_kineto(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    assert run_trace([path]) == 2
    assert reason in capsys.readouterr().err


def test_trace_command_prints_the_good_files_beside_a_bad_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [gpu("my_kernel", 10.0, 2.0, 1), event("cuda_runtime", "cudaLaunchKernel", 5.0, 2.0, correlation=1)]
    good = write(tmp_path / "good.json", events, deviceProperties=[{"name": "Test GPU", "numSms": 4}])
    assert run_trace([good]) == 0
    shown = capsys.readouterr().out
    assert "Test GPU" in shown
    assert "my_kernel" in shown
    assert run_trace([good, tmp_path / "bad.json"], json=True) == 2
    out = capsys.readouterr()
    body = json.loads(out.out)
    assert body[str(good)]["kernels"]["launches"] == 1
    assert body[str(good)]["origin"] == "imported"
    assert "no such file" in out.err


def test_a_recording_without_device_events_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpu = write(tmp_path / "cpu.json", [event("cpu_op", "aten::mm", 1.0, 2.0)])
    assert run_trace([cpu]) == 0
    assert "no_kernel_table" in capsys.readouterr().out
    assert read_kineto(cpu).summary()["launch_verdict"] == {}

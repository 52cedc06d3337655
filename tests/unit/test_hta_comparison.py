"""The comparison with HolisticTraceAnalysis on a synthetic file; the peer's figures are planted."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.data.synthetic_hta import PLANTED, write_synthetic_file

from ctrbench.bench.peers_traces import compare, main, markdown
from ctrbench.bench.trace.hta_rules import busy_and_span, causes, figures, read_raw


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_synthetic_file(tmp_path)


def test_raw_figures_are_those_written_into_the_file(path: Path) -> None:
    raw = read_raw(path)
    assert figures(raw.operations, raw.devices) == {
        "kernels": 5,
        "kernel_ns": 10_400 + 600 + 5_000 + 7_000 + 4_000,
        "memcpy": 1,
        "memset": 0,
        "linked_kernels": 5,
        "busy_ns of device 0": 30_000,
        "idle_ns of device 0": 114_000 - 10_250 - 30_000,
    }


def test_every_rule_has_its_share(path: Path) -> None:
    found = causes(read_raw(path), everything=False)
    assert found["kernels"] == {"last step": -1, "several host events": 1}
    # 10.25 + 10.4 becomes 11 to 20, 30.2 + 0.6 becomes 31 to 30
    assert found["kernel_ns"] == {"last step": -4_000, "several host events": 7_000, "rounding": -3_000}
    assert found["memcpy"] == {"no host event": -1}
    # id 4: two host events joined with two rows; id 3: cuLaunchKernel alone
    assert found["linked_kernels"] == {"last step": -1, "several host events": 3, "launch names": -1}
    assert "memset" not in found


def test_with_the_last_step_kept_and_rounding_off_two_rules_fall_away(path: Path) -> None:
    used = {cause for shares in causes(read_raw(path), everything=True).values() for cause in shares}
    assert used == {"no host event", "several host events", "launch names"}


def test_with_one_step_nothing_is_dropped(path: Path) -> None:
    body = json.loads(path.read_text())
    body["traceEvents"] = [e for e in body["traceEvents"] if e["name"] != "ProfilerStep#2"]
    path.write_text(json.dumps(body))
    found = causes(read_raw(path), everything=False)
    assert found["linked_kernels"] == {"several host events": 1, "launch names": -1}
    assert found["kernel_ns"] == {"rounding": -3_000}
    assert found.keys().isdisjoint({"kernels", "memcpy"})


def test_whole_microseconds_are_not_rounded(path: Path) -> None:
    body = json.loads(path.read_text())
    for event in body["traceEvents"]:
        event["ts"] = int(event["ts"])
    path.write_text(json.dumps(body))
    assert "rounding" not in causes(read_raw(path), everything=False)["kernel_ns"]


def test_planted_figures_are_explained(path: Path) -> None:
    rows = {row.figure: row for row in compare(path, PLANTED)}
    assert all(row.settled and row.ours == row.raw for row in rows.values())
    assert rows["memcpy"].right == "ours"
    assert rows["memset"].right == "both"
    assert rows["busy_ns of device 0"].peer["default"].value == 20_000


def test_a_planted_error_stays_unexplained(path: Path) -> None:
    planted = {**PLANTED, "default": {**PLANTED["default"], "kernels": 8}}
    rows = {row.figure: row for row in compare(path, planted)}
    assert rows["kernels"].peer["default"].unexplained(rows["kernels"].raw) == 3
    assert not rows["kernels"].settled
    assert "**unexplained +3**" in "\n".join(markdown([rows["kernels"]], "0"))
    assert all(row.settled for figure, row in rows.items() if figure != "kernels")


def test_an_error_of_ours_is_not_settled_and_the_peer_is_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"kernels": 5, "kernel_ns": 27_000, "memcpy": 1, "memset": 1, "linked_kernels": None}
    monkeypatch.setattr("ctrbench.bench.peers_traces.our_figures", lambda path: ours)
    rows = {row.figure: row for row in compare(path, PLANTED)}
    assert (rows["memset"].right, rows["memset"].settled) == ("HTA", False)
    # withheld is no wrong number
    assert (rows["linked_kernels"].right, rows["linked_kernels"].settled) == ("neither", True)
    assert "| withheld |" in markdown([rows["linked_kernels"]], "0")[-1]


def test_time_of_several_devices_is_not_compared(tmp_path: Path) -> None:
    rows = {row.figure: row for row in compare(write_synthetic_file(tmp_path, second_device=True), PLANTED)}
    assert rows["busy_ns of device 1"].raw == rows["busy_ns of device 1"].ours == 4_000
    for setting in PLANTED:
        answer = rows["busy_ns of device 1"].peer[setting]
        assert (answer.value, answer.reason) == (None, "one figure for all devices")
    assert rows["kernels"].peer["default"].value == 5


def test_a_file_that_the_peer_cannot_read_keeps_its_rows(path: Path) -> None:
    planted = {"default": {"error": "ValueError: no"}, "everything": {"error": "ValueError: no"}}
    rows = compare(path, planted)
    assert {row.right for row in rows} == {"ours"}
    assert "ValueError: no" in "\n".join(markdown(rows, "0"))


def test_union_counts_overlaps_once_and_turned_intervals_negative() -> None:
    assert busy_and_span([(0, 10), (5, 20), (20, 25), (40, 50)]) == (35, 50)
    assert busy_and_span([(0, 10), (31, 30)]) == (9, 30)
    assert busy_and_span([]) == (0, 0)


# ------------------------------------------------------------------------- command


def planted_python(folder: Path, answer: dict[str, Any] | None) -> Path:
    """A stand-in for the peer's Python that prints a planted answer, or fails."""
    text = "echo no module named hta >&2; exit 1" if answer is None else f"echo {shlex.quote(json.dumps(answer))}"
    python = folder / "planted_python"
    python.write_text(f"#!/bin/sh\n{text}\n")
    python.chmod(0o755)
    return python


@pytest.mark.parametrize(("kernels", "code"), [(5, 0), (8, 1)])
def test_exit_code_says_whether_all_is_settled(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kernels: int, code: int
) -> None:
    answer = {**PLANTED, "default": {**PLANTED["default"], "kernels": kernels}}
    python = planted_python(tmp_path, {"version": "9.9", "files": {str(path.resolve()): answer}})
    assert main([str(path), "--peer-python", str(python)]) == code
    out, err = capsys.readouterr()
    assert out.startswith("| file | figure | raw file | ours | HTA 9.9 |")
    assert ("not settled: synthetic_every_rule.json, kernels" in err) == bool(code)


def test_wrong_input_and_a_missing_or_broken_peer_exit_2(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        (tmp_path / "none.json", planted_python(tmp_path, None), "no such file"),
        (path, tmp_path / "no_python", "make peers-traces"),
        (path, planted_python(tmp_path, None), "no module named hta"),
    ]
    for file, python, message in cases:
        assert main([str(file), "--peer-python", str(python)]) == 2
        assert message in capsys.readouterr().err

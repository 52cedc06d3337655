"""Clocks of the GPU kit and what it says of its device, with stand-ins for CUDA."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ctrbench.bench.hardware import catalogue
from ctrbench.bench.kit import device, timing


class FakeClock:
    """Steps that take what they are told by either clock."""

    def __init__(self, wall: float, event: float | None) -> None:
        self.times, self.resets = (wall, event), 0

    def __call__(self, run: Callable[[], object]) -> tuple[float, float | None]:
        run()
        return self.times

    def peak_bytes(self) -> dict[str, int] | None:
        return {"allocated": 10, "reserved": 20}

    def reset(self) -> None:
        self.resets += 1


@pytest.mark.parametrize(
    ("event", "status"), [(0.0100, "ok"), (0.0096, "ok"), (0.0094, "unstable"), (0.0107, "unstable")]
)
def test_clocks_that_disagree_by_more_than_5_percent_are_unstable(event: float, status: str) -> None:
    numbers: list[int] = []
    found = timing.time_steps(numbers.append, FakeClock(0.010, event), timing.Plan(warmup=3, most=7, seconds=60))
    assert (found["status"], found["n"], found["warmup"]) == (status, 7, 3)
    assert numbers == list(range(10))
    assert found["disagreement"] == pytest.approx(abs(event - 0.010) / 0.010)
    assert found["reason"].startswith("clock_unstable: ") == (status == "unstable")
    assert found["memory_peak"] == {"allocated": 10, "reserved": 20}
    mfu = timing.utilisation(found, 1e9, "", catalogue()["A100-40 SXM"], "tf32")
    if status == "ok":
        assert mfu["value"] == pytest.approx(1e9 / 156e12 / event)
        assert mfu["inputs"] == {"time": "measured", "flops": "counted", "peak": "cited"}
    else:
        assert (mfu["value"], mfu["origin"]) == (None, "abstained")


def test_the_time_of_a_phase_is_kept() -> None:
    def step(number: int) -> None:
        time.sleep(0.05)

    found = timing.time_steps(step, timing.WallClock(), timing.Plan(most=1000, least=2, seconds=0.3))
    assert found["warmup"] < 10
    assert 2 <= found["n"] < 20
    assert found["event_s"] is None


def test_short_steps_are_timed_in_windows_of_10_ms() -> None:
    numbers: list[int] = []

    class PerStep(FakeClock):
        def __call__(self, run: Callable[[], object]) -> tuple[float, float | None]:
            before = len(numbers)
            run()
            return (len(numbers) - before) * 0.003 + 3e-5, (len(numbers) - before) * 0.003

    found = timing.time_steps(numbers.append, PerStep(0, 0), timing.Plan(warmup=2, most=5))
    assert (found["n"], found["steps_a_window"]) == (5, 4)
    assert numbers == list(range(2 + 5 * 4))
    assert found["event_s"]["p50"] == pytest.approx(0.003)
    assert found["wall_s"]["p50"] == pytest.approx(0.003 + 3e-5 / 4)


def test_no_mfu_without_a_peak_or_a_device() -> None:
    found = timing.time_steps(lambda n: None, FakeClock(0.01, 0.01), timing.Plan())
    for gpu, dtype, flops, why in (
        (None, "tf32", 1e9, "device_unknown"), (catalogue()["B200 SXM"], "tf32", 1e9, "peak_missing_for_dtype"),
        (catalogue()["A100-40 SXM"], "tf32", None, "uncounted_op"), (catalogue()["T4"], "fp32", 1e12, "clock_unstable"),
    ):  # fmt: skip
        mfu = timing.utilisation(found, flops, "uncounted_op: x", gpu, dtype)
        assert mfu["value"] is None
        assert mfu["reason"].startswith(why)


def test_the_event_clock_flushes_waits_and_measures_in_that_order(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            said.append("event")

        def elapsed_time(self, end: Event) -> float:
            return 2.5  # ms

    class Buffer:
        def zero_(self) -> None:
            said.append("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: said.append("wait"))
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: Buffer())
    wall, event = timing.EventClock(torch.device("cuda:0"))(lambda: said.append("run"))
    assert said == ["flush", "wait", "event", "run", "event", "wait"]
    assert event == pytest.approx(0.0025)
    assert 0 < wall < 1


def test_a_cuda_device_is_named_without_its_serial_number(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def smi(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "570.86\n", "")

    properties = SimpleNamespace(
        name="NVIDIA A100-SXM4-40GB", major=8, minor=0, multi_processor_count=108, total_memory=42_000_000_000,
        uuid="1234-5678",
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(device.subprocess, "run", smi)
    found = device.cuda_device()
    assert (found["catalogue"], found["dtype"], found["driver"]) == ("A100-40 SXM", "tf32", "570.86")
    assert "1234-5678" not in json.dumps(found)
    assert all("--id=GPU-1234-5678" in command for command in asked)
    properties.name, properties.major = "NVIDIA Imaginary", 7
    other = device.cuda_device()
    assert (other["catalogue"], other["dtype"]) == (None, "fp32")
    assert other["catalogue_reason"].startswith("device_unknown: ")

"""Drift and two speeds: planted ones are found, steady series of any shape are left alone; hints of a made-up /proc."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctrbench.bench.stability import Clocks, hints, judge, read_clocks


def noise(kind: str, rng: np.random.Generator, n: int = 60) -> np.ndarray:
    if kind == "bell":
        return 0.01 * (1 + 0.02 * rng.standard_normal(n))
    if kind == "long tail":
        return 0.01 * (1 + 0.05 * rng.exponential(size=n))
    if kind == "heavy tail":
        return 0.01 * np.exp(0.1 * rng.standard_t(3, size=n))
    walk = np.zeros(n)  # neighbours alike
    for i in range(1, n):
        walk[i] = 0.7 * walk[i - 1] + 0.01 * rng.standard_normal()
    return 0.01 * (1 + walk)


@pytest.mark.parametrize("kind", ["bell", "long tail", "heavy tail", "neighbours alike"])
def test_steady_series_are_left_alone(kind: str) -> None:
    rng = np.random.default_rng(0)
    found = [judge(noise(kind, rng)) for _ in range(200)]
    assert sum(f.drifts for f in found) <= 4
    assert sum(f.modes is not None for f in found) <= 4


def test_planted_drift_and_two_speeds_are_found() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        slow = judge(noise("bell", rng) * np.linspace(1, 1.3, 60))
        assert slow.drifts
        assert slow.drift == pytest.approx(0.22, abs=0.06)
        assert "drifts by +" in slow.doubts[0]
        two = judge(noise("bell", rng) * np.where(rng.random(60) < 0.4, 1.5, 1.0))
        assert two.modes == pytest.approx((0.01, 0.015), rel=0.03)
        assert "two speeds" in two.doubts[-1]
        few = noise("bell", rng)
        few[[3, 40]] *= 5  # two outliers of sixty are no second speed
        assert judge(few).doubts == ()
    with pytest.raises(ValueError, match="at least 24"):
        judge([0.01] * 23)
    assert judge([0.01] * 30).doubts == ()


def test_clocks_of_a_machine_that_shows_all(tmp_path: Path) -> None:
    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    put("proc/stat", "cpu  100 0 50 800 10 0 0 40 7 0\ncpu0 1 1\n")
    put("proc/pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=500\nfull avg10=0.00 total=9\n")
    put("sys/fs/cgroup/cpu.stat", "usage_usec 5\nthrottled_usec 30\n")
    for i, mhz in enumerate((1000, 2000)):
        put(f"sys/devices/system/cpu/cpu{i}/thermal_throttle/core_throttle_count", "2\n")
        put(f"sys/devices/system/cpu/cpu{i}/cpufreq/scaling_cur_freq", f"{mhz}000\n")
        put(f"sys/devices/system/cpu/cpu{i}/cpufreq/cpuinfo_max_freq", "3000000\n")
    found = read_clocks(tmp_path)
    assert found == Clocks(
        cpu_ticks=1000, steal_ticks=40, waited_us=500, quota_us=30, throttles=4, mhz=1500, mhz_most=3000
    )
    assert read_clocks(tmp_path / "nothing") == Clocks()
    later = Clocks(cpu_ticks=2000, steal_ticks=140, waited_us=900_500, quota_us=2_000_030, throttles=7,
                   mhz=1500, mhz_most=3000)  # fmt: skip
    assert hints(found, later, wall_s=2.0) == (
        "another guest took 10% of the CPU time",
        "the container's CPU quota held tasks back for 2.00 s",
        "cores throttled 3 times for heat",
        "tasks waited for a CPU in 45% of the time",
        "cores ran at 1500 of 3000 MHz",
    )
    assert hints(Clocks(), Clocks(), 1.0) == ()
    assert hints(later, later, 1.0) == ("cores ran at 1500 of 3000 MHz",)


def test_clocks_of_this_machine_only_grow() -> None:
    before, after = read_clocks(), read_clocks()
    for name in ("cpu_ticks", "steal_ticks", "waited_us", "quota_us", "throttles"):
        a, b = getattr(before, name), getattr(after, name)
        assert (a is None) == (b is None)
        assert a is None or 0 <= a <= b

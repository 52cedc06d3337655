"""Is a series of step times one steady thing? Drift, two speeds, and what the kernel says of the machine beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

DRIFT = 0.05
"""Change of the median from the first to the last quarter from which on a steady series is none."""
MODES_APART = 0.10
"""Distance of two speeds, over the median, below which nobody needs to care."""
SEPARATION = 5.0
"""Distance of two speeds in robust standard deviations of the wider one. One bell curve cut in two comes to 3."""
RARE = 0.10
"""A second speed of fewer steps than this share is a handful of outliers."""
STEAL = 0.02
"""Share of CPU time that another guest took from which on it is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stability:
    """What was found in one series."""

    drift: float
    """Median of the last quarter over that of the first, less 1."""
    drifts: bool
    modes: tuple[float, float] | None
    """Medians of two speeds."""

    @property
    def doubts(self) -> tuple[str, ...]:
        """In words; empty for a steady series."""
        found = [f"drifts by {self.drift:+.0%}"] if self.drifts else []
        if self.modes:
            low, high = self.modes
            found.append(f"has two speeds, {low:.4g} and {high:.4g} s")
        return tuple(found)


def judge(seconds: Sequence[float], blocks: int = 12) -> Stability:
    """Drift and bimodality of the steps of one process.

    A drift is a change of the median by `DRIFT` that medians of `blocks` pieces follow in order (Spearman, p < 0.01;
    single steps are correlated and would make any walk significant).

    Raises:
        ValueError: fewer than two steps a block.
    """
    values = np.asarray(seconds, dtype=np.float64)
    if len(values) < 2 * blocks:
        raise ValueError(f"{len(values)} steps say nothing of drift; time at least {2 * blocks}")
    quarter = len(values) // 4
    drift = float(np.median(values[-quarter:]) / np.median(values[:quarter])) - 1
    pieces = [float(np.median(piece)) for piece in np.array_split(values, blocks)]
    ordered = len(set(pieces)) > 1 and spearmanr(range(blocks), pieces).pvalue < 0.01
    return Stability(drift=drift, drifts=bool(ordered and abs(drift) >= DRIFT), modes=_modes(np.sort(values)))


def _modes(values: np.ndarray) -> tuple[float, float] | None:
    """Medians of the two sides of the cut that leaves the least variance (Otsu 1979), if they are far apart."""
    n = len(values)
    total, square = np.cumsum(values)[:-1], np.cumsum(values**2)[:-1]
    left = np.arange(1, n)
    within = square - total**2 / left
    rest, rest2 = values.sum() - total, (values**2).sum() - square
    cut = int(np.argmin(within + rest2 - rest**2 / (n - left))) + 1
    sides = values[:cut], values[cut:]
    if min(map(len, sides)) < RARE * n:
        return None
    low, high = (float(np.median(side)) for side in sides)
    # 1.4826 times the median distance from the median is the standard deviation of a bell curve.
    wider = max(1.4826 * float(np.median(np.abs(side - m))) for side, m in zip(sides, (low, high), strict=True))
    apart = high - low
    return (low, high) if apart > MODES_APART * float(np.median(values)) and apart > SEPARATION * wider else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Clocks:
    """Counters of the kernel since boot, where it shows them; None where it does not (most virtual machines)."""

    cpu_ticks: int | None = None
    steal_ticks: int | None = None
    """Time in which the hypervisor ran somebody else."""
    waited_us: int | None = None
    """Time in which some task waited for a CPU (pressure stall information)."""
    quota_us: int | None = None
    """Time in which the container's CPU quota held its tasks back."""
    throttles: int | None = None
    """Events of thermal throttling, all cores."""
    mhz: float | None = None
    """Mean clock of the cores now."""
    mhz_most: float | None = None


def read_clocks(root: Path = Path("/")) -> Clocks:
    """Reads /proc and /sys below `root`."""
    ticks = _numbers(root / "proc/stat", "cpu ")
    pressure = _text(root / "proc/pressure/cpu").partition("total=")[2].split()
    cpus = root / "sys/devices/system/cpu"
    heat = list(_values(cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")))
    now = list(_values(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")))
    most = list(_values(cpus.glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq")))
    quota = _numbers(root / "sys/fs/cgroup/cpu.stat", "throttled_usec")
    return Clocks(
        cpu_ticks=sum(ticks[:8]) if ticks else None,  # guest time, behind these, is in user time already
        steal_ticks=ticks[7] if len(ticks) > 7 else None,
        waited_us=int(pressure[0]) if pressure else None,
        quota_us=quota[0] if quota else None,
        throttles=sum(heat) if heat else None,
        mhz=sum(now) / len(now) / 1000 if now else None,
        mhz_most=max(most) / 1000 if most else None,
    )


def hints(before: Clocks, after: Clocks, wall_s: float) -> tuple[str, ...]:
    """Why steps between two readings may be slower than the machine is; empty where nothing shows."""
    gone = {
        f.name: b - a
        for f in fields(Clocks)
        if (a := getattr(before, f.name)) is not None and (b := getattr(after, f.name)) is not None
    }
    out = []
    if gone.get("cpu_ticks") and gone.get("steal_ticks", 0) / gone["cpu_ticks"] > STEAL:
        out.append(f"another guest took {gone['steal_ticks'] / gone['cpu_ticks']:.0%} of the CPU time")
    if gone.get("quota_us", 0) > 0:
        out.append(f"the container's CPU quota held tasks back for {gone['quota_us'] / 1e6:.2f} s")
    if gone.get("throttles", 0) > 0:
        out.append(f"cores throttled {gone['throttles']} times for heat")
    if wall_s > 0 and gone.get("waited_us", 0) / 1e6 / wall_s > 0.10:
        out.append(f"tasks waited for a CPU in {gone['waited_us'] / 1e6 / wall_s:.0%} of the time")
    if after.mhz and after.mhz_most and after.mhz < 0.8 * after.mhz_most:
        out.append(f"cores ran at {after.mhz:.0f} of {after.mhz_most:.0f} MHz")
    return tuple(out)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # not there, or not for us
        return ""


def _numbers(path: Path, key: str) -> list[int]:
    line = next((text for text in _text(path).splitlines() if text.startswith(key)), "")
    return [int(word) for word in line.split()[1:] if word.isdigit()]


def _values(paths: Iterator[Path]) -> Iterator[int]:
    for path in paths:
        if (text := _text(path).strip()).isdigit():
            yield int(text)

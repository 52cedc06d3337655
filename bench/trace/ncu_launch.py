"""One launch as Nsight Compute profiled it: who, and its metrics in base units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ctrbench.bench.trace.ncu_ranges import NvtxRange


class Metric(NamedTuple):
    """A value in base units; a text, or None where ncu prints `n/a`."""

    value: float | str | None
    unit: str


@dataclass(frozen=True, kw_only=True)
class NcuLaunch:
    """One profiled launch."""

    id: str
    process: str | None
    kernel: str
    context: str | None
    stream: str | None
    grid: tuple[int, int, int] | None
    block: tuple[int, int, int] | None
    device_index: str | None
    cc: str | None
    """Compute capability, `8.6`."""
    metrics: dict[tuple[str, str], Metric]
    """(section, name) -> value; the section is empty on the raw page and in a report file."""
    ranges: tuple[NvtxRange, ...] = ()
    """NVTX ranges open at the launch; those of a thread from the outermost on."""

    @cached_property
    def _by_name(self) -> dict[str, list[tuple[str, str]]]:
        out: dict[str, list[tuple[str, str]]] = {}
        for key in self.metrics:
            out.setdefault(key[1], []).append(key)
        return out

    def get(self, name: str, section: str | None = None) -> Metric | None:
        """A metric by name, None if absent. A name of several sections needs the section."""
        if section is not None:
            return self.metrics.get((section, name))
        keys = self._by_name.get(name, [])
        return self.metrics[keys[0]] if len(keys) == 1 else None

    @property
    def names_used_twice(self) -> list[str]:
        return [name for name, keys in self._by_name.items() if len(keys) > 1]

    @property
    def device(self) -> str | None:
        """Name of the device as its driver gives it."""
        metric = self.get("device__attribute_display_name")
        return metric.value if metric is not None and isinstance(metric.value, str) else None

    def values(self, only: Sequence[str] | None = None) -> dict[str, list[Any]]:
        """name, or `section / name` where a name occurs twice -> [value, unit]."""
        twice = set(self.names_used_twice)
        return {
            f"{section} / {name}" if name in twice else name: list(metric)
            for (section, name), metric in self.metrics.items()
            if only is None or name in only
        }

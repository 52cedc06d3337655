"""A file of Nsight Compute: its launches, their figures, and what can be said of the whole (measures.md section 11).

ncu replays kernels: a duration here is the kernel's own time, never a part of a step's time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl

from ctrbench.bench.trace.names import DEFAULT_DOMAIN, DOMAIN
from ctrbench.bench.trace.ncu_figures import FIGURES, Figure, figures
from ctrbench.bench.trace.ncu_launch import NcuLaunch

SHOWN = (
    "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum", "dram__bytes_op_read.sum",
    "dram__bytes_op_write.sum", "dram__bytes.sum", "dram__bytes.sum.peak_sustained",
    "dram__cycles_elapsed.avg.per_second", "dram__sectors_read.sum", "lts__t_sectors.sum", "launch__grid_size",
    "launch__block_size", "launch__registers_per_thread", "launch__waves_per_multiprocessor",
    "smsp__cycles_elapsed.sum", "smsp__cycles_elapsed.max", "sm__cycles_elapsed.avg.per_second",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed", "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_tensor_op_imma.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_tensor_op_dmma.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "sm__pipe_tensor_cycles_active.max.pct_of_peak_sustained_active", "sm__ops_path_tensor_src_bf16_dst_fp32.sum",
    "sm__sass_thread_inst_executed_op_ffma_pred_on.sum.peak_sustained",
    "smsp__sass_thread_inst_executed_op_ffma_pred_on.sum.per_cycle_elapsed",
    "smsp__sass_thread_inst_executed_op_fadd_pred_on.sum.per_cycle_elapsed",
    "smsp__sass_thread_inst_executed_op_fmul_pred_on.sum.per_cycle_elapsed", "device__attribute_display_name",
    "device__attribute_compute_capability_major", "device__attribute_compute_capability_minor",
    "device__attribute_multiprocessor_count",
)  # fmt: skip
"""Metrics that the summary of a report with hundreds of them lists, as values or as missing."""


@dataclass(frozen=True, kw_only=True)
class NcuReport:
    """One file of Nsight Compute."""

    path: str
    format: str
    """`ncu-csv`, `ncu-raw-csv` or `ncu-rep`."""
    launches: tuple[NcuLaunch, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts of rows, sections and the like, as the format has them."""
    refusals: tuple[str, ...] = ()
    """Reason codes with their explanation."""
    partial: tuple[str, ...] = ()
    """Signs that the file is not whole: what is there is right, but launches or metrics may be missing."""
    notes: tuple[str, ...] = ()
    domain: str | None = None
    """NVTX domain whose ranges are asked for; None: the default one and ours."""

    @cached_property
    def figures(self) -> tuple[dict[str, Figure], ...]:
        """Derived figures of each launch by name: those that its counters allow, the others with a reason."""
        return tuple(figures(launch) for launch in self.launches)

    @property
    def device(self) -> str | None:
        """Name of the device, if the file has one and only one."""
        names = {launch.device for launch in self.launches}
        return names.pop() if len(names) == 1 else None

    def total(self, figure: str) -> Figure:
        """Sum of a figure over all launches; None if any launch lacks it."""
        parts = [each[figure] for each in self.figures]
        lacking = [part for part in parts if part.value is None]
        if not parts or lacking:
            reason = lacking[0].reason if lacking else "field_missing: no launch was profiled"
            return Figure(None, parts[0].unit if parts else "", "", reason)
        return Figure(sum(part.value or 0.0 for part in parts), parts[0].unit, f"sum over {len(parts)} launches")

    def tensor_pipe_use(self) -> Figure:
        """Time-weighted share of the tensor pipe's peak, %."""
        weighted = 0.0
        for each in self.figures:
            time, use = each["time"], each["tensor_pipe"]
            if time.value is None or use.value is None:
                return Figure(None, "%", "", time.reason or use.reason)
            weighted += time.value * use.value
        time = self.total("time")
        if not time.value:
            return Figure(None, "%", "", time.reason or "field_missing: no launch took any time")
        return Figure(weighted / time.value, "%", "tensor_pipe weighted by time")

    def domains(self) -> dict[str, int]:
        """NVTX domain -> launches inside a range of it, most first."""
        return dict(Counter(d for launch in self.launches for d in {r.domain for r in launch.ranges}).most_common())

    def by_range(self) -> dict[str, dict[str, float | None]]:
        """Name of a range of the domains asked for -> launches inside it and their time; longest first.

        A launch counts for every range around it. The time is None where a launch has none.
        """
        wanted = (DEFAULT_DOMAIN, DOMAIN) if self.domain is None else (self.domain,)
        found: dict[str, list[float | None]] = {}
        for launch, derived in zip(self.launches, self.figures, strict=True):
            for name in dict.fromkeys(r.name for r in launch.ranges if r.domain in wanted):
                found.setdefault(name, []).append(derived["time"].value)
        sums = {name: None if None in times else sum(t or 0.0 for t in times) for name, times in found.items()}
        order = sorted(found, key=lambda n: (-(sums[n] or 0.0), n))
        return {name: {"launches": len(found[name]), "total_ns": sums[name]} for name in order}

    def summary(self) -> dict[str, Any]:
        """Every figure of the file; withheld ones are None with their reason in `refusals` or beside them."""
        refusals = list(self.refusals)
        if self.device is None:
            refusals.append("device_unknown: the file does not name one device; utilisation is withheld")
        refusals.append("field_missing: ncu serialises and replays kernels, so no launch verdict comes from its files")
        time = self.total("time")
        pairs = zip(self.launches, self.figures, strict=True)
        one = self._action if self.format == "ncu-rep" else self._launch
        return {
            "format": self.format,
            **self.facts,
            "device": self.device,
            "verdict": None,
            "refusals": refusals,
            "partial": list(self.partial),
            "notes": list(self.notes),
            "launches": None if self.refusals and not self.launches else len(self.launches),
            "kernels": {
                "launches": None if self.refusals and not self.launches else len(self.launches),
                "total_ns": time.value,
                "by_name": dict(Counter(launch.kernel for launch in self.launches).most_common()),
            },
            "nvtx": {"launches_by_domain": self.domains(), "by_name": self.by_range()} if self.domains() else None,
            "totals": {name: self.total(name).as_json() for name in ("time", "dram_bytes", "l2_bytes", "flops")},
            "tensor_pipe_use": self.tensor_pipe_use().as_json(),
            "actions" if self.format == "ncu-rep" else "launch": [one(*pair) for pair in pairs],
        }

    def _launch(self, launch: NcuLaunch, derived: dict[str, Figure]) -> dict[str, Any]:
        return {
            "id": launch.id, "kernel": launch.kernel, "grid": _text(launch.grid), "block": _text(launch.block),
            "cc": launch.cc, "metrics": len(launch.metrics), "names_used_twice": launch.names_used_twice,
            "values": launch.values(), "figures": {n: f.as_json() for n, f in derived.items()},
        }  # fmt: skip

    def _action(self, launch: NcuLaunch, derived: dict[str, Figure]) -> dict[str, Any]:
        row = self._launch(launch, derived) | {"values": launch.values(only=SHOWN)}
        row["missing"] = [name for name in SHOWN if launch.get(name) is None]
        return row

    def lines(self) -> Iterator[tuple[str, str]]:
        """What a console shows of the file: (what, value)."""
        yield "device", self.device or "not named: utilisation is withheld (device_unknown)"
        yield "profiled launches", str(len(self.launches)) if self.launches else "none"
        for what, figure in (
            ("kernel time under ncu", self.total("time")), ("DRAM traffic", self.total("dram_bytes")),
            ("L2 traffic", self.total("l2_bytes")), ("FLOPs", self.total("flops")),
            ("tensor pipe", self.tensor_pipe_use()),
        ):  # fmt: skip
            yield what, f"withheld: {figure.reason}" if figure.value is None else f"{figure.value:.6g} {figure.unit}"
        for name, inside in list(self.by_range().items())[:10]:
            spent = "withheld" if inside["total_ns"] is None else f"{inside['total_ns'] / 1e6:.3f} ms"
            yield f"inside {name}", f"{inside['launches']} launches, {spent}"
        for what, texts in (("refused", self.refusals), ("partial", self.partial), ("note", self.notes)):
            yield from ((what, text) for text in texts)

    def table(self) -> pl.DataFrame:
        """One row a launch: who, and the figures in base units; what is not known is null."""
        rows: list[dict[str, Any]] = [
            {
                "id": launch.id, "name": launch.kernel, "grid": _text(launch.grid), "block": _text(launch.block),
                "device_name": launch.device, "cc": launch.cc,
                "nvtx": " > ".join(r.name for r in launch.ranges) or None,
                **{n: f.value for n, f in derived.items()},
            }
            for launch, derived in zip(self.launches, self.figures, strict=True)
        ]  # fmt: skip
        texts = dict.fromkeys(("id", "name", "grid", "block", "device_name", "cc", "nvtx"), pl.String)
        return pl.DataFrame(rows, schema={**texts, **dict.fromkeys(FIGURES, pl.Float64)})


def _text(size: tuple[int, int, int] | None) -> str | None:
    return None if size is None else f"({size[0]}, {size[1]}, {size[2]})"

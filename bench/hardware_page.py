"""What `ctrbench hardware` prints: this machine's ceilings and the catalogue, each figure with how well it is known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from ctrbench.bench.hardware import NO_UNITS, Gpu, bf16_units, catalogue, cpu_catalogue, source_texts, this_machine
from ctrbench.bench.machine import MachineCeilings, Sizes, machine_ceilings

_PEAKS = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8")
_OTHERS = {
    "bandwidth_gbs": "GB/s", "l2_mb": "L2 MB", "l2_gbs": "L2 GB/s", "memory_gb": "GB", "watts": "W", "sms": "SMs",
    "cc": "CC",
}  # fmt: skip


def run_hardware(json_out: bool = False, refresh: bool = False, sizes: Sizes | None = None) -> int:
    """Measures or looks up this machine and prints it with the catalogue; 0."""
    found = machine_ceilings(sizes, refresh)
    if json_out:
        body = {
            "machine": this_machine(), "ceilings": asdict(found),
            "catalogue": {name: asdict(gpu) for name, gpu in catalogue().items()},
            "cpus": {name: asdict(cpu) for name, cpu in cpu_catalogue().items()}, "sources": source_texts(),
        }  # fmt: skip
        print(json.dumps(body, indent=1, default=str))
        return 0
    console = Console(markup=False, emoji=False)
    console.print_json(json.dumps(found.identity, default=str))
    dtypes, others = dict(zip(_PEAKS, _PEAKS, strict=True)), _OTHERS
    for table in (_ceilings(found), _gpus("dense peaks, TFLOP/s", dtypes), _gpus("the rest", others), _cpus()):
        console.print(table)
    for name, reason in found.withheld.items():
        console.print(f"{name}: withheld: {reason}")
    console.print("* one source, not checked again   ? another source gives another figure (see the list)")
    units = bf16_units()
    console.print(f"bf16: this CPU has {units}" if units else f"bf16: {NO_UNITS}")
    for line in contradictions():
        console.print(line)
    return 0


def _ceilings(found: MachineCeilings) -> Table:
    title = f"measured on {found.measured_on} (--refresh measures again)"
    table = Table(title=title, title_justify="left")
    for column in ("figure", "median", "p10", "p90", "spread", "n"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, s in found.figures.items():
        cells = (f"{s.median:.3g} {s.unit}", f"{s.low:.3g}", f"{s.high:.3g}", f"{s.relative:.0%}", str(s.n))
        table.add_row(name, *cells)
    return table


def _gpus(what: str, columns: Mapping[str, str]) -> Table:
    table = Table(title=f"catalogue (cited): {what}", title_justify="left")
    for heading in ("device", *columns.values()):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "device" else "right")
    for name, gpu in catalogue().items():
        table.add_row(name, *(_cell(gpu, column) for column in columns))
    return table


def _cell(gpu: Gpu, column: str) -> str:
    value = gpu.figures().get(column)
    if value is None:
        return "-"
    return (value if isinstance(value, str) else f"{value:g}") + gpu.mark(column)


def _cpus() -> Table:
    table = Table(title="CPU sockets: cited; compute is measured, see above", title_justify="left")
    for column in ("socket", "cores", "GB/s", "LLC MB", "W", "note"):
        table.add_column(column)
    for name, cpu in cpu_catalogue().items():
        cells = {"cores": cpu.cores, "bandwidth_gbs": cpu.bandwidth_gbs, "llc_mb": cpu.llc_mb, "watts": cpu.watts}
        shown = (f"{value:g}{'' if column in cpu.verified else '*'}" for column, value in cells.items())
        table.add_row(name, *shown, cpu.note)
    return table


def contradictions() -> Iterator[str]:
    """One line a figure that another source gives otherwise."""
    for name, gpu in catalogue().items():
        for column, other in gpu.contradicted.items():
            yield f"{name}, {column}: {gpu.figures()[column]:g}, but {other}"

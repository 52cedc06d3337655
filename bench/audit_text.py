"""How an audit is shown: Rich tables for people, JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ctrbench.bench.audit import AuditResult
    from ctrbench.bench.counting.bound import Bound
    from ctrbench.bench.counting.projection import Projection

_LIMITS = {
    "bytes": "bytes that cannot stay in L2",
    "launch": "kernels that no fusion removes",
    "compute": "none below the peak",
}


def print_error(text: str) -> None:
    """One line on stderr."""
    Console(stderr=True, soft_wrap=True).print(f"error: {text}", markup=False, highlight=False)


def figures(result: AuditResult) -> dict[str, Any]:
    """The audit as plain values: every number with its unit in the name, and how it is known."""
    counts, kernels = result.counts, result.counts.kernels
    return {
        "model": result.model,
        "traced_on": result.traced_on,
        "notes": list(result.notes),
        "batch": result.batch,
        "parameters": result.parameters,
        "origin": {
            "flops": "counted",
            "bytes": "counted",
            "ops": "counted",
            "kernels": "modelled",
            "mfu_bound": "derived",
            "projection": "modelled",
        },
        "flops_forward": counts.flops("forward"),
        "flops_backward": counts.flops("backward"),
        "flops_elementwise": counts.flops_elementwise(),
        "bytes_operands_bf16": counts.bytes_operands("bf16"),
        "bytes_operands_as_run": counts.bytes_operands(),
        "bytes_saved_for_backward_bf16": counts.saved.half,
        "ai_operands_bf16": counts.ai_operands("bf16") if counts.ops else None,
        "ops": counts.ops,
        "kernels": asdict(kernels),
        "kernels_no_fusion_removes": counts.unfusable,
        "unknown_ops": counts.unknown,
        "withheld": result.withheld,
        "mfu_bound": {g: _bound(b) for g, b in result.bounds.items()},
        "projection": [_projection(p) for p in result.projections],
        "modules": [asdict(m) for m in counts.by_module()],
        "look_first": [asdict(s) for s in result.suspects],
    }


def _bound(bound: Bound) -> dict[str, Any]:
    """A term without bytes or kernels does not bind: null."""
    terms = {name: term if isfinite(term) else None for name, term in bound.terms.items()}
    return {**asdict(bound), "terms": terms, "limit": bound.limit}


def _projection(p: Projection) -> dict[str, Any]:
    """Times in seconds; no time without parameters of the device, and none where too much rests on none."""
    return {
        "gpu": p.gpu,
        "dtype": p.dtype,
        "at_least_s": p.bound_s,
        "time_s": asdict(p.time_s) if p.time_s else None,
        "break_even_host_us": asdict(p.break_even_host_us) if p.break_even_host_us else None,
        "parameters": p.parameters.id if p.parameters else None,
        "fewest_shapes": p.fewest_shapes,
        "unfitted_share": p.unfitted_share,
        "reason": p.reason,
        "families": [asdict(c) for c in p.families],
        "blocks": [asdict(c) for c in p.blocks[:5]],
    }


def print_json(result: AuditResult) -> None:
    """The figures on stdout."""
    print(json.dumps(figures(result), indent=1, allow_nan=False))


def print_text(result: AuditResult) -> None:
    """The tables."""
    console = Console()
    counts, kernels = result.counts, result.counts.kernels
    console.print(
        f"[bold]{result.model}[/]: one training step (forward, backward) of {result.batch} rows, "
        f"traced on {result.traced_on}; {result.parameters:,} parameters"
    )
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    table = _table("step", ("", "value", "known"))
    table.add_row(
        "FLOPs forward / backward", f"{_si(counts.flops('forward'))} / {_si(counts.flops('backward'))}", "counted"
    )
    table.add_row("FLOPs per sample, both", _si(counts.flops() / result.batch), "counted")
    table.add_row("operand bytes, floats at 2 bytes", f"{_si(counts.bytes_operands('bf16'))}B", "counted")
    table.add_row("intensity (H100 ridge: 295)", f"{counts.ai_operands('bf16'):.1f} FLOP/B", "counted")
    table.add_row("operators", f"{counts.ops}", "counted")
    modelled = f"{kernels.value:.0f} ({kernels.low:.0f}-{kernels.high:.0f})" if kernels.value else kernels.reason
    table.add_row("CUDA kernels, eager", modelled, "modelled" if kernels.value else "abstained")
    console.print(table)
    _print_bounds(console, result)
    _print_projections(console, result)
    _print_modules(console, result)


def _print_bounds(console: Console, result: AuditResult) -> None:
    if result.withheld:
        console.print(f"[bold red]utilisation withheld[/] {result.withheld}")
        console.print("these operators may hide FLOPs: give them a formula in bench/counting/ops.py")
        return
    table = _table("mfu_bound, bf16: upper bound of MFU under the assumptions below", ("GPU", "bound", "limited by"))
    for gpu, bound in result.bounds.items():
        table.add_row(gpu, f"{bound.value:.1%}", _LIMITS[bound.limit])
    console.print(table)
    for text in next(iter(result.bounds.values())).assumptions:
        console.print(f"  assumes: {text}", markup=False, style="dim")


def _print_projections(console: Console, result: AuditResult) -> None:
    if not result.projections:
        return
    table = _table(
        "time of this step on a GPU, eager (modelled: parameters and errors in docs/projection.md)",
        ("GPU", "dtype", "at least", "t/2 to 2t", "break-even us/op"),
    )
    for p in result.projections:
        time, even = p.time_s, p.break_even_host_us
        table.add_row(
            p.gpu,
            p.dtype,
            f"{_si(p.bound_s)}s",
            f"{_si(time.low)}s to {_si(time.high)}s" if time else ("withheld" if p.parameters else "-"),
            f"{even.low:.1f} to {even.high:.1f}" if even else "-",
        )
    console.print(table)
    for p in result.projections:
        if p.parameters and (time := p.time_s):
            first = p.blocks[0]
            console.print(
                f"  {p.gpu}: {p.parameters.id}, at least {p.fewest_shapes} shapes a family; fix first {first.name}: "
                f"{first.share:.0%} of the time, mostly {first.term}",
                markup=False, style="dim",
            )  # fmt: skip
        elif p.parameters:
            console.print(f"  {p.gpu}: {p.reason}", markup=False, style="dim")


def _print_modules(console: Console, result: AuditResult) -> None:
    table = _table(
        "five modules to look at first (share of modelled H100 time: an order of magnitude)",
        ("module", "class", "share", "mostly", "ops", "FLOPs", "bytes", "kernels"),
    )
    for s in result.suspects:
        table.add_row(
            s.module, s.kind, f"{s.share:.0%}", s.limit, f"{s.calls}", _si(s.flops), _si(s.bytes), f"{s.kernels:.0f}"
        )
    console.print(table)
    table = _table("FLOPs by module", ("module", "FLOPs", "share"))
    total = result.counts.flops() or 1.0
    for m in [m for m in result.counts.by_module() if m.flops][:12]:
        table.add_row(m.module or "(outside submodules)", _si(m.flops), f"{m.flops / total:.1%}")
    console.print(table)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def _si(value: float) -> str:
    """Three significant digits with a decimal prefix."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "

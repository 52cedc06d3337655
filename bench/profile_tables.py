"""Tables that `ctrbench profile` prints: where the time of a step went, and the same seen a second way."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from ctrbench.bench.trace.ablation import Disagreement
from ctrbench.bench.trace.names import STAGE_PREFIX
from ctrbench.bench.trace.time_split import Split


def left_out_table(seen: Sequence[Disagreement], rounds: int) -> Table:
    """Shares of a step by component, from ranges and from leaving the component out, with how far they are apart.

    Args:
        seen: a component each.
        rounds: of leaving out, each without a tracer.
    """
    table = Table(title=f"shares of a step, blocks with their backward; leaving out: {rounds} rounds without a tracer",
                  title_justify="left")  # fmt: skip
    for column, justify in (("component", "left"), ("by ranges", "right"), ("by leaving out", "right"),
                            ("95 % interval", "right"), ("apart", "right")):  # fmt: skip
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for d in seen:
        part = d.ablation
        interval = f"{part.ci_low:.1%} to {part.ci_high:.1%}"
        table.add_row(d.component, f"{d.projection:.1%}", f"{part.share:.1%}", interval, f"{d.apart:+.1%}")
    return table


def split_table(split: Split) -> Table:
    """Host time of a step by stage and block: ranges and milliseconds a step, and the share of the step."""
    steps = split.steps
    table = Table(
        title=f"host time of {steps} steps, {split.step_ns / steps / 1e6:.3f} ms each; named stages explain"
        f" {split.coverage:.1%}",
        title_justify="left",
    )
    for column, justify in (("stage", "left"), ("block", "left"), ("ranges/step", "right"), ("ms/step", "right"),
                            ("share", "right")):  # fmt: skip
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    shares = split.shares()
    shown = ""
    for stage, block, calls, ns, share in split.table[["stage", "block", "calls", "ns", "share"]].values.tolist():
        if stage != shown:
            shown = stage
            table.add_row(f"[bold]{shown}[/]", "", "", "", f"[bold]{shares[STAGE_PREFIX + shown]:.1%}[/]")
        table.add_row(
            "", escape(block) or "(outside blocks)", f"{calls / steps:g}", f"{ns / steps / 1e6:.3f}", f"{share:.1%}"
        )
    return table

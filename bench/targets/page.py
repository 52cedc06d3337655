"""The table of targets: on a terminal, and as a page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from ctrbench.bench.targets.outcome import Outcome, Results

COLUMNS = ("target", "wanted", "measured", "verdict", "how")
COLOUR = {"met": "green", "missed": "red", "not testable here": "yellow", "context": "dim"}
FACTS = ("cpu", "usable_cpus", "gpu", "os", "python", "torch", "fbgemm")
"""Of a machine, what is printed beside its commit."""


def table(outcomes: Sequence[Outcome]) -> Table:
    """Target, wanted, measured, verdict, how."""
    shown = Table(title="Targets of speed", show_lines=False)
    for column in ("group", *COLUMNS):
        shown.add_column(column, overflow="fold")
    for o in outcomes:
        cells = (o.group, o.target, o.wanted, o.measured)
        shown.add_row(*map(escape, cells), f"[{COLOUR[o.verdict]}]{o.verdict}[/]", escape(o.how))
    return shown


def provenance(found: Mapping[str, Results]) -> list[str]:
    """Commit, machine and date: one line, naming its groups, for each place and commit that results come from."""
    groups: dict[str, list[str]] = {}
    for group, results in found.items():
        here = results.environment
        changed = " with changes" if here.get("dirty") else ""
        facts = ", ".join(f"{name.replace('_', ' ')} {here[name]}" for name in FACTS if name in here)
        where = f"commit {str(here.get('commit', 'not recorded'))[:12]}{changed}; {facts}"
        groups.setdefault(where, []).append(f"{group} ({results.date})")
    return [f"{', '.join(names)}: {where}" for where, names in groups.items()]


def markdown(found: Mapping[str, Results], missing: Sequence[str] = ()) -> str:
    """The page: a table a group, then where and when it was measured.

    Args:
        found: results by group.
        missing: groups that have none.
    """
    verdicts = [o.verdict for r in found.values() for o in r.outcomes]
    counts = ", ".join(f"{n} {v}" for v in COLOUR if (n := verdicts.count(v)))
    lines = ["# Targets of speed", "", f"As `make bench-targets` last measured them: {counts}."]
    if missing:
        lines.append(f"Not measured: {', '.join(missing)}.")
    for group, results in found.items():
        lines += ["", f"## {group}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        for o in results.outcomes:
            cells = (o.target, o.wanted, o.measured, o.verdict, o.how)
            lines.append(f"| {' | '.join(c.replace('|', '&#124;').replace(chr(10), ' ') for c in cells)} |")
    lines += ["", "## Where and when", "", *(f"- {line}" for line in provenance(found))]
    return "\n".join(lines) + "\n"

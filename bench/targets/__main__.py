"""`make bench-targets`: measures every target of speed and prints target, measured, verdict.

    python -m ctrbench.bench.targets                     all groups, in order; one that is done is not measured again
    python -m ctrbench.bench.targets kernels precision   some
    python -m ctrbench.bench.targets --show              what was measured so far

Each group is a process of its own. Results lie in runs/targets/<group>.json with commit and machine; `--again`
measures anew. Exit 1 if a target is missed or a group failed.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ctrbench.bench.targets.outcome import Outcome, load, save

GROUPS = ("kernels", "mfu", "precision", "stall", "prepare", "peers")
"""Cheap ones first."""


def measure(group: str, file: Path) -> None:
    """In this process: `outcomes()` of the group's module."""
    module = importlib.import_module(f"ctrbench.bench.targets.{group}")
    save(list(module.outcomes()), file)


def table(outcomes: list[Outcome]) -> Table:
    """Target, wanted, measured, verdict, how."""
    shown = Table(title="Targets of speed", show_lines=False)
    for column in ("group", "target", "wanted", "measured", "verdict", "how"):
        shown.add_column(column, overflow="fold")
    colour = {"met": "green", "missed": "red", "not testable here": "yellow", "context": "dim"}
    for o in outcomes:
        shown.add_row(
            o.group, o.target, o.wanted, o.measured, f"[{colour[o.verdict]}]{o.verdict}[/]", o.how.replace("[", r"\[")
        )
    return shown


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench-targets", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/targets"))
    parser.add_argument("--again", action="store_true", help="measure what is done already")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--here", metavar="GROUP", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure(options.here, options.out / f"{options.here}.json")
        return 0
    unknown = [g for g in options.groups if g not in GROUPS]
    if unknown:
        print(f"unknown group {unknown[0]!r}; groups are {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    failed = []
    for group in options.groups or GROUPS:
        file = options.out / f"{group}.json"
        if options.show or (file.is_file() and not options.again):
            continue
        print(f"== {group}", flush=True)
        command = [sys.executable, "-m", "ctrbench.bench.targets", "--out", str(options.out), "--here", group]
        if subprocess.run(command).returncode:
            failed.append(group)
    files = [options.out / f"{g}.json" for g in options.groups or GROUPS]
    outcomes = [o for file in files if file.is_file() for o in load(file)]
    Console(width=200 if not sys.stdout.isatty() else None).print(table(outcomes))
    for group in failed:
        print(f"{group}: failed, see above", file=sys.stderr)
    return int(bool(failed) or any(o.verdict == "missed" for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())

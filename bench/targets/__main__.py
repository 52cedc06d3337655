"""`make bench-targets`: measures every target of speed and prints target, measured, verdict.

    python -m ctrbench.bench.targets                     all groups that are not done, in order
    python -m ctrbench.bench.targets kernels precision   some
    python -m ctrbench.bench.targets --show              what was measured so far
    python -m ctrbench.bench.targets --markdown FILE     the same as a page of the documentation

Each group is a process of its own. Results lie in runs/targets/<group>.json with commit, machine and date; `--again`
measures anew. Exit 1 if a target is missed or a group failed, 2 if there is no such group or nothing to write.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from ctrbench.bench.targets.outcome import Results, load, save
from ctrbench.bench.targets.page import markdown, provenance, table
from ctrbench.datasets.errors import BadInput, nearest

GROUPS = {
    **{g: f"ctrbench.bench.targets.{g}" for g in ("kernels", "mfu", "precision", "stall", "prepare")},
    **{f"peers-{m}": f"ctrbench.bench.targets.peers:{m}" for m in ("deepfm", "dcn_v2", "din")},
}
"""Group -> its module and what its `outcomes` takes, cheap ones first."""


def measure(module: str, file: Path) -> None:
    """In this process: `outcomes` of a group's module."""
    name, _, argument = module.partition(":")
    save(list(importlib.import_module(name).outcomes(*filter(None, [argument]))), file)


def measure_apart(groups: Mapping[str, str], out: Path) -> list[str]:
    """Each group in a process of its own; returns those that failed."""
    failed = []
    for group, module in groups.items():
        print(f"== {group}", flush=True)
        command = [sys.executable, "-m", "ctrbench.bench.targets", "--here", module, str(out / f"{group}.json")]
        if subprocess.run(command).returncode:
            failed.append(group)
    return failed


def show(found: Mapping[str, Results], missing: Sequence[str], failed: Sequence[str]) -> None:
    """The table on standard output; what is not in it on standard error."""
    console = Console(width=200 if not sys.stdout.isatty() else None)
    console.print(table([o for results in found.values() for o in results.outcomes]))
    for line in provenance(found):
        console.print(line, markup=False, highlight=False)
    for group in missing:
        why = "failed, see above" if group in failed else f"not measured; python -m ctrbench.bench.targets {group}"
        print(f"{group}: {why}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None, groups: Mapping[str, str] = GROUPS) -> int:
    """Command line.

    Args:
        arguments: without the program's name; those of the process if not given.
        groups: as `GROUPS`.
    """
    parser = argparse.ArgumentParser(
        prog="bench-targets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(groups)}")
    parser.add_argument("--out", type=Path, default=Path("runs/targets"))
    parser.add_argument("--again", action="store_true", help="measure what is done already")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="measure nothing, write the page")
    parser.add_argument("--here", nargs=2, metavar=("MODULE", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.here:
        measure(options.here[0], Path(options.here[1]))
        return 0
    if unknown := [g for g in options.groups if g not in groups]:
        print(f"unknown group {nearest(unknown[0], list(groups))}", file=sys.stderr)
        return 2
    files = {g: options.out / f"{g}.json" for g in groups if not options.groups or g in options.groups}
    only_shown = options.show or options.markdown is not None
    owed = {g: groups[g] for g, file in files.items() if not only_shown and (options.again or not file.is_file())}
    failed = measure_apart(owed, options.out)
    try:
        # the file of a group that just failed is of an earlier time
        found = {g: load(file) for g, file in files.items() if file.is_file() and g not in failed}
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    missing = [g for g in files if g not in found]
    if options.markdown is not None:
        return _write(options.markdown, found, missing)
    show(found, missing, failed)
    return int(bool(failed) or any(o.verdict == "missed" for r in found.values() for o in r.outcomes))


def _write(file: Path, found: Mapping[str, Results], missing: Sequence[str]) -> int:
    if not found:
        print("nothing is measured yet: run `make bench-targets` first", file=sys.stderr)
        return 2
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(markdown(found, missing), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

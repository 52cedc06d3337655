"""`ctrbench export`, and how every command that reads finished runs takes a run directory or a benchmark file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ctrbench.datasets.errors import BadInput
from ctrbench.reports import benchmark_json, export, grid, kernel_rows, perfetto, records
from ctrbench.reports.markdown import build_markdown
from ctrbench.reports.merge import Loaded, merged

NAMED = 3
"""Benchmarks of others that are named; the file of a suite has hundreds."""


def run_export(run: Path, form: str, out: Path) -> Path:
    """Writes a run in another form; returns the file.

    Args:
        run: run directory, or file of `pytest --benchmark-json`; of `perfetto` also a recording.
        form: json | parquet | markdown | perfetto.
        out: file to write; whole or not at all.

    Raises:
        BadInput: nothing to read, no step in it, or a file that cannot be written.
    """
    try:
        if form == "perfetto":
            return perfetto.write_trace(_traces(run), out)
        table, bodies = loaded(run)
        if form == "json":
            return export.write_json(table, bodies, out)
        if form == "parquet":
            return export.write_parquet(table, out)
        return build_markdown(table, bodies, out, ("summary",))
    except perfetto.NoTrace as error:
        raise BadInput(f"{run}: no step to export: {error}; {perfetto.RECORD}") from None
    except OSError as error:
        raise BadInput(f"{out}: {error.strerror}; name a file that can be written") from None


def _traces(run: Path) -> list[perfetto.Trace]:
    """The step of every traced process of a run directory, or of a recording."""
    if not run.is_file():
        return perfetto.of_records(kernels_of([run]), loaded(run)[1])
    from ctrbench.bench.trace.columns import BadRecording
    from ctrbench.bench.trace.command import step_of

    try:
        return [step_of(run)]
    except BadRecording as error:
        raise BadInput(f"{error}; {perfetto.RECORD}") from None


def loaded(run: Path) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Rows and bodies of a run directory, or of a file of pytest-benchmark; says which of its benchmarks are not ours.

    Raises:
        BadInput: neither of them.
    """
    try:
        if not run.is_file():
            return records.load(run)
        table, bodies = benchmark_json.load_benchmark_json(run)
    except (FileNotFoundError, records.DamagedRecord, benchmark_json.BadBenchmarks) as error:
        raise BadInput(str(error)) from None
    foreign = list(table.loc[table["reason"] == benchmark_json.FOREIGN, "model"])
    for name in foreign[:NAMED]:
        print(f"note: {run}: {name}: {benchmark_json.FOREIGN}", file=sys.stderr)
    if len(foreign) > NAMED:
        print(f"note: {run}: and so do {len(foreign) - NAMED} more benchmarks of this file", file=sys.stderr)
    return table, bodies


def loaded_all(runs: Sequence[Path], prices: Path | None = None) -> Loaded:
    """Everything of several runs as one; of the folder of a sweep, every point that has numbers, and the gaps.

    Args:
        prices: file of prices that each run is priced again by.

    Raises:
        BadInput: a run that cannot be read.
    """
    parts, bodies, loads = list[tuple[Path, str]](), dict[str, Any](), dict[str, Loaded]()
    for run in runs:
        if not (run / grid.GRID).is_file():
            parts.append((run, run.resolve().name))
            continue
        from ctrbench.bench import multirun

        found = multirun.states(run)
        named = zip(found, multirun.labels([p for p, _ in found]), strict=True)
        parts += [(suite, label or run.name) for (p, _), label in named if (suite := p.suite(run))]
        bodies[f"{grid.KEY} {run}"] = multirun.body_of(found)
    if not parts:
        raise BadInput(f"{', '.join(map(str, runs))}: no point of the sweep has finished; run `ctrbench sweep` again")
    for run, label in dict.fromkeys(parts):
        table, mine = loaded(run)
        if prices is not None:
            from ctrbench.bench.priced import priced_again

            table, mine = priced_again(table, mine, prices)
        label = label if label not in loads else f"{label} {len(loads)}"
        loads[label] = Loaded(table, mine, kernels_of([run]), label)
    whole = merged(list(loads.values()))
    return replace(whole, bodies={**bodies, **whole.bodies})


def kernels_of(runs: Sequence[Path]) -> pd.DataFrame:
    """Kernels of the run directories among these.

    Raises:
        BadInput: a file of them is damaged.
    """
    try:
        return kernel_rows.load(runs)
    except kernel_rows.BadKernels as error:
        raise BadInput(str(error)) from None

"""Controls that were run before: kept under the cache of the prepared data, copied into a run instead of run again.

A RunSpec's key holds data fingerprint, model, options and training budget; the code that made the number is compared
too. An entry that is not whole, not what its name says, or of other code counts as absent.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from ctrbench.bench.assemble import lookup
from ctrbench.bench.controls import METRICS, code_of
from ctrbench.bench.runspec import RunSpec
from ctrbench.datasets.spec import cache_dir
from ctrbench.reports import records
from ctrbench.reports.privacy import hidden

FILES = ("measurements.parquet", "record.json")
"""Of an entry; record.json is copied last and marks a record whole."""


def folder() -> Path:
    """Where controls are kept, one folder a key."""
    return cache_dir() / "controls"


def usable(spec: RunSpec) -> bool:
    """Whether the kept entry is the whole result of this run by this code."""
    entry = folder() / spec.key
    try:
        body, table = records.read(entry)
        return bool(
            body["key"] == spec.key == RunSpec.from_json(body["spec"]).key
            and body["extra"]["code"] == code_of(lookup(spec).build)
            and tuple(table.columns) == records.COLUMNS
            and list(table["metric"]) == [METRICS[spec.kind]]
            and list(table["value"]) == [body["extra"]["auc"]]
            and hidden(body) == body  # kept by a version that wrote places as they are
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Not there, cut off, or JSON and Parquet of another shape: whatever is wrong with it, the run is made again.
        return False


def fetch(groups: Iterable[Sequence[RunSpec]], runs_dir: Path) -> list[RunSpec]:
    """Copies kept controls into a run directory; a group comes whole or not at all.

    Returns:
        the runs that the directory now holds, those that it had before among them.
    """
    done = records.finished(runs_dir)
    found: list[RunSpec] = []
    for group in groups:
        absent = [s for s in group if s.key not in done]
        if not all(usable(s) for s in absent):
            continue
        for spec in absent:
            for name in FILES:
                data = (folder() / spec.key / name).read_bytes()
                records.write_atomic(runs_dir / "records" / spec.key / name, data)
        found += group
    return found


def keep(specs: Iterable[RunSpec], runs_dir: Path) -> None:
    """Keeps the finished among these controls; an entry appears whole, and a usable one stays as it is."""
    done = records.finished(runs_dir)
    for spec in specs:
        if spec.key not in done or usable(spec):
            continue
        partial, target = folder() / f".{spec.key}.{os.getpid()}.partial", folder() / spec.key
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in FILES:
            shutil.copyfile(runs_dir / "records" / spec.key / name, partial / name)
        shutil.rmtree(target, ignore_errors=True)
        try:
            partial.rename(target)
        except OSError:  # another suite kept it meanwhile
            shutil.rmtree(partial)

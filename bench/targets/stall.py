"""Target: in every model of `suite=standard` a training step waits for the loader less than 5 % of its time.

Data, batch, history length, prefetch, threads and steps are those of that suite; only its timed process runs, the one
that `loader_stall` comes from (bench/jobs.py, bench/summary.py).
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from ctrbench.bench import registry
from ctrbench.bench.config import build_plan
from ctrbench.bench.plan import Entry, Plan
from ctrbench.bench.pool import Outcome as Ended
from ctrbench.bench.pool import run_all
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.specs import Ready, spec_of
from ctrbench.bench.suite import prepare_jobs
from ctrbench.bench.summary import Run, stall_of
from ctrbench.bench.targets.outcome import Outcome
from ctrbench.reports import records

SUITE, LIMIT = "standard", 0.05
PROCESSES = 2
"""A timing; the suite takes five."""
GROUP = "stall"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stall:
    """One model of one job."""

    who: str
    stall: float
    """Median over processes of wait / step time."""
    each: tuple[float, ...]
    """Of every process."""
    data_cpu: float
    """Median over processes of the loader's CPU seconds / those of the whole process, over the timed steps."""


def timed_specs(plan: Plan, ready: Sequence[Ready]) -> list[RunSpec]:
    """The timed processes of a suite, one round of all models before the next."""
    found: list[tuple[Ready, Entry]] = [
        (item, entry)
        for item in ready
        for entry in item.job.models
        if item.job.timed and item.prepared.schema.track in registry.model_spec(entry.model).tracks
    ]
    specs = [spec_of(plan, item, "time", entry, repeat=r) for r in range(PROCESSES) for item, entry in found]
    return list({s.key: s for s in specs}.values())


def stalls(specs: Sequence[RunSpec], runs_dir: Path) -> list[Stall]:
    """What finished processes say, worst first; models whose processes all failed are left out."""
    done = records.finished(runs_dir)
    found: dict[str, list[Run]] = defaultdict(list)
    for spec in specs:
        if spec.key in done:
            found[f"{spec.data}: {spec.model} {spec.variant}".strip()].append(Run(spec, _body(runs_dir, spec.key)))
    out = []
    for who, runs in found.items():
        extras = [r.body["extra"] for r in runs]
        out.append(Stall(
            who=who, stall=stall_of(extras), each=tuple(stall_of([e]) for e in extras),
            data_cpu=median(e["cpu_seconds"]["data"] / e["cpu_seconds"]["all"] for e in extras),
        ))  # fmt: skip
    return sorted(out, key=lambda s: s.stall, reverse=True)


def judged(found: Sequence[Stall], failed: Sequence[Ended], absent: Sequence[str], how: str) -> Iterator[Outcome]:
    """The worst model is the target; the next ones stand beside it, and what could not be measured.

    Args:
        found: worst first.
        failed: processes that did not finish.
        absent: data sets that are not here, with the reason.
        how: conditions of the measurement.
    """
    target = f"loader stall of every model of suite={SUITE}, worst shown"
    if found and not failed:
        worst = found[0]
        yield Outcome(
            group=GROUP, target=target, wanted=f"< {LIMIT:.0%}", measured=f"{_percent(worst)} ({worst.who})",
            verdict="met" if worst.stall < LIMIT else "missed",
            how=f"{len(found)} models; {sum(s.stall >= LIMIT for s in found)} at or above the limit; {how}",
        )  # fmt: skip
    for stall in found[1:]:
        yield Outcome(
            group=GROUP, target=stall.who, wanted="", measured=_percent(stall),
            verdict="missed" if stall.stall >= LIMIT else "context",
            how=f"the loader takes {stall.data_cpu:.1%} of the CPU seconds of a step",
        )  # fmt: skip
    for end in failed:
        yield Outcome(
            group=GROUP, target=f"{end.spec.data}: {end.spec.model}", wanted=f"< {LIMIT:.0%}", measured=end.status,
            verdict="missed", how=end.reason,
        )  # fmt: skip
    for reason in absent:
        yield Outcome(
            group=GROUP, target=f"{target}: {reason.partition(':')[0]}", wanted=f"< {LIMIT:.0%}", measured="",
            verdict="not testable here", how=reason,
        )  # fmt: skip


def _body(runs_dir: Path, key: str) -> dict[str, Any]:
    return dict(json.loads((runs_dir / "records" / key / "record.json").read_text(encoding="utf-8")))


def _percent(stall: Stall) -> str:
    return f"{stall.stall:.2%} [{min(stall.each):.2%}, {max(stall.each):.2%}]"


def outcomes() -> Iterator[Outcome]:
    """Prepares the suite's data and runs every timed process, alone on the machine as far as this one knows."""
    console = Console()
    plan = build_plan([f"suite={SUITE}"])
    ready, _, absent = prepare_jobs(plan, console)
    specs = timed_specs(plan, ready)
    with tempfile.TemporaryDirectory() as folder:
        ended = run_all(specs, Path(folder), workers=1, done=lambda e: console.print(f"  {e.spec.key}: {e.status}"))
        found = stalls(specs, Path(folder))
    run = plan.run
    how = (
        f"{PROCESSES} processes of {run.steps} steps after {run.warmup} of warm-up, batch {run.batch}, {run.threads} "
        "threads, one more for the loader; wait for a batch / step, wait included; [lowest, highest process]"
    )
    yield from judged(found, [e for e in ended if e.status != "ok"], absent, how)

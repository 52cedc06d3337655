"""One fresh process a run, forked from a server that has imported torch once and run nothing.

A child that crashes, runs out of memory or time costs one row, never the suite.
"""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import psutil

from ctrbench.bench.proc import keep_freed_memory
from ctrbench.bench.runspec import RunSpec
from ctrbench.reports import records
from ctrbench.reports.privacy import hidden

PRELOAD = ["torch", "torchrec", "ctrbench.bench.jobs"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a process ended: a record was written, or why not."""

    spec: RunSpec
    status: records.Status
    reason: str = ""
    seconds: float = 0.0


def context() -> ForkServerContext:
    """A fork server, so that a child starts in milliseconds with the imports done and no thread inherited."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read at import, by the server: no probe lines on stderr
    ctx = mp.get_context("forkserver")
    ctx.set_forkserver_preload(PRELOAD)
    return ctx


def die_with(suite: int) -> None:
    """Ends this process once the suite's process is gone; the fork server between them outlives a kill."""

    def watch() -> None:
        while psutil.pid_exists(suite):
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _child(spec: RunSpec, runs_dir: str, errors: str, suite: int) -> None:
    die_with(suite)
    keep_freed_memory()
    import torch

    from ctrbench.bench.jobs import JOBS

    # TorchRec calls a deprecated name of torch; the warning says nothing to the reader of a suite's lines.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    torch.set_num_threads(spec.threads)
    os.environ["OMP_NUM_THREADS"] = str(spec.threads)
    folder = Path(runs_dir) / "records" / spec.key
    folder.mkdir(parents=True, exist_ok=True)
    try:
        records.save(JOBS[spec.kind](spec, folder), Path(runs_dir))
    except BaseException as error:  # the parent turns it into a row; the child must not hide it
        memory = (
            isinstance(error, MemoryError) or "not enough memory" in str(error) or "DefaultCPUAllocator" in str(error)
        )
        Path(errors).write_text(("oom\n" if memory else "failed\n") + hidden(traceback.format_exc()))
        os._exit(1)


def run_all(
    specs: Iterable[RunSpec],
    runs_dir: Path,
    workers: int,
    done: Callable[[Outcome], None],
    started: Callable[[RunSpec], None] = lambda s: None,
) -> list[Outcome]:
    """Runs every spec in a process of its own, at most `workers` at a time, in order; none before its pre-training."""
    queue, outcomes = list(specs), list[Outcome]()
    running: dict[int, tuple[ForkServerProcess, RunSpec, float, Path]] = {}
    ctx = context()
    while queue or running:
        while len(running) < workers and (ready := _next(queue, [s for _, s, _, _ in running.values()])) is not None:
            spec = queue.pop(ready)
            errors = runs_dir / "records" / spec.key / "error.txt"
            errors.parent.mkdir(parents=True, exist_ok=True)
            errors.unlink(missing_ok=True)
            process = ctx.Process(target=_child, args=(spec, str(runs_dir), str(errors), os.getpid()), daemon=True)
            process.start()
            started(spec)
            running[process.sentinel] = (process, spec, time.monotonic(), errors)
        nearest_end = min(begin + spec.timeout_s for _, spec, begin, _ in running.values())
        ended = wait(list(running), timeout=max(0.0, nearest_end - time.monotonic()))
        for sentinel in list(running):
            process, spec, begin, errors = running[sentinel]
            late = time.monotonic() - begin > spec.timeout_s
            if sentinel not in ended and not late:
                continue
            if sentinel not in ended:
                process.kill()
            process.join()
            del running[sentinel]
            outcomes.append(_outcome(spec, process.exitcode, errors, sentinel not in ended, time.monotonic() - begin))
            done(outcomes[-1])
    return outcomes


def _next(queue: list[RunSpec], running: list[RunSpec]) -> int | None:
    """Place in the queue of the first spec whose pre-training neither waits nor runs; None if there is none."""
    open_keys = {s.key for s in (*queue, *running) if s.kind == "pretrain"}
    return next((i for i, s in enumerate(queue) if s.pretrained not in open_keys), None)


def _outcome(spec: RunSpec, code: int | None, errors: Path, late: bool, seconds: float) -> Outcome:
    if late:
        return Outcome(spec, "timeout", f"not finished after {spec.timeout_s} s (run.timeout_s)", seconds)
    if code == 0:
        return Outcome(spec, "ok", "", seconds)
    if errors.is_file():
        status, _, trace = errors.read_text().partition("\n")
        last = trace.strip().splitlines()[-1] if trace.strip() else "no message"
        return Outcome(spec, "oom" if status == "oom" else "failed", last[:300], seconds)
    if code == -signal.SIGKILL:
        return Outcome(spec, "oom", "process was killed (signal 9), most likely for memory", seconds)
    return Outcome(spec, "failed", f"process ended with code {code} and no message", seconds)

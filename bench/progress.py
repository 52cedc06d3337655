"""Progress of a suite and of long preparations: bars on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ctrbench.bench.pool import Outcome
from ctrbench.datasets.watch import Watch

LINE_SECONDS = 30.0
"""Between two lines of one stage in a log."""


class RunProgress:
    """A bar on a terminal, a line a run in a log."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.count = console, total, 0
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        ) if console.is_terminal else None  # fmt: skip

    def __enter__(self) -> Any:
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("runs", total=self.total)
        return self.done

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def done(self, outcome: Outcome) -> None:
        self.count += 1
        if self.bar is not None:
            self.bar.update(
                self.task,
                advance=1,
                description=f"{outcome.spec.data or 'meta'} {outcome.spec.model} {outcome.spec.kind}",
            )
        else:
            self.console.print(
                f"[{self.count}/{self.total}] {outcome.status} {outcome.spec.key} {outcome.seconds:.1f} s", markup=False
            )
            sys.stdout.flush()


class Stages(Watch):
    """A bar a stage with the time left on a terminal; in a log a line when a stage begins and one now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: Progress | None = None
        self._stages: dict[str, TaskID] = {}
        self._lines: dict[str, float] = {}

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text, markup=False, soft_wrap=True)

    def at(self, stage: str, done: int, total: int) -> None:
        """Moves the bar of a stage, or writes a line."""
        if self.console.is_terminal:
            if self._bars is None:
                columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
                           TimeRemainingColumn())  # fmt: skip
                self._bars = Progress(*columns, console=self.console)
                self._bars.start()
            if stage not in self._stages:
                self._stages[stage] = self._bars.add_task(stage, total=total or None)
            self._bars.update(self._stages[stage], completed=done)
            return
        now = time.monotonic()
        if now - self._lines.get(stage, -LINE_SECONDS) >= LINE_SECONDS or done == total:
            self._lines[stage] = now
            self.say(f"{stage}: {f'{done / total:.0%}' if total else f'{done:,}'}")
            sys.stdout.flush()

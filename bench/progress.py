"""Progress of a suite: a bar on a terminal, a line a run in a log."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ctrbench.bench.pool import Outcome


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

"""What long work tells whoever waits for it."""

from __future__ import annotations


class Watch:
    """This one tells nothing; the roof draws bars and lines (bench/progress.py)."""

    def say(self, text: str) -> None:
        """A sentence that somebody should read."""

    def at(self, stage: str, done: int, total: int) -> None:
        """How far a stage is, in a unit of its own; `total` is 0 where nobody knows."""

"""When to stop repeating: once the interval of the ratio is narrow enough, or the planned maximum is reached.

Looking again and again until something shows makes chance findings. So the looks are planned before the first process,
no look stops because of what the test says, only because of how wide the interval is, and alpha is spent evenly over
the looks: whichever one it stops at, the error of the whole is at most alpha (Bonferroni over looks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctrbench.bench.significance import ALPHA, mann_whitney, processes_needed, ratio_interval, smallest_p


@dataclass(frozen=True, kw_only=True, slots=True)
class StoppingRule:
    """Planned looks at a comparison of two sides."""

    looks: tuple[int, ...]
    """Processes a side at each look, rising; the last is the maximum."""
    width: float
    """Stop once (high - low) / 2 of the interval of the ratio is at most this."""
    tests: int = 1
    """Tests of the gate; Holm's first step must be passed at every look."""
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        if not self.looks or list(self.looks) != sorted(set(self.looks)):
            raise ValueError(f"looks {self.looks}: give rising numbers of processes")
        if smallest_p(self.looks[0], self.looks[0]) > self.share / self.tests:
            needed = processes_needed(self.tests, self.share)
            raise ValueError(
                f"a look at {self.looks[0]} processes could never call a change at alpha {self.share:.3g} over "
                f"{self.tests} tests; the first look needs {needed} a side"
            )

    @property
    def share(self) -> float:
        """Alpha of one look."""
        return self.alpha / len(self.looks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What one look found."""

    processes: int
    low: float
    high: float
    """Interval of new / base at level 1 - share."""
    p: float
    stop: bool
    reason: str


def planned(
    *, most: int, looks: int = 3, width: float = 0.03, tests: int = 1, alpha: float = ALPHA
) -> StoppingRule:  # fmt: skip
    """Looks spread evenly from the fewest processes that can call a change to `most`.

    Raises:
        ValueError: if `most` is below that.
    """
    least = processes_needed(tests, alpha / looks)
    if most < least:
        raise ValueError(f"at most {most} processes: {looks} looks over {tests} tests need {least} a side")
    numbers = sorted({round(n) for n in np.linspace(least, most, looks)})
    return StoppingRule(looks=tuple(numbers), width=width, tests=tests, alpha=alpha)


def look(rule: StoppingRule, base: Sequence[float], new: Sequence[float]) -> Look | None:
    """The look that the processes so far allow; None between two looks.

    Raises:
        ValueError: if the sides differ in size, or the maximum is passed.
    """
    n = len(base)
    if n != len(new) or n > rule.looks[-1]:
        raise ValueError(f"{n} against {len(new)} processes: equal sides, at most {rule.looks[-1]}")
    if n not in rule.looks:
        return None
    low, high = ratio_interval(base, new, level=1 - rule.share)
    narrow, last = (high - low) / 2 <= rule.width, n == rule.looks[-1]
    reason = f"interval of the ratio within +-{rule.width:.1%}" if narrow else "planned maximum" if last else ""
    return Look(
        processes=n, low=low, high=high, p=mann_whitney(base, new), stop=narrow or last, reason=reason
    )  # fmt: skip

"""The form of a planted mistake."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mistake:
    """One planted mistake."""

    model: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """Tests, or files of them, one of which must fail."""

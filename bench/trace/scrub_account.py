"""What a scrubbing took out of a recording, and which range names it may leave in."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field

REDACTED = "redacted"
DOMAIN = "ctrbench"
"""Domain of our own ranges, as in `nvtx.DOMAIN`; named here so that scrubbing starts without torch."""
_OWN = re.compile(rf"{DOMAIN}/.*|ProfilerStep#\d+")
"""Our own ranges where a recording has no domains (the mirror for Kineto), and the profiler's step."""


@dataclass
class Dropped:
    """What a scrubbing took out: where -> how many values."""

    redact_names: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, times: int = 1) -> None:
        if times:
            self.counts[where] += times

    def range_name(self, name: str, own: bool | None = None) -> str:
        """A range's name as it may be shared: one of ours or any, or a hash that still aggregates.

        Args:
            name: text of the range.
            own: whether it is of our domain, where the recording tells; otherwise the name's form decides.
        """
        if not self.redact_names or (_OWN.fullmatch(name) if own is None else own):
            return name
        self.add("range names (hashed)")
        return "range-" + hashlib.sha256(name.encode()).hexdigest()[:12]

"""The record of a GPU kit run: one JSON file, written whole after every model; reading it needs no torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ctrbench.datasets.errors import BadInput
from ctrbench.reports.privacy import hidden
from ctrbench.reports.records import write_atomic
from ctrbench.reports.seal import opened, sealed

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, or where the package is installed."""
SCHEMA = "ctrbench-gpu-kit"
SCHEMA_VERSION = 1
PHASES = ("train", "infer")
DISAGREEMENT = 0.05
"""Events and wall clock may differ by this share of the wall clock; beyond it a timing is `unstable`."""
AGAIN = "run `make gpu-kit`, or copy the record again"
_KEYS = ("started", "dry_run", "device", "environment", "dtype", "models")


def save(record: Mapping[str, Any], path: Path) -> None:
    """Writes the record whole or not at all, sealed, without what it must not say (`privacy.hidden`)."""
    plain = json.loads(json.dumps(hidden(record), sort_keys=True))
    write_atomic(path, (json.dumps(sealed(plain), indent=1) + "\n").encode())


def load(path: Path) -> dict[str, Any]:
    """A record.

    Raises:
        BadInput: no such file, not JSON, no record of this schema, or not what was written; says what to do.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not whole JSON ({error}); {AGAIN}") from None
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise BadInput(f"{path}: no record of the GPU kit (schema {SCHEMA!r}); {AGAIN}")
    if body.get("schema_version") != SCHEMA_VERSION:
        found = body.get("schema_version")
        raise BadInput(f"{path}: schema_version {found!r}, this ctrbench reads {SCHEMA_VERSION}; {AGAIN}")
    if missing := [key for key in _KEYS if key not in body]:
        raise BadInput(f"{path}: key {missing[0]!r} is missing; {AGAIN}")
    try:
        return opened(body)
    except ValueError as error:
        raise BadInput(f"{path}: {error}; {AGAIN}") from None


@contextmanager
def readable(name: object) -> Iterator[None]:
    """Whatever a part raises that is absent or of another kind is a fault of the record: hands write and edit them."""
    try:
        yield
    except BadInput:
        raise
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise BadInput(f"{name}: a part is absent or of another kind ({why}); {AGAIN}") from None


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """P10, P50 and P90 by linear interpolation; of a single value, itself."""
    tenths = statistics.quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 9
    return {"p10": tenths[0], "p50": statistics.median(seconds), "p90": tenths[-1]}


def judge_clocks(event_s: Sequence[float], wall_s: Sequence[float]) -> tuple[str, float, str]:
    """Whether two clocks of the same steps agree.

    Args:
        event_s: seconds by CUDA events.
        wall_s: seconds by the wall clock, synchronised around every step.

    Returns:
        (`ok` or `unstable`, difference of the medians as a share of the wall clock's, reason or '').
    """
    event, wall = statistics.median(event_s), statistics.median(wall_s)
    off = abs(event - wall) / wall
    if off <= DISAGREEMENT:
        return "ok", off, ""
    reason = (
        f"clock_unstable: median step {event:.3g} s by CUDA events, {wall:.3g} s by the wall clock: {off:.0%} apart"
    )
    return "unstable", off, reason

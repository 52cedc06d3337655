"""Random batches for runs that measure time and work, never quality: no file is read and nothing is prepared.

Ids are uniform over the rows of their table, every history is full, dense values are normal and a tenth is missing.
Tables are those of a public schema, cut to `CAP` rows, so that wide models fit into a few GB: what is measured on them
says nothing of the cache misses of real tables.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.published_schemas import criteo_x1, taobao_like
from ctrbench.datasets.schema import Batch, FeatureSchema, Track

CAP = 20_000
"""Most rows of a table."""
HELD = 8
"""Batches that a process makes before its first step and then repeats."""
TRACKS: dict[str, Track] = {"random_tabular": "tabular", "random_sequence": "sequence"}
"""Name in suites and records -> track."""
SPLIT = "random"


def random_schema(name: str, length: int) -> FeatureSchema:
    """The features of a kind of random batches: Criteo's fields, or a shop's with one history of `length` events.

    Raises:
        BadInput: no event.
    """
    if length < 1:
        raise BadInput(f"history_length={length}: a random history has at least one event")
    schema = criteo_x1() if TRACKS[name] == "tabular" else taobao_like(length)
    # Lower bounds of distinct rows are of the real data's skew: they do not hold for uniform ids.
    cut = (replace(f, cardinality=min(f.cardinality, CAP), unique_rows=()) for f in schema.fields)
    return replace(schema, name=name, fields=tuple(cut))


def note(name: str, histories: str = "full") -> dict[str, Any]:
    """What a record says of its batches; nothing for prepared data."""
    if name not in TRACKS:
        return {}
    return {
        "random_batches": {"ids": "uniform", "histories": histories, "table_rows_at_most": CAP, "batches_held": HELD}
    }


def fingerprint(name: str) -> str:
    """Hash of all that decides the ids."""
    return hashlib.sha256(json.dumps([name, note(name)], sort_keys=True).encode()).hexdigest()[:16]


class RandomBatches:
    """`HELD` batches, made at once and repeated, so that no step waits for one.

    Args:
        make: seed -> batch.
        held: how many.

    Attributes:
        cpu_seconds: 0, as no step makes a batch.
    """

    def __init__(self, make: Callable[[int], Batch], held: int = HELD) -> None:
        self.cpu_seconds = 0.0
        self._held = [make(seed) for seed in range(held)]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._held)

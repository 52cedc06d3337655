"""Which test holds each mechanism of a fidelity card (`proofs.toml`)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from ctrbench.models.spec import FidelityCard

FILE = Path(__file__).resolve().with_name("proofs.toml")
SHARED = "shared"
"""Table of the mechanisms that several cards name alike."""


@cache
def proofs() -> Mapping[str, Mapping[str, list[str]]]:
    """Model, or `SHARED` -> mechanism -> tests."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def with_proofs(card: FidelityCard) -> dict[str, Any]:
    """A card as records carry it: each row with `tests`, empty where no test holds the mechanism."""
    own, shared = proofs().get(card.model, {}), proofs()[SHARED]
    body = asdict(card)
    for row in body["rows"]:
        row["tests"] = own.get(row["mechanism"], shared.get(row["mechanism"], []))
    return body

"""A hash of what a JSON file says, in the file itself: a byte that turned on a disk, or an edit, is seen.

A file is read by dozens of tables and figures; that each of them survives whatever a damaged file may say cannot be
tested, that a damaged file is not read can.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "sha256"


def sealed(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body with its hash under `sha256`, last. It holds what JSON holds and no more: keys are text."""
    rest = {k: v for k, v in body.items() if k != KEY}
    return {**rest, KEY: _hash(rest)}


def opened(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without its hash. One without any was written by a version before there were seals.

    Raises:
        ValueError: it says something else than when it was sealed, or holds what is no text in UTF-8.
    """
    rest = {k: v for k, v in body.items() if k != KEY}
    said = _hash(rest)
    if body.get(KEY, said) != said:
        raise ValueError(f"its text is not what was written: {KEY} differs")
    return rest


def _hash(body: Mapping[str, Any]) -> str:
    """Of the values, however the file is spaced or its keys are ordered."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

"""Data sets by name. The file name is the key; names are listed without importing anything."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ctrbench.datasets.errors import UnknownName, nearest

if TYPE_CHECKING:  # names are checked before torch, which the schema needs, is loaded
    from ctrbench.datasets.spec import DataSpec


@cache
def _shipped() -> tuple[str, ...]:
    files = sorted(Path(__file__).resolve().parent.glob("*.py"))
    return tuple(f.stem for f in files if re.search(r"^SPEC\b", f.read_text(encoding="utf-8"), re.MULTILINE))


def dataset_names() -> list[str]:
    """Keys of every data set."""
    return list(_shipped())


def dataset_spec(name: str) -> DataSpec:
    """The spec of a data set.

    Raises:
        UnknownName: naming the nearest known one.
    """
    if name not in _shipped():
        raise UnknownName(f"unknown data set {nearest(name, _shipped())}")
    return cast("DataSpec", importlib.import_module(f"ctrbench.datasets.{name}").SPEC)

"""Criteo_x1: the Kaggle rows with integers transformed and ids numbered by their makers, comma-separated with header.

All columns are numbers: I1..I13 are taken as they are, C1..C26 are ids. Source: the data pages of reczoo/BARS.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctrbench.datasets.account import Account
from ctrbench.datasets.criteo_parts import Coding
from ctrbench.datasets.criteo_text import ENCODED
from ctrbench.datasets.criteo_x4 import three_files, three_splits
from ctrbench.datasets.published import Published
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import DataSpec, Raw

PUBLISHED = {
    "train": Published(rows=33_003_326, md5="30b89c1c7213013b92df52ec44f52dc5"),
    "valid": Published(rows=8_250_124, md5="f73c71fb3c4f66b6ebdfa032646bea72"),
    "test": Published(rows=4_587_167, md5="2c48b26e84c04a69b948082edae46f8c"),
}


def fetch(path: Path | None, options: Mapping[str, Any]) -> Raw:
    """The user's folder."""
    return three_files("criteo_x1", path)


def build(raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """The three files, numbers as they are."""
    coding = Coding(
        min_count=options["min_count"], integers="none", merge_missing=options["bars_compat"], hex_tokens=False
    )
    return three_splits(raw, coding, ENCODED, PUBLISHED, account, shards)


SPEC = DataSpec(
    name="criteo_x1",
    title="Criteo_x1 of BARS, comma-separated numbers",
    track="tabular",
    description="13 numeric and 26 categorical fields, no user; give the folder with train.csv, valid.csv, test.csv",
    terms="Criteo's terms for the 2014 challenge data; ctrbench neither ships nor downloads it",
    splits=("files",),
    options={"min_count": 1, "bars_compat": False},
    fetch=fetch,
    build=build,
)

"""Criteo Kaggle Display Advertising data in its original form: 40 tab-separated columns, no header, time order.

Format and reading rules: https://www.kaggle.com/c/criteo-display-ad-challenge.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctrbench.datasets.account import Account
from ctrbench.datasets.criteo_parts import Coding, Parts
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.published import Published, compare
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import DataSpec, Raw, sha256_file

PUBLISHED = Published(rows=45_840_617, positive_rate=0.2562)
"""Of train.txt."""


def fetch(path: Path | None, options: Mapping[str, Any]) -> Raw:
    """The user's file."""
    if path is None:
        raise BadInput(
            "criteo: no file given; pass the path of train.txt or train.txt.gz (data.path=FILE, --path FILE)"
        )
    return Raw(path=path, sha256=sha256_file(path), bytes=path.stat().st_size)


def build(raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """Rows in file order, which is time: the first 80 % train with its last tenth for validation, the rest test."""
    coding = Coding(min_count=options["min_count"], integers=options["integers"])
    coding.check("criteo")
    parts = Parts(shards)
    parts.add(account, tokens=True)
    account.close()
    if parts.positives in (0, account.kept):
        raise BadInput(
            f"{raw.path}: all {account.kept} rows have label {int(parts.positives > 0)}; give rows of both classes"
        )
    test = int(account.kept * 0.8)
    valid = int(test * 0.9)
    cuts = {"valid_from_row": valid, "test_from_row": test}
    if not raw.synthetic:
        compare(account, raw.path.name, PUBLISHED, rows=account.read, positives=parts.positives)
    schema = parts.store("criteo", valid, test, coding, account)
    return {"schema": schema, "split": {"by": "file order, which is time", **cuts}}


SPEC = DataSpec(
    name="criteo",
    title="Criteo Kaggle Display Advertising Challenge, original TSV",
    track="tabular",
    description="13 integer and 26 categorical fields, no user; give your own copy of train.txt, plain or gzipped",
    terms="Criteo's terms for the 2014 challenge data; ctrbench neither ships nor downloads it",
    splits=("file_order",),
    options={"min_count": 2, "integers": "signed_log"},
    fetch=fetch,
    build=build,
)

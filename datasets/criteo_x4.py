"""Criteo_x4: the Kaggle rows cut into ten stratified folds by BARS, comma-separated with header, strings untouched.

Fold 0 is test, fold 1 valid, folds 2-9 train: no order of time is left. Source: the data pages of reczoo/BARS.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctrbench.datasets.account import Account
from ctrbench.datasets.criteo_parts import Coding, Parts, folder_raw, note_generated
from ctrbench.datasets.criteo_text import CSV, Layout
from ctrbench.datasets.errors import BadInput, nearest
from ctrbench.datasets.prepared import SPLITS
from ctrbench.datasets.published import Published, compare
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import DataSpec, Raw

VERSIONS = {"x4_001": 10, "x4_002": 2}
"""Version -> minimum count. They also differ in the width of embeddings (16, 40), which is the model's own option."""
PUBLISHED = {
    "train": Published(rows=36_672_493, md5="4a53bb7cbc0e4ee25f9d6a73ed824b1a"),
    "valid": Published(rows=4_584_062, md5="fba5428b22895016e790e2dec623cb56"),
    "test": Published(rows=4_584_062, md5="cfc37da0d75c4d2d8778e76997df2976"),
}


def fetch(path: Path | None, options: Mapping[str, Any]) -> Raw:
    """The user's folder."""
    return three_files("criteo_x4", path)


def three_files(name: str, path: Path | None) -> Raw:
    """train.csv, valid.csv and test.csv of a folder, each plain or gzipped.

    Raises:
        BadInput: no folder, or one of them is absent.
    """
    if path is None or not path.is_dir():
        given = "no folder given" if path is None else f"{path}: no such folder"
        raise BadInput(f"{name}: {given}; pass the one with train.csv, valid.csv, test.csv (data.path=, --path)")
    return folder_raw(name, [_one(path, split) for split in SPLITS], path)


def _one(folder: Path, split: str) -> Path:
    for file in (folder / f"{split}.csv", folder / f"{split}.csv.gz"):
        if file.is_file():
            return file
    there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise BadInput(f"{folder}: {split}.csv not found, nor {split}.csv.gz; there: {there}; rename or add the file")


def three_splits(
    raw: Raw, coding: Coding, layout: Layout, published: Mapping[str, Published], account: Account, shards: Shards
) -> dict[str, Any]:
    """Rows of the three files as they were split by their makers; `time` is a row's number in all of them."""
    name = str(raw.detail["layout"])
    coding.check(name)
    note_generated(raw, account)
    parts = Parts(shards)
    rows = {}
    for split in SPLITS:
        file = _one(raw.path, split)
        part = account.part(file)
        rows[split] = parts.add(part, layout=layout, tokens=True)
        md5 = "" if file.suffix == ".gz" else str(raw.detail["files"][file.name]["md5"])
        compare(part, file.name, published[split], rows=part.read - part.header, md5=md5)
        account.absorb(part)
    valid, test = rows["train"], rows["train"] + rows["valid"]
    schema = parts.store(name, valid, test, coding, account)
    return {"schema": schema, "split": {"by": "the files, as published; no order of time is left"}}


def build(raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """The three files; minimum count by version unless `min_count` is given."""
    if options["version"] not in VERSIONS:
        raise BadInput(f"criteo_x4: unknown version {nearest(options['version'], VERSIONS)}")
    coding = Coding(
        min_count=options["min_count"] or VERSIONS[options["version"]], integers=options["integers"],
        merge_missing=options["bars_compat"],
    )  # fmt: skip
    return three_splits(raw, coding, CSV, PUBLISHED, account, shards)


SPEC = DataSpec(
    name="criteo_x4",
    title="Criteo_x4 of BARS, comma-separated",
    track="tabular",
    description="13 integer and 26 categorical fields, no user; give the folder with train.csv, valid.csv, test.csv",
    terms="Criteo's terms for the 2014 challenge data; ctrbench neither ships nor downloads it",
    splits=("files",),
    options={"version": "x4_001", "min_count": 0, "integers": "signed_log", "bars_compat": False},
    fetch=fetch,
    build=build,
)

"""Criteo 1TB Click Logs: day_0.gz .. day_23.gz in the 40-column TSV, chronological, other tokens than Kaggle's.

Train is every day but the last. The last day is cut in two halves by rows: the first is *valid*, the second *test*, as
in TorchRec; the DLRM preprocessing has it the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctrbench.datasets.account import Account
from ctrbench.datasets.criteo_parts import Coding, Parts, folder_raw, note_generated
from ctrbench.datasets.criteo_text import TSV
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import DataSpec, Raw

LAYOUT = replace(TSV, negative="I8")
DAYS = 24
TRAIN_ROWS, LAST_ROWS = 4_195_197_692, 178_274_637
"""Published rows of days 0-22 and of day 23."""


def days(folder: Path) -> list[Path]:
    """Files of the days in order of time.

    Raises:
        BadInput: no folder, fewer than two days, or a day twice.
    """
    if not folder.is_dir():
        raise BadInput(f"criteo_1tb: {folder}: no such folder; pass the one with day_0.gz, day_1.gz, ...")
    found: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if not (match := re.fullmatch(r"day_([0-9]+)(\.gz)?", file.name)):
            continue
        day = int(match[1])
        if day in found:
            raise BadInput(f"{folder}: day {day} is there twice, {found[day].name} and {file.name}; remove one")
        found[day] = file
    if len(found) < 2:
        raise BadInput(f"{folder}: {len(found)} of day_0.gz .. day_23.gz found; two are needed, the last is held out")
    return [found[day] for day in sorted(found)]


def fetch(path: Path | None, options: Mapping[str, Any]) -> Raw:
    """The user's folder; every byte of it is hashed, which takes minutes for the full 24 days."""
    if path is None:
        raise BadInput("criteo_1tb: no folder given; pass the one with day_0.gz, day_1.gz, ... (data.path=, --path)")
    return folder_raw("criteo_1tb", days(path), path)


def build(raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """Days in order; the last one is halved."""
    cap = options["rows_per_day"]
    if cap < 0:
        raise BadInput(f"criteo_1tb: option rows_per_day={cap} must be 0 (all) or more")
    coding = Coding(min_count=options["min_count"], integers=options["integers"])
    coding.check("criteo_1tb")
    note_generated(raw, account)
    parts = Parts(shards)
    files = days(raw.path)
    rows = 0
    for file in files:
        part = account.part(file)
        rows = parts.add(part, layout=LAYOUT, most=cap, tokens=True)
        account.absorb(part)
    valid = parts.rows - rows
    test = valid + rows // 2
    schema = parts.store("criteo_1tb", valid, test, coding, account)
    _compare(files, cap, account)
    split = {
        "by": f"day: all but {files[-1].name} train, of that one the first half valid and the second half test",
        "days": [file.name for file in files], "rows_per_day": cap or "all", "valid_from_row": valid,
        "test_from_row": test,
    }  # fmt: skip
    return {"schema": schema, "split": split}


def _compare(files: list[Path], cap: int, account: Account) -> None:
    """Notes where the rows are not those of the published split."""
    if cap:
        account.notes[f"only the first {cap:,} rows of each day were read: its first minutes, not a sample of it"] += 1
    if len(files) < DAYS:
        account.notes[f"{len(files)} days given, the published split has {DAYS}"] += 1
    if cap or len(files) < DAYS:
        return
    last = account.files[files[-1].name]["read"]
    for what, found, published in (
        ("days 0-22", account.read - last, TRAIN_ROWS), ("day 23", last, LAST_ROWS),
    ):  # fmt: skip
        if found != published:
            account.notes[f"{what}: {found:,} rows, published are {published:,}"] += 1


SPEC = DataSpec(
    name="criteo_1tb",
    title="Criteo 1TB Click Logs, original TSV by day",
    track="tabular",
    description="13 integer and 26 categorical fields, no user; give the folder with day_0.gz, day_1.gz, ...",
    terms="CC BY-NC-SA 4.0, Criteo; ctrbench neither ships nor downloads it",
    splits=("days",),
    options={"min_count": 10, "integers": "signed_log", "rows_per_day": 0},
    fetch=fetch,
    build=build,
)

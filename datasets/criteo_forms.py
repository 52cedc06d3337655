"""Generated Criteo rows in the other public forms: folders of Criteo_x4, of Criteo_x1 and of 1TB day files.

For fixtures and trials: the whole table is held in memory. Folds are drawn as BARS does (stratified, seed 2018), not
by its library, so that they are folds of the same kind and not the same folds.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl

from ctrbench.datasets import criteo_law_1tb
from ctrbench.datasets.criteo_parts import GENERATED
from ctrbench.datasets.criteo_synthetic import CHUNK, VERSION, Generator, Parameters
from ctrbench.datasets.criteo_text import CATEGORIES, INTEGERS
from ctrbench.datasets.errors import BadInput, nearest
from ctrbench.datasets.spec import sha256_file

FOLDS, FOLD_SEED = 10, 2018
SHARES = (0.72, 0.18)
"""Train and valid of Criteo_x1; the rest is test."""


def write_form(form: str, parameters: Parameters, folder: Path, days: int = 2) -> None:
    """Writes a folder whole or not at all, with parameters and checksums in `generated.json`.

    Args:
        form: x4, x1 or 1tb.
        parameters: what decides the rows; of 1tb the click rate is that of its law.
        folder: to be made.
        days: files of 1tb; the rows are spread over them evenly.

    Raises:
        BadInput: unknown form, `folder` exists, fewer than two days or more days than rows.
    """
    if form not in _FORMS:
        raise BadInput(f"unknown form {nearest(form, _FORMS)}")
    if folder.exists():
        raise BadInput(f"{folder}: exists; give the name of a folder to be made")
    if form == "1tb" and not 2 <= days <= min(24, parameters.rows):
        raise BadInput(f"days={days}: must be 2..24 and not more than rows={parameters.rows}")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        used = replace(parameters, ctr=criteo_law_1tb.CTR) if form == "1tb" else parameters
        _FORMS[form](used, partial, days)
        digests = {file.name: sha256_file(file) for file in sorted(partial.iterdir())}
        body = {"generator": "criteo_synthetic", "version": VERSION, "form": form, **asdict(used), "sha256": digests}
        (partial / GENERATED).write_text(json.dumps(body, indent=1), encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _table(generator: Generator) -> pl.DataFrame:
    return pl.concat([generator.table(number) for number in range(-(-generator.parameters.rows // CHUNK))])


def _x4(parameters: Parameters, folder: Path, days: int) -> None:
    table = _table(Generator(parameters)).rename({"label": "Label"})
    fold = stratified_folds(table["Label"].to_numpy())
    _csv(table.filter(fold == 0), folder / "test.csv")
    _csv(table.filter(fold == 1), folder / "valid.csv")
    _csv(pl.concat([table.filter(fold == k) for k in range(2, FOLDS)]), folder / "train.csv")


def stratified_folds(label_R: np.ndarray) -> np.ndarray:
    """Fold of each row: within each class a random tenth, int64."""
    rng = np.random.default_rng(FOLD_SEED)
    fold_R = np.empty(len(label_R), np.int64)
    for value in (0, 1):
        rows = np.flatnonzero(label_R == value)
        fold_R[rows] = rng.permutation(len(rows)) % FOLDS
    return fold_R


def _x1(parameters: Parameters, folder: Path, days: int) -> None:
    """Ids numbered from 1 by text, 0 where missing; integers scaled to 0..1, which is our guess of what was done."""
    x = pl.col(INTEGERS).fill_null(0)
    table = _table(Generator(parameters)).with_columns(
        (x - x.min()) / (x.max() - x.min()), pl.col(CATEGORIES).rank("dense").fill_null(0)
    )
    order_R = np.random.default_rng([parameters.seed, 4]).permutation(table.height)
    train, valid = (int(table.height * share) for share in SHARES)
    for name, start, stop in (
        ("train", 0, train), ("valid", train, train + valid), ("test", train + valid, table.height),
    ):  # fmt: skip
        _csv(table[np.sort(order_R[start:stop])], folder / f"{name}.csv")


def _1tb(parameters: Parameters, folder: Path, days: int) -> None:
    table = _table(Generator(parameters, criteo_law_1tb.law(parameters.cap)))
    edges = [table.height * day // days for day in range(days + 1)]
    for day in range(days):
        part = table.slice(edges[day], edges[day + 1] - edges[day])
        text = part.write_csv(include_header=False, separator="\t", quote_style="never")
        # No name and no time in the header: same parameters, same bytes.
        (folder / f"day_{day}.gz").write_bytes(gzip.compress(text.encode(), 6, mtime=0))


def _csv(table: pl.DataFrame, file: Path) -> None:
    table.write_csv(file, quote_style="never")


_FORMS: dict[str, Callable[[Parameters, Path, int], None]] = {"x4": _x4, "x1": _x1, "1tb": _1tb}

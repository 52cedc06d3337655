"""Rows that ctrbench and its peers train on: two kinds of rows, two table sizes, and the same rows as plain arrays.

`1.48m`: Criteo's tables capped at 200 k rows, 1.48 million rows in all. `5.2m`: 26 tables of 200 k rows each. There
every column of fewer values is crossed with one of many and hashed, so that ids reach the whole of every table. Rows
with a history get as many table rows in all: users and categories as they are, items spread at random over the rest.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import MANIFEST, SPLITS, Prepared, schema_json
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema
from ctrbench.datasets.spec import cache_dir

Rows = Literal["tabular", "sequence"]
Size = Literal["1.48m", "5.2m"]
TABLE_ROWS = 200_000
TOTAL = {"1.48m": 1_480_000, "5.2m": 26 * TABLE_ROWS}
"""Rows of all tables of the rows with a history."""
LAYOUT = 1
"""Of what this file writes; part of a folder's name."""
_ODD = 0x9E3779B97F4A7C15


def prepared_rows(rows: Rows, size: Size, generated: int = 400_000, users: int = 2_000) -> Prepared:
    """The rows, generated and prepared if they are not yet.

    Args:
        rows: `tabular` in Criteo's form, `sequence` in Taobao's (item and category of up to 50 events).
        size: of the tables.
        generated: rows of `tabular`, all splits together.
        users: of `sequence`.
    """
    if rows == "tabular":
        base = prepare("criteo_synthetic", rows=generated, cap=TABLE_ROWS, full_tables=True)
        return base if size == "1.48m" else _rewritten(base, size, _crossed)
    return _rewritten(prepare("taobao_synthetic", users=users, pool_users=4 * users), size, _spread)


Change = Callable[[pl.DataFrame], pl.DataFrame]


def _rewritten(base: Prepared, size: Size, rule: Callable[[Prepared, int], tuple[FeatureSchema, Change]]) -> Prepared:
    """`base` with other ids and another schema, kept in the cache."""
    folder = cache_dir() / "prepared" / f"peers-{LAYOUT}-{size}-{base.fingerprint[:12]}"
    if (folder / MANIFEST).is_file():
        return Prepared.open(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    schema, change = rule(base, TOTAL[size])
    for file in [f for s in SPLITS for f, _ in base.shards(s)] + sorted(base.path.glob("events-*.parquet")):
        target = folder / file.relative_to(base.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        change(pl.read_parquet(file)).write_parquet(target, compression="zstd")
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*.parquet"))}
    mark = hashlib.sha256(f"{base.fingerprint} peers {LAYOUT} {size}".encode()).hexdigest()[:16]
    body = {**base.manifest, "schema": schema_json(schema), "files": files, "fingerprint": mark}
    (folder / MANIFEST).write_text(json.dumps(body), encoding="utf-8")
    return Prepared.open(folder)


def _crossed(base: Prepared, total: int) -> tuple[FeatureSchema, Change]:
    """Every categorical column has `total` / columns values; small ones are crossed with large ones and hashed.

    A vocabulary numbers values by frequency, so the ids of the large columns, too, go any place.
    """
    each = total // len(base.schema.categorical)
    large = [f.name for f in base.schema.categorical if f.cardinality >= each]
    small = [f.name for f in base.schema.categorical if f.cardinality < each]
    fields = tuple(replace(f, cardinality=each) if f.kind == "categorical" else f for f in base.schema.fields)
    places = {n: any_place(base.schema[n].cardinality, each, i) for i, n in enumerate(large)}

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        columns = []
        for i, name in enumerate(small):
            a_R, b_R = (frame[c].to_numpy().astype(np.uint64) for c in (name, large[i % len(large)]))
            columns.append(pl.Series(name, hashed(a_R, b_R, i, each)))
        for name, place_N in places.items():
            columns.append(pl.Series(name, place_N[frame[name].to_numpy()]))
        return frame.with_columns(columns)

    return replace(base.schema, fields=fields), change


def any_place(used: int, rows: int, seed: int) -> np.ndarray:
    """int32 [used]: a place of its own in [FIRST_ID, rows) for each id; the few too many share, reserved ids stay."""
    place_N = np.arange(used, dtype=np.int32)
    drawn_N = np.random.default_rng(seed).permutation(rows - FIRST_ID).astype(np.int32) + FIRST_ID
    place_N[FIRST_ID:] = np.resize(drawn_N, used - FIRST_ID)
    return place_N


def hashed(a_R: np.ndarray, b_R: np.ndarray, salt: int, rows: int) -> np.ndarray:
    """int32 ids in [FIRST_ID, rows) of pairs of ids (finaliser of splitmix64)."""
    x_R = (a_R << np.uint64(32)) + b_R + np.uint64(salt * _ODD % 2**64)
    x_R = (x_R ^ (x_R >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_R = (x_R ^ (x_R >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x_R ^= x_R >> np.uint64(31)
    return (x_R % np.uint64(rows - FIRST_ID)).astype(np.int32) + np.int32(FIRST_ID)


def _spread(base: Prepared, total: int) -> tuple[FeatureSchema, Change]:
    """The item table takes what the others leave of `total`, its ids any place; the history's action is left out."""
    used, kept = base.schema.tables["item"], ("user", "category")
    items = total - sum(base.schema.tables[n] for n in kept)
    place_N = any_place(used, items, 0)
    wanted = [f for f in base.schema.fields if f.name != "hist_action"]
    fields = tuple(replace(f, cardinality=items) if f.name in ("item", "hist_item") else f for f in wanted)

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        name = "item" if "item" in frame.columns else "hist_item"
        return frame.with_columns(pl.Series(name, place_N[frame[name].to_numpy()]))

    return replace(base.schema, fields=fields), change


def write_arrays(prepared: Prepared, rows: Mapping[str, int], path: Path) -> None:
    """The most recent rows of each split as a `.npz` that a peer reads without ctrbench.

    `cardinality` [C], and of each split: `<split>_ids` [N, C], `<split>_dense` [N, I] (missing = 0), `<split>_label`
    [N]; with a history also `<split>_begin` and `<split>_end` [N], its slice of `log` [M, fields], and `max_length`.
    """
    schema = prepared.schema
    arrays: dict[str, Any] = {"cardinality": np.array([f.cardinality for f in schema.categorical])}
    names, dense = [f.name for f in schema.categorical], [f.name for f in schema.dense]
    for split, last in rows.items():
        frame = prepared.frame(split, last=last, columns=["label", *names, *dense])
        arrays[f"{split}_ids"] = frame.select(names).to_numpy().astype(np.int32)
        values = frame.select(dense).fill_null(0.0).to_numpy() if dense else np.zeros((frame.height, 0))
        arrays[f"{split}_dense"] = values.astype(np.float32)
        arrays[f"{split}_label"] = frame["label"].to_numpy().astype(np.float32)
        if schema.histories:
            spans = pl.scan_parquet([f for f, _ in prepared.shards(split)]).tail(last)
            ends = spans.select("hist_begin", "hist_end").collect()
            arrays[f"{split}_begin"], arrays[f"{split}_end"] = (ends[c].to_numpy() for c in ends.columns)
    for history, fields in schema.histories.items():
        arrays["log"] = prepared.events(history).select([f.name for f in fields]).to_numpy().astype(np.int32)
        arrays["max_length"] = np.array(fields[0].max_length)
    np.savez(path, **arrays)

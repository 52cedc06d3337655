"""Generator of the original Criteo TSV with the statistics of the real rows; the rows are ours, the format is theirs.

A linear part, missing effects, per-value effects and pairwise interactions decide the label, so that a model that finds
interactions has something to find. Same seed and parameters give identical bytes, in chunks that do not depend on the
number of rows.

Dims: R rows of a chunk
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from scipy.optimize import brentq
from scipy.special import expit, ndtr, ndtri

from ctrbench.datasets import criteo
from ctrbench.datasets.account import Account
from ctrbench.datasets.criteo_law import (
    CHAINS,
    Category,
    Law,
    categories,
    copula,
    integer_values,
    kaggle,
    score_weights,
)
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.schema import FIRST_ID
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import DataSpec, Raw, cache_dir, sha256_file

VERSION = 1
"""Of the law; part of the name of a generated file."""
CHUNK = 65_536
CALIBRATION_ROWS = 65_536
"""Drawn apart from the data to solve for the intercept and the scale of the interactions."""
TIED = ("C1", "C5", "C8", "C17")
"""Columns tied to the integer score, correlation .55."""
TIE = 0.55
MISSING_EFFECT = {"I1": -0.6, "I7": -0.9, "I6": -1.1, "I5": -0.8, "I3": 0.35}
NARROW = ("C1", "C2", "C5", "C6", "C8", "C9", "C14", "C17", "C20", "C22", "C23", "C25")
"""Columns of few values; their effects have sd .20, those of the others .28."""
PAIRS, RANK = 20, 4
"""Pairwise terms of the label's law, and the rank of each."""
KEPT = 1_000_000
"""Columns up to this size keep their hashed normals instead of computing them row by row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Everything that decides the bytes."""

    rows: int = 400_000
    seed: int = 0
    cap: int = 200_000
    """Largest cardinality of a column; 0 = as published (33.8 million values in all)."""
    ctr: float = 0.2562
    """Positive rate of the full public file."""
    interactions: float = 0.5
    """Weight of the unit-variance pairwise part."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.seed < 0 or (self.cap != 0 and self.cap < 100) or not 0 < self.ctr < 1:
            raise BadInput(f"criteo_synthetic: {self}: rows >= 1, seed >= 0, cap 0 or >= 100, 0 < ctr < 1")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Generated rows."""

    integers: dict[str, np.ndarray]
    ranks: dict[str, np.ndarray]
    """0-based rank of each categorical value, whether shown or missing."""
    missing: dict[str, np.ndarray]
    logit_R: np.ndarray
    """Without the intercept."""


class Generator:
    """Rows by a law of `criteo_law`.

    Args:
        parameters: what decides the bytes.
        law: of another data set than Kaggle's.
    """

    def __init__(self, parameters: Parameters, law: Law | None = None) -> None:
        self.parameters = parameters
        self.law = law or kaggle(parameters.cap)
        self.laws = self.law.categories
        correlation = copula(self.law.correlations)
        self._root = np.linalg.cholesky(correlation)
        self._weights = score_weights(correlation, self.law.integers)
        self._links = _link(self.laws, parameters.seed) if self.law.linked else None
        picks = np.random.default_rng([parameters.seed, 1])
        names = list(self.laws)
        self._pairs = [tuple(names[i] for i in picks.choice(len(names), 2, replace=False)) for _ in range(PAIRS)]
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        self._center, self._scale, self._intercept = 0.0, 1.0, 0.0
        self._calibrate()

    def chunk(self, number: int) -> tuple[Chunk, np.ndarray]:
        """Rows of chunk `number` and their labels (int8)."""
        start = number * CHUNK
        size = min(CHUNK, self.parameters.rows - start)
        rng = np.random.default_rng([self.parameters.seed, 0, number])
        rows = self._draw(rng, CHUNK)
        label_R = (rng.random(CHUNK) < expit(rows.logit_R + self._intercept)).astype(np.int8)
        return rows, label_R[:size]

    def table(self, number: int) -> pl.DataFrame:
        """Chunk `number` as columns of the TSV."""
        rows, label_R = self.chunk(number)
        size = len(label_R)
        columns = {"label": pl.Series(label_R)}
        for name, values_R in rows.integers.items():
            hidden_R = rows.missing[name][:size]
            columns[name] = cast(pl.Series, pl.from_arrow(pa.array(values_R[:size], mask=hidden_R)))
        for name, rank_R in rows.ranks.items():
            columns[name] = _hex(_token(rank_R[:size], self._key(name, 8)), rows.missing[name][:size])
        return pl.DataFrame(columns)

    def _draw(self, rng: np.random.Generator, size: int) -> Chunk:
        known = self.law.integers
        normal_RI = rng.standard_normal((size, len(known))) @ self._root.T
        score_R = normal_RI @ self._weights
        integers = {n: integer_values(law, ndtr(normal_RI[:, i])) for i, (n, law) in enumerate(known.items())}
        missing: dict[str, np.ndarray] = {}
        for group in self.law.masks:
            first = group[0]
            share = known[first].missing if first in known else self.laws[first].missing
            missing |= dict.fromkeys(group, rng.random(size) < share)
        never_R = np.zeros(size, bool)
        missing = {n: missing.get(n, never_R) for n in (*known, *self.laws)}
        ranks = self._ranks(rng, score_R)
        logit_R = score_R + 0.8 * sum(effect * missing[n] for n, effect in MISSING_EFFECT.items())
        single_R, pairs_R = self._category_parts(ranks, missing)
        logit_R += single_R + self.parameters.interactions * (pairs_R - self._center) / self._scale
        return Chunk(integers, ranks, missing, logit_R)

    def _ranks(self, rng: np.random.Generator, score_R: np.ndarray) -> dict[str, np.ndarray]:
        size = len(score_R)
        out: dict[str, np.ndarray] = {}
        for name in TIED:
            out[name] = self.laws[name].rank(ndtr(TIE * score_R + np.sqrt(1 - TIE**2) * rng.standard_normal(size)))
        decided = {*self._links.maps, "C11"} if self._links else set()
        for name, law in self.laws.items():
            if name not in out and name not in decided:
                out[name] = law.rank(rng.random(size))
        if self._links:
            self._follow(self._links, rng, out)
        if self.law.dominant:
            joint_R = rng.random(size) < self.law.dominant_share
            out |= {name: np.where(joint_R, 0, out[name]) for name in self.law.dominant}
        return {name: out[name] for name in self.laws}

    def _follow(self, links: _Links, rng: np.random.Generator, out: dict[str, np.ndarray]) -> None:
        """Adds the columns that others decide."""
        for name, (source, map_N) in links.maps.items():
            out[name] = map_N[out[source]]
        first_R, last_R = links.first_N[out["C13"]], links.last_N[out["C13"]]
        law = self.laws["C11"]
        low_R = np.where(first_R > 0, law.cdf_N[first_R - 1], 0.0)
        drawn_R = law.rank(low_R + rng.random(len(low_R)) * (law.cdf_N[last_R] - low_R))
        out["C11"] = np.clip(drawn_R, first_R, last_R)

    def _category_parts(
        self, ranks: Mapping[str, np.ndarray], missing: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(effects of single values, raw pairwise part), a missing value being one more value."""
        seen = {n: np.where(missing[n], -1, r_R) for n, r_R in ranks.items()}
        single_R = np.zeros(len(seen["C1"]))
        for name, rank_R in seen.items():
            effect_R = self._normal(name, 0, rank_R) * (0.20 if name in NARROW else 0.28)
            single_R += np.where(missing[name], 0.5, 1.0) * effect_R
        factors = {
            n: np.stack([self._normal(n, 1 + k, seen[n]) for k in range(RANK)])
            for n in {m for p in self._pairs for m in p}
        }
        pairs_R = np.zeros(len(single_R))
        for a, b in self._pairs:
            pairs_R += np.einsum("kr,kr->r", factors[a], factors[b])
        return single_R, pairs_R

    def _normal(self, name: str, use: int, rank_R: np.ndarray) -> np.ndarray:
        """Standard normals hashed from ranks, -1 for missing; looked up where the column is small enough to keep."""
        key, size = self._key(name, use), self.laws[name].size
        if size > KEPT:
            return _hashed_normal(rank_R, key)
        if (name, use) not in self._kept:
            self._kept[name, use] = _hashed_normal(np.append(np.arange(size), -1), key)
        return cast(np.ndarray, self._kept[name, use][rank_R])

    def _calibrate(self) -> None:
        """Centre and scale of the pairwise part, and the intercept that gives the wanted positive rate."""
        rows = self._draw(np.random.default_rng([self.parameters.seed, 2]), CALIBRATION_ROWS)
        _, pairs_R = self._category_parts(rows.ranks, rows.missing)
        logit_R = rows.logit_R - self.parameters.interactions * pairs_R
        self._center, self._scale = float(pairs_R.mean()), float(pairs_R.std())
        logit_R += self.parameters.interactions * (pairs_R - self._center) / self._scale
        self._intercept = float(brentq(lambda b: expit(logit_R + b).mean() - self.parameters.ctr, -20, 20))

    def _key(self, name: str, use: int) -> int:
        return hash_key(self.parameters.seed, self.law.salt + int(name[1:]), use)


@dataclass(frozen=True, slots=True)
class _Links:
    """Exact dependencies between columns, as rank maps in the order to apply them."""

    maps: dict[str, tuple[str, np.ndarray]]
    first_N: np.ndarray
    """Rank of C13 -> first rank of C11 that decides it; `last_N` likewise."""
    last_N: np.ndarray


def _link(laws: Mapping[str, Category], seed: int) -> _Links:
    """Each coarser value is found at the midpoint of the finer one's interval of cumulated mass: marginals stay."""
    maps: dict[str, tuple[str, np.ndarray]] = {}
    for chain in CHAINS[:2]:
        for fine, coarse in pairwise(chain):
            maps[coarse] = (fine, laws[coarse].rank(laws[fine].middle_N))
    c11_to_c13_N = laws["C13"].rank(laws["C11"].middle_N)
    # C7 decides C13 through C11, so that every C13 that occurs has a C11 that decides it.
    maps["C13"] = ("C7", c11_to_c13_N[laws["C11"].rank(laws["C7"].middle_N)])
    ids_N = np.arange(laws["C15"].size)
    maps["C14"] = ("C15", laws["C14"].rank(_uniform(ids_N, hash_key(seed, 15, 9))))
    every_N = np.arange(laws["C13"].size)
    first_N = np.searchsorted(c11_to_c13_N, every_N, side="left")
    last_N = np.searchsorted(c11_to_c13_N, every_N, side="right") - 1
    return _Links(maps, first_N, last_N)


def hash_key(seed: int, column: int, use: int) -> int:
    """64-bit key of one use of one column, from the bits of a seed sequence."""
    return int(np.random.SeedSequence([seed, column, use]).generate_state(1, np.uint64)[0])


def _uniform(rank_R: np.ndarray, key: int) -> np.ndarray:
    """float64 in (0, 1), a hash of the rank: the finaliser of splitmix64 (Steele et al., OOPSLA 2014)."""
    x = rank_R.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return ((x >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _hashed_normal(rank_R: np.ndarray, key: int) -> np.ndarray:
    return cast(np.ndarray, ndtri(_uniform(rank_R, key)))


def _token(rank_R: np.ndarray, key: int) -> np.ndarray:
    """uint32 of each rank; multiplication by an odd number and xor-shifts are bijections, so no two ranks meet."""
    x = rank_R.astype(np.uint32) ^ np.uint32(key & 0xFFFFFFFF)
    for odd in (0x85EBCA6B, 0xC2B2AE35):
        x = (x ^ (x >> np.uint32(16))) * np.uint32(odd)
    return x ^ (x >> np.uint32(16))


_HEX = np.array([f"{b:02x}" for b in range(256)], "S2")


def _hex(token_R: np.ndarray, missing_R: np.ndarray) -> pl.Series:
    """8 hex digits a row as text, null where missing."""
    text = _HEX[token_R.astype(">u4").view(np.uint8)].tobytes()
    offsets = np.arange(0, 8 * len(token_R) + 1, 8, dtype=np.int64)
    strings = pa.LargeStringArray.from_buffers(len(token_R), pa.py_buffer(offsets), pa.py_buffer(text))
    return cast(pl.Series, pl.from_arrow(pc.if_else(pa.array(missing_R), pa.scalar(None, pa.large_string()), strings)))


def write(parameters: Parameters, path: Path) -> dict[str, Any]:
    """Writes the TSV, gzipped if the name ends in .gz, and `<path>.json` with parameters and sha256, which comes last.

    Returns:
        what the JSON says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = Generator(parameters)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as raw:
            # No name and no time in the header: same parameters, same bytes.
            out = gzip.GzipFile("", "wb", 6, raw, mtime=0) if path.suffix == ".gz" else raw
            for number in range(-(-parameters.rows // CHUNK)):
                text = generator.table(number).write_csv(include_header=False, separator="\t", quote_style="never")
                out.write(text.encode())
            if out is not raw:
                out.close()
        body = {
            "generator": "criteo_synthetic",
            "version": VERSION,
            **asdict(parameters),
            "sha256": sha256_file(partial),
        }
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    write_text(sidecar(path), json.dumps(body, indent=1))
    return body


def sidecar(path: Path) -> Path:
    """Where the parameters of a generated file are."""
    return path.with_name(path.name + ".json")


def checked(file: Path) -> str:
    """sha256 of a generated file.

    Raises:
        BadInput: not the one that was noted beside it when it was made, or that note is damaged.
    """
    digest, note = sha256_file(file), sidecar(file)
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))["sha256"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        noted = f"nothing readable ({type(error).__name__})"
    if digest != noted:
        raise BadInput(f"{file}: sha256 {digest}, {note.name} says {str(noted)[:100]}; delete both files")
    return digest


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def fetch(path: Path | None, options: Mapping[str, Any]) -> Raw:
    """Generates the file into the cache, or takes the one generated before."""
    if path is not None:
        raise BadInput("criteo_synthetic is generated and takes no path; for a file in Criteo's form use data=criteo")
    parameters = Parameters(rows=options["rows"], seed=options["seed"], cap=options["cap"])
    name = f"criteo_synthetic-v{VERSION}-rows{parameters.rows}-seed{parameters.seed}-cap{parameters.cap}.tsv"
    file = cache_dir() / "raw" / name
    if not sidecar(file).is_file() or not file.is_file():
        write(parameters, file)
    digest = checked(file)
    return Raw(
        path=file, sha256=digest, bytes=file.stat().st_size, synthetic=True, detail={"parameters": asdict(parameters)}
    )


def build(raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """As Criteo; with `full_tables` every table has room for all values that the generator knows."""
    built = criteo.build(raw, rule, options, account, shards)
    schema = built["schema"]
    fields = schema.fields
    if options["full_tables"]:
        sizes = {n: FIRST_ID + law.size for n, law in categories(options["cap"]).items()}
        fields = tuple(replace(f, cardinality=sizes[f.name]) if f.name in sizes else f for f in fields)
    return {**built, "schema": replace(schema, name="criteo_synthetic", fields=fields)}


SPEC = DataSpec(
    name="criteo_synthetic",
    title="Synthetic rows in the original Criteo TSV",
    track="tabular",
    description="generated, seeded: marginals, dependencies and missing patterns of real rows, labels of a known law",
    terms="generated by ctrbench; no one's data",
    own=True,
    splits=("file_order",),
    options={
        "rows": 400_000,
        "seed": 0,
        "cap": 200_000,
        "min_count": 2,
        "integers": "signed_log",
        "full_tables": False,
    },
    fetch=fetch,
    build=build,
    fetch_options=("rows", "seed"),
)

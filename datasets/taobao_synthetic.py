"""Generator of UserBehavior.csv with the statistics of the real rows; the rows are ours, the format is theirs.

Interest moves in runs of one category and returns to old ones, items recur, visits have hours: so there is something
in a history that tells what comes next. Same seed and parameters give identical bytes; a user's events do not depend on
how many users there are.

Dims: U users of a chunk, T events of the longest history, K users active at a step, V visits
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctrbench.datasets import taobao_behaviour, taobao_law
from ctrbench.datasets.account import Account
from ctrbench.datasets.criteo_synthetic import checked, sidecar, write_text
from ctrbench.datasets.defects import check, spoil
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import DataSpec, Raw, cache_dir, sha256_file
from ctrbench.datasets.taobao_reader import END, START

VERSION = 1
"""Of the law; part of the name of a generated file."""
CHUNK = 1_024
"""Users generated together."""
TRIES = 16
"""Draws of a category to return to, before a new one is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Everything that decides the bytes."""

    users: int = 2_000
    seed: int = 0
    defects: tuple[str, ...] = ()
    """Names of `defects.DEFECTS`; such a file is made in memory."""

    def __post_init__(self) -> None:
        check(self.defects)
        if not 1 <= self.users <= taobao_law.USERS or self.seed < 0:
            raise BadInput(f"taobao_synthetic: {self}: 1 <= users <= {taobao_law.USERS}, seed >= 0")


class Generator:
    """Events of users by the law of `taobao_law`.

    Args:
        parameters: what decides the bytes.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self._catalogue = taobao_law.catalogue()
        ids = np.random.default_rng([parameters.seed, 1])
        self._item_id = ids.permutation(taobao_law.ITEMS) + 1
        self._category_id = ids.choice(taobao_law.ITEMS, taobao_law.CATEGORIES, replace=False) + 1

    @property
    def chunks(self) -> int:
        return -(-self.parameters.users // CHUNK)

    def table(self, number: int) -> pl.DataFrame:
        """Events of chunk `number`, users in string order as in the public file, each user's by time."""
        rng = np.random.default_rng([self.parameters.seed, 0, number])
        length_U = np.exp(rng.normal(*taobao_law.LENGTH, CHUNK)).round().astype(np.int64)
        length_U = np.sort(length_U.clip(taobao_law.SHORTEST, taobao_law.LONGEST))[::-1]
        category_UT, item_UT = self._walk(rng, length_U)
        shown_UT = np.arange(category_UT.shape[1]) < length_U[:, None]
        time_UT = _times(rng, length_U)
        names = np.array(list(taobao_law.BEHAVIOURS))
        action_UT = rng.choice(len(names), category_UT.shape, p=list(taobao_law.BEHAVIOURS.values()))
        # Users came sorted by length, to keep the active ones together; now they get any place.
        place_U = rng.permutation(CHUNK)
        shown_UT &= (time_UT < END) & (place_U < self.parameters.users - number * CHUNK)[:, None]
        user, _ = np.nonzero(shown_UT)
        table = pl.DataFrame({
            "place": place_U[user], "item": self._item_id[item_UT[shown_UT]],
            "category": self._category_id[category_UT[shown_UT]], "behaviour": names[action_UT[shown_UT]],
            "time": time_UT[shown_UT],
        }).sort("place", maintain_order=True)  # fmt: skip
        users = user_ids()[number * CHUNK :][table["place"].to_numpy()]
        return table.select(pl.Series("user", users), "item", "category", "behaviour", "time")

    def _walk(self, rng: np.random.Generator, length_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Categories and items [U, T] of users sorted by falling length; what is beyond a length is 0."""
        category_UT = np.zeros((len(length_U), int(length_U[0])), np.int64)
        item_UT = np.zeros_like(category_UT)
        focused_U = np.zeros(len(length_U), bool)
        for t in range(category_UT.shape[1]):
            active = int((length_U > t).sum())
            stay_K = rng.random(active) < np.where(focused_U[:active], taobao_law.STAY[1], taobao_law.STAY[0])
            leaving = np.flatnonzero(~stay_K) if t else np.arange(active)
            focused_U[leaving] = rng.random(len(leaving)) < taobao_law.FOCUSED
            category_K = category_UT[:active, t - 1].copy()
            category_K[leaving] = self._next_category(rng, category_UT[leaving, :t])
            category_UT[:active, t] = category_K
            item_UT[:active, t] = self._next_item(rng, category_K, category_UT[:active, :t], item_UT[:active, :t])
        return category_UT, item_UT

    def _next_category(self, rng: np.random.Generator, past_KT: np.ndarray) -> np.ndarray:
        """For users who leave a run: back to a category of some events ago, or a new one; never the current one."""
        count, t = past_KT.shape
        next_K = np.full(count, -1)
        wanted = np.flatnonzero(rng.random(count) >= taobao_law.NEW_CATEGORY)
        for _ in range(TRIES if t > 1 else 0):
            back = np.ceil(rng.lognormal(*taobao_law.BACK, len(wanted)))
            found = past_KT[wanted, t - np.minimum(back, t).astype(np.int64)]
            fits = (back <= t) & (found != past_KT[wanted, -1])
            next_K[wanted[fits]] = found[fits]
            wanted = wanted[~fits]
        todo = np.flatnonzero(next_K < 0)
        while len(todo):
            next_K[todo] = self._catalogue.category(rng.random(len(todo)))
            todo = todo[next_K[todo] == past_KT[todo, -1]] if t else todo[:0]
        return next_K

    def _next_item(
        self, rng: np.random.Generator, category_K: np.ndarray, categories_KT: np.ndarray, items_KT: np.ndarray
    ) -> np.ndarray:
        """An earlier item of the category, recent ones more likely, or any of the category; never the previous item."""
        count, t = items_KT.shape
        item_K = self._catalogue.item(category_K, rng.random((count,)))
        again = np.flatnonzero(rng.random(count) < taobao_law.AGAIN)
        if not t:
            return item_K
        previous_K = items_KT[:, -1]
        item_K = np.where(item_K == previous_K, self._catalogue.next_item(category_K, item_K), item_K)
        fits_KT = (categories_KT[again] == category_K[again, None]) & (items_KT[again] != previous_K[again, None])
        # Of the fitting events the r-th from the end, r geometric, the oldest one if there are fewer.
        nth_KT = np.cumsum(fits_KT[:, ::-1], axis=1)
        r_K = np.minimum(rng.geometric(taobao_law.RECENT, len(again)), nth_KT[:, -1])
        known = r_K > 0
        from_end = np.argmax(nth_KT[known] == r_K[known, None], axis=1)
        item_K[again[known]] = items_KT[again[known], t - 1 - from_end]
        return item_K


def _times(rng: np.random.Generator, length_U: np.ndarray) -> np.ndarray:
    """Seconds [U, T], not falling along a user: visits at the hours and days of the law, short gaps inside them.

    The first event of a visit starts it, unless the visit before has not ended: then that one goes on. Some times lie
    beyond the period.
    """
    users, events = len(length_U), int(length_U[0])
    (_, small), (share, large) = taobao_law.VISIT
    size_UV = rng.geometric(1 / np.where(rng.random((users, events)) < share, large, small))
    first_UV = np.cumsum(size_UV, axis=1) - size_UV
    starts_UT = np.zeros((users, events), bool)
    at, visit = np.nonzero(first_UV < events)
    starts_UT[at, first_UV[at, visit]] = True
    visit_UT = np.cumsum(starts_UT, axis=1) - 1
    used_U = visit_UT[np.arange(users), length_U - 1] + 1
    shape = (users, events)
    day_UV = rng.choice(len(taobao_law.DAYS), shape, p=_shares(taobao_law.DAYS))
    hour_UV = rng.choice(len(taobao_law.HOURS), shape, p=_shares(taobao_law.HOURS))
    start_UV = START + (day_UV * 24 + hour_UV) * 3600 + rng.integers(0, 3600, shape)
    start_UV[np.arange(events) >= used_U[:, None]] = 2 * END
    start_UV.sort(axis=1)
    gap_UT = rng.lognormal(*taobao_law.GAP, shape).round().clip(max=taobao_law.LONGEST_GAP).astype(np.int64)
    elapsed_UT = np.cumsum(gap_UT, axis=1)
    shift_UT = np.where(starts_UT, np.take_along_axis(start_UV, visit_UT, axis=1) - elapsed_UT, 0)
    times: np.ndarray = elapsed_UT + np.maximum.accumulate(shift_UT, axis=1)
    return times


def _shares(weights: Sequence[float]) -> np.ndarray:
    shares: np.ndarray = np.asarray(weights) / sum(weights)
    return shares


@cache
def user_ids() -> np.ndarray:
    """All user ids in string order, as users come in the public file: 1, 10, 100, 1000, 10000, ..."""
    return np.array(sorted(range(1, taobao_law.USERS + 1), key=str))


def write(parameters: Parameters, path: Path) -> dict[str, Any]:
    """Writes the CSV, gzipped if the name ends in .gz, and `<path>.json` with parameters and sha256, which comes last.

    A file of more users with the same seed begins with these users: it is the pool that this file is a part of.

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
            texts = (generator.table(n).write_csv(include_header=False).encode() for n in range(generator.chunks))
            for text in [spoil(b"".join(texts), parameters.defects)] if parameters.defects else texts:
                out.write(text)
            if out is not raw:
                out.close()
        known = {**asdict(parameters), "defects": list(parameters.defects)}
        body = {"generator": "taobao_synthetic", "version": VERSION, **known, "sha256": sha256_file(partial)}
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    write_text(sidecar(path), json.dumps(body, indent=1))
    return body


def fetch(path: Path | None, options: Mapping[str, Any]) -> Raw:
    """Generates the file and its pool into the cache, or takes those generated before."""
    if path is not None:
        raise BadInput(
            "taobao_synthetic is generated and takes no path; for a file in Taobao's form use data=taobao_behaviour"
        )
    if options["pool_users"] < options["users"]:
        raise BadInput(
            f"taobao_synthetic: pool_users={options['pool_users']} is less than users={options['users']}: the pool "
            "must be larger than the data; raise pool_users"
        )
    parameters, pool = (Parameters(users=options[k], seed=options["data_seed"]) for k in ("users", "pool_users"))
    (file, digest), (_, pool_digest) = (_cached(p) for p in (parameters, pool))
    return Raw(
        path=file, sha256=hashlib.sha256((digest + pool_digest).encode()).hexdigest(), bytes=file.stat().st_size,
        synthetic=True, detail={
            "parameters": asdict(parameters), "pool_parameters": asdict(pool), "sha256_file": digest,
            "sha256_pool": pool_digest,
        },
    )  # fmt: skip


def _file(parameters: Parameters) -> Path:
    name = f"taobao_synthetic-v{VERSION}-users{parameters.users}-seed{parameters.seed}.csv"
    return cache_dir() / "raw" / name


def _cached(parameters: Parameters) -> tuple[Path, str]:
    """The generated file and its digest, which must be the one noted when it was made."""
    file = _file(parameters)
    if not sidecar(file).is_file() or not file.is_file():
        write(parameters, file)
    return file, checked(file)


def build(raw: Raw, rule: str, options: Mapping[str, Any], account: Account, shards: Shards) -> dict[str, Any]:
    """As Taobao UserBehavior, negatives from the larger file that this one is a part of."""
    pool = _file(Parameters(**raw.detail["pool_parameters"]))
    return taobao_behaviour.build_from(raw, rule, options, account, shards, pool, "taobao_synthetic")


SPEC = DataSpec(
    name="taobao_synthetic",
    title="Synthetic events in the form of Taobao UserBehavior, sampled negatives",
    track="sequence",
    description="generated, seeded: runs of categories, recurring items, visits and lengths like those of real rows",
    terms="generated by ctrbench; no one's data",
    own=True,
    splits=taobao_behaviour.SPEC.splits,
    options={"users": 2_000, "pool_users": 8_000, "data_seed": 0, **taobao_behaviour.OPTIONS},
    fetch=fetch,
    build=build,
    fetch_options=("users", "pool_users", "data_seed"),
    room=taobao_behaviour.SPEC.room,
    fit=taobao_behaviour.FIT,
)

"""Requests as they come: users as popular as in the data with histories as long as theirs, candidates likewise.

Dims: C candidates of a request, J item fields, I dense item fields, V distinct items, L events of a history
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import polars as pl
import torch

from ctrbench.bench.serving.intake import with_events
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import Batch, FeatureSchema, synthetic_batch
from ctrbench.models.requests import Requests, item_dense, item_fields, requests_of, take_users

POOL = 256
"""Different requests that a stream repeats; all are made before a clock starts."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests made ahead, and the order in which they come."""

    schema: FeatureSchema
    """Of the requests; models are built with it."""
    requests: tuple[Requests, ...]
    """One user each, all with the same number of candidates."""
    seed: int

    def stream(self, n: int) -> list[Requests]:
        """n requests: the pool over and over, in another order each time; a longer stream begins like a shorter one."""
        rng, size = np.random.default_rng([self.seed, 2]), len(self.requests)
        order = [i for _ in range(-(-n // size)) for i in rng.permutation(size)]
        return [self.requests[i] for i in order[:n]]


def data_traffic(
    prepared: Prepared, candidates: int, *, pool: int = POOL, history: int | None = None, seed: int = 0
) -> Traffic:
    """Requests drawn from prepared data.

    A request's user is that of an impression of the test split drawn uniformly, so users come as often as in the data
    and with the history they had then; every impression at most once. Its candidates are the items of train
    impressions, drawn by their share of these, none twice in a request unless there are fewer items than candidates.

    Args:
        prepared: sequence data.
        candidates: C.
        pool: requests; fewer if the test split has fewer impressions.
        history: every history gets exactly this many events. Longer ones keep the newest; shorter ones are repeated
            from their beginning, the copies set before the events themselves and each a second after the end of the
            one before, so that times never fall; users without an event are not drawn. The lengths, the padding and the
            work are then those of long histories, the spread of their ids is not. None: as in the data.
        seed: of all draws.

    Raises:
        BadInput: no field of role `item`, no candidate, no request, or a forced history of no event.
    """
    items = _ItemDraw(prepared, seed)
    if min(candidates, pool, 1 if history is None else history) < 1:
        raise BadInput(f"traffic: candidates={candidates} pool={pool} history={history} must each be at least 1")
    users = _users(prepared, pool, history, seed)
    schema = prepared.schema if history is None else _longer(prepared.schema, history)
    if history is not None:
        users = [stretched(schema, u, history) for u in users]
    return Traffic(schema, tuple(items.request(u, candidates) for u in users), seed)


def random_traffic(
    schema: FeatureSchema, candidates: int, *, pool: int = POOL, full: bool = True, seed: int = 0
) -> Traffic:
    """Requests of uniform random ids: for times and work where no data has such histories.

    Args:
        schema: with fields of role `item`, e.g. `random_schema("random_sequence", 1024)`.
        candidates: C.
        pool: requests.
        full: histories at their maximum length; else lengths are uniform, the first user has no event.
        seed: of all draws.
    """
    users = synthetic_batch(schema, pool, seed=seed, full=full)
    made = []
    for r in range(pool):
        rows = synthetic_batch(schema, candidates, seed=seed + 1 + r, full=False)
        made.append(requests_of(schema, take_users(schema, users, r), rows))
    return Traffic(schema, tuple(made), seed)


def stretched(schema: FeatureSchema, users: Batch, length: int) -> Batch:
    """One user, every history of `length` events; see `data_traffic`. Histories of no event stay empty."""
    at, times = {}, {}
    for h, own_L in users.event_times.items():
        if not (n := len(own_L)):
            continue
        place_L = torch.arange(-length, 0)
        copy_L = -torch.div(place_L + n, n, rounding_mode="floor")
        at[h] = place_L % n
        times[h] = own_L[at[h]] - copy_L * (own_L[-1] - own_L[0] + 1)
    return with_events(schema, users, at, times)


def _longer(schema: FeatureSchema, length: int) -> FeatureSchema:
    return replace(
        schema, fields=tuple(replace(f, max_length=length) if f.kind == "sequence" else f for f in schema.fields)
    )


def _users(prepared: Prepared, pool: int, history: int | None, seed: int) -> list[Batch]:
    kept = None if history is None else min(history, *(f.max_length for f in prepared.schema.sequences))
    rows = Loader(prepared, "test", 1, shuffle_seed=seed, history_length=kept, prefetch=0)
    out = list(islice((u for u in rows if history is None or all(map(len, u.event_times.values()))), pool))
    if not out:
        raise BadInput(f"{prepared.path}: no test impression of a user with an event; leave `history` out")
    return out


class _ItemDraw:
    """Distinct items of train and how often each was shown."""

    def __init__(self, prepared: Prepared, seed: int) -> None:
        schema = prepared.schema
        ids = [f.name for f in item_fields(schema)]
        dense = [schema.dense[i].name for i in item_dense(schema)]
        if not ids + dense:
            raise BadInput(
                f"{schema.name}: no field of role `item`, nothing tells two candidates apart; serve other data"
            )
        shown = prepared.frame("train", columns=ids + dense).group_by(ids + dense).len().sort(ids + dense)
        self.ids_JV = (
            np.stack([shown[c].to_numpy() for c in ids]).astype(np.int64) if ids else np.empty((0, len(shown)))
        )
        self.dense_VI = shown.select(pl.col(dense).cast(pl.Float32)).to_numpy().reshape(len(shown), len(dense))
        self.share_V = shown["len"].to_numpy() / shown["len"].sum()
        self.rng = np.random.default_rng([seed, 1])

    def request(self, users: Batch, count: int) -> Requests:
        if count > len(self.share_V):
            at_C = self.rng.choice(len(self.share_V), count, p=self.share_V)
        else:
            # The first C of exponential clocks that run at the items' shares: draws without replacement, in order.
            when_V = self.rng.standard_exponential(len(self.share_V)) / self.share_V
            at_C = np.argpartition(when_V, count - 1)[:count]
            at_C = at_C[np.argsort(when_V[at_C])]
        dense_CI = torch.from_numpy(self.dense_VI[at_C])
        missing_CI = dense_CI.isnan()
        ids_JC = torch.from_numpy(self.ids_JV[:, at_C].astype(np.int64))
        return Requests(users, ids_JC, dense_CI.masked_fill(missing_CI, 0.0), missing_CI.float())

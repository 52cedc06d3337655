"""The request path: one request after the other, answered from what a feature server keeps in memory.

Dims: C candidates, N impressions, E events
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from ctrbench.bench.serving.feature_data import ITEM, USER, Steps, raw_data, sides
from ctrbench.datasets.feature_store import CounterStore, HistoryStore, joined
from ctrbench.datasets.legacy_features import ImpressionLog, Recipe, recipe
from ctrbench.datasets.prepared import SPLITS, Prepared
from ctrbench.datasets.schema import FeatureSchema, Field
from ctrbench.models.raw_requests import EncodedRequest, RawRequest, RequestForm, Value, Vocabularies, encode
from ctrbench.models.requests import Requests

UPDATE = "update"
"""Step that takes events in."""
CHUNK = 1_000
"""Impressions that counters take in at a time: a stream is counted in small batches."""
HELD = 200_000
"""Most recent impressions before the requests whose counters and events are in memory, of all users."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What arrives: a user, candidates by their keys, the values of neither side, the second."""

    user: str
    user_id: int
    candidates: list[str]
    context: dict[str, Value]
    time: int


def legacy_schema(schema: FeatureSchema, made: Recipe) -> FeatureSchema:
    """The schema's single values and the made columns, no history."""
    columns = [
        Field(name=name, kind="categorical", role="item" if own else "user", cardinality=rows)
        for name, rows, own in zip(made.names, made.cardinalities, made.of_item, strict=True)
    ]
    return replace(schema, fields=(*(f for f in schema.fields if f.kind != "sequence"), *columns))


def _names_of(made: Recipe) -> tuple[list[str], list[str]]:
    """Columns that all candidates share, and those of each."""
    named = list(zip(made.names, made.of_item, strict=True))
    return [name for name, own in named if not own], [name for name, own in named if own]


class RequestPath:
    """Feature servers of all paradigms with the same past, and requests for them.

    Args:
        prepared: its test rows ask, and what lies before them is known.
        columns: hand-made columns of each legacy ranker.
        seed: of the choice of requests.
    """

    def __init__(self, prepared: Prepared, columns: tuple[int, ...], seed: int) -> None:
        self.schema = prepared.schema
        self._user, self._item, self._context = sides(self.schema)
        self._rng = np.random.default_rng(seed)
        names = [f.name for f in self.schema.categorical]
        self.history = next(iter(self.schema.histories))
        spans = [f"{self.history}_begin", f"{self.history}_end"]
        files = [p for split in SPLITS for p, _ in prepared.shards(split)]
        rows = pl.read_parquet(files, columns=["label", "user_id", "time", *spans, *names])
        rows = rows.sort("time", maintain_order=True)
        known = rows.height - prepared.rows("test")
        rows = rows.slice(max(0, known - HELD))
        self.known = min(known, HELD)
        self.log = ImpressionLog.of(rows, self.schema)
        self.data = raw_data(prepared, rows)
        self._users = {r[0]: r[1:] for r in self.data.users.select(USER, *self._user).iter_rows()}
        self._items = {r[0]: r[1:] for r in self.data.items.select(ITEM, *self._item).iter_rows()}
        self.vocabularies = Vocabularies(prepared)
        self.prior = float(prepared.positive_rate("train"))
        self.counters = {n: self._counters(n) for n in columns}
        self._legacy = {n: RequestForm(legacy_schema(self.schema, s.recipe)) for n, s in self.counters.items()}
        self._form = RequestForm(self.schema)
        self._names = {n: _names_of(store.recipe) for n, store in self.counters.items()}
        self._plain = replace(self.schema, fields=tuple(f for f in self.schema.fields if f.kind != "sequence"))
        self.fields = [f.name for f in self.schema.histories[self.history]]
        self.histories = HistoryStore(self.fields)
        self._append(self.histories, 0, len(self.data.events.time_E))

    def _counters(self, columns: int) -> CounterStore:
        """Almost all rows in one run, the latest in another, as they lie while a stream comes in."""
        store, late = CounterStore(recipe(self.schema, columns, self.prior)), max(0, self.known - 5 * CHUNK)
        store.update(self.log.take(0, late))
        for at in range(late, self.known, CHUNK):
            store.update(self.log.take(at, min(at + CHUNK, self.known)))
        return store

    def asked(self, requests: int, candidates: int) -> list[Asked]:
        """Random test rows as requests; candidates are items of random impressions, so that popular ones come often."""
        rows = self.data.impressions
        chosen = self._rng.integers(self.known, rows.height, requests)
        items = rows[ITEM].to_list()
        return [
            Asked(
                row[USER], row["user_id"], [items[n] for n in self._rng.integers(0, len(items), candidates)],
                {name: row[name] for name in self._context}, row["time"],
            )
            for row in rows[chosen].iter_rows(named=True)
        ]  # fmt: skip

    def legacy(self, columns: int, asked: Sequence[Asked], steps: Steps) -> list[Requests]:
        """Requests as a legacy ranker takes them; each step is done for all, since a look at the clock takes longer
        than some steps."""
        store, (shared, own), form = self.counters[columns], self._names[columns], self._legacy[columns]
        raws, encoded = self._known(asked, steps)
        with steps("statistics"):
            counted = [store.statistics(i.user, i.candidates, a.time) for i, a in zip(encoded, asked, strict=True)]
        with steps("cross+hash"):
            crossed = [store.crosses(i.user, i.candidates, a.time) for i, a in zip(encoded, asked, strict=True)]
        with steps("kjt"):
            out = []
            for raw, ids, *found in zip(raws, encoded, crossed, counted, strict=True):
                features = joined(*found)
                user = {**ids.user, **dict(zip(shared, features.user_U.tolist(), strict=True))}
                candidates = {**ids.candidates, **dict(zip(own, features.item_JC, strict=True))}
                out.append(form.built(EncodedRequest(user, candidates), raw))
            return out

    def transformer(self, asked: Sequence[Asked], steps: Steps) -> list[Requests]:
        """Requests as a transformer takes them."""
        store, length = self.histories, self.schema.histories[self.history][0].max_length
        raws, encoded = self._known(asked, steps)
        with steps("history"):
            events = [store.last(a.user_id, length, a.time) for a in asked]
            raws = [
                replace(raw, events={self.history: dict(zip(store.fields, events_ET, strict=True))})
                for raw, events_ET in zip(raws, events, strict=True)
            ]
        with steps("kjt"):
            return [self._form.built(ids, raw) for ids, raw in zip(encoded, raws, strict=True)]

    def _known(self, asked: Sequence[Asked], steps: Steps) -> tuple[list[RawRequest], list[EncodedRequest]]:
        """What both paradigms look up: side tables, then vocabularies."""
        with steps("join"):
            raws = [self._joined(one) for one in asked]
        with steps("vocabulary"):
            return raws, [encode(self._plain, self.vocabularies, raw) for raw in raws]

    def _joined(self, asked: Asked) -> RawRequest:
        user = dict(zip(self._user, self._users[asked.user], strict=True))
        columns = zip(*[self._items[key] for key in asked.candidates], strict=True)
        return RawRequest(
            user={**user, **asked.context}, candidates=dict(zip(self._item, columns, strict=True)), time=asked.time,
            user_id=asked.user_id,
        )  # fmt: skip

    def update_legacy(self, columns: int, begin: int, end: int, steps: Steps) -> None:
        """Takes test impressions [begin, end) into the counters."""
        first = self.known + begin
        with steps(UPDATE):
            for at in range(first, first + end - begin, CHUNK):
                self.counters[columns].update(self.log.take(at, min(at + CHUNK, self.known + end)))

    def update_transformer(self, begin: int, end: int, steps: Steps) -> None:
        """Takes events [begin, end) into empty histories."""
        with steps(UPDATE):
            self._append(HistoryStore(self.fields), begin, end)

    def _append(self, store: HistoryStore, begin: int, end: int) -> None:
        events, at = self.data.events, slice(begin, end)
        columns = [*(events.ids[name][at].tolist() for name in self.fields), events.time_E[at].tolist()]
        for user, *event in zip(events.user_E[at].tolist(), *columns, strict=True):
            store.append(user, event)

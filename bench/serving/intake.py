"""What happens to a request between its arrival and the model: limits on what is served, and requests put together.

Dims: R requests, C candidates of each, N = R*C candidates, J item fields, K all features, L events
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.datasets.schema import OOV, Batch, FeatureSchema
from ctrbench.models.requests import Requests, item_dense, item_fields

NO_CANDIDATES = "no candidates"
NOT_FINITE = "a dense value is not finite"


@dataclass(frozen=True, slots=True)
class Checked:
    """A request as it may be served."""

    request: Requests
    reason: str = ""
    """Why it is refused; empty: it is served."""
    oov: int = 0
    """Ids that no table has, now out of vocabulary."""
    cut: int = 0
    """Events left out, a history's fields counted once."""


class Intake:
    """Limits of serving: what a model may be given, whatever arrives.

    Histories longer than the model's are cut to the newest events first, by a view, so that a history of any length
    costs what the longest served one does. Ids below 0, or beyond their table, become out of vocabulary. Empty
    histories are served. No candidates, too many, and dense values that are not finite are refused.

    Args:
        schema: that the model was built with.
        most: candidates a request may have.

    Attributes:
        oov: ids mapped so far by calls.
        cut: events left out so far by calls.
    """

    def __init__(self, schema: FeatureSchema, most: int) -> None:
        self.schema, self.most = schema, most
        self.oov = self.cut = 0
        fields, ends = schema.of_kind("categorical", "sequence"), torch.iinfo(torch.long)
        rows = {f.name: schema[f.table].cardinality for f in fields}
        # An item's place of a user is not read: every value may stand there.
        self.low_K = torch.tensor([ends.min if f.role == "item" else 0 for f in fields])
        self.last_K = torch.tensor([ends.max if f.role == "item" else rows[f.name] - 1 for f in fields])
        self.last_J1 = torch.tensor([rows[f.name] - 1 for f in item_fields(schema)], dtype=torch.long)[:, None]
        own = item_dense(schema)
        self.user_dense = [i for i in range(len(schema.dense)) if i not in own]

    def __call__(self, request: Requests) -> tuple[Requests, str]:
        """The request as it may be served, and why it may not, or an empty string; what `load.server` asks for."""
        checked = self.check(request)
        self.oov += checked.oov
        self.cut += checked.cut
        return checked.request, checked.reason

    def check(self, request: Requests) -> Checked:
        """The same with what was changed.

        Raises:
            ValueError: more than one user.
        """
        if request.size != 1:
            raise ValueError(f"a request of {request.size} users: check requests one by one, before they are combined")
        if not request.count:
            return Checked(request, NO_CANDIDATES)
        if request.count > self.most:
            return Checked(request, f"more than {self.most} candidates")
        if not (_finite(request.users.dense_BI[:, self.user_dense]) and _finite(request.dense_NI)):
            return Checked(request, NOT_FINITE)
        users, cut = self._newest(request.users)
        lengths_K = users.ids.lengths()
        low_N, last_N = self.low_K.repeat_interleave(lengths_K), self.last_K.repeat_interleave(lengths_K)
        values_N, user_oov = _known(users.ids.values(), low_N, last_N)
        if user_oov:
            ids = KeyedJaggedTensor(
                keys=users.ids.keys(), values=values_N, lengths=lengths_K,
                length_per_key=users.ids.length_per_key(), stride=1,
            )  # fmt: skip
            users = replace(users, ids=ids)
        ids_JN, item_oov = _known(request.ids_JN, torch.zeros_like(self.last_J1), self.last_J1)
        return Checked(replace(request, users=users, ids_JN=ids_JN), oov=user_oov + item_oov, cut=cut)

    def _newest(self, users: Batch) -> tuple[Batch, int]:
        over = {h: len(users.event_times[h]) - fields[0].max_length for h, fields in self.schema.histories.items()}
        long = {h: slice(n, None) for h, n in over.items() if n > 0}
        return (with_events(self.schema, users, long), sum(over[h] for h in long)) if long else (users, 0)


def with_events(
    schema: FeatureSchema, users: Batch, at: Mapping[str, slice | Tensor], times: Mapping[str, Tensor] | None = None
) -> Batch:
    """One user with other events of its own.

    Args:
        schema: of the batch.
        users: one row.
        at: history -> which of its events, oldest first; histories left out stay as they are.
        times: history -> int64 seconds [L] of those events; else their own.
    """
    given = times or {}
    values, lengths = [], []
    parts = torch.split(users.ids.values(), users.ids.length_per_key())
    for f, own_L in zip(schema.of_kind("categorical", "sequence"), parts, strict=True):
        values.append(own_L if f.history is None or f.history not in at else own_L[at[f.history]])
        lengths.append(len(values[-1]))
    kept = {h: given[h] if h in given else t[at[h]] if h in at else t for h, t in users.event_times.items()}
    ids = KeyedJaggedTensor(
        keys=users.ids.keys(), values=torch.cat(values), lengths=torch.tensor(lengths, dtype=torch.int32),
        length_per_key=lengths, stride=1,
    )  # fmt: skip
    return replace(users, ids=ids, event_times=kept, host={"lengths": {h: [len(t)] for h, t in kept.items()}})


def combine(requests: Sequence[Requests]) -> Requests:
    """Requests of equally many candidates as one, in order; every tensor is written once.

    Raises:
        ValueError: none, or candidates of different numbers.
    """
    if not requests:
        raise ValueError("nothing to combine")
    if len(counts := {r.count for r in requests}) > 1:
        raise ValueError(f"requests of {sorted(counts)} candidates: only requests of equally many can share a batch")
    if len(requests) == 1:
        return requests[0]
    return Requests(
        _together([r.users for r in requests]), torch.cat([r.ids_JN for r in requests], dim=1),
        torch.cat([r.dense_NI for r in requests]), torch.cat([r.missing_NI for r in requests]),
    )  # fmt: skip


def _together(batches: Sequence[Batch]) -> Batch:
    """Batches one after another. Ids stand key by key, so each batch is taken apart at its keys."""
    keys = batches[0].ids.keys()
    per_key = [b.ids.length_per_key() for b in batches]
    parts = [torch.split(b.ids.values(), n) for b, n in zip(batches, per_key, strict=True)]
    lengths_KR = torch.cat([b.ids.lengths().view(len(keys), b.size) for b in batches], dim=1)
    ids = KeyedJaggedTensor(
        keys=keys, values=torch.cat([p[k] for k in range(len(keys)) for p in parts]), lengths=lengths_KR.flatten(),
        length_per_key=[sum(n[k] for n in per_key) for k in range(len(keys))], stride=lengths_KR.shape[1],
    )  # fmt: skip
    times = {h: torch.cat([b.event_times[h] for b in batches]) for h in batches[0].event_times}
    known = [b.host.get("lengths") for b in batches]
    host = {h: [n for k in known if isinstance(k, Mapping) for n in k[h]] for h in times}
    return Batch(
        torch.cat([b.dense_BI for b in batches]), torch.cat([b.missing_BI for b in batches]), ids, times,
        torch.cat([b.time_B for b in batches]), torch.cat([b.label_B for b in batches]),
        torch.cat([b.user_B for b in batches]), {} if None in known else {"lengths": host},
    )  # fmt: skip


def _finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def _known(ids: Tensor, low: Tensor, last: Tensor) -> tuple[Tensor, int]:
    """Ids within their bounds, the others mapped, and how many were."""
    bad = (ids < low) | (ids > last)
    count = int(bad.sum())
    return (ids.masked_fill(bad, OOV), count) if count else (ids, 0)

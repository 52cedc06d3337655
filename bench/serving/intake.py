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


def check(schema: FeatureSchema, request: Requests, most: int) -> Checked:
    """Limits of serving: what a model may be given, whatever arrives.

    Histories longer than the model's are cut to the newest events first, by a view, so that a history of any length
    costs what the longest served one does. Ids below 0, or beyond their table, become out of vocabulary. Empty
    histories are served.

    Args:
        schema: that the model was built with.
        request: of one user.
        most: candidates a request may have.

    Raises:
        ValueError: more than one user.
    """
    if request.size != 1:
        raise ValueError(f"a request of {request.size} users: check requests one by one, before they are combined")
    if not request.count:
        return Checked(request, NO_CANDIDATES)
    if request.count > most:
        return Checked(request, f"more than {most} candidates")
    own = set(item_dense(schema))
    user_dense_BI = request.users.dense_BI[:, [i for i in range(len(schema.dense)) if i not in own]]
    if not (bool(user_dense_BI.isfinite().all()) and bool(request.dense_NI.isfinite().all())):
        return Checked(request, NOT_FINITE)
    users, cut = _newest(schema, request.users)
    users, user_oov = _known_users(schema, users)
    ids_JN, item_oov = _known_items(schema, request.ids_JN)
    return Checked(replace(request, users=users, ids_JN=ids_JN), oov=user_oov + item_oov, cut=cut)


class Intake:
    """`check` for one model, counting; what `load.server` takes as `admit`.

    Attributes:
        oov: ids mapped so far.
        cut: events left out so far.
    """

    def __init__(self, schema: FeatureSchema, most: int) -> None:
        self.schema, self.most = schema, most
        self.oov = self.cut = 0

    def __call__(self, request: Requests) -> tuple[Requests, str]:
        """The request as it may be served, and why it may not, or an empty string."""
        checked = check(self.schema, request, self.most)
        self.oov += checked.oov
        self.cut += checked.cut
        return checked.request, checked.reason


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
    for f in schema.of_kind("categorical", "sequence"):
        own_L = users.ids[f.name].values()
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


def _newest(schema: FeatureSchema, users: Batch) -> tuple[Batch, int]:
    over = {h: len(users.event_times[h]) - fields[0].max_length for h, fields in schema.histories.items()}
    long = {h: slice(n, None) for h, n in over.items() if n > 0}
    return (with_events(schema, users, long), sum(over[h] for h in long)) if long else (users, 0)


def _known_users(schema: FeatureSchema, users: Batch) -> tuple[Batch, int]:
    """Ids of the user's side; item fields of a user are not read, so they are left alone."""
    fields = schema.of_kind("categorical", "sequence")
    bad = [_unknown(users.ids[f.name].values(), _rows(schema, f.name)) & (f.role != "item") for f in fields]
    if not (count := int((bad_N := torch.cat(bad)).sum()) if bad else 0):
        return users, 0
    ids = KeyedJaggedTensor(
        keys=users.ids.keys(), values=users.ids.values().masked_fill(bad_N, OOV), lengths=users.ids.lengths(),
        length_per_key=users.ids.length_per_key(), stride=users.size,
    )  # fmt: skip
    return replace(users, ids=ids), count


def _known_items(schema: FeatureSchema, ids_JN: Tensor) -> tuple[Tensor, int]:
    rows_J1 = torch.tensor([_rows(schema, f.name) for f in item_fields(schema)], dtype=torch.long)[:, None]
    bad_JN = _unknown(ids_JN, rows_J1)
    count = int(bad_JN.sum())
    return (ids_JN.masked_fill(bad_JN, OOV), count) if count else (ids_JN, 0)


def _unknown(ids: Tensor, rows: int | Tensor) -> Tensor:
    return (ids < 0) | (ids >= rows)


def _rows(schema: FeatureSchema, name: str) -> int:
    return schema[schema[name].table].cardinality

"""What a request is: one user, with histories and context, and C candidates.

Only fields of role `item` are a candidate's; all others, histories included, are the user's side.

Dims: R requests, C candidates of each, N = R*C candidates, J item fields, I dense fields, K all features
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.datasets.schema import Batch, FeatureSchema, Field


@dataclass(frozen=True, slots=True)
class Requests:
    """R requests of C candidates each."""

    users: Batch
    """R rows, the user's side; what stands in their item fields is no candidate and is not read."""
    ids_JN: Tensor
    """int64 ids of the categorical item fields in schema order, request after request."""
    dense_NI: Tensor
    """float32 values of the dense item fields in schema order; 0 where missing."""
    missing_NI: Tensor
    """float32, 1 where missing."""

    @property
    def size(self) -> int:
        """R."""
        return self.users.size

    @property
    def count(self) -> int:
        """C."""
        return self.dense_NI.shape[0] // self.users.size

    def candidates(self, begin: int, end: int, users: Batch | None = None) -> Requests:
        """Some candidates alone, of the same users or of those given."""
        at = slice(begin, end)
        return Requests(users or self.users, self.ids_JN[:, at], self.dense_NI[at], self.missing_NI[at])

    @property
    def nbytes(self) -> int:
        """Bytes that arrive with the requests."""
        return self.users.nbytes + sum(t.nbytes for t in (self.ids_JN, self.dense_NI, self.missing_NI))


def item_fields(schema: FeatureSchema) -> tuple[Field, ...]:
    """Categorical fields of a candidate, in schema order."""
    return tuple(f for f in schema.categorical if f.role == "item")


def item_dense(schema: FeatureSchema) -> list[int]:
    """Places of a candidate's dense fields among all dense fields."""
    return [i for i, f in enumerate(schema.dense) if f.role == "item"]


def requests_of(schema: FeatureSchema, users: Batch, items: Batch) -> Requests:
    """Requests of users whose candidates are the rows of `items`, request after request.

    Args:
        schema: of both.
        users: R rows.
        items: R*C rows; only their item fields are read.

    Raises:
        ValueError: no field of role `item`, or the rows of `items` are no multiple of those of `users`.
    """
    fields, dense = item_fields(schema), item_dense(schema)
    if not fields and not dense:
        raise ValueError(f"schema {schema.name!r} has no field of role `item`: nothing tells two candidates apart")
    if not users.size or items.size % users.size:
        raise ValueError(f"{items.size} candidates cannot be shared out evenly over {users.size} requests")
    empty = torch.empty(0, items.size, dtype=torch.long, device=items.label_B.device)
    ids_JN = torch.stack([items.ids[f.name].values() for f in fields]) if fields else empty
    return Requests(users, ids_JN, items.dense_BI[:, dense], items.missing_BI[:, dense])


def full_rows(schema: FeatureSchema, requests: Requests) -> Batch:
    """The requests as N rows of a batch, the user's side copied to every candidate."""
    users, count = requests.users, requests.count
    fields = {f.name: i for i, f in enumerate(item_fields(schema))}
    device = requests.dense_NI.device
    lengths_KR = users.ids.lengths().view(-1, users.size)
    values, lengths, per_key = [], [], []
    for k, f in enumerate(schema.of_kind("categorical", "sequence")):
        n_N = lengths_KR[k].repeat_interleave(count)
        if f.name in fields:
            values_N, n_N = requests.ids_JN[fields[f.name]], torch.ones_like(n_N)
        elif f.history is None:
            values_N = users.ids[f.name].values().repeat_interleave(count)
        else:
            values_N = _repeat_lists(users.ids[f.name].values(), lengths_KR[k], count)
        values.append(values_N)
        lengths.append(n_N)
        per_key.append(len(values_N))
    times = {}
    for h, group in schema.histories.items():
        n_R = users.ids[group[0].name].lengths()
        times[h] = _repeat_lists(users.event_times[h], n_R, count)
    dense_NI, missing_NI = dense_rows(schema, requests)
    ids = KeyedJaggedTensor(
        keys=users.ids.keys(), values=torch.cat(values) if values else torch.empty(0, dtype=torch.long, device=device),
        lengths=torch.cat(lengths), length_per_key=per_key, stride=users.size * count,
    )  # fmt: skip
    return Batch(
        dense_NI, missing_NI, ids, times, users.time_B.repeat_interleave(count),
        users.label_B.repeat_interleave(count), users.user_B.repeat_interleave(count), host_of(users, count),
    )  # fmt: skip


def dense_rows(schema: FeatureSchema, requests: Requests) -> tuple[Tensor, Tensor]:
    """(values, missing) [N, I] of all dense fields."""
    own, users, out = item_dense(schema), requests.users, []
    for user_RI, item_NI in ((users.dense_BI, requests.dense_NI), (users.missing_BI, requests.missing_NI)):
        rows_NI = user_RI.repeat_interleave(requests.count, dim=0)
        if own:
            rows_NI[:, own] = item_NI
        out.append(rows_NI)
    return out[0], out[1]


def host_of(users: Batch, count: int) -> dict[str, object]:
    known = users.host.get("lengths")
    if not isinstance(known, Mapping):
        return {}
    return {"lengths": {h: [n for n in lengths for _ in range(count)] for h, lengths in known.items()}}


def _repeat_lists(values_L: Tensor, lengths_R: Tensor, count: int) -> Tensor:
    """Every list `count` times in a row."""
    parts = torch.split(values_L, lengths_R.tolist())
    return torch.cat([p.repeat(count) for p in parts]) if parts else values_L


def take_users(schema: FeatureSchema, users: Batch, row: int) -> Batch:
    """One row of a batch."""
    lengths_KR = users.ids.lengths().view(-1, users.size)
    ends_K = lengths_KR[:, : row + 1].sum(dim=1).tolist()
    per_key = lengths_KR[:, row].tolist()
    spans = [slice(end - n, end) for end, n in zip(ends_K, per_key, strict=True)]
    fields = schema.of_kind("categorical", "sequence")
    values = [users.ids[f.name].values()[span] for f, span in zip(fields, spans, strict=True)]
    times = {f.history: users.event_times[f.history][span] for f, span in zip(fields, spans, strict=True) if f.history}
    known = users.host.get("lengths")
    host = {"lengths": {h: [n[row]] for h, n in known.items()}} if isinstance(known, Mapping) else {}
    ids = KeyedJaggedTensor(
        keys=users.ids.keys(), values=torch.cat(values), lengths=lengths_KR[:, row].clone(), length_per_key=per_key,
        stride=1,
    )  # fmt: skip
    at = slice(row, row + 1)
    return Batch(
        users.dense_BI[at], users.missing_BI[at], ids, times, users.time_B[at], users.label_B[at], users.user_B[at],
        host,
    )  # fmt: skip


def without_newest(schema: FeatureSchema, users: Batch, count: int) -> Batch:
    """One row as it was before the newest `count` events of all its histories together; the others stay."""
    sizes = {h: len(t) for h, t in users.event_times.items()}
    of = torch.cat([torch.full((n,), i) for i, n in enumerate(sizes.values())]) if sizes else torch.empty(0)
    newest_first = torch.argsort(torch.cat([*users.event_times.values()]).cpu(), stable=True).flip(0) if sizes else of
    gone = of[newest_first[:count]].tolist()
    kept = {h: n - gone.count(i) for i, (h, n) in enumerate(sizes.items())}
    values = [
        users.ids[f.name].values()[: None if f.history is None else kept[f.history]]
        for f in schema.of_kind("categorical", "sequence")
    ]
    per_key = [len(v) for v in values]
    lengths = torch.tensor(per_key, dtype=users.ids.lengths().dtype, device=users.ids.lengths().device)
    ids = KeyedJaggedTensor(keys=users.ids.keys(), values=torch.cat(values), lengths=lengths, length_per_key=per_key,
                            stride=1)  # fmt: skip
    times = {h: t[: kept[h]] for h, t in users.event_times.items()}
    return replace(users, ids=ids, event_times=times, host={"lengths": {h: [n] for h, n in kept.items()}})

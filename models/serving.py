"""How a model serves requests: the user's side once, every candidate against it.

A form of serving is exact: its logits equal those of the model's own forward on `full_rows`, which is the same request
with nothing shared.

Dims: R requests, C candidates of each, N = R*C candidates, F fields, U fields of the user's side, J item fields,
D embedding width, W = D plus one where the model has first-order weights
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.models.blocks import Embedded, FeatureEmbedder
from ctrbench.models.embedding import EmbeddingTables
from ctrbench.models.events import Events
from ctrbench.models.requests import Requests, dense_rows, full_rows, host_of, item_dense, item_fields, take_users
from ctrbench.models.table_lookups import one_id_each

REUSE, WHOLE, ALONE = "reuse", "whole", "alone"
"""Forms that every model has: its best; the request's rows in one batch, nothing shared; one row after another."""


@runtime_checkable
class ServingForm(Protocol):
    """One way to serve a model."""

    def context(self, users: Batch) -> Any:
        """What is computed once a request, whatever its candidates; R rows."""
        ...

    def score(self, context: Any, requests: Requests) -> Tensor:
        """logit_N of the candidates of the requests that the context was made of."""
        ...


Forms = Callable[[nn.Module, FeatureSchema], Mapping[str, ServingForm]]
"""(model in eval mode, schema) -> its forms by name; `reuse` is the best one."""


def serve(form: ServingForm, requests: Requests) -> Tensor:
    """logit_N. No gradient."""
    with torch.no_grad():
        return form.score(form.context(requests.users), requests)


def serving_forms(forms: Forms | None, model: nn.Module, schema: FeatureSchema) -> dict[str, ServingForm]:
    """All forms of a model: its own, or its embeddings shared (`EmbeddedOnce`), and the two that share nothing."""
    own = forms(model, schema) if forms is not None else {REUSE: EmbeddedOnce(model, schema)}
    return {**own, WHOLE: WholeRows(model, schema), ALONE: RowByRow(model, schema)}


class WholeRows:
    """All rows of the requests in one batch: nothing is shared."""

    def __init__(self, model: nn.Module, schema: FeatureSchema) -> None:
        self.model, self.schema = model, schema

    def context(self, users: Batch) -> None:
        """Nothing."""

    def score(self, context: None, requests: Requests) -> Tensor:
        """The model's own forward."""
        out: Tensor = self.model(full_rows(self.schema, requests))
        return out


class RowByRow:
    """One forward a candidate: nothing is shared, and no batch helps the machine."""

    def __init__(self, model: nn.Module, schema: FeatureSchema) -> None:
        self.model, self.schema = model, schema

    def context(self, users: Batch) -> None:
        """Nothing."""

    def score(self, context: None, requests: Requests) -> Tensor:
        """The model's own forward, row after row."""
        out = []
        for r in range(requests.size):
            users = take_users(self.schema, requests.users, r)
            for n in range(r * requests.count, (r + 1) * requests.count):
                out.append(self.model(full_rows(self.schema, requests.candidates(n, n + 1, users))))
        return torch.cat(out)


@dataclass(frozen=True, slots=True)
class UserSide:
    """The user's side of R requests, looked up once."""

    fields_RUW: Tensor
    """Vectors of the user's fields in the order of `Sides.user_slots`."""
    events: Mapping[str, Events]


class Sides:
    """An embedder taken apart into the user's side and the candidates'.

    Attributes:
        user_slots: places in `Embedded.fields_BFD` of the user's side: all but item fields; pooled histories are here.
        item_slots: places of the candidates' fields: categorical, then dense.
    """

    def __init__(self, embedder: FeatureEmbedder) -> None:
        self.embedder, schema = embedder, embedder.schema
        plain = [*schema.categorical, *(schema.dense if embedder.numeric_ID is not None else ())]
        self.item_slots = [i for i, f in enumerate(plain) if f.role == "item"]
        self.user_slots = [i for i in range(embedder.num_fields) if i not in self.item_slots]
        self.slots_U = torch.tensor(self.user_slots, dtype=torch.long)
        self.names = [f.name for f in item_fields(schema)]
        self.dense = item_dense(schema) if embedder.numeric_ID is not None else []

    def user(self, users: Batch) -> UserSide:
        """The user's side; R rows."""
        if users.size == 1 and self.embedder.tables is not None:
            return self._one(users, self.embedder.tables)
        fields_RFW, events = self.embedder.rows(users)
        return UserSide(fields_RFW[:, self.user_slots], events)

    def _one(self, user: Batch, tables: EmbeddingTables) -> UserSide:
        """The same of one row without what only many rows need: offsets, bags, indices of padding."""
        schema, embedder = self.embedder.schema, self.embedder
        per_key = user.ids.length_per_key()
        n_cat = len(schema.categorical)
        rows = dict(zip(user.ids.keys(), tables.gather(user.ids).split(per_key), strict=True))
        fields_FW = [torch.cat([rows[f.name] for f in schema.categorical])] if n_cat else []
        if embedder.numeric_ID is not None:
            fields_FW.append(embedder.dense_rows(user.dense_BI, user.missing_BI)[0])
        if embedder.pooled:
            fields_FW += [rows[f.name].sum(0, keepdim=True) / max(1, len(rows[f.name])) for f in schema.sequences]
        fields_1FW = torch.cat(fields_FW).unsqueeze(0)
        events = {} if embedder.pooled else {h: self._history(h, rows, user) for h in schema.histories}
        return UserSide(fields_1FW.index_select(1, self.slots_U), events)

    def _history(self, history: str, rows: Mapping[str, Tensor], user: Batch) -> Events:
        """The newest events of one row, padding on the left."""
        fields = self.embedder.schema.histories[history]
        length = fields[0].max_length
        values_TE = torch.cat([rows[f.name][-length:, : self.embedder.dim] for f in fields], dim=1)
        short = length - len(values_TE)
        mask_T = values_TE.new_ones(len(values_TE), dtype=torch.bool)

        def padded(x: Tensor) -> Tensor:
            return pad(x, (0, 0, short, 0) if x.dim() == 2 else (short, 0)).unsqueeze(0)

        ids = {f.name: padded(user.ids[f.name].values()[-length:]) for f in fields}
        return Events(padded(values_TE), ids, padded(user.event_times[history][-length:]), padded(mask_T))

    def items(self, requests: Requests) -> Tensor:
        """The candidates' fields, [N, J, W]."""
        parts = []
        if self.names:
            assert self.embedder.tables is not None
            found = self.embedder.tables.gather(one_id_each(self.names, requests.ids_JN))
            parts.append(found.view(len(self.names), requests.ids_JN.shape[1], -1).transpose(0, 1))
        if self.dense:
            parts.append(self.embedder.dense_rows(requests.dense_NI, requests.missing_NI, self.dense))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def join(self, user: UserSide, items_NJW: Tensor) -> Embedded:
        """What the embedder gives for `full_rows`: the user's side copied to every candidate."""
        n = items_NJW.shape[0]
        count = n // user.fields_RUW.shape[0]
        order = [*self.user_slots, *self.item_slots]
        back = [order.index(i) for i in range(len(order))]
        user_NUW = user.fields_RUW.repeat_interleave(count, dim=0)
        fields_NFW = torch.cat([user_NUW, items_NJW], dim=1)[:, back]
        events = {
            h: Events(
                e.values_BTE.repeat_interleave(count, dim=0),
                {k: v.repeat_interleave(count, dim=0) for k, v in e.ids.items()},
                e.times_BT.repeat_interleave(count, dim=0), e.mask_BT.repeat_interleave(count, dim=0),
            )
            for h, e in user.events.items()
        }  # fmt: skip
        return self.embedder.embedded(fields_NFW, events)


class _Given(nn.Module):
    """Stands in for an embedder: hands out what was looked up before."""

    def __init__(self, found: Embedded) -> None:
        super().__init__()
        self.found = found

    def forward(self, batch: Batch) -> Embedded:
        return self.found


class EmbeddedOnce:
    """The user's side looked up, pooled and padded once a request; the rest of the model runs on every row.

    What any model can share whose forward takes rows from `self.embedder`; those that can share more have a form of
    their own.
    """

    def __init__(self, model: nn.Module, schema: FeatureSchema) -> None:
        self.model, self.schema = model, schema
        embedder = model.embedder
        assert isinstance(embedder, FeatureEmbedder)
        self.sides = Sides(embedder)

    def context(self, users: Batch) -> UserSide:
        """Vectors of the user's side."""
        return self.sides.user(users)

    def score(self, context: UserSide, requests: Requests) -> Tensor:
        """The model's forward on rows put together from both sides."""
        users, count = requests.users, requests.count
        dense_NI, missing_NI = dense_rows(self.schema, requests)
        rows = replace(
            users, dense_BI=dense_NI, missing_BI=missing_NI, time_B=users.time_B.repeat_interleave(count),
            label_B=users.label_B.repeat_interleave(count), user_B=users.user_B.repeat_interleave(count),
            host=host_of(users, count), row_B=None,
        )  # fmt: skip
        embedder = self.model.embedder
        self.model.embedder = _Given(self.sides.join(context, self.sides.items(requests)))
        try:
            out: Tensor = self.model(rows)
        finally:
            self.model.embedder = embedder
        return out


def split_columns(weight_OK: Tensor, slots: Sequence[int], dim: int) -> Tensor:
    """The columns [O, len(slots)*D] of a layer on flattened field vectors that belong to some of the fields."""
    fields = weight_OK.view(weight_OK.shape[0], -1, dim)
    return fields[:, list(slots)].flatten(1)

"""Small OneTrans models, schemas and embedded batches that its tests are made of.

Dims: B batch, T padded history length, E event width
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.datasets.schema import FIRST_ID, Batch, FeatureSchema, Field, synthetic_batch
from ctrbench.models.blocks import Embedded
from ctrbench.models.embedding import TableConfig
from ctrbench.models.events import Events
from ctrbench.models.onetrans import OneTrans, OneTransConfig

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
SMALL = OneTransConfig(dim=4, width=8, layers=3, heads=2, l_ns=3, ffn_mult=2)
SWITCHES = [
    {"fusion": "intent"}, {"ns": "group"}, {"pyramid": "shrink_first"}, {"pyramid": "none"}, {"mask": "full"},
    {"out_proj": "mixed"}, {"out_proj": "none"}, {"norm": "per_token"}, {"head": "mean"}, {"head": "last"},
    {"pos": "time_bucket"}, {"pos": "none"}, {"act": "silu"}, {"ffn_mult": 3}, {"ns_hidden": "full"}, {"round": 32},
]  # fmt: skip
SERVED = [
    {}, {"norm": "per_token"}, {"out_proj": "mixed"}, {"fusion": "intent"}, {"ns": "group"}, {"pos": "time_bucket"},
    {"head": "mean"}, {"ns_weights": "shared"},
]  # fmt: skip
LENGTH, ACTIONS = 9, 3


def history_fields(name: str, length: int = LENGTH) -> list[Field]:
    def event(field: str, rows: int = 0, target: str | None = None) -> Field:
        return Field(name=f"{name}_{field}", kind="sequence", role="behaviour", cardinality=rows, max_length=length,
                     target=target, history=name)  # fmt: skip

    return [event("item", target="item"), event("action", rows=FIRST_ID + ACTIONS)]


def schema_with(*histories: str, length: int = LENGTH) -> FeatureSchema:
    fields = [
        Field(name="user", kind="categorical", role="user", cardinality=20),
        Field(name="item", kind="categorical", role="item", cardinality=30),
        Field(name="price", kind="dense", role="item"),
        Field(name="hour", kind="categorical", role="context", cardinality=12),
    ]
    events = [f for h in histories for f in history_fields(h, length)]
    return FeatureSchema(name="test", track="sequence", fields=(*fields, *events))


ONE, TWO = schema_with("hist"), schema_with("buys", "clicks")


class Given(nn.Module):
    """In the place of the embedding stage: hands out what the test put into the batch's host facts."""

    def forward(self, batch) -> Embedded:
        return batch.host["embedded"]


def batch_of(schema, embedded, lengths=None):
    """A batch around given embeddings; lengths only where the host is to know them."""
    rows = embedded.fields_BFD.shape[0]
    batch = synthetic_batch(schema, rows)
    batch.host.clear()  # type: ignore[attr-defined]
    batch.host.update({"embedded": embedded} | ({"lengths": lengths} if lengths else {}))  # type: ignore[attr-defined]
    return batch


def events_of(lengths: list[int], top: int = LENGTH, actions: int = ACTIONS) -> Events:
    """Random left-padded events with rising times; padding is zero."""
    rows = len(lengths)
    mask_BT = torch.arange(top, 0, -1) <= torch.tensor(lengths).unsqueeze(1)
    values_BTE = torch.randn(rows, top, 2 * SMALL.dim, dtype=torch.float64) * mask_BT.unsqueeze(-1)
    times_BT = torch.randint(1, 1000, (rows, top)).cumsum(1) * mask_BT
    ids_BT = torch.randint(FIRST_ID, FIRST_ID + actions, (rows, top)) * mask_BT
    return Events(values_BTE, {f"{h}_action": ids_BT for h in ("hist", "buys", "clicks")}, times_BT, mask_BT)


def embedded_of(schema, lengths=(9, 4, 0, 7)) -> Embedded:
    fields = len(schema.categorical) + len(schema.dense)
    return Embedded(
        torch.randn(len(lengths), fields, SMALL.dim, dtype=torch.float64), None,
        {h: events_of(list(lengths)) for h in schema.histories},
    )  # fmt: skip


def model_of(config=SMALL, schema=ONE) -> OneTrans:
    """A float64 OneTrans with weights far from their start, on given embeddings."""
    model = OneTrans(config, schema)
    model.embedder = Given()
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def looked_up(config=SMALL, schema=ONE, dtype=torch.float64) -> OneTrans:
    """A OneTrans that looks its own rows up, tables and weights far from their start."""
    model = (
        OneTrans(replace(config, tables=TableConfig(impl="per_table", optimizer="adagrad")), schema).to(dtype).eval()
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def drawn_events(schema: FeatureSchema, history: str, count: int, start: int = 0) -> list[tuple[int, ...]]:
    """(time, ids of its fields) of random events, oldest first."""
    tops = [schema[schema[f.name].table].cardinality for f in schema.histories[history]]
    times = start + torch.randint(1, 1000, (count,)).cumsum(0)
    ids = [torch.randint(FIRST_ID, top, (count,)) for top in tops]
    return [tuple(int(x) for x in event) for event in zip(times, *ids, strict=True)]


def rows_with(schema: FeatureSchema, users: list[dict[str, list[tuple[int, ...]]]], now: int = 10**6) -> Batch:
    """A batch whose rows have the given events; other fields as drawn from the number of the row alone."""
    base = synthetic_batch(schema, len(users))
    values, lengths = [], []
    for f in schema.of_kind("categorical", "sequence"):
        if f.history is None:
            own = [[int(i)] for i in base.ids[f.name].values()]
        else:
            at = [x.name for x in schema.histories[f.history]].index(f.name) + 1
            own = [[event[at] for event in user[f.history]] for user in users]
        values.append([i for row in own for i in row])
        lengths += [len(row) for row in own]
    times = {h: torch.tensor([e[0] for user in users for e in user[h]], dtype=torch.long) for h in schema.histories}
    ids = KeyedJaggedTensor(
        keys=base.ids.keys(), values=torch.tensor([i for v in values for i in v]), lengths=torch.tensor(lengths),
        length_per_key=[len(v) for v in values], stride=len(users),
    )  # fmt: skip
    host = {"lengths": {h: [len(user[h]) for user in users] for h in schema.histories}}
    return replace(base, ids=ids, event_times=times, time_B=torch.full_like(base.time_B, now), host=host)

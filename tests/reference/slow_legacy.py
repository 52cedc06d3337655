"""Slow twins of the legacy models, written from the formulas of models.md section 1 with loops over rows, fields, pairs
and events, in float64. They read a model's weights and the ids of a batch, and nothing of the model's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from tests.reference.slow import linear, softmax, weighted
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.datasets.schema import FIRST_ID, Batch, FeatureSchema, Field
from ctrbench.models.embedding import embedding_tables

LIKED = FIRST_ID + 1
Parameters = Mapping[str, Tensor]


def schema_of(categorical: int, dense: int, length: int) -> FeatureSchema:
    """Fields of different table sizes; with a length also a history that mirrors the first field and has an action."""
    fields = [Field(name=f"C{i}", kind="categorical", role="item", cardinality=9 + i) for i in range(categorical)]
    fields += [Field(name=f"I{i}", kind="dense", role="context") for i in range(dense)]
    if length:
        event = {"kind": "sequence", "role": "behaviour", "max_length": length, "history": "hist"}
        fields += [Field(name="hist_item", target="C0", **event), Field(name="hist_action", cardinality=6, **event)]  # type: ignore[arg-type]
    return FeatureSchema(name="twin", track="sequence" if length else "tabular", fields=tuple(fields))


def batch_of(schema: FeatureSchema, lengths: Sequence[int], seed: int) -> Batch:
    """Random ids, one row a length; a dense value in three is missing."""
    g, rows = torch.Generator().manual_seed(seed), len(lengths)
    events = {h: min(max(lengths), fields[0].max_length) for h, fields in schema.histories.items()}
    keys = schema.of_kind("categorical", "sequence")
    counts = [[min(n, events[f.history]) if f.history else 1 for n in lengths] for f in keys]
    values = [
        torch.randint(FIRST_ID, schema[f.table].cardinality, (sum(n),), generator=g)
        for f, n in zip(keys, counts, strict=True)
    ]
    missing = (torch.rand(rows, len(schema.dense), generator=g) < 0.33).float()
    times = {h: torch.arange(sum(min(n, top) for n in lengths)) for h, top in events.items()}
    ids = KeyedJaggedTensor(
        keys=[f.name for f in keys], values=torch.cat(values),
        lengths=torch.tensor(counts, dtype=torch.int32).flatten(),
        length_per_key=[sum(n) for n in counts], stride=rows,
    )  # fmt: skip
    dense = torch.randn(missing.shape, generator=g) * (1 - missing)
    return Batch(dense, missing, ids, times, torch.full((rows,), 10**6), torch.zeros(rows), torch.arange(rows))


@torch.no_grad()
def randomised(model: nn.Module, seed: int) -> nn.Module:
    """Float32 weights, table rows and running statistics, all random, logits of about one; the padding row is zero."""
    g = torch.Generator().manual_seed(seed)
    (tables,) = embedding_tables(model)
    for rows in tables.weights().values():
        rows[1:, : tables.width] = 0.6 * torch.randn(len(rows) - 1, tables.width, generator=g)
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        if "embedder.tables" not in name and p.is_floating_point():
            p.copy_(torch.randn(p.shape, generator=g) / max(1, p.shape[-1] if p.dim() > 1 else 6) ** 0.5)
            if name.endswith(("var", "var_O")):
                p.abs_().add_(0.3)
    return model.eval()


@dataclass(frozen=True, slots=True)
class Row:
    """One row by its vectors."""

    fields: list[Tensor]
    """Categorical, then dense fields, then pooled histories where a model pools; the first-order weight behind."""
    dense: Tensor
    missing: Tensor
    events: list[list[Tensor]]
    """Oldest first; one vector an event field."""
    actions: list[int]


@dataclass(frozen=True, slots=True)
class Weights:
    """What a twin reads of a model."""

    p: Parameters
    """Parameters and running statistics."""
    tables: Mapping[str, Tensor]
    schema: FeatureSchema

    def linear(self, name: str, x: Tensor) -> Tensor:
        return linear(self.p, name, x)

    def mlp(self, name: str, hidden: Sequence[int], x: Tensor, *, bn: bool = False, out: bool = True) -> Tensor:
        """Linear, batch norm with its running statistics, ReLU; then a linear output."""
        at = 0
        for _ in hidden:
            x = self.linear(f"{name}.{at}", x)
            if bn:
                norm = f"{name}.{at + 1}"
                x = (x - self.p[f"{norm}.running_mean"]) / (self.p[f"{norm}.running_var"] + 1e-5) ** 0.5
                x = x * self.p[f"{norm}.weight"] + self.p[f"{norm}.bias"]
            x, at = x.clamp(min=0), at + 2 + bn
        return self.linear(f"{name}.{at}", x) if out else x

    def acted(self, name: str, act: str, x: Tensor) -> Tensor:
        """Dice by its formula, or ReLU."""
        if act == "relu":
            return x.clamp(min=0)
        p = torch.sigmoid((x - self.p[f"{name}.mean_O"]) / (self.p[f"{name}.var_O"] + 1e-9) ** 0.5)
        return p * x + self.p[f"{name}.alpha_O"] * (1 - p) * x


def weights_of(model: nn.Module, schema: FeatureSchema) -> Weights:
    p = {n: v.detach().double() for n, v in (*model.named_parameters(), *model.named_buffers())}
    (tables,) = embedding_tables(model)
    return Weights(p, {n: w[:, : tables.width].double() for n, w in tables.weights().items()}, schema)


def rows_of(w: Weights, batch: Batch, pooled: bool) -> list[Row]:
    out, numeric, missing = [], w.p.get("embedder.numeric_ID"), w.p.get("embedder.missing_ID")
    lists = {k: batch.ids[k].values().split(batch.ids[k].lengths().tolist()) for k in batch.ids.keys()}
    for b in range(batch.size):
        vectors = {k: [w.tables[w.schema[k].table][int(i)] for i in ids[b]] for k, ids in lists.items()}
        fields = [vectors[f.name][0] for f in w.schema.categorical]
        dense, absent = batch.dense_BI[b].double(), batch.missing_BI[b].double()
        if numeric is not None:
            fields += [x * v + (m * a if missing is not None else 0) for x, m, v, a in zip(
                dense, absent, numeric, missing if missing is not None else numeric, strict=True)]  # fmt: skip
        names = [f.name for f in w.schema.sequences]
        if pooled:
            width = next(iter(w.tables.values())).shape[1]
            fields += [sum(vectors[n], torch.zeros(width).double()) / max(1, len(vectors[n])) for n in names]
        events = [list(parts) for parts in zip(*(vectors[n] for n in names), strict=True)] if names else []
        actions = lists["hist_action"][b].tolist() if names else []
        out.append(Row(fields, dense, absent, events, actions))
    return out


def split(row: Row) -> tuple[list[Tensor], Tensor]:
    """Field vectors without their last column, and the sum of that column."""
    return [v[:-1] for v in row.fields], sum((v[-1] for v in row.fields), torch.zeros(()).double())


def pairs(vectors: Sequence[Tensor]) -> list[Tensor]:
    return [a @ b for a, b in combinations(vectors, 2)]


# -------------------------------------------------------------- sums and pairs


def lr(w: Weights, c: Any, row: Row) -> Tensor:
    return sum(v[0] for v in row.fields) + w.p.get("bias", torch.zeros(()))


def fm(w: Weights, c: Any, row: Row) -> Tensor:
    vectors, first = split(row)
    return w.p["bias"] + first + sum(pairs(vectors))


def ffm(w: Weights, c: Any, row: Row) -> Tensor:
    """Field i's vector for field j is slot j if j < i, else slot j - 1."""
    vectors, first = split(row)
    slots = [v.split(c.dim) for v in vectors]
    met = sum(slots[i][j - 1] @ slots[j][i] for i, j in combinations(range(len(slots)), 2))
    return w.p["bias"] + first + met


def wide_deep(w: Weights, c: Any, row: Row) -> Tensor:
    vectors, first = split(row)
    return first + w.mlp("tower", c.mlp, torch.cat(vectors), bn=c.bn)[0]


def deepfm(w: Weights, c: Any, row: Row) -> Tensor:
    return wide_deep(w, c, row) + sum(pairs(split(row)[0]))


def dnn(w: Weights, c: Any, row: Row) -> Tensor:
    return w.mlp("tower", c.mlp, torch.cat(row.fields), bn=c.bn)[0]


def dlrm(w: Weights, c: Any, row: Row) -> Tensor:
    vectors, z = list(row.fields), []
    if len(row.dense):
        given = torch.cat([row.dense, row.missing]) if c.missing_vector else row.dense
        z = [w.mlp("bottom", c.bottom, given, bn=c.bn)]
    met = [v.unsqueeze(0) for v in pairs(vectors + z)] if c.interaction == "dot" else vectors
    return w.mlp("top", c.top, torch.cat([*met, *z]), bn=c.bn)[0]


# --------------------------------------------------------------- cross networks


def dcn(w: Weights, c: Any, row: Row) -> Tensor:
    x0 = x = torch.cat(row.fields)
    for v, b in zip(w.p["cross.weight_LN"], w.p["cross.bias_LN"], strict=True):
        x = x0 * (v @ x) + b + x
    if c.structure == "parallel":
        x = torch.cat([x, w.mlp("mlp", c.mlp, x0, bn=c.bn, out=False)])
    elif c.structure == "stacked":
        x = w.mlp("mlp", c.mlp, x, bn=c.bn, out=False)
    return w.linear("head", x)[0]


def crossed(w: Weights, c: Any, x0: Tensor) -> Tensor:
    x = x0
    for number in range(c.cross_layers):
        if getattr(c, "form", "full") == "full":
            x = x0 * w.linear(f"cross.layers.{number}", x) + x
            continue
        gate = softmax(list(w.linear(f"cross.gates.{number if c.gate_scope == 'layer' else 0}", x)))
        act: Callable[[Tensor], Tensor] = torch.tanh if c.expert_act == "tanh" else lambda t: t
        u, core, v = (w.p[f"cross.{n}.{number}"] for n in ("u_NKR", "c_KRR", "v_KRN"))
        experts = [x0 * (u[:, k] @ act(core[k] @ act(v[k] @ x)) + w.p[f"cross.b_N.{number}"]) for k in range(c.experts)]
        x = weighted(gate, experts) + x
    return x


def dcn_v2(w: Weights, c: Any, row: Row) -> Tensor:
    x0 = torch.cat(row.fields)
    x = crossed(w, c, x0)
    out = {
        "parallel": lambda: [x, w.mlp("mlps.parallel", c.mlp, x0, bn=c.bn, out=False)],
        "stacked": lambda: [w.mlp("mlps.stacked", c.mlp, x, bn=c.bn, out=False)],
        "stacked_parallel": lambda: [
            w.mlp(f"mlps.{n}", c.mlp, t, bn=c.bn, out=False) for n, t in (("stacked", x), ("parallel", x0))
        ],
        "cross_only": lambda: [x],
    }[c.structure]()
    return w.linear("head", torch.cat(out))[0]


# -------------------------------------------------------------------- interests


def query(w: Weights, row: Row, at: str) -> Tensor:
    """The target as an event: the first field, and one learned vector for the action."""
    return torch.cat([row.fields[0], w.p[f"{at}.query.free_QD"][0]])


def scores(w: Weights, c: Any, unit: str, q: Tensor, events: Sequence[Tensor]) -> list[Tensor]:
    """a_j, before softmax, of the four-part input."""
    out = []
    for h in events:
        x = torch.cat([q, h, q - h, q * h])
        for number in range(len(c.attention)):
            x = w.acted(f"{unit}.hidden.{2 * number + 1}", c.act, w.linear(f"{unit}.hidden.{2 * number}", x))
        out.append(w.linear(f"{unit}.score", x)[0])
    return out


def interest(w: Weights, c: Any, unit: str, q: Tensor, events: Sequence[Tensor]) -> Tensor:
    if not events:
        return torch.zeros_like(q)
    a = scores(w, c, unit, q, events)
    return weighted(softmax(a) if c.softmax else a, events)


def tower(w: Weights, widths: Sequence[int], act: str, x: Tensor) -> Tensor:
    for number in range(len(widths)):
        x = w.acted(f"tower.{2 * number + 1}", act, w.linear(f"tower.{2 * number}", x))
    return w.linear(f"tower.{2 * len(widths)}", x)[0]


def din(w: Weights, c: Any, row: Row) -> Tensor:
    events = [torch.cat(parts) for parts in row.events]
    u = interest(w, c, "attention.units.0", query(w, row, "attention"), events)
    return tower(w, c.mlp, c.act, torch.cat([*row.fields, u]))


def composite(w: Weights, c: Any, row: Row) -> Tensor:
    events = [torch.cat(parts) for parts in row.events]
    views = {
        "all": events, "recent": events[-c.recent :],
        "liked": [e for e, a in zip(events, row.actions, strict=True) if a == LIKED],
        "disliked": [e for e, a in zip(events, row.actions, strict=True) if a != LIKED],
    }  # fmt: skip
    q = query(w, row, "attention")
    found = [interest(w, c, f"attention.units.{i}", q, views[name]) for i, name in enumerate(c.histories)]
    x = torch.cat([*row.fields, *found])
    beside = [w.mlp(f"towers.{i}", widths, x, out=False) for i, widths in enumerate(c.towers)]
    return w.mlp("heads.0", c.head, torch.cat([crossed(w, c, x), *beside]))[0]


def dien(w: Weights, c: Any, row: Row) -> Tensor:
    at, q = "interests.units.0", query(w, row, "interests")
    h, states = torch.zeros_like(q), []
    for e in (torch.cat(parts) for parts in row.events):
        h = _gru(w.p, f"{at}.extraction", "_l0", e, h, 1.0, "gru")
        states.append(h)
    if c.att == "din":
        a = scores(w, c, f"{at}.unit", q, states)
    else:
        seen = q if c.att == "dot" else w.p[f"{at}.meet_CC"].T @ q
        a = [s @ seen for s in states]
    h = torch.zeros_like(q)
    for weight, s in zip(softmax(a) if c.softmax and a else a, states, strict=True):
        h = _gru(w.p, at, "", s, h, weight, c.cell)
    return tower(w, c.mlp, c.tower_act, torch.cat([*row.fields, h]))


def _gru(p: Parameters, name: str, end: str, x: Tensor, h: Tensor, a: Any, cell: str) -> Tensor:
    """One step, gates in the order reset, update, new; torch's own update gate (`gru`) keeps the old state."""
    join = "." if f"{name}.weight_ih{end}" in p else None
    w_ih, w_hh, b_ih, b_hh = (
        p[f"{name}.{n}{end}"]
        for n in (("weight_ih", "weight_hh", "bias_ih", "bias_hh") if join else ("w_ih", "w_hh", "b_ih", "b_hh"))
    )
    x_r, x_u, x_n = (w_ih @ (a * x if cell == "aigru" else x) + b_ih).chunk(3)
    h_r, h_u, h_n = (w_hh @ h + b_hh).chunk(3)
    u, new = torch.sigmoid(x_u + h_u), torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    share = {"gru": 1 - u, "augru": a * u, "agru": a, "aigru": u}[cell]
    return (1 - share) * h + share * new


TWINS: Mapping[str, Callable[[Weights, Any, Row], Tensor]] = {
    "lr": lr, "fm": fm, "ffm": ffm, "wide_deep": wide_deep, "deepfm": deepfm, "dnn": dnn, "dlrm": dlrm, "dcn": dcn,
    "dcn_v2": dcn_v2, "din": din, "dien": dien, "composite": composite,
}  # fmt: skip

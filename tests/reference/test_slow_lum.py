"""LUM's user model, on items and on semantic IDs, against slow twins written from the formulas, padding left out
altogether (models.md section 4).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.reference.slow import (
    Parameters,
    compare,
    drawn,
    gelu,
    layer_norm,
    linear,
    randomised,
    schema_of,
    softmax,
    weighted,
)
from torch import Tensor

from ctrbench.datasets.schema import FeatureSchema, Field
from ctrbench.models.embedding import TableConfig
from ctrbench.models.item_codes import ItemCodes
from ctrbench.models.lum import LumConfig
from ctrbench.models.lum_backbone import UserModel, event_fields
from ctrbench.models.lum_rows import Sequences
from ctrbench.models.lum_sid import SidUserModel
from ctrbench.models.residual_codes import SidConfig
from ctrbench.models.retriever import Catalogue

SETTINGS = settings(max_examples=50, deadline=None)
"""Besides the examples named at each test: an event alone, a row of padding beside one of two users; odd widths."""


def packed(spans: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    """(number of the user, ordinal of the event) [R, L] of rows that hold users of so many events, side by side."""
    segment, place = torch.zeros(2, len(spans), length, dtype=torch.long)
    for r, users in enumerate(spans):
        at = 0
        for number, n in enumerate(users, start=1):
            segment[r, at : at + n], place[r, at : at + n] = number, torch.arange(n)
            at += n
    return segment, place


def lum_twin(model: UserModel, tables: Parameters, sequences: Sequences) -> Tensor:
    """InfoNCE of every event's predicting token, users apart, whatever row they share."""
    p, losses = dict(model.named_parameters()), []
    item, cond, side = model.fields.item, model.fields.cond, model.fields.side
    ids = {n: sequences.ids[n] for n in model.names}
    real = (sequences.segment_RL > 0).nonzero().tolist()
    wanted = sorted({int(ids[item][r, t]) for r, t in real})
    seen = {e: sum(int(ids[item][r, t]) == e for r, t in real) / len(real) for e in wanted}
    of = {e: linear(p, "item_map", tables[item][e]) for e in wanted}
    for r in range(len(sequences.segment_RL)):
        for user in range(1, int(sequences.segment_RL[r].max()) + 1):
            events = [t for t in range(sequences.segment_RL.shape[1]) if sequences.segment_RL[r, t] == user]
            tokens, conditions = [], cond in model.names
            before = None if conditions else p["start_d"]
            for number, t in enumerate(events):
                e = linear(p, "item_map", tables[item][ids[item][r, t]])
                if side:
                    e = e + p["side_map.weight"] @ torch.cat([tables[n][ids[n][r, t]] for n in side])
                if before is not None:  # the item before it, or the start, stands for the event
                    tokens.append(before + p["place.weight"][number])
                    before = e
                    continue
                places = (number, number) if model.positions == "pair" else (2 * number, 2 * number + 1)
                c = linear(p, "cond_map", tables[cond][ids[cond][r, t]])
                tokens += [c + p["place.weight"][places[0]], e + p["place.weight"][places[1]]]
            for number in range(len(model.layers)):
                tokens = _gpt_layer(p, f"layers.{number}", model.layers[number].heads, tokens)
            for number, t in enumerate(events):
                o = layer_norm(tokens[(1 + conditions) * number], p["norm.weight"], p["norm.bias"])
                scores = [_similarity(model.similarity, o, of[e]) / model.tau for e in wanted]
                if model.logq:
                    scores = [s - math.log(seen[e]) for s, e in zip(scores, wanted, strict=True)]
                losses.append(-softmax(scores)[wanted.index(int(ids[item][r, t]))].log())
    return (sum(losses) / len(losses)).unsqueeze(0)


def _similarity(kind: str, a: Tensor, b: Tensor) -> Tensor:
    return a @ b if kind == "dot" else (a @ b) / ((a @ a) ** 0.5 * (b @ b) ** 0.5)


def _gpt_layer(p: Parameters, name: str, heads: int, x: list[Tensor]) -> list[Tensor]:
    def norm(which: int, v: Tensor) -> Tensor:
        return layer_norm(v, p[f"{name}.norm{which}.weight"], p[f"{name}.norm{which}.bias"])

    width = len(x[0]) // heads
    qkv = [linear(p, f"{name}.qkv", norm(1, v)).chunk(3) for v in x]
    out = []
    for i, v in enumerate(x):
        parts = []
        for h in range(heads):
            at = slice(h * width, (h + 1) * width)
            shares = softmax([(qkv[i][0][at] @ qkv[j][1][at]) / math.sqrt(width) for j in range(i + 1)])
            parts.append(weighted(shares, [qkv[j][2][at] for j in range(i + 1)]))
        z = v + linear(p, f"{name}.out", torch.cat(parts))
        out.append(z + linear(p, f"{name}.down", gelu(linear(p, f"{name}.up", norm(2, z)))))
    return out


@SETTINGS
@given(
    heads=st.integers(1, 2), head_width=st.integers(1, 2), layers=st.integers(1, 2), dim=st.integers(1, 3),
    similarity=st.sampled_from(["cosine", "dot"]), logq=st.booleans(), positions=st.sampled_from(["token", "pair"]),
    condition=st.booleans(),
    spans=st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=2), min_size=1, max_size=2),
    seed=st.integers(0, 999),
)  # fmt: skip
@example(heads=1, head_width=1, layers=1, dim=1, similarity="dot", logq=False, positions="token", condition=True,
         spans=[[1]], seed=0)  # fmt: skip
@example(heads=1, head_width=3, layers=2, dim=3, similarity="cosine", logq=True, positions="pair", condition=True,
         spans=[[], [1, 2]], seed=1)  # fmt: skip
@example(heads=2, head_width=1, layers=1, dim=2, similarity="dot", logq=False, positions="token", condition=False,
         spans=[[], [1]], seed=2)  # fmt: skip
def test_user_model_of_lum(
    heads: int, head_width: int, layers: int, dim: int, spans: list[list[int]], seed: int, **options: Any
) -> None:
    """Rows of one or two users with one or two events each, or of padding alone."""
    schema, length = schema_of(4), 4
    model: Any = randomised(
        UserModel(event_fields(schema), schema, dim=dim, width=heads * head_width, layers=layers, heads=heads,
                  length=length, tau=0.3, tables=TableConfig(), device="cpu", **options), seed,
    )  # fmt: skip
    tables = {n: drawn(12, dim, seed=seed + i) for i, n in enumerate(model.names)}
    model.rows = lambda ids: {n: tables[n][ids[n]] for n in model.names}
    g = torch.Generator().manual_seed(seed)
    segment, place = packed(spans, length)
    ids = {n: torch.randint(3, 6, segment.shape, generator=g) * (segment > 0) for n in model.names}
    sequences = Sequences(ids, segment, place)
    compare(
        model,
        lambda: model.loss(sequences).unsqueeze(0),
        lambda: lum_twin(model, tables, sequences),
        [*tables.values()],
    )


def lum_sid_twin(model: SidUserModel, sequences: Sequences) -> Tensor:
    """Cross-entropy of every code that follows a condition or a code, users apart, whatever row they share."""
    p, losses = dict(model.named_parameters()), []
    sizes = model.codes.vocabulary
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    item, cond, side = model.fields.item, model.fields.cond, model.fields.side
    for r in range(len(sequences.segment_RL)):
        for user in range(1, int(sequences.segment_RL[r].max()) + 1):
            events = [t for t in range(sequences.segment_RL.shape[1]) if sequences.segment_RL[r, t] == user]
            tokens, wanted = [], []
            for number, t in enumerate(events):
                ids = {n: int(v[r, t]) for n, v in sequences.ids.items()}
                codes = [start + int(c) for start, c in zip(starts, model.codes.codes_VL[ids[item]], strict=True)]
                event = [p["cond.weight"][ids[cond]], *(p["code.weight"][c] for c in codes)]
                for n in side:
                    event[-1] = event[-1] + p[f"side.{n}.weight"][ids[n]]
                step = len(event) if model.positions == "token" else 0
                tokens += [v + p["place.weight"][number * step + j if step else number] for j, v in enumerate(event)]
                wanted += [*codes, None]
            for number in range(len(model.layers)):
                tokens = _gpt_layer(p, f"layers.{number}", model.layers[number].heads, tokens)
            for token, code in zip(tokens, wanted, strict=True):
                if code is not None:
                    out = layer_norm(token, p["norm.weight"], p["norm.bias"])
                    scores = p["head.weight"] @ out + p["head.bias"]
                    losses.append(-softmax(list(scores.unbind()))[code].log())
    return (sum(losses) / len(losses)).unsqueeze(0)


@settings(max_examples=20, deadline=None)
@given(
    heads=st.integers(1, 2), head_width=st.integers(1, 2), layers=st.integers(1, 2), levels=st.integers(1, 2),
    positions=st.sampled_from(["token", "pair"]), action=st.booleans(),
    spans=st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=2), min_size=1, max_size=2),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_user_model_of_lum_on_semantic_ids(
    heads: int, head_width: int, layers: int, levels: int, positions: Any, action: bool, spans: list[list[int]],
    seed: int,
) -> None:  # fmt: skip
    """Rows of one or two users with one or two events each."""
    schema, length = schema_of(4), 4
    if action:
        more = Field(name="hist_action", kind="sequence", role="behaviour", max_length=4, cardinality=6, history="hist")
        schema = FeatureSchema(name="twin", track="sequence", fields=(*schema.fields, more))
    g = torch.Generator().manual_seed(seed)
    content = torch.randn(12, 3, generator=g)
    content[:3] = 0.0
    codes = ItemCodes(12, SidConfig(levels=levels, codes=3))
    codes.take(Catalogue(12, torch.zeros(12).long(), content, "random"), grow=True)
    config = LumConfig(target="sid", width=heads * head_width, layers=layers, heads=heads, positions=positions)
    model: Any = randomised(SidUserModel(config, schema, codes), seed)
    segment, place = packed(spans, length)
    names = ("hist_item", "hist_genre", *(("hist_action",) if action else ()))
    ids = {n: torch.randint(3, 6, segment.shape, generator=g) * (segment > 0) for n in names}
    sequences = Sequences(ids, segment, place)
    compare(model, lambda: model.loss(sequences).unsqueeze(0), lambda: lum_sid_twin(model, sequences), [])

"""Transformers of sequences against slow twins written from the formulas: OneTrans, HSTU, TIGER, LUM's user model
(models.md sections 3 to 6). Padding is left out of the twins altogether.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.reference.slow import (
    Given,
    compare,
    drawn,
    gelu,
    layer_norm,
    linear,
    randomised,
    rms_norm,
    silu,
    softmax,
    weighted,
)
from torch import Tensor, nn

from ctrbench.datasets.schema import FeatureSchema, Field
from ctrbench.models.blocks import Embedded
from ctrbench.models.embedding import TableConfig
from ctrbench.models.hstu import Hstu, HstuConfig
from ctrbench.models.hstu_layers import Places
from ctrbench.models.item_codes import ItemCodes
from ctrbench.models.lum import LumConfig
from ctrbench.models.lum_backbone import UserModel, event_fields
from ctrbench.models.lum_rows import Sequences
from ctrbench.models.lum_sid import SidUserModel
from ctrbench.models.onetrans import OneTrans, OneTransConfig
from ctrbench.models.residual_codes import SidConfig
from ctrbench.models.retriever import Catalogue
from ctrbench.models.tiger_net import Tiger, TigerConfig

SETTINGS = settings(max_examples=50, deadline=None)
"""Besides the examples named at each test: an empty history alone, it beside one of one event; odd widths, one head."""
Parameters = dict[str, Tensor]


def schema_of(length: int) -> FeatureSchema:
    def event(name: str, target: str) -> Field:
        return Field(name=name, kind="sequence", role="behaviour", max_length=length, target=target, history="hist")

    return FeatureSchema(
        name="twin", track="sequence",
        fields=(
            Field(name="user", kind="categorical", role="user", cardinality=9),
            Field(name="item", kind="categorical", role="item", cardinality=12),
            Field(name="genre", kind="categorical", role="item", cardinality=6),
            event("hist_item", "item"), event("hist_genre", "genre"),
        ),
    )  # fmt: skip


def left_padded(rows: int, length: int, seed: int) -> Tensor:
    """Which places are real; the first row is empty, another one has one event."""
    n = torch.randint(0, length + 1, (rows,), generator=torch.Generator().manual_seed(seed))
    n[0] = 0
    if rows > 1:
        n[1] = 1
    return torch.arange(length) >= length - n.unsqueeze(1)


ACT = {"gelu": gelu, "silu": silu, "relu": lambda x: x.clamp(min=0)}


class Fixed(nn.Module):
    """Hands out what a test made, whatever it is asked."""

    def __init__(self, **answers: Any) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, *_: Any) -> Any:
        return self.answers["forward"]

    def before(self, *_: Any) -> Any:
        return self.answers["before"]

    def candidates(self, *_: Any) -> Any:
        return self.answers["candidates"]


# ------------------------------------------------------------------ OneTrans


def onetrans_twin(model: OneTrans, s_BSD: Tensor, real_BS: Tensor, n_BND: Tensor) -> Tensor:
    p, c, logits = dict(model.named_parameters()), model.config, []
    for s_SD, real_S, n_ND in zip(s_BSD, real_BS, n_BND, strict=True):
        # (place, token): NS-tokens stand behind all S-tokens
        s = {i: x for i, (x, real) in enumerate(zip(s_SD, real_S, strict=True)) if real}
        n, length = list(n_ND), len(s_SD)
        for number in range(c.layers):
            kept = model.layers[number].kept
            s, n = _onetrans_layer(p, f"layers.{number}", c, s, n, len(s_SD), len(s_SD) - kept)
            length = kept
        assert length >= len(s)
        normed = [rms_norm(x, p["head.norm.weight"], 1e-6) for x in n]
        read = {"flatten": torch.cat(normed), "mean": sum(normed) / len(normed), "last": normed[-1]}[c.head]
        logits.append(linear(p, "head.mlp.2", gelu(linear(p, "head.mlp.0", read)))[0])
    return torch.stack(logits)


def _onetrans_layer(
    p: Parameters, name: str, c: OneTransConfig, s: dict[int, Tensor], n: list[Tensor], behind: int, first: int
) -> tuple[dict[int, Tensor], list[Tensor]]:
    """One layer; S-tokens before place `first` ask nothing and end here."""

    def mixed(part: str, place: int, x: Tensor) -> Tensor:
        own = f"{name}.{part}.own_NDE"
        return x @ (p[own][place - behind] if place >= behind and own in p else p[f"{name}.{part}.shared_DE"])

    def norm(which: int, place: int, x: Tensor) -> Tensor:
        own = f"{name}.norm{which}.own_ND"
        gain = p[own][place - behind] if own in p and place >= behind else p[f"{name}.norm{which}.gain_D"]
        return rms_norm(x, gain, 1e-6)

    tokens = s | {behind + j: x for j, x in enumerate(n)}
    normed = {place: norm(1, place, x) for place, x in tokens.items()}
    keys, values = {}, {}
    for place, x in normed.items():
        keys[place], values[place] = mixed("key_value", place, x).chunk(2)
    out, width = {}, c.width // c.heads
    for place, x in tokens.items():
        if place < first:
            continue
        q = mixed("query", place, normed[place])
        seen = [j for j in tokens if j <= place or c.mask == "full"]
        heads = []
        for h in range(c.heads):
            at = slice(h * width, (h + 1) * width)
            shares = softmax([(q[at] @ keys[j][at]) / math.sqrt(width) for j in seen])
            heads.append(weighted(shares, [values[j][at] for j in seen]))
        attended = torch.cat(heads)
        if c.out_proj == "shared":
            attended = attended @ p[f"{name}.out_DD"]
        elif c.out_proj == "mixed":
            attended = mixed("out", place, attended)
        z = x + attended
        out[place] = z + mixed("down", place, ACT[c.act](mixed("up", place, norm(2, place, z))))
    return {i: x for i, x in out.items() if i < behind}, [out[behind + j] for j in range(len(n))]


@SETTINGS
@given(
    heads=st.integers(1, 2), head_width=st.integers(1, 3), layers=st.integers(1, 3), l_ns=st.integers(1, 3),
    length=st.integers(1, 5), pyramid=st.sampled_from(["full_first", "shrink_first", "none"]),
    out_proj=st.sampled_from(["shared", "mixed", "none"]), norm=st.sampled_from(["shared", "per_token"]),
    ns_weights=st.sampled_from(["own", "shared"]), mask=st.sampled_from(["causal", "full"]),
    act=st.sampled_from(["gelu", "silu", "relu"]),
    head=st.sampled_from(["flatten", "mean", "last"]), rows=st.integers(1, 3), seed=st.integers(0, 999),
)  # fmt: skip
@example(heads=1, head_width=3, layers=2, l_ns=1, length=1, pyramid="full_first", out_proj="shared", norm="shared",
         ns_weights="own", mask="causal", act="gelu", head="flatten", rows=1, seed=0)  # fmt: skip
@example(heads=1, head_width=3, layers=3, l_ns=3, length=5, pyramid="full_first", out_proj="mixed", norm="per_token",
         ns_weights="own", mask="causal", act="silu", head="mean", rows=2, seed=1)  # fmt: skip
def test_onetrans(
    heads: int, head_width: int, layers: int, l_ns: int, length: int, rows: int, seed: int, **options: Any
) -> None:
    width = heads * head_width
    config = OneTransConfig(dim=2, width=width, heads=heads, layers=layers, l_ns=l_ns, ffn_mult=2, **options)
    model: Any = randomised(OneTrans(config, schema_of(length)), seed)
    s, n, real = (
        drawn(rows, length, width, seed=seed),
        drawn(rows, l_ns, width, seed=seed + 1),
        left_padded(rows, length, seed),
    )
    model.embedder = Given(Embedded(n, None, {"hist": None}))  # type: ignore[dict-item]
    model.field_tokens, model.event_tokens = Fixed(forward=n), Fixed(forward=(s, real))
    batch = SimpleNamespace(host={})
    compare(model, lambda: model(batch), lambda: onetrans_twin(model, s, real, n), [s, n])


# ---------------------------------------------------------------------- HSTU


def hstu_twin(model: Hstu, config: HstuConfig, x_BND: Tensor, real_BN: Tensor, places: Places) -> Tensor:
    """The user's token, the events, one candidate at the end; the user sees all events, events those before them."""
    p, logits = dict(model.named_parameters()), []
    last = x_BND.shape[1] - 1
    for b, x_ND in enumerate(x_BND):
        tokens = {i: x for i, x in enumerate(x_ND) if i == last or real_BN[b, i]}
        for number in range(config.layers):
            made = {i: _hstu_parts(p, f"layers.{number}", config, x) for i, x in tokens.items()}
            out = {}
            for i, x in tokens.items():
                seen = [j for j in tokens if j <= i or (i == 0 and j < last)]
                out[i] = _hstu_row(p, f"layers.{number}", config, model.longest, x, i, seen, made, places, b)
            tokens = out
        read = layer_norm(tokens[last], p["head.0.weight"], p["head.0.bias"])
        logits.append(linear(p, "head.1", read)[0])
    return torch.stack(logits)


def _hstu_parts(p: Parameters, name: str, c: HstuConfig, x: Tensor) -> list[Tensor]:
    """U, V, Q, K."""
    norm = f"{name}.input_norm"
    mixed = linear(p, f"{name}.uvqk", layer_norm(x, p.get(f"{norm}.weight"), p.get(f"{norm}.bias"), 1e-6))
    u, v, q, k = mixed.split([c.heads * n for n in (c.v, c.v, c.qk, c.qk)])
    return [silu(t) for t in (u, v, q, k)] if c.flavour == "research" else [silu(u), v, q, k]


def _hstu_row(
    p: Parameters, name: str, c: HstuConfig, longest: int, x: Tensor, i: int, seen: list[int],
    made: dict[int, list[Tensor]], places: Places, b: int,
) -> Tensor:  # fmt: skip
    u, _, q, _ = made[i]
    o = []
    for h in range(c.heads):
        total = x.new_zeros(c.v)
        for j in seen:
            _, v, _, k = made[j]
            score = q[h * c.qk : (h + 1) * c.qk] @ k[h * c.qk : (h + 1) * c.qk]
            if c.flavour == "production":
                score = score / math.sqrt(c.qk)
            elif c.rab != "none":
                apart = int(places.ordinal_BN[b, j] - places.ordinal_BN[b, i])
                score = score + p[f"{name}.bias.places"][apart + longest]
                if c.rab == "pos_time":
                    gap = abs(int(places.next_BN[b, i] - places.time_BN[b, j]))
                    score = score + p[f"{name}.bias.times"][min(128, math.floor(math.log(max(1, gap)) / 0.301))]
            total = total + silu(score) / longest * v[h * c.v : (h + 1) * c.v]
        o.append(total)
    joined, norm = torch.cat(o), f"{name}.output_norm"
    gated = u * layer_norm(joined, p.get(f"{norm}.weight"), p.get(f"{norm}.bias"), 1e-6)
    if c.flavour == "production":
        gated = torch.cat([u, joined, gated])
    elif c.concat_ua:
        gated = torch.cat([u, layer_norm(joined, None, None, 1e-6), gated])
    return x + linear(p, f"{name}.out", gated)


@SETTINGS
@given(
    heads=st.integers(1, 2), qk=st.integers(1, 3), v=st.integers(2, 3), width=st.integers(2, 4),
    layers=st.integers(1, 2), flavour=st.sampled_from(["research", "production"]),
    rab=st.sampled_from(["pos_time", "pos", "none"]), concat_ua=st.booleans(), length=st.integers(1, 4),
    rows=st.integers(1, 3), seed=st.integers(0, 999),
)  # fmt: skip
@example(heads=1, qk=1, v=3, width=3, layers=1, flavour="research", rab="pos_time", concat_ua=False, length=1, rows=1,
         seed=0)  # fmt: skip
@example(heads=1, qk=3, v=3, width=3, layers=2, flavour="production", rab="none", concat_ua=True, length=3, rows=2,
         seed=1)  # fmt: skip
def test_hstu(length: int, rows: int, seed: int, **options: Any) -> None:
    config = HstuConfig(dim=2, **options)
    model: Any = randomised(Hstu(config, schema_of(length)), seed)
    real = torch.nn.functional.pad(left_padded(rows, length, seed), (1, 0), value=True)
    g = torch.Generator().manual_seed(seed)
    time = torch.randint(1, 5000, (rows, length + 2), generator=g).cumsum(dim=1)
    ordinal = torch.cat([(real.cumsum(dim=1) - 1).clamp(min=0), real.sum(dim=1, keepdim=True)], dim=1)
    after = torch.cat([time[:, 1:], time[:, -1:]], dim=1)
    x = drawn(rows, length + 2, config.width, seed=seed)
    whole = Places(ordinal, time, after)
    front, back = (Places(*(t[:, part] for t in (ordinal, time, after))) for part in (slice(None, -1), slice(-1, None)))
    model.embedder = Given(Embedded(x, None, {}))
    batch = SimpleNamespace(time_B=None)

    def ours() -> Tensor:
        model.tokens = Fixed(before=(x[:, :-1], real, front), candidates=(x[:, -1:], back))
        return model(batch)

    compare(model, ours, lambda: hstu_twin(model, config, x, real, whole), [x])


# --------------------------------------------------------------------- TIGER


def tiger_twin(model: Tiger, user_B: Tensor, codes_BTL: Tensor, real_BT: Tensor, next_BL: Tensor) -> Tensor:
    """The loss of each row, as one value."""
    p, c, total = dict(model.named_parameters()), model.config, torch.zeros((), dtype=torch.float64)
    starts = [1 + c.users + sum(model.vocabulary[:place]) for place in range(len(model.vocabulary))]
    for b in range(len(user_B)):
        tokens = {0: 1 + int(user_B[b]) % c.users} if c.users else {}
        for t, row in enumerate(codes_BTL[b]):
            for place, code in enumerate(row.tolist()):
                if real_BT[b, t]:
                    tokens[(t * len(row) + place) + bool(c.users)] = starts[place] + code
        x = {i: p["tokens.weight"][token] for i, token in tokens.items()}
        for number in range(c.layers):
            x = _tiger_encoder(p, f"encoder.{number}", c, x)
        memory = {i: rms_norm(v, p["encoder_norm.gain_D"], 1e-6) for i, v in x.items()}
        given = [0] + [starts[place] + int(code) for place, code in enumerate(next_BL[b, :-1])]
        y = [p["tokens.weight"][token] for token in given]
        for number in range(c.layers):
            y = _tiger_decoder(p, f"decoder.{number}", c, y, memory)
        for place, v in enumerate(y):
            out = rms_norm(v, p["decoder_norm.gain_D"], 1e-6)
            table = p["tokens.weight"] / math.sqrt(c.width) if c.tie else p["head.weight"]
            scores = [out @ table[starts[place] + code] for code in range(model.vocabulary[place])]
            total = total - softmax(scores)[int(next_BL[b, place])].log()
    return (total / next_BL.numel()).unsqueeze(0)


def _bucket(distance: int, both: bool) -> int:
    buckets = 16 if both else 32
    offset = buckets if both and distance > 0 else 0
    far = abs(distance) if both else max(0, -distance)
    exact = buckets // 2
    if far < exact:
        return offset + far
    return offset + min(buckets - 1, exact + int(math.log(far / exact) / math.log(128 / exact) * (buckets - exact)))


def _tiger_attention(
    p: Parameters, name: str, c: TigerConfig, x: Tensor, over: list[Tensor], bias: list[Tensor] | None
) -> Tensor:
    """`bias` holds a vector of the heads for each key."""
    q, heads, n = linear(p, f"{name}.query", x), [], c.heads * c.head
    kv = [linear(p, f"{name}.key_value", y) for y in over]
    for h in range(c.heads):
        at = slice(h * c.head, (h + 1) * c.head)
        scores = [q[at] @ y[:n][at] + (bias[j][h] if bias else 0) for j, y in enumerate(kv)]
        heads.append(weighted(softmax(scores), [y[n:][at] for y in kv]))
    return linear(p, f"{name}.out", torch.cat(heads))


def _tiger_feed(p: Parameters, name: str, norm: str, x: Tensor) -> Tensor:
    return x + linear(p, f"{name}.feed.down", linear(p, f"{name}.feed.up", rms_norm(x, p[norm], 1e-6)).clamp(min=0))


def _tiger_encoder(p: Parameters, name: str, c: TigerConfig, x: dict[int, Tensor]) -> dict[int, Tensor]:
    normed = {i: rms_norm(v, p[f"{name}.norm1.gain_D"], 1e-6) for i, v in x.items()}
    table, out = p["encoder_bias.table.weight"], {}
    for i, v in x.items():
        bias = [table[_bucket(j - i, True)] for j in x]
        attended = v + _tiger_attention(p, f"{name}.attention", c, normed[i], list(normed.values()), bias)
        out[i] = _tiger_feed(p, name, f"{name}.norm2.gain_D", attended)
    return out


def _tiger_decoder(
    p: Parameters, name: str, c: TigerConfig, y: list[Tensor], memory: dict[int, Tensor]
) -> list[Tensor]:
    normed = [rms_norm(v, p[f"{name}.norm1.gain_D"], 1e-6) for v in y]
    table, out = p["decoder_bias.table.weight"], []
    for i, v in enumerate(y):
        bias = [table[_bucket(j - i, False)] for j in range(i + 1)]
        v = v + _tiger_attention(p, f"{name}.attention", c, normed[i], normed[: i + 1], bias)
        asked = rms_norm(v, p[f"{name}.norm2.gain_D"], 1e-6)
        v = v + _tiger_attention(p, f"{name}.cross", c, asked, list(memory.values()), None)
        out.append(_tiger_feed(p, name, f"{name}.norm3.gain_D", v))
    return out


@SETTINGS
@given(
    heads=st.integers(1, 2), head=st.integers(1, 3), width=st.integers(2, 4), hidden=st.integers(1, 4),
    layers=st.integers(1, 2), users=st.integers(1, 4), tie=st.booleans(), items=st.integers(1, 3),
    rows=st.integers(1, 2), vocabulary=st.lists(st.integers(2, 4), min_size=1, max_size=3), seed=st.integers(0, 999),
)  # fmt: skip
@example(heads=1, head=1, width=3, hidden=1, layers=1, users=1, tie=True, items=1, rows=1, vocabulary=[2], seed=0)
@example(
    heads=1, head=3, width=3, hidden=3, layers=2, users=3, tie=False, items=3, rows=2, vocabulary=[3, 2, 4], seed=1
)
def test_tiger(items: int, rows: int, vocabulary: list[int], seed: int, **options: Any) -> None:
    model: Any = randomised(Tiger(TigerConfig(**options), vocabulary), seed)
    g = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(n, (rows, items), generator=g) for n in vocabulary], dim=2)
    following = torch.stack([torch.randint(n, (rows,), generator=g) for n in vocabulary], dim=1)
    case = torch.randint(50, (rows,), generator=g), codes, left_padded(rows, items, seed), following
    compare(model, lambda: model.loss(*case).unsqueeze(0), lambda: tiger_twin(model, *case), [])


# ----------------------------------------------------------------------- LUM


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
    segment, place = torch.zeros(2, len(spans), length, dtype=torch.long)
    for r, users in enumerate(spans):
        at = 0
        for number, n in enumerate(users, start=1):
            segment[r, at : at + n], place[r, at : at + n] = number, torch.arange(n)
            at += n
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
    codes = ItemCodes(Catalogue(12, torch.zeros(12).long(), content, "random"), SidConfig(levels=levels, codes=3))
    config = LumConfig(target="sid", width=heads * head_width, layers=layers, heads=heads, positions=positions)
    model: Any = randomised(SidUserModel(config, schema, codes), seed)
    segment, place = torch.zeros(2, len(spans), length, dtype=torch.long)
    for r, users in enumerate(spans):
        at = 0
        for number, n in enumerate(users, start=1):
            segment[r, at : at + n], place[r, at : at + n] = number, torch.arange(n)
            at += n
    names = ("hist_item", "hist_genre", *(("hist_action",) if action else ()))
    ids = {n: torch.randint(3, 6, segment.shape, generator=g) * (segment > 0) for n in names}
    sequences = Sequences(ids, segment, place)
    compare(model, lambda: model.loss(sequences).unsqueeze(0), lambda: lum_sid_twin(model, sequences), [])

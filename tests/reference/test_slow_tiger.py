"""TIGER's network against a slow twin written from the formulas, padding left out altogether (models.md section 5)."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.reference.slow import Parameters, compare, left_padded, linear, randomised, rms_norm, softmax, weighted
from torch import Tensor

from ctrbench.models.tiger_net import Tiger, TigerConfig

SETTINGS = settings(max_examples=50, deadline=None)
"""Besides the examples named at each test: an empty history alone, it beside one of one event; one head, odd widths."""


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

"""OneTrans against a slow twin written from the formulas, padding left out altogether (models.md section 3)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.reference.slow import (
    Fixed,
    Given,
    Parameters,
    compare,
    drawn,
    gelu,
    left_padded,
    linear,
    randomised,
    rms_norm,
    schema_of,
    silu,
    softmax,
    weighted,
)
from torch import Tensor

from ctrbench.models.blocks import Embedded
from ctrbench.models.onetrans import OneTrans, OneTransConfig

SETTINGS = settings(max_examples=50, deadline=None)
"""Besides the examples named at each test: an empty history alone, it beside one of one event; one head, odd widths."""
ACT = {"gelu": gelu, "silu": silu, "relu": lambda x: x.clamp(min=0)}


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

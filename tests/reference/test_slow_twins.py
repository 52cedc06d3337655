"""Transformers of fields against slow twins written from the formulas: FAT and RankMixer (models.md sections 2, 7)."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.reference.slow import Given, compare, drawn, gelu, layer_norm, linear, randomised, softmax, weighted
from torch import Tensor

from ctrbench.datasets.schema import FeatureSchema, Field
from ctrbench.models.blocks import Embedded
from ctrbench.models.fat import Fat, FatConfig
from ctrbench.models.rankmixer import RankMixer, RankMixerConfig

SETTINGS = settings(max_examples=50, deadline=None)


def fields_of(count: int) -> FeatureSchema:
    fields = tuple(Field(name=f"C{i}", kind="categorical", role="context", cardinality=9) for i in range(count))
    return FeatureSchema(name="twin", track="tabular", fields=fields)


# ----------------------------------------------------------------------- FAT


def fat_twin(model: Fat, fields_BFE: Tensor) -> Tensor:
    """Section 2, row by row and field by field."""
    c: FatConfig = model.config
    p = dict(model.named_parameters())
    count, logits = fields_BFE.shape[1], []
    written = [_fat_weights(c, p, layer, count) for layer in range(c.layers)]
    for row in fields_BFE.unbind():
        z = list(row.unbind())
        if "inputs.map_FED" in p:
            z = [x @ p["inputs.map_FED"][f] for f, x in enumerate(z)]
        for layer in range(c.layers):
            if layer < len(p["bias_SFD"]):
                z = [x + p["bias_SFD"][layer, f] for f, x in enumerate(z)]
            z = _fat_block(c, p, layer, z, written[layer])
        logits.append(sum(z) @ p["head.linear.weight"][0] + p["head.linear.bias"][0])
    return torch.stack(logits)


def _fat_weights(c: FatConfig, p: dict[str, Tensor], layer: int, count: int) -> list[dict[str, Tensor]]:
    """W_P of each field: the K bases with the highest r = phi R_P, by the softmax of those scores."""
    net = f"hypernetworks.{0 if c.basis_scope == 'model' else layer}"
    names = (["q", "k", "v"] if c.qkv == "own" else []) + ["up", "down"] + (["out"] if c.out_proj == "field" else [])
    out: list[dict[str, Tensor]] = []
    for f in range(count):
        weights = {}
        if not c.hypernetwork:
            weights = {"up": p[f"{net}.up_FDE"][f], "down": p[f"{net}.down_FED"][f]}
            if c.out_proj == "field":
                weights["out"] = p[f"{net}.out_FDD"][f]
            qkv = p[f"{net}.qkv"] if c.qkv == "shared" else p[f"{net}.qkv"][f]
            weights |= dict(zip("qkv", qkv.chunk(3, dim=1), strict=True))
            names = []
        elif c.qkv == "shared":
            weights = dict(zip("qkv", p[f"{net}.qkv_DE"].chunk(3, dim=1), strict=True))
        for place, name in enumerate(names):
            scores = p["meta_Fk"][f] @ p[f"{net}.router_PkM"][place]
            chosen = sorted(range(c.bases), key=lambda m: -float(scores[m]))[: c.top_k]
            shares = softmax([scores[m] for m in chosen])
            weights[name] = weighted(shares, [p[f"{net}.bases.{name}"][m] for m in chosen])
        if c.out_proj == "shared":
            weights["out"] = p[f"out_maps.{layer}"]
        out.append(weights)
    return out


def _fat_block(
    c: FatConfig, p: dict[str, Tensor], layer: int, z: list[Tensor], weights: list[dict[str, Tensor]]
) -> list[Tensor]:
    def norm(which: int, x: Tensor) -> Tensor:
        name = f"layers.{layer}.norm{which}"
        return layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"]) if f"{name}.weight" in p else x

    def feed(f: int, x: Tensor) -> Tensor:
        hidden = x @ weights[f]["up"]
        return (hidden * torch.sigmoid(hidden)) @ weights[f]["down"]

    def attend(tokens: list[Tensor]) -> list[Tensor]:
        pair = p[f"pairs.{0 if c.pair_scope == 'model' else layer}"] if c.pairs else torch.ones(len(z), len(z))
        q, k, v = ([x @ weights[f][name] for f, x in enumerate(tokens)] for name in "qkv")
        width, out = c.d // c.heads, []
        for i in range(len(tokens)):
            heads = []
            for h in range(c.heads):
                at = slice(h * width, (h + 1) * width)
                w = pair[h] if pair.dim() == 3 else pair
                shares = softmax([(q[i][at] @ k[j][at]) / math.sqrt(width) * w[i, j] for j in range(len(tokens))])
                heads.append(weighted(shares, [x[at] for x in v]))
            merged = torch.cat(heads)
            out.append(merged @ weights[i]["out"] if "out" in weights[i] else merged)
        return out

    if c.residual == "paper":
        o = attend([norm(0, x) for x in z])
        return [x + feed(f, norm(1, o[f])) for f, x in enumerate(z)]
    if c.residual == "pre2":
        o = attend([norm(0, x) for x in z])
        z = [x + y for x, y in zip(z, o, strict=True)]
        return [x + feed(f, norm(1, x)) for f, x in enumerate(z)]
    o = attend(z)
    z = [norm(0, x + y) for x, y in zip(z, o, strict=True)]
    return [norm(1, x + feed(f, x)) for f, x in enumerate(z)]


@st.composite
def fat_configs(draw: st.DrawFn) -> FatConfig:
    heads, bases = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    residual = draw(st.sampled_from(["paper", "pre2", "post2"]))
    width = heads * draw(st.integers(1, 3))
    return FatConfig(
        dim=draw(st.sampled_from([width, 3])), width=width, hidden=draw(st.integers(1, 5)), heads=heads,
        layers=draw(st.integers(1, 2)), bases=bases, meta=draw(st.integers(1, 3)), top_k=draw(st.integers(1, bases)),
        weights=draw(st.sampled_from(["composed", "on_the_fly"])), residual=residual,
        prenorm=residual == "post2" or draw(st.booleans()),
        pair_scope=draw(st.sampled_from(["layer", "head", "model"])),
        basis_scope=draw(st.sampled_from(["layer", "model"])), bias_site=draw(st.sampled_from(["input", "layer"])),
        out_proj=draw(st.sampled_from(["none", "shared", "field"])), pairs=draw(st.booleans()),
        qkv=draw(st.sampled_from(["own", "shared"])), hypernetwork=draw(st.booleans()),
    )  # fmt: skip


@SETTINGS
@given(config=fat_configs(), fields=st.integers(1, 4), rows=st.integers(1, 2), seed=st.integers(0, 999))
@example(FatConfig(dim=3, width=3, hidden=1, heads=1, layers=1, bases=1, meta=1, top_k=1), 1, 1, 0)  # one field
@example(FatConfig(dim=5, width=9, hidden=7, heads=3, layers=2, bases=4, meta=3, top_k=2), 3, 2, 1)  # odd widths
def test_fat(config: FatConfig, fields: int, rows: int, seed: int) -> None:
    model: Any = randomised(Fat(config, fields_of(fields)), seed)
    x = drawn(rows, fields, config.dim, seed=seed)
    model.embedder = Given(Embedded(x, None, {}))
    compare(model, lambda: model(None), lambda: fat_twin(model, x), [x])


# ----------------------------------------------------------------- RankMixer


def rankmixer_twin(model: RankMixer, config: RankMixerConfig, fields_BFE: Tensor) -> Tensor:
    """Section 7, row by row and token by token."""
    p = dict(model.named_parameters())
    tokens, width, logits = config.tokens, config.width, []
    cut, head = p["slices.weight_TWD"].shape[1], config.width // config.tokens
    for row in fields_BFE.unbind():
        flat = row.flatten()
        flat = torch.cat([flat, flat.new_zeros(cut * tokens - len(flat))])
        x = [flat[t * cut : (t + 1) * cut] @ p["slices.weight_TWD"][t] + p["slices.bias_TD"][t] for t in range(tokens)]
        for layer in range(config.layers):
            name = f"layers.{layer}"
            mixed = [torch.cat([x[u][t * head : (t + 1) * head] for u in range(tokens)]) for t in range(tokens)]
            s = [_norm(p, f"{name}.norm1", a + b) for a, b in zip(mixed, x, strict=True)]
            x = [
                _norm(p, f"{name}.norm2", _network(p, f"{name}.networks", config, t, s[t]) + s[t])
                for t in range(tokens)
            ]
        mean = sum(x) / tokens
        hidden = gelu(linear(p, "head.0", mean))
        logits.append(linear(p, "head.2", hidden)[0])
        assert len(mean) == width
    return torch.stack(logits)


def _norm(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"])


def _network(p: dict[str, Tensor], name: str, config: RankMixerConfig, token: int, s: Tensor) -> Tensor:
    def expert(n: int) -> Tensor:
        hidden = gelu(s @ p[f"{name}.up_NDK"][n] + p[f"{name}.up_bias_NK"][n])
        return hidden @ p[f"{name}.down_NKD"][n] + p[f"{name}.down_bias_ND"][n]

    if config.moe == "off":
        return expert(token)
    gates = [(s @ p[f"{name}.router_TDE"][token][:, e]).clamp(min=0) for e in range(config.experts)]
    return sum(g * expert(token * config.experts + e) for e, g in enumerate(gates)) / config.experts


@SETTINGS
@given(
    tokens=st.integers(1, 3), head=st.integers(1, 3), layers=st.integers(1, 2), expand=st.integers(1, 2),
    moe=st.sampled_from(["off", "relu"]), experts=st.integers(1, 3), fields=st.integers(1, 4), dim=st.integers(1, 3),
    rows=st.integers(1, 2), seed=st.integers(0, 999),
)  # fmt: skip
@example(tokens=1, head=1, layers=1, expand=1, moe="off", experts=1, fields=1, dim=1, rows=1, seed=0)  # one of all
@example(tokens=3, head=3, layers=2, expand=2, moe="relu", experts=3, fields=4, dim=3, rows=2, seed=1)  # odd widths
def test_rankmixer(
    tokens: int,
    head: int,
    layers: int,
    expand: int,
    moe: Any,
    experts: int,
    fields: int,
    dim: int,
    rows: int,
    seed: int,
) -> None:
    config = RankMixerConfig(
        dim=dim, tokens=tokens, width=tokens * head, layers=layers, expand=expand, head=(3,), moe=moe, experts=experts
    )
    model: Any = randomised(RankMixer(config, fields_of(fields)), seed)
    x = drawn(rows, fields, dim, seed=seed)
    model.embedder = Given(Embedded(x, None, {}))
    compare(model, lambda: model(None), lambda: rankmixer_twin(model, config, x), [x])

"""BST against a slow twin written from the formulas of 1905.06874, forward and backward; padding is left out of it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.reference.slow import Given, compare, drawn, layer_norm, linear, randomised, softmax, weighted
from torch import Tensor

from ctrbench.datasets.schema import FeatureSchema, Field
from ctrbench.models.blocks import Embedded
from ctrbench.models.bst import BST, BSTConfig
from ctrbench.models.events import Events

Parameters = dict[str, Tensor]


def schema_of(length: int) -> FeatureSchema:
    """The event's second field mirrors none: one learned vector stands for the candidate's."""

    def event(name: str, target: str | None, rows: int = 0) -> Field:
        return Field(name=name, kind="sequence", role="behaviour", max_length=length, target=target, cardinality=rows,
                     history="hist")  # fmt: skip

    return FeatureSchema(
        name="twin", track="sequence",
        fields=(
            Field(name="user", kind="categorical", role="user", cardinality=9),
            Field(name="item", kind="categorical", role="item", cardinality=12),
            event("hist_item", "item"), event("hist_action", None, 6),
        ),
    )  # fmt: skip


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.01 * x)


def twin(model: BST, c: BSTConfig, fields_BFD: Tensor, events: Events, time_B: Tensor) -> Tensor:
    p, logits = dict(model.named_parameters()), []
    for b, row in enumerate(fields_BFD):
        length = events.mask_BT.shape[1]
        tokens = {t: events.values_BTE[b, t] for t in range(length) if events.mask_BT[b, t]}
        tokens[length] = torch.cat([row[1], p["target.free_QD"][0]])
        if c.positions == "time":
            apart = {t: max(0, int(time_B[b] - events.times_BT[b, t])) for t in tokens if t < length}
            bucket = {t: min(31, int(math.log2(1 + n))) for t, n in apart.items()} | {length: 32}
            tokens = {t: x + p["sequences.hist.positions.weight"][bucket[t]] for t, x in tokens.items()}
        for number in range(c.layers):
            tokens = _layer(p, f"sequences.hist.layers.{number}", c.heads, tokens)
        blank = torch.zeros_like(tokens[length])
        pooled = {
            "concat": torch.cat([tokens.get(t, blank) for t in range(length + 1)]),
            "mean": sum(tokens.values()) / len(tokens),
            "target": tokens[length],
        }[c.pool]
        x = torch.cat([row.flatten(), pooled])
        for number in range(len(c.mlp)):
            x = leaky(linear(p, f"tower.{2 * number}", x))
        logits.append(linear(p, f"tower.{2 * len(c.mlp)}", x)[0])
    return torch.stack(logits)


def _layer(p: Parameters, name: str, heads: int, tokens: dict[int, Tensor]) -> dict[int, Tensor]:
    """Every token sees every real one; the norms stand behind both residuals."""

    def norm(which: int, x: Tensor) -> Tensor:
        return layer_norm(x, p[f"{name}.norm{which}.weight"], p[f"{name}.norm{which}.bias"])

    made = {t: linear(p, f"{name}.qkv", x).chunk(3) for t, x in tokens.items()}
    out = {}
    for t, x in tokens.items():
        width, parts = len(x) // heads, []
        for h in range(heads):
            at = slice(h * width, (h + 1) * width)
            shares = softmax([made[t][0][at] @ k[at] / math.sqrt(width) for _, k, _ in made.values()])
            parts.append(weighted(shares, [v[at] for _, _, v in made.values()]))
        s = norm(1, x + linear(p, f"{name}.out", torch.cat(parts)))
        out[t] = norm(2, s + linear(p, f"{name}.down", leaky(linear(p, f"{name}.up", s))))
    return out


@settings(max_examples=50, deadline=None)
@given(
    dim=st.integers(1, 4), heads=st.integers(1, 2), layers=st.integers(1, 2), length=st.integers(1, 4),
    mlp=st.lists(st.integers(1, 5), min_size=1, max_size=2).map(tuple), positions=st.sampled_from(["time", "none"]),
    pool=st.sampled_from(["concat", "mean", "target"]), rows=st.integers(1, 3), seed=st.integers(0, 999),
)  # fmt: skip
# an empty history alone; it and one of one event, odd widths, one head
@example(dim=3, heads=1, layers=1, length=1, mlp=(1,), positions="time", pool="mean", rows=1, seed=0)
@example(dim=3, heads=1, layers=2, length=3, mlp=(5, 3), positions="time", pool="concat", rows=2, seed=1)
@example(dim=1, heads=2, layers=1, length=1, mlp=(3,), positions="none", pool="target", rows=2, seed=2)
def test_bst(length: int, rows: int, seed: int, **options: Any) -> None:
    """The first row is empty, the second has one event."""
    config = BSTConfig(**options)
    model: Any = randomised(BST(config, schema_of(length)), seed)
    g = torch.Generator().manual_seed(seed)
    n = torch.randint(0, length + 1, (rows,), generator=g)
    n[:2] = torch.tensor([0, 1])[:rows]
    mask = torch.arange(length) >= length - n.unsqueeze(1)
    fields, values = drawn(rows, 2, config.dim, seed=seed), drawn(rows, length, 2 * config.dim, seed=seed + 1)
    times = torch.randint(0, 10**6, (rows, length), generator=g).sort(dim=1).values * mask
    events = Events(values, {}, times, mask)
    model.embedder = Given(Embedded(fields, None, {"hist": events}))
    batch = SimpleNamespace(time_B=torch.full((rows,), 10**6))
    compare(model, lambda: model(batch), lambda: twin(model, config, fields, events, batch.time_B), [fields, values])

"""HSTU against a slow twin written from the formulas, padding left out altogether (models.md section 6)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.reference.slow import Fixed, Given, compare, drawn, layer_norm, left_padded, linear, randomised, schema_of
from tests.reference.slow_hstu import hstu_parts, hstu_row
from torch import Tensor

from ctrbench.models.blocks import Embedded
from ctrbench.models.hstu import Hstu, HstuConfig
from ctrbench.models.hstu_layers import Places

SETTINGS = settings(max_examples=50, deadline=None)
"""Besides the examples named at each test: an empty history alone, it beside one of one event; one head, odd widths."""


def hstu_twin(model: Hstu, config: HstuConfig, x_BND: Tensor, real_BN: Tensor, places: Places) -> Tensor:
    """The user's token, the events, one candidate at the end; the user sees all events, events those before them."""
    p, logits = dict(model.named_parameters()), []
    last = x_BND.shape[1] - 1
    for b, x_ND in enumerate(x_BND):
        tokens = {i: x for i, x in enumerate(x_ND) if i == last or real_BN[b, i]}
        for number in range(config.layers):
            made = {i: hstu_parts(p, f"layers.{number}", config, x) for i, x in tokens.items()}
            out = {}
            for i, x in tokens.items():
                seen = [j for j in tokens if j <= i or (i == 0 and j < last)]
                out[i] = hstu_row(p, f"layers.{number}", config, model.longest, x, i, seen, made, places, b)
            tokens = out
        read = layer_norm(tokens[last], p["head.0.weight"], p["head.0.bias"])
        logits.append(linear(p, "head.1", read)[0])
    return torch.stack(logits)


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

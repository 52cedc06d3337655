"""OneTrans' event tokenizer by loops: one MLP and one type vector a behaviour, merged by time (models.md section 3)."""

from __future__ import annotations

import pytest
import torch
from tests.reference.slow import drawn, randomised

from ctrbench.datasets.schema import FeatureSchema, Field
from ctrbench.models.events import Events
from ctrbench.models.onetrans_tokens import EventTokens

STEPS, WIDTH = 3, 4
EVENT = {"click": 2, "buy": 3}
"""Width of an event, by behaviour."""


def schema() -> FeatureSchema:
    events = [
        Field(name=f"{h}_item", kind="sequence", role="behaviour", max_length=STEPS, target="item", history=h)
        for h in EVENT
    ]
    item = Field(name="item", kind="categorical", role="item", cardinality=9)
    return FeatureSchema(name="two", track="sequence", fields=(item, *events))


@pytest.mark.parametrize("fusion", ["time", "intent"])
def test_each_behaviour_has_its_own_mlp(fusion: str) -> None:
    tokens = randomised(EventTokens(schema(), EVENT, WIDTH, fusion, "none", "relu"), seed=1)  # type: ignore[arg-type]
    p = dict(tokens.named_parameters())
    real = {"click": [[1, 2], []], "buy": [[0, 1, 2], [2]]}  # places by row; all histories are left-padded
    times = {"click": torch.tensor([[0, 5, 9], [0, 0, 0]]), "buy": torch.tensor([[1, 7, 8], [0, 0, 4]])}
    values = {h: drawn(2, STEPS, e, seed=e).detach() for h, e in EVENT.items()}
    events = {}
    for h in EVENT:
        mask = torch.tensor([[t in real[h][b] for t in range(STEPS)] for b in range(2)])
        events[h] = Events(values[h] * mask.unsqueeze(2), {}, times[h] * mask, mask)
    s_BSD, valid_BS = tokens(events)
    for b in range(2):
        made = []
        for place, h in enumerate(EVENT):
            for t in real[h][b]:
                hidden = (p[f"mlps.{h}.0.weight"] @ values[h][b, t] + p[f"mlps.{h}.0.bias"]).clamp(min=0)
                token = p[f"mlps.{h}.2.weight"] @ hidden + p[f"mlps.{h}.2.bias"]
                kind = p["types_HD"][place] if fusion == "time" else 0
                made.append((int(times[h][b, t]) if fusion == "time" else 2 * place, token + kind))
        if fusion == "intent":
            made.append((1, p["separators_ND"][0]))
        expected = torch.stack([token for _, token in sorted(made, key=lambda m: m[0])])
        torch.testing.assert_close(s_BSD[b][valid_BS[b]], expected)

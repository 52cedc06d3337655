"""Every legacy model against its slow twin: logits in float32, at most 1e-5 apart, in 50 random configurations.

Every batch has a row with an empty history, with one event and with a full one. What else is on the edge stands in
`EDGES` and runs in every session: one field, no history in the whole batch, odd widths, one layer, one expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.slow_legacy import LIKED, TWINS, batch_of, randomised, rows_of, schema_of, weights_of

from ctrbench.bench.registry import model_names, model_spec

OF_SEQUENCES = ("din", "dien", "composite")
widths = st.lists(st.integers(1, 7), min_size=1, max_size=2).map(tuple)
dim = st.integers(1, 5)
choose, flag = st.sampled_from, st.booleans()
_DEEP: Mapping[str, Any] = {"dim": dim, "mlp": widths, "bn": flag, "missing_vector": flag}
_UNIT: Mapping[str, Any] = {
    "dim": dim, "attention": widths, "act": choose(["dice", "relu"]), "softmax": flag, "missing_vector": flag,
    "unit": choose(["concat", "split", "fold"]),
}  # fmt: skip
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "lr": {"bias": flag, "missing_vector": flag},
    "fm": {"dim": dim, "impl": choose(["sum", "pairs"]), "missing_vector": flag},
    "ffm": {"dim": dim, "missing_vector": flag},
    "wide_deep": _DEEP,
    "deepfm": {**_DEEP, "fm_impl": choose(["sum", "pairs"])},
    "dnn": _DEEP,
    "dlrm": {"dim": dim, "bottom": widths, "top": widths, "bn": flag, "missing_vector": flag,
             "interaction": choose(["dot", "cat"])},
    "dcn": {**_DEEP, "cross_layers": st.integers(1, 3), "cross_impl": choose(["fold", "plain"]),
            "structure": choose(["parallel", "stacked", "cross_only"])},
    "dcn_v2": {**_DEEP, "cross_layers": st.integers(1, 3), "cross_impl": choose(["fused", "plain"]),
               "structure": choose(["parallel", "stacked", "stacked_parallel", "cross_only"]),
               "form": choose(["full", "mixture"]), "experts": st.integers(1, 3), "rank": st.integers(1, 4),
               "gate_scope": choose(["model", "layer"]), "expert_act": choose(["tanh", "identity"])},
    "din": {**_UNIT, "mlp": widths},
    "dien": {**_UNIT, "mlp": widths, "tower_act": choose(["dice", "relu"]), "att": choose(["din", "bilinear", "dot"]),
             "cell": choose(["augru", "agru", "aigru"])},
    "composite": {**_UNIT, "histories": st.lists(choose(["all", "liked", "disliked", "recent"]), min_size=1, max_size=4,
                  unique=True).map(tuple), "liked_ids": st.just((LIKED,)), "recent": st.integers(1, 3),
                  "cross_layers": st.integers(1, 2), "towers": st.lists(widths, max_size=2).map(tuple),
                  "head": st.one_of(st.just(()), widths)},
}  # fmt: skip


def check(name: str, options: Mapping[str, Any], sizes: tuple[int, int, int], lengths: list[int], seed: int) -> None:
    """`sizes`: categorical and dense fields, longest history."""
    spec, schema = model_spec(name), schema_of(*sizes)
    config = spec.config(**options)
    model = randomised(spec.build(config, schema), seed)
    batch = batch_of(schema, lengths, seed)
    weights = weights_of(model, schema)
    with torch.no_grad():
        expected = torch.stack(
            [TWINS[name](weights, config, r) for r in rows_of(weights, batch, name not in OF_SEQUENCES)]
        )
        gap = (model(batch).double() - expected).abs().max()
    assert expected.abs().max() > 0
    assert gap <= 1e-5, f"{gap} apart, logits up to {expected.abs().max()}"


@pytest.mark.parametrize("name", TWINS)
@settings(max_examples=50, deadline=None)
@given(data=st.data(), seed=st.integers(0, 999))
def test_legacy_model(name: str, data: st.DataObject, seed: int) -> None:
    options = {k: data.draw(v, k) for k, v in OPTIONS[name].items()}
    categorical = data.draw(st.integers(2 if name in ("ffm", "dlrm") else 1, 4), "categorical fields")
    dense = data.draw(st.integers(0, 3), "dense fields")
    longest = data.draw(st.integers(1 if name in OF_SEQUENCES else 0, 4), "longest history")
    lengths = [0, 1, longest, data.draw(st.integers(0, 4), "events of the last row")]
    check(name, options, (categorical, dense, longest), lengths, seed)


EDGES: list[tuple[str, dict[str, Any], tuple[int, int, int], list[int]]] = [
    # one field
    *((n, {}, (1, 0, 0), [0, 0]) for n in TWINS if n not in (*OF_SEQUENCES, "ffm", "dlrm")),
    ("ffm", {"dim": 3}, (2, 0, 0), [0, 0]),  # a pair needs two
    ("dlrm", {"dim": 3}, (1, 1, 0), [0, 0]),
    *((n, {}, (1, 0, 1), [0, 1]) for n in OF_SEQUENCES),
    # no history in the whole batch; histories of one event alone
    *((n, {}, (2, 1, 3), lengths) for n in TWINS for lengths in ([0, 0, 0], [1, 1])),
    # odd widths
    *((n, {"dim": 5, "mlp": (7, 3)}, (3, 1, 2), [0, 1, 2]) for n in ("wide_deep", "deepfm", "dnn", "dcn", "dcn_v2")),
    *((n, {"dim": 5, "mlp": (7, 3), "attention": (5, 3)}, (3, 1, 2), [0, 1, 2]) for n in ("din", "dien")),
    ("composite", {"dim": 5, "attention": (5, 3), "towers": ((7, 3), (1,))}, (3, 1, 2), [0, 1, 2]),
    ("dlrm", {"dim": 5, "bottom": (7,), "top": (3,)}, (3, 3, 2), [0, 1, 2]),
    # every structure and form of DCN and DCN-v2
    *(("dcn", {"structure": s, "dim": 3}, (3, 2, 2), [0, 1, 2]) for s in ("parallel", "stacked", "cross_only")),
    *(
        ("dcn_v2", {"structure": s, "form": f, "experts": k, "rank": 3, "dim": 3}, (3, 2, 2), [0, 1, 2])
        for s in ("parallel", "stacked", "stacked_parallel", "cross_only")
        for f, k in (("full", 1), ("mixture", 1), ("mixture", 4))
    ),
]


@pytest.mark.parametrize(("name", "options", "sizes", "lengths"), EDGES, ids=str)
def test_edges(name: str, options: dict[str, Any], sizes: tuple[int, int, int], lengths: list[int]) -> None:
    check(name, options, sizes, lengths, seed=1)


def test_a_pair_needs_two_fields() -> None:
    for name in ("ffm", "dlrm"):
        spec = model_spec(name)
        with pytest.raises(ValueError, match="a pair needs two"):
            spec.build(spec.config(), schema_of(1, 0, 0))


def test_every_legacy_model_has_a_twin_and_every_option_is_drawn() -> None:
    assert {n for n in model_names() if model_spec(n).family == "legacy"} == set(TWINS) == set(OPTIONS)

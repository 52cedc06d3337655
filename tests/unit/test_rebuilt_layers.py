"""A rebuilt network ends with every result that no later layer took."""

from __future__ import annotations

import torch

from ctrbench.bench.counting.rebuilt import Layer, _Dense


def test_results_are_told_apart_when_others_are_gone() -> None:
    """Each layer adds views of a result before it; nothing holds a view, and the next tensor may get its number."""
    layers = [Layer(op="aten::add", dims=((1,) * i + (6,),) * 2, differentiable=True) for i in range(60)]
    with torch.device("meta"):
        left = _Dense(layers)()
    assert len(left) == len(layers)

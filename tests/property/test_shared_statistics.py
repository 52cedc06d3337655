"""Dice and batch norm over the rows of several processes against those of one that has all rows, forward and backward.

Processes are threads here that meet in `all_reduce`; tests/reference/test_distributed.py has real ones.

Dims: N rows, O channels
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ctrbench.bench.distributed.sync import SharedBatchNorm, SharedDice, SharedUnit, synchronise
from ctrbench.legacy_baselines.interest import ActivationUnit, Dice, UnitConfig

CHANNELS = 3


class Meeting:
    """`torch.distributed.all_reduce` of threads."""

    def __init__(self, count: int) -> None:
        self.barrier, self.brought = threading.Barrier(count, timeout=180), dict[int, Tensor]()

    def all_reduce(self, tensor: Tensor) -> None:
        self.brought[threading.get_ident()] = tensor.clone()
        self.barrier.wait()
        total = torch.stack(list(self.brought.values())).sum(0)
        self.barrier.wait()
        tensor.copy_(total)


def _in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    found: list[Any] = [None] * count
    threads = [threading.Thread(target=lambda i=i: found.__setitem__(i, work(i))) for i in range(count)]
    meeting = Meeting(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "all_reduce", meeting.all_reduce)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found


def _run(
    layer: nn.Module, x_NO: Tensor, mask_N: Tensor | None, weight_NO: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(output, gradient of the input, gradients of the weights) of a weighted sum."""
    x_NO = x_NO.clone().requires_grad_()
    out_NO = layer(x_NO) if mask_N is None else layer(x_NO, mask_N)
    seen_NO = out_NO if mask_N is None else out_NO * mask_N.unsqueeze(1)
    (seen_NO * weight_NO).sum().backward()
    assert x_NO.grad is not None
    return out_NO.detach(), x_NO.grad, [p.grad for p in layer.parameters() if p.grad is not None]


KINDS = ("valid", "all", "plain", "norm")


@given(parts=st.lists(st.integers(1, 9), min_size=2, max_size=4), kind=st.sampled_from(KINDS), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_parts_give_what_the_whole_gives(parts: list[int], kind: str, seed: int) -> None:
    """Whatever their sizes, and however many of a part's rows are outside the mask."""
    torch.manual_seed(seed)
    x_NO, weight_NO = (torch.randn(sum(parts), CHANNELS, dtype=torch.float64) for _ in range(2))
    mask_N = torch.rand(sum(parts)) < 0.7 if kind in ("valid", "all") else None
    whole = nn.BatchNorm1d(CHANNELS) if kind == "norm" else Dice(CHANNELS, "all" if kind == "all" else "valid")
    whole.double().load_state_dict({k: v + 0.1 for k, v in whole.state_dict().items()})
    copies = [deepcopy(whole) for _ in parts]
    for copy in copies:
        synchronise(copy)
        assert isinstance(copy, SharedBatchNorm | SharedDice)
    pieces = [None] * len(parts) if mask_N is None else list(mask_N.split(parts))
    xs, weights = x_NO.split(parts), weight_NO.split(parts)
    found = _in_threads(len(parts), lambda i: _run(copies[i], xs[i], pieces[i], weights[i]))
    out_NO, grad_NO, grads = _run(whole, x_NO, mask_N, weight_NO)
    torch.testing.assert_close(torch.cat([f[0] for f in found]), out_NO, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(torch.cat([f[1] for f in found]), grad_NO, rtol=1e-6, atol=1e-8)
    for i, grad in enumerate(grads):
        torch.testing.assert_close(torch.stack([f[2][i] for f in found]).sum(0), grad, rtol=1e-6, atol=1e-8)
    for copy in copies:
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(copy.state_dict()[name], value)
        torch.testing.assert_close(copy.eval()(x_NO), whole.eval()(x_NO))


def test_a_unit_with_dice_leaves_flat_events_in_training() -> None:
    """The node over flat events takes statistics of its own rows; in evaluation there is nothing to share."""
    for act in ("dice", "relu"):
        unit = ActivationUnit(4, UnitConfig(unit="jagged", act=act))  # type: ignore[arg-type]
        assert unit.takes_flat
        synchronise(unit)
        assert isinstance(unit, SharedUnit)
        assert unit.takes_flat == (act == "relu")
        assert unit.eval().takes_flat

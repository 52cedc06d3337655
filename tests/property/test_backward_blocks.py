"""Any graph of blocks: backward work is labelled with the block that made it.

Dims: B batch, D width
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ctrbench.bench.trace.nvtx import NvtxRanges


class Opened:
    """Stands for the NVTX domain; keeps the names of open ranges in order."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.count = 0

    def get_event_attributes(self, message: str, color: int = 0, category: str | None = None) -> Any:
        return type("Attributes", (), {"message": message, "payload": None})()

    def start_range(self, attributes: Any) -> int:
        self.count += 1
        self.names[self.count] = attributes.message
        return self.count

    def end_range(self, number: int) -> None:
        del self.names[number]


class Note(torch.autograd.Function):
    """Identity; its backward notes the innermost open range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, log: list[tuple[str, str]], opened: Opened) -> Tensor:
        ctx.note = (name, log, opened)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        name, log, opened = ctx.note
        log.append((name, list(opened.names.values())[-1]))
        return grad, None, None, None


class Block(nn.Module):
    def __init__(self, name: str, depth: int, log: list[tuple[str, str]], opened: Opened) -> None:
        super().__init__()
        self.label, self.depth, self.log, self.opened = name, depth, log, opened

    def forward(self, x_BD: Tensor) -> Tensor:
        for _ in range(self.depth):
            x_BD = Note.apply(x_BD.sin(), self.label, self.log, self.opened)
        return x_BD


# One entry a call: (block, earlier outputs it reads, does glue work follow it)
CALLS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(0, 100), min_size=1, max_size=3), st.booleans()),
    min_size=1,
    max_size=9,
)


@settings(max_examples=150, deadline=None)
@given(calls=CALLS, depths=st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_every_node_runs_inside_the_range_of_its_block(
    calls: list[tuple[int, list[int], bool]], depths: list[int]
) -> None:
    torch.set_num_threads(1)
    log: list[tuple[str, str]] = []
    opened = Opened()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block(f"blocks.{i}", n, log, opened) for i, n in enumerate(depths))
            self.phases = {"dense": tuple(f"blocks.{i}" for i in range(4))}

        def forward(self, x_BD: Tensor) -> Tensor:
            outputs = [x_BD]
            for block, reads, glue in calls:
                taken = [outputs[i % len(outputs)] for i in reads]
                # A single input goes in directly: then the block's nodes feed the next one's without glue.
                out = self.blocks[block](taken[0] if len(taken) == 1 else torch.stack(taken).sum(0))
                outputs.append(Note.apply(out, "none", log, opened) if glue else out)
            return torch.stack(outputs).sum()

    ranges = NvtxRanges(profiler=True)  # hooks are on whether or not a tool is attached
    ranges._domain = opened
    net = Net()
    with ranges.attach(net):
        loss = net(torch.ones(2, 3, requires_grad=True))
        ranges.own_backward(loss)
        with ranges.stage("backward"):
            loss.backward()
    expected = sum(depths[b] + glue for b, _, glue in calls)
    assert len(log) == expected
    for name, seen in log:
        assert seen == ("stage:backward" if name == "none" else f"block:{name}")
    assert opened.names == {}

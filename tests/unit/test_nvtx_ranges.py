"""Ranges of a step as an NVTX tool would see them, recorded by a stand-in domain.

Dims: B batch, D width
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import nvtx
import pytest
import torch
from torch import Tensor, nn

from ctrbench.bench.step import TrainStep
from ctrbench.bench.trace.names import COLORS, NEUTRAL
from ctrbench.bench.trace.nvtx import NvtxRanges
from ctrbench.datasets.schema import Batch, FeatureSchema, Field, synthetic_batch

SCHEMA = FeatureSchema(
    name="tiny", track="tabular", fields=tuple(Field(name=f"i{i}", kind="dense", role="context") for i in range(4))
)


class FakeDomain:
    """Keeps what a tool would record."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, str, str, Any, int]] = []
        self.names: dict[int, str] = {}
        self.colors: dict[str, set[int | None]] = defaultdict(set)

    def get_event_attributes(
        self, message: str, color: int | None = None, category: str | None = None
    ) -> SimpleNamespace:
        return SimpleNamespace(message=message, color=color, category=category, payload=None)

    def start_range(self, attributes: SimpleNamespace) -> int:
        number = len(self.names) + 1
        self.names[number] = attributes.message
        self.colors[attributes.message].add(attributes.color)
        self._add("start", number, attributes.message, attributes.category, attributes.payload)
        return number

    def end_range(self, number: int) -> None:
        self._add("end", number, self.names[number], "", None)

    def _add(self, kind: str, number: int, name: str, category: str, payload: Any) -> None:
        self.events.append((kind, number, name, category, payload, threading.get_ident()))

    def shape(self) -> list[str]:
        """`+name` and `-name` in order."""
        return [("+" if kind == "start" else "-") + name for kind, _, name, *_ in self.events]

    def open(self) -> list[str]:
        """Names of the ranges open now, outermost first."""
        ended = {number for kind, number, *_ in self.events if kind == "end"}
        return [name for number, name in self.names.items() if number not in ended]

    def check_balance(self) -> None:
        """One end a start, and on each thread ranges close in the reverse order of opening."""
        assert self.open() == []
        stacks: dict[int, list[int]] = defaultdict(list)
        home: dict[int, int] = {}
        for kind, number, *_, thread in self.events:
            if kind == "start":
                stacks[thread].append(number)
                home[number] = thread
            else:
                assert stacks[home[number]].pop() == number


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> FakeDomain:
    fake = FakeDomain()
    monkeypatch.delenv("CTRBENCH_NVTX", raising=False)
    monkeypatch.setattr(nvtx, "get_domain", lambda name: fake if name == "ctrbench" else pytest.fail(f"domain {name}"))
    return fake


class Probe(torch.autograd.Function):
    """Identity that notes, forward and backward, which ranges are open."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, log: list[tuple[str, str, list[str]]], domain: FakeDomain) -> Tensor:
        ctx.note = (name, log, domain)
        log.append(("forward", name, domain.open()))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        name, log, domain = ctx.note
        log.append(("backward", name, domain.open()))
        if name == "explode":
            raise RuntimeError("planted")
        return grad, None, None, None


@dataclass
class Parts:
    """An output that is no tensor."""

    inner: dict[str, Tensor]


class Branch(nn.Module):
    def __init__(self, name: str, log: list[Any], domain: FakeDomain) -> None:
        super().__init__()
        self.linear, self.label = nn.Linear(4, 4), name
        self.log, self.domain = log, domain

    def forward(self, x_BD: Tensor) -> Parts:
        x_BD = Probe.apply(x_BD, self.label, self.log, self.domain)
        x_BD = torch.tanh(self.linear(x_BD))
        return Parts({"out": Probe.apply(x_BD, self.label, self.log, self.domain)})


class TwoBranches(nn.Module):
    """root -> (left | right) joined by a sum -> head; `left` runs a second time on its own output."""

    def __init__(self, domain: FakeDomain, head: str = "head") -> None:
        super().__init__()
        self.log: list[tuple[str, str, list[str]]] = []
        self.root, self.left, self.right = (Branch(n, self.log, domain) for n in ("root", "left", "right"))
        self.tower = nn.ModuleDict({"head": Branch(head, self.log, domain)})
        self.phases = {"embedding": ("root",), "interaction": ("left", "right"), "dense": ("tower.head",)}

    def forward(self, batch: Batch) -> Tensor:
        x_BD = self.root(batch.dense_BI.requires_grad_()).inner["out"]
        left_BD = self.left(x_BD).inner["out"]
        right_BD = self.right(x_BD).inner["out"]
        joined_BD = self.left(left_BD).inner["out"] + right_BD
        return self.tower["head"](joined_BD).inner["out"].sum(1)


def run_step(model: nn.Module, ranges: NvtxRanges, number: int = 3) -> None:
    batch = synthetic_batch(SCHEMA, 8)
    step = TrainStep(model, ranges=ranges)
    with ranges.attach(model), ranges.iteration(number):
        with ranges.stage("data"):
            pass
        step(batch)


def test_names_order_and_nesting(domain: FakeDomain) -> None:
    ranges = NvtxRanges()
    with ranges.config("abc", 8):
        run_step(TwoBranches(domain), ranges)
    domain.check_balance()
    forward = domain.shape()[: domain.shape().index("+stage:backward")]
    assert forward == [
        "+cfg:abc", "+iter", "+stage:data", "-stage:data",
        "+stage:embedding", "+block:root", "-block:root", "-stage:embedding",
        "+stage:interaction", "+block:left", "-block:left", "+block:right", "-block:right",
        "+block:left", "-block:left", "-stage:interaction",
        "+stage:dense", "+block:tower.head", "-block:tower.head", "-stage:dense",
        "+stage:loss", "-stage:loss", "+tracer", "-tracer",
    ]  # fmt: skip
    assert domain.shape()[-5:] == ["-stage:backward", "+stage:optimizer", "-stage:optimizer", "-iter", "-cfg:abc"]


def test_category_is_the_stage_and_payload_the_step(domain: FakeDomain) -> None:
    run_step(TwoBranches(domain), NvtxRanges(), number=17)
    starts = {name: (category, payload) for kind, _, name, category, payload, _ in domain.events if kind == "start"}
    assert starts["block:right"] == ("backward", 17)  # the last one started
    assert starts["stage:dense"] == ("dense", 17)
    with NvtxRanges().stage("h2d", 4096):
        pass
    assert domain.events[-2][4] == 4096
    assert not any(set("@,[]/*+") & set(name) for name in domain.names.values()), "ncu's filter characters"


def test_backward_work_lies_in_the_block_that_made_it(domain: FakeDomain) -> None:
    model = TwoBranches(domain)
    run_step(model, NvtxRanges())
    seen = [(name, opened) for phase, name, opened in model.log if phase == "backward"]
    assert [name for name, _ in seen].count("left") == 4
    for name, opened in seen:
        label = "tower.head" if name == "head" else name
        assert opened == ["iter", "stage:backward", f"block:{label}"], name
    order = [n for n in domain.shape()[domain.shape().index("+stage:backward") :] if n.startswith("+block")]
    assert order == [f"+block:{b}" for b in ("tower.head", "left", "right", "left", "root")]


def test_work_between_blocks_and_the_loss_belong_to_no_block(domain: FakeDomain) -> None:
    log: list[tuple[str, str, list[str]]] = []

    class Glue(TwoBranches):
        def forward(self, batch: Batch) -> Tensor:
            x_BD = self.root(batch.dense_BI.requires_grad_()).inner["out"]
            x_BD = Probe.apply(x_BD, "glue", log, domain)
            return self.tower["head"](x_BD).inner["out"].sum(1)

    run_step(Glue(domain), NvtxRanges())
    assert log[0][2] == ["iter", "stage:embedding"]  # of the stage whose output it handles
    assert log[1][2] == ["iter", "stage:backward"]
    domain.check_balance()


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_exceptions_leave_no_open_range_and_no_hook(domain: FakeDomain, where: str) -> None:
    model = TwoBranches(domain, head="explode" if where == "backward" else "head")
    if where == "forward":
        model.right.linear = nn.Linear(5, 4)  # wrong width
    ranges = NvtxRanges()
    with pytest.raises(RuntimeError, match="planted" if where == "backward" else "shapes"):
        run_step(model, ranges)
    domain.check_balance()
    assert hooks(model) == 0
    run_step(TwoBranches(domain), ranges)  # and the tracer still works
    domain.check_balance()


def test_a_foreign_thread_gets_a_stage_range_of_its_own(domain: FakeDomain) -> None:
    """On CUDA the engine runs nodes on a thread of its own; here a thread plays it."""
    ranges = NvtxRanges()
    with ranges.stage("backward"):
        for block in ("head", "left", None, "root"):
            ranges._enter_node(block)
        thread = threading.Thread(target=lambda: [ranges._enter_node(b) for b in ("left", "left", "root")])
        thread.start()
        thread.join()
    ranges._enter_node("left")  # a straggler after the end opens nothing
    domain.check_balance()
    foreign = [name for kind, _, name, *_, t in domain.events if kind == "start" and t != threading.get_ident()]
    assert foreign == ["stage:backward", "block:left", "block:root"]


def test_colour_of_the_stage_and_batch_size_of_the_configuration(domain: FakeDomain) -> None:
    ranges = NvtxRanges()
    with ranges.config("abc", 4096):
        run_step(TwoBranches(domain), ranges, number=2)
    starts = {name: payload for kind, _, name, _, payload, _ in domain.events if kind == "start"}
    assert (starts["cfg:abc"], starts["iter"]) == (4096, 2)
    assert domain.colors["iter"] == {NEUTRAL}
    assert domain.colors["stage:dense"] == {COLORS["dense"]}
    assert domain.colors["block:tower.head"] == {COLORS["dense"], COLORS["backward"]}  # forward and backward


def test_warm_up_emits_nothing(domain: FakeDomain) -> None:
    ranges, model = NvtxRanges(first=2, every=2), TwoBranches(domain)
    for number in range(5):
        run_step(model, ranges, number)
    iters = [payload for kind, _, name, _, payload, _ in domain.events if kind == "start" and name == "iter"]
    assert iters == [2, 4]
    domain.check_balance()


def test_operators_lie_in_their_block_forward_and_backward(domain: FakeDomain) -> None:
    run_step(TwoBranches(domain), NvtxRanges(operators=True))
    domain.check_balance()
    around: dict[str, set[tuple[str, str]]] = defaultdict(set)
    stack: list[str] = []
    for kind, _, name, category, _, _ in domain.events:
        if kind == "end":
            assert stack.pop() == name
            continue
        if name.startswith("op:"):
            around[stack[-1]].add((name, category))
        stack.append(name)
    assert ("op:aten::addmm", "interaction") in around["block:left"]
    assert ("op:aten::tanh_backward", "backward") in around["block:left"]
    assert ("op:aten::binary_cross_entropy_with_logits", "loss") in around["stage:loss"]
    assert "tracer" not in around, "the tracer dispatches nothing"


def test_an_operator_of_a_foreign_thread_is_placed_by_that_thread(domain: FakeDomain) -> None:
    ranges, places = NvtxRanges(), []
    with ranges.stage("backward"):
        ranges._enter_node("head")

        def foreign() -> None:
            ranges._enter_node("left")
            places.append(ranges.place())

        thread = threading.Thread(target=foreign)
        thread.start()
        thread.join()
        places.append(ranges.place())
        ranges._enter_node(None)
        places.append(ranges.place())
    assert places == ["stage:backward/block:left", "stage:backward/block:head", "stage:backward"]
    assert ranges.place() == ""


def test_every_nth_step(domain: FakeDomain) -> None:
    ranges = NvtxRanges(every=3)
    model = TwoBranches(domain)
    for number in range(7):
        run_step(model, ranges, number)
    iters = [payload for kind, _, name, _, payload, _ in domain.events if kind == "start" and name == "iter"]
    assert iters == [0, 3, 6]
    assert sum(name == "stage:backward" for name in domain.names.values()) == 3
    domain.check_balance()


def test_switched_off_emits_and_hooks_nothing(domain: FakeDomain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRBENCH_NVTX", "0")
    ranges, model = NvtxRanges(), TwoBranches(domain)
    with ranges.attach(model):
        assert hooks(model) == 0
    run_step(model, ranges)
    assert domain.events == []
    assert isinstance(ranges.stage("dense"), nullcontext)


def test_the_timed_path_has_no_ranges_and_no_hooks(domain: FakeDomain, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Watched(TwoBranches):
        def forward(self, batch: Batch) -> Tensor:
            seen.append(hooks(self))
            return super().forward(batch)

    monkeypatch.setattr(nvtx, "get_domain", lambda name: pytest.fail("a timed step asked for an NVTX domain"))
    TrainStep(Watched(domain))(synthetic_batch(SCHEMA, 8))
    assert seen == [0]
    assert domain.events == []


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(
    ("phases", "message"),
    [({"dense": ("towre",)}, "no submodule 'towre'"), ({"dense": ("root", "root.linear")}, "contains 'root.linear'")],
)
def test_wrong_phases_are_named(domain: FakeDomain, phases: dict[str, tuple[str, ...]], message: str) -> None:
    model = TwoBranches(domain)
    model.phases = phases
    with pytest.raises(ValueError, match=message), NvtxRanges().attach(model):
        pass


def test_a_range_costs_little_without_a_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CTRBENCH_NVTX", raising=False)
    ranges, count = NvtxRanges(), 20_000
    assert not ranges.enabled, "this test runs without an NVTX tool attached"
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(count):
            with ranges.stage("dense"):
                pass
        best = min(best, (time.perf_counter() - start) / count)
    print(f"one range without a tool: {best * 1e6:.3f} us (budget 0.5 us)")
    assert best < 2e-6  # four times the budget: CI cores are shared

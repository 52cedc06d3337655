"""Where a step's time goes by leaving things out: the second way beside ranges (measures.md, section 4).

A component's time is that of the whole step less that of a step without it, whole and shortened steps by turns. The
blocks of a stage are left out in both directions: their forward hands out what it computed once, their backward hands
down zeros. So nothing is cut off: blocks before and after do all their work, and the optimizer moves every weight. No
range and no profiler is involved. What it cannot see: a skipped block's outputs are warm in cache, and time that two
components share by overlapping belongs to neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ctrbench.bench.step import TrainStep
from ctrbench.bench.trace.names import OTHER
from ctrbench.bench.trace.nvtx import blocks_of
from ctrbench.bench.trace.time_split import Split
from ctrbench.datasets.schema import Batch

ROUNDS = 12
"""Of a suite: enough for an interval, a few seconds a model."""
AGREE = 0.10
"""Projection and ablation agree on a component if they are at most this share of the step apart."""


class CannotLeaveOut(ValueError):
    """Why a model's components cannot be left out one at a time."""


@dataclass(frozen=True, slots=True)
class Part:
    """Share of the step that one component takes, with its 95 % interval over the rounds."""

    share: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """What the step gains from leaving out one component at a time."""

    rounds: int
    step_s: float
    """Median of the whole step."""
    parts: Mapping[str, Part]
    """data, stages of `model.phases`, loss, optimizer; blocks with their backward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """One component seen both ways."""

    component: str
    projection: float
    ablation: Part

    @property
    def apart(self) -> float:
        """Projection less ablation, in shares of the step."""
        return self.projection - self.ablation.share

    @property
    def doubt(self) -> str:
        """Why the share is not published as certain; empty where the two ways agree.

        They do not if no value of the ablation's interval is within `AGREE` of the projection. An interval wider
        than that on either side (a busy machine) shows nothing.
        """
        p = self.ablation
        seen = (
            f"{self.component}: {self.projection:.1%} of the step by ranges, {p.share:.1%}"
            f" [{p.ci_low:.1%}, {p.ci_high:.1%}] by leaving it out"
        )
        if not p.ci_low - AGREE <= self.projection <= p.ci_high + AGREE:
            return f"disagree: {seen}; more than {AGREE:.0%} of the step apart"
        if p.ci_high - p.ci_low > 2 * AGREE:
            return f"noise: {seen}; an interval this wide shows nothing, time it on a quiet machine"
        return ""


def ablate(
    model: nn.Module, batches: Iterable[Batch], lr: float, *, rounds: int, warmup: int = 3, seed: int = 0
) -> Ablation:
    """Times whole and shortened training steps by turns.

    Every step trains on the same held batch, so that outputs can stand in; `data` is the wait for a fresh one, which
    the other steps do as well, its copy to the device included.

    Args:
        model: names its blocks in `phases`; is trained by the steps.
        batches: at least `rounds` + 1 for each component and the whole step, `warmup` times more.
        lr: of Adam.
        rounds: every variant once a round, in an order of its own.
        warmup: rounds before them.
        seed: of the orders.

    Raises:
        CannotLeaveOut: tables with an L2 penalty, which reads the lookup that is left out; or an extra loss.
        ValueError: batches run out.
    """
    step = TrainStep(model, lr=lr)
    if any(t.penalty is not None for t in step.tables):
        raise CannotLeaveOut("tables have an L2 penalty on looked-up rows: a step without the lookup is another step")
    if step.extra_loss is not None:
        raise CannotLeaveOut("a loss beside the task's reads what a component made: a step without it is another step")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    stream = (batch.to(device, non_blocking=True) for batch in batches)
    held = next(stream)
    model.train()
    step(held)
    variants = _variants(model, step, _record(model, step, held))
    rng = np.random.default_rng(seed)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warmup + rounds):
        for name in rng.permutation(list(variants)).tolist():
            with variants[name]():
                took = _timed(step, held, None if name == "data" else stream, device)
            if number >= warmup:
                seconds[name].append(took)
    whole = np.array(seconds.pop(""))
    return Ablation(
        rounds=rounds, step_s=float(np.median(whole)),
        parts={name: _part(whole, np.array(without), seed) for name, without in seconds.items()},
    )  # fmt: skip


def compare(split: Split, ablation: Ablation) -> list[Disagreement]:
    """Every component of the ablation beside its share of the ranges: a stage's forward and its blocks' backward."""
    stage_of: dict[str, str] = {}
    shares: dict[str, float] = {}
    rows = split.table[["stage", "block", "share"]].values.tolist()
    for stage, block, share in rows:
        if stage not in ("backward", OTHER):
            shares[stage] = shares.get(stage, 0.0) + share
            stage_of[block] = stage
    for stage, block, share in rows:
        if stage == "backward" and block:
            shares[stage_of[block]] += share
    return [Disagreement(component=c, projection=shares.get(c, 0.0), ablation=p) for c, p in ablation.parts.items()]


def _part(whole: np.ndarray, without: np.ndarray, seed: int) -> Part:
    def share(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.median(a - b, axis=axis) / np.median(a, axis=axis)

    found = bootstrap(
        (whole, without), share, paired=True, vectorized=True, method="percentile", n_resamples=999, rng=seed
    )
    low, high = found.confidence_interval
    return Part(float(share(whole, without)), float(low), float(high))


def _timed(step: TrainStep, held: Batch, stream: Iterator[Batch] | None, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    if stream is not None and next(stream, None) is None:
        raise ValueError("batches ran out: an endless stream is wanted")
    step(held)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -------------------------------------------------------------------- leaving out


class _Call:
    """One call of a block (or of the loss): what it handed out, and zeros for what it would hand down."""

    __slots__ = ("made", "out", "root", "zeros")

    def __init__(self, args: Any, out: Any) -> None:
        self.out = out
        self.made = [t.detach() for t in _tensors(out) if t.requires_grad]
        self.zeros = [torch.zeros_like(t) for t in _tensors(args) if t.requires_grad]
        # Gives the outputs a place in the graph where no input has one (an embedder's batch).
        self.root = torch.zeros((), device=self.made[0].device if self.made else None, requires_grad=True)

    def stand_in(self, args: Any) -> Any:
        if not self.made:
            return self.out
        inputs = [t for t in _tensors(args) if t.requires_grad]
        return _rebuilt(self.out, iter(_Skip.apply(self, self.root, *inputs)))


class _Skip(torch.autograd.Function):
    """Outputs of a recorded call, linked to the call's inputs."""

    @staticmethod
    def forward(ctx: Any, call: _Call, root: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        return tuple(t.detach() for t in call.made)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.call.zeros


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors of nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for f in fields(value):
            if f.init:
                yield from _tensors(getattr(value, f.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)


def _rebuilt(value: Any, made: Iterator[Tensor]) -> Any:
    """The same structure with every tensor that requires a gradient taken from `made`."""
    if isinstance(value, Tensor):
        return next(made) if value.requires_grad else value
    if isinstance(value, tuple | list):
        items = [_rebuilt(item, made) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _rebuilt(getattr(value, f.name), made) for f in fields(value) if f.init})
    if isinstance(value, Mapping):
        return {k: _rebuilt(v, made) for k, v in value.items()}
    return value


@dataclass(slots=True)
class _Recorded:
    """One step: the calls of every block in order, that of the loss, and the weights that got a gradient."""

    blocks: dict[str, list[_Call]]
    loss: _Call
    moved: list[nn.Parameter]


def _record(model: nn.Module, step: TrainStep, batch: Batch) -> _Recorded:
    """Runs a step and keeps what its blocks hand out."""
    calls: dict[str, list[_Call]] = {}
    handles = []

    def keep(name: str, _: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        calls.setdefault(name, []).append(_Call((args, kwargs), out))

    for name, (_, module) in blocks_of(model).items():
        handles.append(module.register_forward_hook(lambda *a, name=name: keep(name, *a), with_kwargs=True))
    moved: list[nn.Parameter] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        moved.extend(p for g in optimizer.param_groups for p in g["params"] if p.grad is not None)

    handles.append(step.optimizer.register_step_pre_hook(note))
    logits: list[Tensor] = []
    handles.append(model.register_forward_hook(lambda _m, _a, out: logits.append(out)))
    try:
        step(batch)
    finally:
        for handle in handles:
            handle.remove()
    out = logits[0].detach().requires_grad_()
    loss = out.mean() if step.returns_loss else binary_cross_entropy_with_logits(out, batch.label_B)
    return _Recorded(calls, _Call(out, loss), moved)


def _variants(
    model: nn.Module, step: TrainStep, seen: _Recorded
) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    """Name -> what is left out while its context is open; the empty name leaves out nothing."""
    stages: dict[str, dict[nn.Module, list[_Call]]] = {}
    for name, (stage, module) in blocks_of(model).items():
        if name in seen.blocks:
            stages.setdefault(stage, {})[module] = seen.blocks[name]
    zeros = {p: torch.zeros_like(p) for p in seen.moved}

    @contextmanager
    def without_blocks(modules: Mapping[nn.Module, list[_Call]]) -> Iterator[None]:
        def fill(*_: Any) -> None:  # the optimizer's work stays whole
            for p, zero in zeros.items():
                if p.grad is None:
                    p.grad = zero

        with ExitStack() as stack:
            for module, calls in modules.items():
                stack.enter_context(_replaced(module, "forward", _Replay(calls)))
            stack.callback(step.optimizer.register_step_pre_hook(fill).remove)
            yield

    @contextmanager
    def without_loss() -> Iterator[None]:
        replay = _Replay([seen.loss])
        with _replaced(step, "model", lambda batch: replay(model(batch))), _replaced(step, "returns_loss", True):
            yield

    found: dict[str, Callable[[], AbstractContextManager[None]]] = {"": nullcontext, "data": nullcontext}
    for stage, modules in stages.items():
        found[stage] = lambda modules=modules: without_blocks(modules)  # type: ignore[misc]
    if not step.returns_loss:
        found["loss"] = without_loss
    found["optimizer"] = lambda: _replaced(step.optimizer, "step", lambda: None)
    return found


class _Replay:
    """Stands in for a block's forward, call by call."""

    def __init__(self, calls: list[_Call]) -> None:
        self._calls, self._next = calls, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self._calls[self._next % len(self._calls)]
        self._next += 1
        return call.stand_in((args, kwargs))


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of one object, for a while."""
    had, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)

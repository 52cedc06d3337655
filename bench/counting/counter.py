"""Counts the operators of one step: FLOPs, bytes, modelled kernels, by block, stage and part.

Never used in a timed process: dispatch through Python costs 6-55 us an operator (measures.md section 2).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ctrbench.bench.counting.launches import kernels_of, unfusable
from ctrbench.bench.counting.meta import gpu_operators
from ctrbench.bench.counting.ops import OpClass, arguments, classify, elementwise_flops, flops_of
from ctrbench.bench.counting.rows import OpRow, Part, StepCounts
from ctrbench.bench.counting.traffic import Bytes, extent, operand_bytes, tensors, values
from ctrbench.bench.step import TrainStep, predict
from ctrbench.datasets.schema import Batch
from ctrbench.models.embedding import embedding_tables


@dataclass(slots=True)
class _Sum:
    """Accumulator of one row."""

    kind: OpClass
    calls: int = 0
    flops: float = 0.0
    elementwise: float = 0.0
    moved: Bytes = field(default_factory=Bytes)
    kernels: float = 0.0
    covered: int = 0
    unfusable: int = 0


class _Storages:
    """Distinct bytes of tensors seen over a whole step, by storage; keeps them alive so that identities stay unique."""

    def __init__(self, without: Sequence[Tensor] = ()) -> None:
        self.without = {t.untyped_storage()._cdata for t in without}
        self.seen: dict[int, dict[tuple[Any, ...], Tensor]] = {}

    def add(self, t: Tensor) -> None:
        key = t.untyped_storage()._cdata
        if key not in self.without:
            self.seen.setdefault(key, {})[(t.storage_offset(), tuple(t.shape), t.stride())] = t.detach()

    def bytes(self) -> Bytes:
        total = Bytes()
        for group in self.seen.values():
            like = next(iter(group.values()))
            whole = like.untyped_storage().nbytes() // like.element_size()
            total += values(min(sum(extent(t) for t in group.values()), whole), like)
        return total


class Recorder(TorchDispatchMode):
    """Records every operator while active; also the `Ranges` of a `TrainStep`, which tell it the part of the step.

    Modules: forward hooks mark where each module begins and ends in autograd's sequence numbers, so that a backward
    node belongs to the module that created it.
    """

    def __init__(self, model: nn.Module, batch: Any, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.part: Part = "forward"
        self.sums: dict[tuple[str, str, Part], _Sum] = {}
        self.stack: list[str] = [""]
        self.marks: list[tuple[int, str]] = [(0, "")]
        tables = embedding_tables(model)
        self.table_optimizer = tables[0].config.optimizer if tables else "sgd"
        given = batch_tensors(batch)
        own = [*model.parameters(), *model.buffers(), *(w for t in tables for w in t.weights().values())]
        self.saved = _Storages(without=[*own, *given])
        self.inputs = _Storages()
        self.parameters = _Storages()
        self.given = {t.untyped_storage()._cdata for t in given}
        self.owned = {t.untyped_storage()._cdata for t in model.parameters()}

    def stage(self, name: str, payload: int | None = None) -> AbstractContextManager[None]:
        """Part of the step, from `TrainStep`."""
        return self._part(name)

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        before, self.part = self.part, _PARTS.get(name, self.part)
        try:
            yield
        finally:
            self.part = before

    def own_backward(self, loss: Tensor) -> None:
        """Nothing to do: nodes are attributed by sequence number."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Counts until left."""
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                if name:
                    enter = module.register_forward_pre_hook(self._entering(name))
                    leave = module.register_forward_hook(self._left, always_call=True)
                    stack.callback(enter.remove)
                    stack.callback(leave.remove)
            if self.device.type == "meta":
                stack.enter_context(gpu_operators())
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._save, lambda t: t))
            stack.enter_context(self)
            yield

    def _entering(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self.stack.append(name)
            self.marks.append((torch._C._autograd._get_sequence_nr(), name))

        return hook

    def _left(self, *_: Any) -> None:
        self.stack.pop()
        self.marks.append((torch._C._autograd._get_sequence_nr(), self.stack[-1]))

    def _save(self, t: Tensor) -> Tensor:
        if not t.is_sparse:
            self.saved.add(t)
        return t

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._can_decompose():
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        x = arguments(func, args, kwargs)
        kind, family = classify(func)
        if kind == "V":
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        inputs, outputs = tensors(x), tensors(out)
        node = torch._C._current_autograd_node() if self.part == "backward" else None
        module = self._owner(node) if node is not None else (self.stack[-1] if self.part == "forward" else "")
        flops = flops_of(func, x, out)
        key = (func._schema.name.replace("::", "."), module, self.part)
        row = self.sums.setdefault(key, _Sum("F" if flops else kind))
        row.calls += 1
        row.flops += flops
        row.elementwise += elementwise_flops(func, family, inputs, outputs)
        row.moved += operand_bytes(func, args, kwargs, out, self.table_optimizer)
        kernels, covered = kernels_of(func, family, x, inputs, self.device)
        row.kernels += kernels
        row.covered += covered
        row.unfusable += unfusable(func, family, x, inputs, out, self.size, node.name() if node is not None else "")
        self._watch(inputs, lookup=family in ("gather", "table_forward"))
        return out

    def _watch(self, inputs: list[Tensor], *, lookup: bool) -> None:
        """Which parts of the batch are read, and which parameters are read whole: a lookup touches some rows only."""
        for t in inputs:
            storage = t.untyped_storage()._cdata
            if storage in self.given:
                self.inputs.add(t)
            elif self.part == "forward" and storage in self.owned and not lookup:
                self.parameters.add(t)

    def _owner(self, node: Any) -> str:
        number = node._sequence_nr()
        if number >= 2**63:  # AccumulateGrad runs outside the numbering
            return ""
        return self.marks[bisect_right(self.marks, number, key=lambda m: m[0]) - 1][1]

    def result(self, *, train: bool, blocks: Mapping[str, str]) -> StepCounts:
        """What was counted; `blocks` maps module paths to stages."""
        rows = []
        for (op, module, part), s in sorted(self.sums.items()):
            block = max((b for b in blocks if module == b or module.startswith(b + ".")), key=len, default="")
            rows.append(
                OpRow(
                    op=op,
                    module=module,
                    block=block,
                    stage=blocks.get(block, part if part in ("loss", "optimizer") else "other"),
                    part=part,
                    kind=s.kind,
                    calls=s.calls,
                    flops=s.flops,
                    flops_elementwise=s.elementwise,
                    bytes_own=s.moved.own,
                    bytes_half=s.moved.half,
                    kernels=s.kernels,
                    covered_calls=s.covered,
                    unfusable=s.unfusable,
                )
            )
        frozen = any(not p.requires_grad for p in self.model.parameters())
        return StepCounts(
            rows=tuple(rows), train=train, batch=self.size, device=self.device.type, frozen_parts=frozen,
            saved=self.saved.bytes(), inputs=self.inputs.bytes(),
            parameters=self.parameters.bytes(),
        )  # fmt: skip


_PARTS: dict[str, Part] = {"loss": "loss", "backward": "backward", "optimizer": "optimizer"}


def batch_tensors(batch: Any) -> list[Tensor]:
    """Tensors of a batch of any make: ours, a TorchRec jagged tensor, or a tree of tensors."""
    if hasattr(batch, "tensors"):
        return list(batch.tensors())
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def phase_blocks(model: nn.Module) -> dict[str, str]:
    """Block path -> stage of a `CtrModel`; empty for other modules."""
    phases: Mapping[str, tuple[str, ...]] = getattr(model, "phases", {})
    return {block: stage for stage, blocks in phases.items() for block in blocks}


def _warm_up(step: TrainStep, batch: Batch, device: torch.device) -> None:
    """One uncounted step, so that optimizer state exists; on meta the optimizer alone makes it."""
    if device.type != "meta":
        step(batch)
        return
    for group in step.optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    step.optimizer.step()
    step.optimizer.zero_grad(set_to_none=True)


def count_step(model: nn.Module, batch: Batch, *, train: bool) -> StepCounts:
    """Counts one step of `bench.step` on the model's own device.

    Args:
        model: a `CtrModel` on cpu or meta. Training changes its weights: two steps are made.
        batch: on the same device.
        train: forward, loss, backward and optimizer after one uncounted step; else one `predict`, also after an
            uncounted one, which fills what a model keeps between calls.
    """
    (counts,) = count_steps(model, [batch], train=train)
    return counts


def count_steps(model: nn.Module, batches: Iterable[Batch], *, train: bool) -> Iterator[StepCounts]:
    """`count_step` of every batch in turn; one uncounted step, of the first batch, goes before them all."""
    was_training = model.training
    model.train(train)
    step: TrainStep | None = None
    try:
        for number, batch in enumerate(batches):
            recorder = Recorder(model, batch, batch.size)
            if train:
                step = step or TrainStep(model)
                if number == 0:
                    _warm_up(step, batch, recorder.device)
                step.ranges = recorder
                with recorder.active():
                    step(batch)
            else:
                if number == 0:
                    predict(model, batch)
                with recorder.active():
                    predict(model, batch)
            yield recorder.result(train=train, blocks=phase_blocks(model))
    finally:
        model.train(was_training)

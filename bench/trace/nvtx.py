"""Named ranges of a step: NVTX domain `ctrbench`, mirrored for Kineto on request (measures.md section 9).

Names, categories and colours are those of `names`: `cfg:<hash>` > `iter` > `stage:<stage>` > `block:<submodule>` >
`op:<operator>`, the last on request; numbers are payload. All are start/end ranges: a block's hooks are two functions,
and the backward may run on a thread of its own. Every start has exactly one end, also when the model or the backward
raises.

Which block an autograd node belongs to is read off autograd's sequence numbers: they grow with every node that a
thread creates, so the nodes of one call of a block are those numbered between its entry and its exit. That holds
whatever a block returns (tensors, dictionaries, jagged tensors, dataclasses) and for branches that run in parallel.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Lock, get_ident
from typing import Any

import nvtx
from torch import Tensor, nn
from torch._C._autograd import _get_sequence_nr
from torch._C._profiler import _RecordFunctionFast
from torch.utils._python_dispatch import TorchDispatchMode

from ctrbench.bench.trace.names import (
    BLOCK_PREFIX,
    COLORS,
    CONFIG_PREFIX,
    DOMAIN,
    ITER,
    NEUTRAL,
    OP_PREFIX,
    STAGE_PREFIX,
    TRACER,
)

OFF_SWITCH = "CTRBENCH_NVTX"
"""Environment variable; `0` emits no NVTX event."""
_BACKWARD = f"{STAGE_PREFIX}backward"

_NULL = nullcontext()
_SCOPE = {"scope": "user_scope"}  # a user annotation, as record_function makes
_LEAF = 2**64 - 1  # sequence number of the nodes that store a parameter's gradient


class Range:
    """One open range; `close` may be called on any thread, and ends it once."""

    __slots__ = ("_domain", "_id", "_mirror")

    def __init__(self, domain: Any, attributes: Any, mirror: str | None) -> None:
        self._domain = domain
        self._id = domain.start_range(attributes) if domain is not None else None
        # torch.profiler.record_function costs 9 us a range here, this one 1 us (both seen with a profiler running).
        self._mirror = _RecordFunctionFast(mirror, (), _SCOPE) if mirror else None
        if self._mirror is not None:
            self._mirror.__enter__()

    def close(self) -> None:
        """Ends the range."""
        if self._mirror is not None:
            self._mirror.__exit__(None, None, None)
        if self._domain is not None:
            self._domain.end_range(self._id)
        self._mirror = self._domain = None


class _Scope:
    """A range over a `with` block."""

    __slots__ = ("_name", "_open", "_outer", "_payload", "_ranges")

    def __init__(self, ranges: NvtxRanges, name: str, payload: int | None) -> None:
        self._ranges, self._name, self._payload = ranges, name, payload

    def __enter__(self) -> None:
        self._outer, self._ranges.scope = self._ranges.scope, self._name
        self._open = self._ranges.open(self._name, self._payload)

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._ranges.scope = self._outer


class _Operators(TorchDispatchMode):
    """`op:<operator>` around every operator dispatched; autograd hands the mode on to the threads of the backward."""

    def __init__(self, ranges: NvtxRanges) -> None:
        super().__init__()
        self._ranges = ranges

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        opened = self._ranges.open(f"{self._ranges.place()}/{OP_PREFIX}{func._schema.name}")
        try:
            return func(*args, **(kwargs or {}))
        finally:
            opened.close()


class NvtxRanges:
    """The tracer of a step; implements `bench.step.Ranges`. One object serves one training thread.

    Args:
        profiler: mirror every range as a user annotation `ctrbench/stage:x[/block:y]` for torch.profiler.
        every: emit in every n-th iteration only.
        first: emit from this iteration on; those before are warm-up.
        operators: a range for every operator too. Costs several us each: for looking, never for timing.

    With `CTRBENCH_NVTX=0` no NVTX event is emitted; with no NVTX tool attached either, and no mirror, nothing is
    hooked and a stage costs one attribute test.
    """

    def __init__(self, *, profiler: bool = False, every: int = 1, first: int = 0, operators: bool = False) -> None:
        if every < 1:
            raise ValueError(f"every={every}: emit in every n-th iteration, n >= 1")
        self._domain = _attached_domain()
        self._profiler, self._every, self._first, self._operators = profiler, every, first, operators
        self.enabled = profiler or self._domain is not None
        """Whether anything can be emitted at all."""
        self.entered: set[str] = set()
        """Blocks seen in a forward."""
        self._active = self.enabled
        self._step = 0
        self.scope = ""
        """Innermost range opened by a `with` block."""
        self._known: dict[str, tuple[Any, str | None]] = {}
        self._stage: Range | None = None
        self._stage_name = ""
        self._block: Range | None = None
        self._block_name, self._first_node = "", 0
        self._calls: list[tuple[int, int, str]] = []
        """(first node, first node after, block) of the forward, in order."""
        self._lock = Lock()
        self._home: int | None = None
        """Thread of the open backward stage."""
        self._running: dict[int, tuple[str | None, list[Range]]] = {}
        """Backward: thread -> (block of the running node, its open ranges, innermost last)."""

    # ------------------------------------------------------------------ ranges

    def open(self, path: str, payload: int | None = None) -> Range:
        """Opens `stage:x`, `stage:x/block:y`, `iter` ...; NVTX gets the last part, the mirror the whole path.

        The payload is the step if none is given.
        """
        known = self._known.get(path)
        if known is None:
            known = self._known[path] = self._register(path)
        attributes, mirror = known
        if attributes is not None:
            attributes.payload = self._step if payload is None else payload
        return Range(self._domain, attributes, mirror)

    def _register(self, path: str) -> tuple[Any, str | None]:
        parts = path.split("/")
        stage = parts[0].removeprefix(STAGE_PREFIX)
        attributes = None
        if self._domain is not None:
            attributes = self._domain.get_event_attributes(
                message=parts[-1], color=COLORS.get(stage, NEUTRAL), category=stage if stage in COLORS else None
            )
        # Kineto lists the operators itself.
        mirrored = self._profiler and not parts[-1].startswith(OP_PREFIX)
        return attributes, f"{DOMAIN}/{path}" if mirrored else None

    def config(self, key: str, batch: int) -> AbstractContextManager[None]:
        """`cfg:<key>` around all iterations of one configuration, with its batch size as payload."""
        return _Scope(self, f"{CONFIG_PREFIX}{key}", batch) if self.enabled else _NULL

    def place(self) -> str:
        """Path of the stage or block that the calling thread works for."""
        running = self._running.get(get_ident())
        if running is not None and running[0] is not None:
            return f"{_BACKWARD}/{BLOCK_PREFIX}{running[0]}"
        if self._home is not None:
            return _BACKWARD
        if self._stage is None:
            return self.scope
        inside = f"/{BLOCK_PREFIX}{self._block_name}" if self._block is not None else ""
        return f"{STAGE_PREFIX}{self._stage_name}{inside}"

    @contextmanager
    def iteration(self, step: int) -> Iterator[None]:
        """`iter` around one step; its number is the payload of every range inside."""
        self._step = step
        self._active = self.enabled and step >= self._first and (step - self._first) % self._every == 0
        try:
            with (
                _Scope(self, ITER, step) if self._active else _NULL,
                _Operators(self) if self._active and self._operators else _NULL,
            ):
                yield
        finally:
            self._active = self.enabled

    def stage(self, name: str, payload: int | None = None) -> AbstractContextManager[None]:
        """`stage:<name>` around a `with` block."""
        if not self._active:
            return _NULL
        return self._backward_stage(payload) if name == "backward" else _Scope(self, f"{STAGE_PREFIX}{name}", payload)

    # ----------------------------------------------------------------- forward

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[None]:
        """Hooks the blocks of `model.phases` while the context is open.

        A stage lasts from its first block to the entry of another stage's block or the end of the forward, so the
        glue after a block (sums of logits, reshapes) counts for the stage whose output it handles.

        Raises:
            ValueError: a block does not exist, or contains another one.
        """
        blocks = blocks_of(model)
        handles = []
        if self.enabled:
            for name, (stage, module) in blocks.items():
                handles.append(module.register_forward_pre_hook(partial(self._enter_block, stage, name)))
                handles.append(module.register_forward_hook(self._leave_block, always_call=True))
            handles.append(model.register_forward_hook(self._leave_forward, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._leave_forward()

    def _enter_block(self, stage: str, name: str, *_: object) -> None:
        if not self._active:
            return
        self._leave_block()
        if self._stage is None or self._stage_name != stage:
            if self._stage is not None:
                self._stage.close()
            self._stage, self._stage_name = self.open(f"{STAGE_PREFIX}{stage}"), stage
        self._block = self.open(f"{STAGE_PREFIX}{stage}/{BLOCK_PREFIX}{name}")
        self._block_name, self._first_node = name, _get_sequence_nr()
        self.entered.add(name)

    def _leave_block(self, *_: object) -> None:
        if self._block is not None:
            after = _get_sequence_nr()
            if after > self._first_node:  # else it made no node, e.g. in inference
                self._calls.append((self._first_node, after, self._block_name))
            self._block.close()
            self._block = None

    def _leave_forward(self, *_: object) -> None:
        self._leave_block()
        if self._stage is not None:
            self._stage.close()
            self._stage = None

    # ---------------------------------------------------------------- backward

    def own_backward(self, loss: Tensor) -> None:
        """Hooks the autograd nodes of `loss`, so that the backward stage is split by the blocks that made them."""
        calls, self._calls = self._calls, []
        if not self._active or not calls or loss.grad_fn is None:
            return
        with _Scope(self, TRACER, None):
            for node, block in _entries(loss.grad_fn, calls):
                node.register_prehook(partial(self._enter_node, block))

    @contextmanager
    def _backward_stage(self, payload: int | None) -> Iterator[None]:
        with _Scope(self, _BACKWARD, payload):
            self._home = get_ident()
            try:
                yield
            finally:
                with self._lock:
                    self._home = None
                    for _, opened in self._running.values():
                        _close(opened)
                    self._running.clear()

    def _enter_node(self, block: str | None, *_: object) -> None:
        """Runs on the thread of the node, before it."""
        thread = get_ident()
        with self._lock:
            if self._home is None:  # a straggler of another device after the backward has failed
                return
            if thread not in self._running:
                # The launching thread is what a reader attributes kernels by: it gets a stage range of its own.
                self._running[thread] = (None, [] if thread == self._home else [self.open(_BACKWARD)])
            current, opened = self._running[thread]
            if block == current:
                return
            if current is not None:
                opened.pop().close()
            if block is not None:
                opened.append(self.open(f"{_BACKWARD}/{BLOCK_PREFIX}{block}"))
            self._running[thread] = (block, opened)


def _attached_domain() -> Any:
    """The domain, or None when switched off or no NVTX tool is attached (then nvtx hands out no attributes)."""
    if os.environ.get(OFF_SWITCH, "1") == "0":
        return None
    domain = nvtx.get_domain(DOMAIN)
    return None if domain.get_event_attributes(message=ITER) is None else domain


def blocks_of(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Block -> (stage, module) as `model.phases` says."""
    kind, modules = type(model).__name__, dict(model.named_modules())
    blocks: dict[str, tuple[str, nn.Module]] = {}
    phases: dict[str, tuple[str, ...]] = getattr(model, "phases", {})
    for stage, names in phases.items():
        for name in names:
            if name not in modules:
                raise ValueError(f"{kind}.phases[{stage!r}]: no submodule {name!r}; see named_modules()")
            blocks[name] = (stage, modules[name])
    for name in blocks:
        inside = [other for other in blocks if other.startswith(name + ".")]
        if inside:
            raise ValueError(f"{kind}.phases: block {name!r} contains {inside[0]!r}; name only one of them")
    return blocks


def _entries(root: Any, calls: list[tuple[int, int, str]]) -> Iterator[tuple[Any, str | None]]:
    """(node, its block) of `root` and of every node that a node of another call, or of none, leads to.

    A thread runs its nodes from the youngest to the oldest, so it enters a call only through such nodes: the
    youngest of a call is always one. Nodes that only store a parameter's gradient stay with the node before.
    """
    starts = [first for first, _, _ in calls]

    def call_of(node: Any) -> tuple[int, bool]:
        number = node._sequence_nr()
        at = bisect_right(starts, number) - 1
        return at, at >= 0 and number < calls[at][1]

    place = {root: call_of(root)}
    entries, todo = {root}, [root]
    while todo:
        node = todo.pop()
        for parent, _ in node.next_functions:
            if parent is None or parent._sequence_nr() == _LEAF:
                continue
            if parent not in place:
                place[parent] = call_of(parent)
                todo.append(parent)
            if place[parent] != place[node]:
                entries.add(parent)
    for node in entries:
        at, inside = place[node]
        yield node, calls[at][2] if inside else None


def _close(opened: list[Range]) -> None:
    while opened:
        opened.pop().close()

"""Recorded models rebuilt on the meta device, so that a prediction goes the way of every projection: count, then model.

BERT-small as `h100_bert_small` recorded it; the dense part and the table operators of the recommenders of
`a100_recsys_train` and `v100_recsys_train_graphs`, whose layers are the recorded `Input Dims` of their forward.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctrbench.bench.counting.counter import Recorder
from ctrbench.bench.counting.recorded import OpCall, RecordedCalls
from ctrbench.bench.counting.rows import StepCounts


class BertSmall(nn.Module):
    """Masked-language model of 4 layers, 512 wide, 8 heads: `gaunernst/bert-small-uncased`.

    Dims: B sequences, L tokens, D width, H heads
    """

    def __init__(self, vocabulary: int = 30522, width: int = 512, layers: int = 4, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.word, self.kind = nn.Embedding(vocabulary, width), nn.Embedding(2, width)
        self.place, self.norm = nn.Embedding(512, width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(_BertLayer(width, heads) for _ in range(layers))
        self.transform, self.last_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.decoder = nn.Linear(width, vocabulary)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        (mask_BL == 1).all()
        # Kinds and places are buffers of the original: no operator makes them.
        x_BLD = self.word(ids_BL) + self.kind(torch.empty_like(ids_BL))
        x_BLD += self.place(torch.empty_like(ids_BL))
        x_BLD = self.norm(x_BLD)
        for layer in self.layers:
            x_BLD = layer(x_BLD)
        out: Tensor = self.decoder(self.last_norm(functional.gelu(self.transform(x_BLD))))
        return out


class _BertLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        q, k, v = (f(x_BLD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        a_BLD = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x_BLD.shape)
        x_BLD = self.first(self.out(a_BLD) + x_BLD)
        out: Tensor = self.second(self.down(functional.gelu(self.up(x_BLD))) + x_BLD)
        return out


def bert_small_counts(tokens: int = 141) -> StepCounts:
    """One inference of BERT-small on one sequence, bf16."""
    with torch.device("meta"):
        model = BertSmall().to(torch.bfloat16).eval()
        ids = torch.empty(1, tokens, dtype=torch.long)
        recorder = Recorder(model, (ids, ids), 1)
        with torch.no_grad(), recorder.active():
            model(ids, ids)
    return recorder.result(train=False, blocks={})


# ------------------------------------------------------------------- recommender

FORWARD = ("## forward:bottom_mlp ##", "## forward:over_arch ##")
"""User ranges of the dense part's forward in one step."""
LAYERS = frozenset({
    "aten::linear", "aten::layer_norm", "aten::sigmoid", "aten::tanh", "aten::relu", "aten::mul", "aten::add",
    "aten::bmm", "aten::clamp", "aten::nan_to_num", "aten::sum",
})  # fmt: skip
"""Operators rebuilt; concatenations are not: old recordings hold no shapes of a list."""
LOOKUP = "fbgemm::split_embedding_codegen_lookup_rowwise_adagrad_function"
_NODE = "autograd::engine::evaluate_function"
_LOOKUP_NODE = "SplitLookupFunction_rowwise_adagrad"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One operator of the recorded forward."""

    op: str
    dims: tuple[tuple[int, ...], ...]
    """Of its tensor arguments."""
    differentiable: bool
    """Whether it made a node of autograd."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookup:  # figures with a word on each, like Projection in form alone
    """One table-batched lookup, forward and backward."""

    lookups: int
    bags: int
    rows: int
    columns: int
    """Mean width of a row, over the rows of all tables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """What a recording holds of a rebuilt part, all steps added up."""

    steps: int
    kernels: int
    seconds: float
    kernels_of_all: int
    """Kernels of the whole recording, communication left out."""
    seconds_of_all: float

    def __post_init__(self) -> None:
        if not self.steps or not self.kernels:
            raise ValueError("nothing of the rebuilt part is in this recording; give one with the ranges of FORWARD")


def dense_part(recorded: RecordedCalls) -> tuple[tuple[Layer, ...], Recorded]:
    """(layers of one step, recorded kernels of those layers and their backward in all steps)."""
    spans = _Spans((s, e, t) for name, s, e, t in recorded.annotations if name in FORWARD)
    steps = len({s for name, s, _, _ in recorded.annotations if name == FORWARD[0]})
    outer = [c for c in _outermost(recorded.calls) if c in spans]
    chosen = [(c, later) for c, later in zip(outer, [*outer[1:], None], strict=True) if c.name in LAYERS and _shapes(c)]
    layers = tuple(
        Layer(op=c.name, dims=_shapes(c), differentiable=later is None or later.sequence != c.sequence)
        for c, later in chosen
    )
    own = [(c.start, c.end, c.thread) for c, _ in chosen]
    inside = _Spans(own)
    nodes = {c.sequence for c in recorded.calls if c.sequence is not None and c in inside}
    backward = [(c.start, c.end, c.thread) for c in recorded.calls if c.name.startswith(_NODE) and c.sequence in nodes]
    return layers[: len(layers) // max(steps, 1)], _recorded(recorded, [*own, *backward], steps)


def table_part(recorded: RecordedCalls) -> tuple[tuple[Lookup, ...], Recorded, Recorded]:
    """(lookups of all steps, recorded kernels of their forward, of their backward)."""
    calls = [c for c in recorded.launching() if c.name == LOOKUP]
    steps = len({s for name, s, _, _ in recorded.annotations if name == FORWARD[0]})
    forward = [(c.start, c.end, c.thread) for c in calls]
    backward = [(c.start, c.end, c.thread) for c in recorded.calls if _LOOKUP_NODE in c.name and c.kernels]
    return tuple(_lookup(c) for c in calls), _recorded(recorded, forward, steps), _recorded(recorded, backward, steps)


def _lookup(call: OpCall) -> Lookup:
    """Positions of `split_embedding_codegen_lookup_rowwise_adagrad_function`: 1 device weights, 11 indices, 12 offsets,
    20 momentum of the rows."""
    weights, rows = call.dims[1][0], call.dims[20][0]
    return Lookup(lookups=call.dims[11][0], bags=call.dims[12][0] - 1, rows=rows, columns=round(weights / rows))


def _shapes(call: OpCall) -> tuple[tuple[int, ...], ...]:
    """Shapes of the fp32 arguments that have one."""
    return tuple(tuple(d) for d, t in zip(call.dims, call.types, strict=True) if t == "float" and d)


Span = tuple[int, int, Any]


class _Spans:
    """Disjoint intervals by thread; a call is in them if one of its thread contains it."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.by_thread: dict[Any, list[tuple[int, int]]] = defaultdict(list)
        for start, end, thread in sorted(spans, key=lambda s: s[:2]):
            self.by_thread[thread].append((start, end))

    def __contains__(self, call: OpCall) -> bool:
        mine = self.by_thread.get(call.thread, [])
        at = bisect_right(mine, call.start, key=lambda s: s[0]) - 1
        return at >= 0 and call.end <= mine[at][1]


def _outermost(calls: Sequence[OpCall]) -> Iterator[OpCall]:
    """Calls of each thread that no other call contains, by start."""
    until: dict[Any, int] = {}
    for call in sorted(calls, key=lambda c: (c.start, -c.end)):
        if call.start >= until.get(call.thread, 0):
            until[call.thread] = max(call.end, call.start + 1)
            yield call


def _recorded(recorded: RecordedCalls, spans: Sequence[Span], steps: int) -> Recorded:
    comm = [k for c in recorded.launching() for k in c.kernels if "nccl" in k[0].lower()]
    inside = _Spans(spans)
    mine = [k for c in recorded.launching() if c in inside for k in c.kernels]
    return Recorded(
        steps=steps, kernels=len(mine), seconds=sum(ns for _, ns in mine) * 1e-9,
        kernels_of_all=recorded.kernels - len(comm),
        seconds_of_all=(recorded.kernels_ns - sum(ns for _, ns in comm)) * 1e-9,
    )  # fmt: skip


class _Dense(nn.Module):
    """The layers in recorded order. Which result feeds which layer is not recorded: an operand is the latest result of
    its shape, else of its size, else an input that takes a gradient."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.sequence = tuple(layers)
        self.weighted = nn.ModuleDict({
            str(i): nn.Linear(x.dims[1][1], x.dims[1][0]) if x.op == "aten::linear" else nn.LayerNorm(x.dims[1][0])
            for i, x in enumerate(layers) if x.op in ("aten::linear", "aten::layer_norm")
        })  # fmt: skip

    def forward(self) -> list[Tensor]:
        pool: list[Tensor] = []
        used: dict[int, Tensor] = {}  # held, since the number of a tensor that is gone is given to the next one
        for i, layer in enumerate(self.sequence):
            count = 1 if str(i) in self.weighted or layer.op not in _TWO else 2
            given = self._operands(layer, count, pool)
            used |= {id(t): t for t in given}
            apply = self.weighted[str(i)] if str(i) in self.weighted else _PLAIN[layer.op]
            with torch.set_grad_enabled(layer.differentiable):
                pool.append(apply(*given))
        return [t for t in pool if id(t) not in used and t.requires_grad]

    def _operands(self, layer: Layer, count: int, pool: list[Tensor]) -> list[Tensor]:
        given: list[Tensor] = []
        for shape in layer.dims[:count]:
            fresh = [t for t in reversed(pool) if not any(t is g for g in given)]
            same = next((t for t in fresh if t.shape == shape), None)
            if same is None and (like := next((t for t in fresh if t.numel() == prod(shape)), None)) is not None:
                same = like.view(shape)
            given.append(torch.empty(shape, device="meta", requires_grad=True) if same is None else same)
        return given * (count if len(given) < count else 1)


_TWO = frozenset({"aten::mul", "aten::add", "aten::bmm"})
_PLAIN: dict[str, Callable[..., Tensor]] = {
    "aten::sigmoid": torch.sigmoid, "aten::tanh": torch.tanh, "aten::relu": torch.relu, "aten::mul": torch.mul,
    "aten::add": torch.add, "aten::bmm": torch.bmm, "aten::nan_to_num": torch.nan_to_num,
    "aten::clamp": lambda x: torch.clamp(x, -1, 1), "aten::sum": lambda x: x.sum(1, keepdim=True),
}  # fmt: skip


def dense_counts(layers: Sequence[Layer]) -> StepCounts:
    """Forward and backward of the layers, one step, fp32."""
    with torch.device("meta"):
        model = _Dense(layers)
    return _forward_backward(model, lambda: model(), batch=layers[0].dims[0][0])


class _Tables(nn.Module):
    def __init__(self, lookup: Lookup) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(lookup.rows, lookup.columns))


def table_counts(lookup: Lookup) -> StepCounts:
    """Forward and backward of one lookup, fp32 rows, 8-byte indices."""
    with torch.device("meta"):
        model = _Tables(lookup)
        values_N = torch.empty(lookup.lookups, dtype=torch.long)

    def forward() -> list[Tensor]:
        return [torch.ops.ctrbench.tbe(model.weight, values_N, lookup.bags, lookup.columns)]

    return _forward_backward(model, forward, batch=lookup.bags)


def _forward_backward(model: nn.Module, forward: Callable[[], list[Tensor]], batch: int) -> StepCounts:
    recorder = Recorder(model, (), batch)
    model.train()
    with recorder.active():
        outputs = forward()
        with recorder.stage("backward"):
            torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])
    return recorder.result(train=True, blocks={})

"""`ctrbench audit my_model.py --batch FILE`: what one training step of anyone's torch model makes a machine do.

Forward and backward run once under the operator counter, on the meta device if the model allows it, else on CPU.
Nothing is trained and nothing is timed.
"""

from __future__ import annotations

import importlib.util
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from ctrbench.bench.counting.bound import Bound, mfu_bound
from ctrbench.bench.counting.counter import Recorder, phase_blocks
from ctrbench.bench.counting.projection import Projection, projections
from ctrbench.bench.counting.published import bounded_gpus
from ctrbench.bench.counting.rows import StepCounts, backward_ratio_error
from ctrbench.bench.hardware import catalogue, peak
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.schema import Batch

GPUS = ("H100 SXM", "A100-80 SXM", "L4", "B200 SXM")
LAUNCH_S = 1.5e-6
"""Fixed cost of a small kernel on an H100, fitted on recordings (measures.md section 6)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspect:
    """A module worth a look, by its share of the modelled time of a step."""

    module: str
    kind: str
    """Class of the module."""
    share: float
    """Of the modelled time: an order of magnitude."""
    limit: str
    """What most of its modelled time goes to: flops, bytes or launches."""
    calls: int
    flops: float
    bytes: float
    kernels: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditResult:
    """One audited training step (forward, sum of the outputs as loss, backward; no optimizer)."""

    model: str
    traced_on: str
    notes: tuple[str, ...]
    batch: int
    parameters: int
    counts: StepCounts
    withheld: str
    """Why utilisation is withheld, or ''."""
    bounds: dict[str, Bound]
    """GPU -> `mfu_bound` in bf16; empty when withheld."""
    suspects: tuple[Suspect, ...]
    projections: tuple[Projection, ...] = ()
    """On every catalogued GPU; empty when utilisation is withheld."""


def audit(
    model_path: str | Path, batch_path: str | Path | None = None, *, batch_factory: Callable[[], Any] | None = None
) -> AuditResult:
    """Counts one training step of the model in a Python file.

    Args:
        model_path: file with `model` (an nn.Module) or `build()`.
        batch_path: file written by `torch.save`: a tensor, a tuple or list (positional arguments), a dict (keyword
            arguments) or a KeyedJaggedTensor.
        batch_factory: makes the batch instead; default is `example_batch()` of the model's file.

    Raises:
        BadInput: the file, the model or the batch cannot be used.
    """
    path = Path(model_path)
    model, module = _model(path)
    batch = _batch(path, module, batch_path, batch_factory)
    if any(is_lazy(p) for p in model.parameters()):
        _run_or_explain(path, lambda: _call(model, batch))
    notes: tuple[str, ...] = ()
    try:
        counts, traced = count_module(_to_meta(model), _to_meta(batch)), model
    except Exception as error:  # a user's model may raise anything on meta; it gets its chance on real data below
        notes = (f"does not run on meta ({_first_line(error)}); counted on CPU, fused attention in its CPU form",)
        traced, _ = _model(path)
        counts = _run_or_explain(path, lambda: count_module(traced, batch))
    return _result(type(traced).__name__, traced, counts, notes)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def _run_or_explain(path: Path, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (Exception, SystemExit) as error:  # a user's file may raise anything; its first line is the message
        raise BadInput(
            f"{path}: the model fails on this batch: {_first_line(error)}; fix the model or the batch"
        ) from error


def _model(path: Path) -> tuple[nn.Module, ModuleType]:
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give a Python file that defines `model` or `build()`")
    spec = importlib.util.spec_from_file_location(f"ctrbench_audit_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path}: not a Python file; give one that defines `model` or `build()`")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        made = module.build() if hasattr(module, "build") else getattr(module, "model", None)
    except (Exception, SystemExit) as error:  # a user's file may raise anything, or end the program
        raise BadInput(f"{path}: cannot be loaded: {_first_line(error)}") from error
    if not isinstance(made, nn.Module):
        what = "defines neither" if made is None else f"gives a {type(made).__name__} as"
        raise BadInput(f"{path}: {what} `model` or `build()`; define one of them as, or returning, a torch.nn.Module")
    return made, module


def _batch(path: Path, module: ModuleType, batch_path: str | Path | None, factory: Callable[[], Any] | None) -> Any:
    if batch_path is None:
        factory = factory or getattr(module, "example_batch", None)
        if factory is None:
            raise BadInput(
                f"{path}: no batch; give --batch FILE (from torch.save) or define `example_batch()` in the file"
            )
        made = factory
        try:
            return made()
        except (Exception, SystemExit) as error:  # a user's function may raise anything
            raise BadInput(f"{path}: example_batch() fails: {_first_line(error)}") from error
    file = Path(batch_path)
    if not file.is_file():
        raise BadInput(f"{file}: no such batch file; write one with torch.save(batch, FILE)")
    try:
        with torch.serialization.safe_globals([KeyedJaggedTensor, JaggedTensor]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        advice = "torch.save a tensor, tuple, dict or KeyedJaggedTensor, or define `example_batch()` in the model file"
        raise BadInput(f"{file}: not a batch that can be loaded safely ({_first_line(error)}); {advice}") from error


def _to_meta(thing: Any) -> Any:
    if isinstance(thing, nn.Module | Batch):
        return thing.to("meta")
    return tree_map(_leaf_to_meta, thing, is_leaf=_is_jagged)


def _is_jagged(thing: Any) -> bool:
    """Jagged tensors are pytrees to torch; here they stay whole."""
    return isinstance(thing, KeyedJaggedTensor)


def _leaf_to_meta(leaf: Any) -> Any:
    if isinstance(leaf, KeyedJaggedTensor):
        leaf.length_per_key()  # known on the host before the values are gone
        leaf.offset_per_key()
        return leaf.to(torch.device("meta"))
    return leaf.to("meta") if isinstance(leaf, Tensor) else leaf


def _call(model: nn.Module, batch: Any) -> Any:
    forward = inspect.signature(model.forward)
    for args, kwargs in (((), batch), (batch, {})):
        fits = isinstance(kwargs, dict) and (kwargs is batch or isinstance(batch, list | tuple))
        if fits and all(isinstance(k, str) for k in kwargs):
            try:
                forward.bind(*args, **kwargs)
            except TypeError:
                continue
            return model(*args, **kwargs)
    return model(batch)


def _size(batch: Any) -> int:
    if isinstance(batch, Batch):
        return batch.size
    for leaf in tree_leaves(batch, is_leaf=_is_jagged):
        if isinstance(leaf, KeyedJaggedTensor):
            return int(leaf.stride())
        if isinstance(leaf, Tensor) and leaf.dim():
            return int(leaf.shape[0])
    return 1


def count_module(model: nn.Module, batch: Any) -> StepCounts:
    """Counts forward, sum of the outputs and backward of any module, on the device where it and the batch are."""
    recorder = Recorder(model, batch, _size(batch))
    model.train()
    with recorder.active():
        outputs = [t for t in _output_leaves(_call(model, batch)) if t.requires_grad]
        if not outputs:
            raise BadInput("no output of the model takes a gradient; nothing to train, nothing to audit")
        with recorder.stage("loss"):
            loss = torch.stack([t.float().sum() for t in outputs]).sum()
        with recorder.stage("backward"):
            loss.backward()
    return recorder.result(train=True, blocks=phase_blocks(model))


def _output_leaves(out: Any) -> list[Tensor]:
    leaves: list[Tensor] = []
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            leaves.append(leaf)
        elif callable(getattr(leaf, "values", None)):
            leaves.extend(t for t in [leaf.values()] if isinstance(t, Tensor))
    return leaves


def _result(name: str, model: nn.Module, counts: StepCounts, notes: tuple[str, ...]) -> AuditResult:
    reason = ""
    if counts.unknown:
        reason = "uncounted_op: " + ", ".join(f"{op} x{n}" for op, n in sorted(counts.unknown.items()))
    elif error := backward_ratio_error(counts):
        notes = (*notes, error)
    bounds = {} if reason else {g: mfu_bound(counts, model, catalogue()[g]) for g in GPUS}
    return AuditResult(
        model=name,
        traced_on=counts.device,
        notes=notes,
        batch=counts.batch,
        parameters=sum(p.numel() for p in model.parameters()),
        counts=counts,
        withheld=reason,
        bounds=bounds,
        suspects=_suspects(model, counts),
        projections=() if reason else projections(counts, bounded_gpus("bf16")),
    )


def _suspects(model: nn.Module, counts: StepCounts, top: int = 5) -> tuple[Suspect, ...]:
    """Modules by modelled time on an H100: per operator the longer of its FLOP and byte time, plus its launches."""
    gpu = catalogue()["H100 SXM"]
    times: dict[str, dict[str, float]] = {}
    for row in counts.rows:
        compute, memory = row.flops / peak(gpu, "bf16"), row.bytes_half / (gpu.bandwidth_gbs * 1e9)
        parts = times.setdefault(row.module, {"flops": 0.0, "bytes": 0.0, "launches": 0.0})
        parts["flops" if compute > memory else "bytes"] += max(compute, memory)
        parts["launches"] += row.kernels * LAUNCH_S
    total = sum(sum(p.values()) for p in times.values()) or 1.0
    sums = {m.module: m for m in counts.by_module()}
    ranked = sorted(times, key=lambda m: -sum(times[m].values()))[:top]
    return tuple(
        Suspect(
            module=m or "(outside submodules)",
            kind=type(model.get_submodule(m)).__name__,
            share=sum(times[m].values()) / total,
            limit=max(times[m], key=lambda k: times[m][k]),
            calls=sums[m].calls,
            flops=sums[m].flops,
            bytes=sums[m].bytes_half,
            kernels=sums[m].kernels,
        )
        for m in ranked
    )


def run_audit(path: str, batch: str | None, json: bool) -> int:
    """The command: prints the audit.

    Returns:
        0, or 2 if the file, the model or the batch cannot be used.
    """
    from ctrbench.bench.audit_text import print_error, print_json, print_text

    try:
        result = audit(path, batch)
    except BadInput as error:
        print_error(str(error))
        return 2
    (print_json if json else print_text)(result)
    return 0

"""Modes of running one model: eager, compiled or captured in CUDA graphs; float32, autocast or pure bfloat16.

A model is turned in place: who calls `model(batch)` to time, train or score it stays as it is.

`float32`: weights, activations and gradients.
`autocast`: float32 weights; torch picks bfloat16 for products, float32 for what needs the range.
`bfloat16`: dense weights and activations; table rows stay float32 and are cast where they are looked up, logits leave
the model as float32, so that the loss is float32, and Adam updates float32 masters (`MasterAdam`).

`compile`: torch.compile of everything behind the lookups, which stay eager: FBGEMM's operator is one call already.
`cuda_graph`: the same graphs with their eager kernels, captured in CUDA graphs; nothing is fused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from ctrbench.bench.runspec import RunSpec
from ctrbench.datasets.schema import Batch
from ctrbench.models.blocks import FeatureEmbedder
from ctrbench.models.embedding import EmbeddingTables, dense_parameters, embedding_tables

NARROW = frozenset({"autocast", "bfloat16"})
"""Whose products are bfloat16: their ceiling is too."""


def set_mode(model: nn.Module, dtype: str = "float32", compile: str = "eager") -> None:
    """Turns a fresh model, before its optimizer is made.

    Raises:
        RuntimeError: the mode needs a CUDA device and the model is elsewhere.
    """
    if compile == "cuda_graph" and (reason := no_cuda_graph(_device(model))):
        raise RuntimeError(reason)
    if dtype == "bfloat16":
        _narrow(model)
    if compile != "eager":
        for module in model.modules():
            if isinstance(module, FeatureEmbedder | EmbeddingTables):
                module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
        backend = "inductor" if compile == "compile" else "cudagraphs"
        model.forward = torch.compile(model.forward, backend=backend)
    # What casts a batch and its result stands around the compiled program: it is no part of the model.
    if dtype == "bfloat16":
        model.forward = _cast(model.forward)
    elif dtype == "autocast" and _device(model).type != "meta":  # torch has no autocast of shapes
        model.forward = _autocast(model.forward, _device(model).type)


def refused(spec: RunSpec) -> str:
    """Why a process cannot run in its mode; empty if it can."""
    return no_cuda_graph(torch.device(spec.device)) if spec.compile == "cuda_graph" else ""


def no_cuda_graph(device: torch.device) -> str:
    """Why nothing can be captured there; empty if it can."""
    return "" if device.type == "cuda" else f"cuda_graph: needs a CUDA device, the model is on {device.type}"


def _device(model: nn.Module) -> torch.device:
    return next(iter(dense_parameters(model))).device


def _autocast(forward: Callable[..., Tensor], device: str) -> Callable[..., Tensor]:
    def inside(batch: Batch) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            out = forward(batch)
        return out.float()

    return inside


def _cast(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda batch: forward(_narrow_inputs(batch)).float()


def _narrow(model: nn.Module) -> None:
    """Dense weights to bfloat16; rows are cast where they were looked up."""
    for p in dense_parameters(model):
        p.data = p.data.to(torch.bfloat16)
    for tables in embedding_tables(model):
        tables.forward = _narrow_lookup(tables.forward)  # type: ignore[method-assign]


def _narrow_lookup(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda ids: _narrow_rows(forward(ids))


def _narrow_rows(out: KeyedTensor | dict[str, JaggedTensor]) -> KeyedTensor | dict[str, JaggedTensor]:
    if isinstance(out, KeyedTensor):
        return KeyedTensor(keys=out.keys(), length_per_key=out.length_per_key(), values=out.values().to(torch.bfloat16))
    return {
        k: JaggedTensor(values=j.values().to(torch.bfloat16), lengths=j.lengths(), offsets=j.offsets())
        for k, j in out.items()
    }


def _narrow_inputs(batch: Batch) -> Batch:
    return replace(batch, dense_BI=batch.dense_BI.to(torch.bfloat16), missing_BI=batch.missing_BI.to(torch.bfloat16))


class MasterAdam:
    """Adam on float32 masters of bfloat16 weights; the weights are the masters, rounded."""

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, **how: Any) -> None:
        self._weights: list[Tensor] = [p for g in groups for p in g["params"]]
        mastered = [{**g, "params": [p.detach().float().requires_grad_() for p in g["params"]]} for g in groups]
        self._masters: list[Tensor] = [p for g in mastered for p in g["params"]]
        self.inner = torch.optim.Adam(mastered, lr=lr, **how)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of the masters; learning rates are set here."""
        return self.inner.param_groups

    @torch.no_grad()
    def step(self) -> None:
        """Masters take the gradients in float32, weights the masters rounded."""
        for weight, master in zip(self._weights, self._masters, strict=True):
            if weight.grad is not None:
                master.grad = weight.grad.float()
        self.inner.step()
        torch._foreach_copy_(self._weights, self._masters)

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Called with Adam once the masters have their gradients, before they move."""
        return self.inner.register_step_pre_hook(hook)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients of weights and masters."""
        self.inner.zero_grad(set_to_none=True)
        for weight in self._weights:
            weight.grad = None

"""Loss curves of the same training on two devices: same starting weights, same batches, float32, TF32 off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from ctrbench.bench.step import TrainStep
from ctrbench.bench.train import seed_everything
from ctrbench.datasets.schema import FeatureSchema
from ctrbench.models.embedding import EmbeddingTables, dense_parameters, embedding_tables
from ctrbench.models.spec import ModelSpec, random_batch

STEPS, ROWS, HELD = 50, 64, 5
TOLERANCE = 1e-3
"""Largest relative difference of a loss. Another order of summation is noise of one unit in the last place: put on
every starting weight, it moves the 50 losses of the models here by at most 5.2e-5 (LUM), but for DNN on histories: that
it turns another way at step 22 (1.4e-3, as CUDA does). A dense learning rate 20 % too high moves them by 3.8e-3 or more
(LUM's step 1). Measured on CPUs (docs/log.md)."""


@contextmanager
def strict_float32() -> Iterator[None]:
    """No TF32 in products and convolutions."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def without_dropout(config: Any) -> Any:
    """The config with every dropout at 0: devices draw different masks from one seed."""
    names = [f.name for f in fields(config) if "dropout" in f.name]
    return replace(config, **dict.fromkeys(names, 0.0))


def loss_curve(
    spec: ModelSpec, schema: FeatureSchema, device: str, *, steps: int = STEPS, lr: float = 1e-3, noise: float = 0.0
) -> list[float]:
    """Losses of a training from fixed weights on fixed random batches.

    Args:
        spec: the model, at its small preset.
        schema: features of the batches.
        device: where it trains; its weights are made on the CPU.
        steps: how many.
        lr: of the dense weights.
        noise: relative standard deviation of a disturbance of every starting weight.
    """
    config = without_dropout(spec.config())
    seed_everything(0)
    start = spec.build(config, schema)
    if noise:
        _disturb(start, noise)
    with torch.device(device):
        model: nn.Module = spec.build(config, schema)
    place = next(model.parameters()).device
    copy_weights(start, model)
    held = [random_batch(spec, config, schema, ROWS, seed=seed).to(place) for seed in range(HELD)]
    step = TrainStep(model.train(), lr=lr)
    with strict_float32():
        return [float(step(held[number % HELD])) for number in range(steps)]


def difference(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest relative difference of two curves of the same length."""
    return max(abs(a - b) / max(abs(a), abs(b)) for a, b in zip(one, other, strict=True))


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Dense weights, table rows and buffers of one model into another of the same config, on any device."""
    for theirs, mine in zip(dense_parameters(target), dense_parameters(source), strict=True):
        theirs.copy_(mine)
    for one, other in zip(embedding_tables(source), embedding_tables(target), strict=True):
        tables = other.weights()
        for name, rows in one.weights().items():
            tables[name].copy_(rows)
    for a, b in zip(_buffers(source), _buffers(target), strict=True):
        b.copy_(a)


def _buffers(model: nn.Module) -> list[torch.Tensor]:
    """Buffers outside the tables, whose own are bookkeeping of their device."""
    inside = {id(b) for m in model.modules() if isinstance(m, EmbeddingTables) for b in m.buffers()}
    return [b for b in model.buffers() if id(b) not in inside]


@torch.no_grad()
def _disturb(model: nn.Module, noise: float) -> None:
    g = torch.Generator().manual_seed(1)
    for p in dense_parameters(model):
        p.mul_(1 + noise * torch.randn(p.shape, generator=g))
    for tables in embedding_tables(model):
        for rows in tables.weights().values():
            rows.mul_(1 + noise * torch.randn(rows.shape, generator=g))

"""Training to a row budget with early stopping on the end of train, and scoring of a whole split."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ctrbench.bench.quality import auc
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.step import TrainStep, predict
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import Batch
from ctrbench.models.embedding import dense_parameters, embedding_tables


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How much a model may learn from; the same for every model of a comparison."""

    train_rows: int
    valid_rows: int
    epochs: int
    evaluations: int
    patience: int
    batch: int
    eval_batch: int
    lr: float
    history_length: int
    plateau: float = 1.0
    """Factor on every learning rate after a look without a gain."""


def budget_of(spec: RunSpec) -> Budget:
    """The training budget part of a spec."""
    return Budget(
        train_rows=spec.train_rows, valid_rows=spec.valid_rows, epochs=spec.epochs, evaluations=spec.evaluations,
        patience=spec.patience, batch=spec.batch, eval_batch=spec.eval_batch, lr=spec.lr,
        history_length=spec.history_length, plateau=spec.plateau,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the validation rows."""

    rows_seen: int
    train_loss: float
    valid_auc: float


def seed_everything(seed: int) -> None:
    """Weights, dropout and order follow from this number alone (one thread, CPU)."""
    torch.manual_seed(seed)
    np.random.seed(seed)


def scores(
    model: nn.Module, prepared: Prepared, split: str, budget: Budget, rows: int | None = None,
    labels: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """(score_N, label_N, user_N) of a split in stored order; `labels` stand in for the stored ones."""
    model.eval()
    out: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    loader = Loader(prepared, split, budget.eval_batch, rows=rows, history_length=budget.history_length, labels=labels)
    for batch in loader:
        out.append((predict(model, batch).numpy(), batch.label_B.numpy(), batch.user_B.numpy()))
    model.train()
    score, label, user = (np.concatenate(column) for column in zip(*out, strict=True))
    return score, label, user


def train(
    model: nn.Module, prepared: Prepared, budget: Budget, seed: int, labels: Mapping[str, np.ndarray] | None = None
) -> list[Look]:
    """Trains in place and leaves the weights of the best look at the validation rows.

    Args:
        model: a `CtrModel`.
        prepared: the data.
        budget: how much it may learn from.
        seed: of the order of rows.
        labels: split -> labels of the rows used, in stored order, in place of the stored ones: for controls.

    Returns:
        every look, in order; training ended after `patience` looks without a gain or with the budget.
    """
    given = labels or {}
    step = TrainStep(model, lr=budget.lr)
    looks: list[Look] = []
    best, state, stale, rows_seen = -1.0, state_of(model), 0, 0
    model.train()
    for epoch in range(budget.epochs):
        loader = Loader(
            prepared, "train", budget.batch, rows=budget.train_rows, shuffle_seed=1000 * seed + epoch,
            history_length=budget.history_length, drop_last=True, labels=given.get("train"),
        )  # fmt: skip
        for part in _parts(loader, len(loader), budget.evaluations):
            losses = []
            for batch in part:
                losses.append(step(batch))
                rows_seen += batch.size
            score, label, _ = scores(model, prepared, "valid", budget, budget.valid_rows, given.get("valid"))
            looks.append(Look(rows_seen, float(torch.stack(losses).mean()), auc(label, score)))
            if looks[-1].valid_auc > best:
                best, state, stale = looks[-1].valid_auc, state_of(model), 0
            else:
                stale += 1
                step.scale_lr(budget.plateau)
            if stale >= budget.patience:
                break
        else:
            continue
        break
    restore(model, state)
    return looks


def _parts(loader: Loader, batches: int, count: int) -> Iterator[Iterator[Batch]]:
    """Cuts one pass over the loader into `count` nearly equal parts."""
    stream = iter(loader)
    edges = [round(i * batches / count) for i in range(count + 1)]
    for start, end in itertools.pairwise(edges):
        if end > start:
            yield (next(stream) for _ in range(end - start))


def state_of(model: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor], dict[str, torch.Tensor]]:
    """Copies of dense weights, table rows and buffers."""
    return (
        [p.detach().clone() for p in dense_parameters(model)],
        [w.detach().clone() for t in embedding_tables(model) for w in t.weights().values()],
        copy.deepcopy({k: b for k, b in model.named_buffers() if "lookup" not in k}),
    )


@torch.no_grad()
def restore(model: nn.Module, state: tuple[list[torch.Tensor], list[torch.Tensor], dict[str, torch.Tensor]]) -> None:
    for p, saved in zip(dense_parameters(model), state[0], strict=True):
        p.copy_(saved)
    live = [w for t in embedding_tables(model) for w in t.weights().values()]
    for w, saved in zip(live, state[1], strict=True):
        w.copy_(saved)
    buffers = dict(model.named_buffers())
    for name, saved in state[2].items():
        buffers[name].copy_(saved)

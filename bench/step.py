"""One training step and one inference call, the same code in the timed, counted and traced processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ctrbench.datasets.schema import Batch
from ctrbench.models.embedding import dense_parameters, embedding_tables


class Ranges(Protocol):
    """What a step needs of a tracer; `bench.trace.nvtx.NvtxRanges` is the real one."""

    def stage(self, name: str, payload: int | None = None) -> AbstractContextManager[None]:
        """A `stage:<name>` range."""
        ...

    def own_backward(self, loss: Tensor) -> None:
        """Called between forward and backward: attribute the autograd graph of `loss` to blocks."""
        ...


class NoRanges:
    """No tracer: timed and counted processes."""

    _null = nullcontext()

    def stage(self, name: str, payload: int | None = None) -> AbstractContextManager[None]:
        return self._null

    def own_backward(self, loss: Tensor) -> None:
        return None


class TrainStep:
    """Forward, BCE, backward, Adam on dense weights, the tables' own optimizer.

    Args:
        model: a `CtrModel`.
        lr: of Adam on dense weights.
        foreach: multi-tensor Adam (said explicitly: on meta the default falls back to one kernel a tensor).
        ranges: tracer, none in a timed process.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        foreach: bool = True,
        ranges: Ranges | None = None,
    ) -> None:
        self.model, self.ranges = model, ranges or NoRanges()
        self.tables = embedding_tables(model)
        self.optimizer = torch.optim.Adam(dense_parameters(model), lr=lr, weight_decay=weight_decay, foreach=foreach)
        self.extra_loss: Callable[[], Tensor] | None = getattr(model, "extra_loss", None)

    def __call__(self, batch: Batch) -> Tensor:
        """Runs one step; returns the detached mean loss."""
        logit_B = self.model(batch)
        with self.ranges.stage("loss"):
            loss = binary_cross_entropy_with_logits(logit_B, batch.label_B)
            if self.extra_loss is not None:
                loss = loss + self.extra_loss()
        self.ranges.own_backward(loss)
        with self.ranges.stage("backward"):
            loss.backward()
            # Frees the graph inside the stage instead of on return: 0.1 ms that no stage would own.
            loss = loss.detach()
            del logit_B
        with self.ranges.stage("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            for tables in self.tables:
                tables.step()
        return loss


@torch.no_grad()
def predict(model: nn.Module, batch: Batch) -> Tensor:
    """Probabilities [B]; the model must be in eval mode.

    `no_grad`, not `inference_mode`: FBGEMM's lookup has a CPU kernel behind autograd only.
    """
    return torch.sigmoid(model(batch))

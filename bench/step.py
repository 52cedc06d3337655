"""One training step and one inference call, the same code in the timed, counted and traced processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ctrbench.bench.modes import MasterAdam
from ctrbench.datasets.schema import Batch
from ctrbench.kernels.bce import bce
from ctrbench.models.blocks import FeatureEmbedder
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
    """Forward, BCE and penalties, backward, Adam on dense weights, the tables' own optimizer.

    L2 of the tables is theirs (`TableConfig.l2`); the vectors of dense fields follow it.

    Args:
        model: a `CtrModel`.
        lr: of Adam on dense weights.
        weight_decay: L2 of the dense weights, added to their gradient.
        foreach: multi-tensor Adam (said explicitly: on meta the default falls back to one kernel a tensor); on CPU,
            where that is a loop over tensors and operators, the kernel that does all of a tensor at once.
        ranges: tracer, none in a timed process.
        call: what is called in the model's place, where something is wrapped around it.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        foreach: bool = True,
        ranges: Ranges | None = None,
        call: nn.Module | None = None,
    ) -> None:
        self.model, self.ranges = call or model, ranges or NoRanges()
        self.tables = embedding_tables(model)
        groups = _groups(model, weight_decay)
        narrow = any(p.dtype != torch.float32 for g in groups for p in g["params"])
        made = MasterAdam if narrow else torch.optim.Adam
        on_cpu = all(p.device.type == "cpu" for g in groups for p in g["params"])
        how: dict[str, Any] = {"fused": True} if foreach and on_cpu else {"foreach": foreach}
        self.optimizer: MasterAdam | torch.optim.Adam = made(groups, lr=lr, **how)
        self.extra_loss: Callable[[], Tensor] | None = getattr(model, "extra_loss", None)
        self.returns_loss: bool = getattr(model, "returns_loss", False)
        self._scale = 1.0

    def __call__(self, batch: Batch) -> Tensor:
        """Runs one step; returns the detached mean loss, penalties included."""
        logit_B = self.model(batch)
        with self.ranges.stage("loss"):
            # A pre-training has a loss of its own: its model returns it.
            loss = logit_B if self.returns_loss else bce(logit_B, batch.label_B)
            if self.extra_loss is not None:
                loss = loss + self.extra_loss()
            for tables in self.tables:
                if tables.penalty is not None:
                    loss = loss + tables.penalty()
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

    def scale_lr(self, factor: float) -> None:
        """Multiplies every learning rate, dense and tables, from the next step on."""
        self._scale *= factor
        for group in self.optimizer.param_groups:
            group["lr"] *= factor
        for tables in self.tables:
            tables.set_lr(tables.config.lr * self._scale)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Dense weights by their weight decay, in module order."""
    own = {id(p): m.l2 for m in model.modules() if isinstance(m, FeatureEmbedder) and m.l2 for p in m.vectors}
    groups: dict[float, list[nn.Parameter]] = {}
    for p in dense_parameters(model):
        groups.setdefault(own.get(id(p), weight_decay), []).append(p)
    return [{"params": params, "weight_decay": decay} for decay, params in groups.items()]


@torch.no_grad()
def predict(model: nn.Module, batch: Batch) -> Tensor:
    """Probabilities [B]; the model must be in eval mode.

    `no_grad`, not `inference_mode`: FBGEMM's lookup has a CPU kernel behind autograd only.
    """
    return torch.sigmoid(model(batch))

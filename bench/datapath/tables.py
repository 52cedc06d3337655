"""Embedding tables merged into one, side by side in one operator, or each on its own: lookup, backward and update.

Dims: B batch, F features, N ids of all features, D width of a row
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ctrbench.bench.alternate import alternate
from ctrbench.bench.datapath.timed import Found, made_up
from ctrbench.bench.runspec import RunSpec
from ctrbench.models.embedding import EmbeddingTables, TableConfig
from ctrbench.models.table_lookups import fused_tables

FEATURES = {26: 20_000, 200: 10_000, 600: 5_000}
"""Features, each with a table -> rows of every table."""
BATCH, WIDTH, LIMIT_S = 1_024, 16, 8.0
LR = 0.01
"""Of SGD: the one optimizer that all three ways have."""


class Stacked(nn.Module):
    """One table over the rows of all features, in the operator that models use.

    Args:
        rows: of every feature's part.
        features: how many.
        width: of a row.
    """

    def __init__(self, rows: int, features: int, width: int) -> None:
        super().__init__()
        self.lookup = fused_tables([rows * features], width, [0] * features, "sgd", LR, 1e-8, "cpu")
        self.start_F = torch.arange(features) * rows

    def forward(self, ids: KeyedJaggedTensor) -> Tensor:
        """Rows [B, F*D]; one id a feature and row of the batch."""
        flat_N = (ids.values().view(len(self.start_F), -1) + self.start_F[:, None]).flatten()
        return self.lookup(flat_N, ids.offsets())


def separate(rows: int, features: int, width: int, impl: str) -> EmbeddingTables:
    """A table a feature: `fused`, all in one operator, or `per_table`, each a module with a sparse gradient."""
    names = [f"f{i}" for i in range(features)]
    tables = [EmbeddingBagConfig(name=n, embedding_dim=width, num_embeddings=rows, feature_names=[n]) for n in names]
    return EmbeddingTables(tables, TableConfig(impl=impl, optimizer="sgd", lr=LR))  # type: ignore[arg-type]


def tables_part(spec: RunSpec, features: dict[int, int] | None = None, batch: int = BATCH) -> Found:
    """Forward, backward and SGD of a batch of uniform ids."""
    samples = {}
    for many, rows in (features or FEATURES).items():
        ids = uniform_ids(many, rows, batch, spec.seed)
        grad_BF = torch.randn(batch, many * WIDTH, generator=torch.Generator().manual_seed(spec.seed))
        modules = {
            "stacked": Stacked(rows, many, WIDTH), "per_feature": separate(rows, many, WIDTH, "fused"),
            "per_table": separate(rows, many, WIDTH, "per_table"),
        }  # fmt: skip
        samples[str(many)] = alternate({w: step_of(m, ids, grad_BF) for w, m in modules.items()}, limit_s=LIMIT_S)
    sizes = {"batch": batch, "width": WIDTH, "optimizer": "sgd", "rows": features or FEATURES}
    return Found(base=made_up(spec), phase="train", samples=samples, extra={"sizes": sizes})


def uniform_ids(features: int, rows: int, batch: int, seed: int) -> KeyedJaggedTensor:
    """One id a feature and row."""
    g = torch.Generator().manual_seed(seed)
    return KeyedJaggedTensor(
        keys=[f"f{i}" for i in range(features)], values=torch.randint(0, rows, (features * batch,), generator=g),
        lengths=torch.ones(features * batch, dtype=torch.int32), length_per_key=[batch] * features, stride=batch,
    )  # fmt: skip


def step_of(module: nn.Module, ids: KeyedJaggedTensor, grad_BF: Tensor) -> Callable[[], None]:
    """One lookup with its backward and update."""

    def run() -> None:
        out = module(ids)
        (out.values() if isinstance(out, KeyedTensor) else out).backward(grad_BF)
        if isinstance(module, EmbeddingTables):
            module.step()

    return run

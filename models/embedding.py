"""Embedding tables: TorchRec configs and jagged tensors at the face, FBGEMM's table-batched operator inside.

`fused` runs one operator for all tables, forward and backward, with the optimizer inside the backward; on a CPU and
under Adagrad it is one in C on FBGEMM's storage (kernels/cpu/table_rows.py), where a compiler builds it.
`per_table` is the strawman that many published baselines are: one eager lookup and one sparse gradient a table.
`sharded` holds TorchRec's own collection, which bench/distributed spreads over processes.

Dims: B batch, F features, N ids of all features, D width of a row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from ctrbench.models import sharded_tables
from ctrbench.models.row_penalty import RowPenalty, bags_of_one
from ctrbench.models.table_lookups import MetaTables, Optimizer, fused_tables, padded_width, rows_in_c, table_optimizer

Impl = Literal["fused", "per_table", "sharded"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableConfig:
    """How tables are stored and trained; the same for every table of a model."""

    impl: Impl = "fused"
    """`per_table` is the named strawman variant."""
    optimizer: Optimizer = "rowwise_adagrad"
    """`adam` moves every row at every step, from dense gradients, as FuxiCTR does; `per_table` only."""
    lr: float = 0.02
    eps: float = 1e-8
    init_std: float = 0.01
    """Standard deviation of the normal start; padding rows start at zero."""
    l2: float = 0.0
    """Lambda; lambda/2 |row|^2 of the penalised rows joins the loss."""
    l2_rows: Literal["batch_rows", "full_table"] = "batch_rows"
    """Penalised in a step: the distinct rows of its batch, or every row (FuxiCTR; with `adam` only)."""
    l2_by_count: bool = False
    """Divide a row's term by how often training has read it (DIN's mini-batch aware form; `batch_rows` only)."""

    def __post_init__(self) -> None:
        if self.optimizer == "adam" and self.impl != "per_table":
            raise ValueError("table optimizer adam needs impl=per_table: FBGEMM refuses Adam on CPU")
        if self.impl == "sharded" and (self.l2 or self.optimizer == "adam"):
            raise ValueError("sharded tables have no l2 and no adam: their optimizer is fused; use l2=0 and adagrad")
        if self.l2 < 0:
            raise ValueError(f"l2={self.l2}: must not be negative")
        if self.l2_rows not in ("batch_rows", "full_table"):
            raise ValueError(f"l2_rows={self.l2_rows!r}: use batch_rows or full_table")
        if self.l2 and self.l2_rows == "full_table" and (self.optimizer != "adam" or self.l2_by_count):
            raise ValueError("l2_rows=full_table needs the dense gradients of table optimizer adam, and no l2_by_count")


class EmbeddingTables(nn.Module):
    """All tables of one model, every row of the same width.

    Args:
        tables: TorchRec configs; `EmbeddingBagConfig` selects pooled (sum) lookups, `EmbeddingConfig` unpooled.
        config: storage and optimizer.
        device: `meta` builds shapes only.
        features: keys of the batches in their order; the order of the configs if not given.

    Pooled lookups return a `KeyedTensor` [B, F*D], unpooled ones one `JaggedTensor` a feature.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig] | Sequence[EmbeddingConfig],
        config: TableConfig,
        device: str = "cpu",
        features: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        widths = {t.embedding_dim for t in tables}
        if len(widths) != 1:
            raise ValueError(f"all tables of a model share one width, found {sorted(widths)}")
        self.config = config
        self.pooled = isinstance(tables[0], EmbeddingBagConfig)
        self.width = widths.pop()
        self.stored = padded_width(self.width)
        self.rows = {t.name: t.num_embeddings for t in tables}
        table_of = {f: t.name for t in tables for f in t.feature_names}
        self.table_of = {f: table_of[f] for f in (features or table_of)}
        names = list(self.rows)
        self._start = dict(zip(names, accumulate(self.rows.values(), initial=0), strict=False))
        # The operator's Adagrad fails on CPU unless the features of a table stand side by side; a history that
        # shares the table of its target does not. One table over all rows has all features side by side.
        order = [names.index(t) for t in self.table_of.values()]
        self.stacked = not self.pooled or sum(a != b for a, b in pairwise(order)) >= len(set(order))
        self.lookup: Any  # the operator has no types of its own
        if device == "meta":
            self.lookup = MetaTables(sum(self.rows.values()), self.stored)
        elif config.impl == "sharded":
            self.lookup = sharded_tables.collection(self.rows, self.table_of, self.stored)
        elif config.impl == "per_table":
            sparse = config.optimizer != "adam"
            self.lookup = nn.ModuleDict({n: nn.Embedding(r, self.stored, sparse=sparse) for n, r in self.rows.items()})
            # Adam adds the decay to the gradient: lambda/2 |w|^2 of every row
            decay = config.l2 if config.l2_rows == "full_table" else 0.0
            self._optimizer = table_optimizer(self.lookup.parameters(), config.optimizer, config.lr, config.eps, decay)
        else:
            # Unpooled rows are bags of one id over the stacked tables: PoolingMode.NONE, the operator's own
            # unpooled mode, takes 5-7x as long backward on CPU (docs/log.md) and gives the same rows.
            spec = [sum(self.rows.values())] if self.stacked else list(self.rows.values())
            of_feature = ([0] * len(self.table_of) if self.stacked else order) if self.pooled else None
            self.lookup = fused_tables(spec, self.stored, of_feature, config.optimizer, config.lr, config.eps, device)
        first, count = ([of[t] for t in self.table_of.values()] for of in (self._start, self.rows))
        self.in_c = rows_in_c(self.lookup, config.optimizer, first, count, config.eps)
        """The operator in C on the same storage, where there is one."""
        self.penalty = (
            RowPenalty(sum(self.rows.values()), config.l2, config.l2_by_count, device)
            if config.l2 and config.l2_rows == "batch_rows"
            else None
        )
        self.reset_parameters()

    def weights(self) -> dict[str, Tensor]:
        """Table name -> [rows, stored width], views of the live storage."""
        if self.config.impl == "sharded":
            return {}  # no process holds them; bench/distributed starts each shard where it lies
        if isinstance(self.lookup, MetaTables):
            return {n: self.lookup.weight[self._start[n] : self._start[n] + r] for n, r in self.rows.items()}
        if isinstance(self.lookup, nn.ModuleDict):
            return {n: m.get_parameter("weight").detach() for n, m in self.lookup.items()}
        split = self.lookup.split_embedding_weights()
        if not self.stacked:
            return dict(zip(self.rows, split, strict=True))
        return {n: split[0][self._start[n] : self._start[n] + r] for n, r in self.rows.items()}

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Normal start, padding row and surplus columns zero."""
        for weight in self.weights().values():
            weight.zero_()
            weight[1:, : self.width].normal_(0.0, self.config.init_std, generator=generator)

    def bytes_tables(self) -> int:
        """Bytes of the rows as the model defines them (without surplus columns)."""
        return sum(self.rows.values()) * self.width * 4

    def bytes_optimizer(self) -> int:
        """Bytes of the tables' optimizer state."""
        per_row = {"rowwise_adagrad": 4, "adagrad": 4 * self.width, "sgd": 0, "adam": 8 * self.width}
        return sum(self.rows.values()) * per_row[self.config.optimizer]

    @property
    def num_weights(self) -> int:
        """Parameters in the tables, surplus columns left out."""
        return sum(self.rows.values()) * self.width

    def set_lr(self, lr: float) -> None:
        """Learning rate of the tables from the next step on."""
        if isinstance(self.lookup, SplitTableBatchedEmbeddingBagsCodegen):
            self.lookup.set_learning_rate(lr)
        elif isinstance(self.lookup, nn.ModuleDict):
            for group in self._optimizer.param_groups:
                group["lr"] = lr
        elif self.config.impl == "sharded":
            sharded_tables.set_lr(self.lookup, lr)

    def step(self) -> None:
        """Apply the tables' optimizer; nothing to do when it is fused into the backward."""
        if isinstance(self.lookup, nn.ModuleDict):
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def forward(self, ids: KeyedJaggedTensor) -> KeyedTensor | dict[str, JaggedTensor]:
        """Rows of every key of `ids`, whose keys are the features given at construction, in that order."""
        keys = ids.keys()
        if self.config.impl == "sharded":
            found = sharded_tables.rows(self.lookup, ids)
            return sharded_tables.sums(found, ids.stride()) if self.pooled else found
        if self.pooled:
            values = self._pooled(ids)
            if self.penalty is not None and self.training:
                self.penalty.note(self._flat(ids), bags_of_one(values, ids))
            return KeyedTensor(keys=keys, length_per_key=[self.stored] * len(keys), values=values)
        rows_ND = self._unpooled(ids)
        if self.penalty is not None and self.training:
            self.penalty.note(self._flat(ids), rows_ND)
        # One split: its gradient is one concatenation, that of a slice a whole tensor of zeros for every key.
        parts, lengths = rows_ND.split(ids.length_per_key()), ids.lengths().view(len(keys), -1)
        return {k: JaggedTensor(values=v, lengths=n) for k, v, n in zip(keys, parts, lengths, strict=True)}

    @torch.no_grad()
    def gather(self, ids: KeyedJaggedTensor) -> Tensor:
        """Rows [N, W] of all ids, key by key, of some features: a gather without the lookup operator's overhead."""
        if isinstance(self.lookup, nn.ModuleDict):
            return self._unpooled(ids)[:, : self.width]
        first = next(iter(self.weights().values()))  # the tables lie one after another
        whole = first.as_strided((sum(self.rows.values()), self.stored), (self.stored, 1))
        return torch.nn.functional.embedding(self._flat(ids), whole)[:, : self.width]

    def _pooled(self, ids: KeyedJaggedTensor) -> Tensor:
        if self.in_c is not None:
            return self.in_c(ids, ids.offsets())
        if isinstance(self.lookup, SplitTableBatchedEmbeddingBagsCodegen):
            return self.lookup(self._flat(ids) if self.stacked else ids.values(), ids.offsets())
        if isinstance(self.lookup, MetaTables):
            return self.lookup.pooled(ids.values(), len(ids.keys()), ids.stride())
        columns = []
        for key in ids.keys():
            jagged, table = ids[key], self.lookup[self.table_of[key]]
            bags = nn.functional.embedding_bag
            values, offsets = jagged.values(), jagged.offsets()
            columns.append(
                bags(values, table.weight, offsets, mode="sum", sparse=table.sparse, include_last_offset=True)
            )
        return torch.cat(columns, dim=1)

    def _unpooled(self, ids: KeyedJaggedTensor) -> Tensor:
        if isinstance(self.lookup, MetaTables):
            return self.lookup(ids.values())
        if isinstance(self.lookup, nn.ModuleDict):
            return torch.cat([self.lookup[self.table_of[k]](ids[k].values()) for k in ids.keys()])
        if self.in_c is not None:
            return self.in_c(ids, None)
        flat = self._flat(ids)
        return self.lookup(flat, torch.arange(flat.numel() + 1, device=flat.device))

    def _flat(self, ids: KeyedJaggedTensor) -> Tensor:
        """Ids as rows of the stacked tables."""
        device, per_key = ids.values().device, ids.length_per_key()
        starts = torch.tensor([self._start[self.table_of[k]] for k in ids.keys()], device=device)
        return ids.values() + starts.repeat_interleave(torch.tensor(per_key, device=device), output_size=sum(per_key))


def dense_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter outside the embedding tables, in module order."""
    inside = {id(p) for m in model.modules() if isinstance(m, EmbeddingTables) for p in m.parameters()}
    return [p for p in model.parameters() if id(p) not in inside]


def embedding_tables(model: nn.Module) -> list[EmbeddingTables]:
    """The table modules of a model."""
    return [m for m in model.modules() if isinstance(m, EmbeddingTables)]


def count_parameters(model: nn.Module) -> int:
    """Parameters as a paper would count them: dense weights plus table rows without surplus columns."""
    return sum(p.numel() for p in dense_parameters(model)) + sum(t.num_weights for t in embedding_tables(model))

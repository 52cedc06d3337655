"""Tables of a model over processes: TorchRec's planner decides where, `DistributedModelParallel` puts them there.

Dense weights are on every process and averaged by DDP. Rows start from numbers that depend on table and row alone, so
that every plan, on any number of processes, starts from the same table.

Dims: R rows of a shard, D its columns
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import psutil
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingPlan, ShardingType

from ctrbench.datasets.errors import BadInput
from ctrbench.models.embedding import EmbeddingTables, TableConfig

Sharding = Literal["auto", "table_wise", "row_wise", "column_wise"]
TYPES = {
    "table_wise": ShardingType.TABLE_WISE, "row_wise": ShardingType.ROW_WISE, "column_wise": ShardingType.COLUMN_WISE,
}  # fmt: skip
BLOCK = 65_536
"""Rows that start from one seed."""
LEAST_COLUMNS = 4
"""Of a shard by columns: FBGEMM's rows are multiples of four values."""
_OPTIMIZERS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """One shard of one table."""

    table: str
    sharding: str
    rank: int
    rows: int
    columns: int

    @property
    def bytes(self) -> int:
        """Of its weights."""
        return 4 * self.rows * self.columns


def shard(
    model: nn.Module, how: Sharding, batch: int, device: torch.device
) -> tuple[DistributedModelParallel, list[Placement]]:
    """Spreads the tables of a model that was built with `TableConfig.impl="sharded"`.

    Args:
        model: changed in place; its dense weights must be equal on all processes.
        how: which plans the planner may choose from.
        batch: rows a process and step.
        device: of this process.

    Raises:
        BadInput: no plan fits into memory, or none of this kind exists.
    """
    config = next(m.config for m in model.modules() if isinstance(m, EmbeddingTables))
    plan = _plan(model, how, batch, device, config)
    wrapped = DistributedModelParallel(model, device=device, plan=plan, sharders=[_sharder(config)])
    return wrapped, list(placements(plan))


def _sharder(config: TableConfig) -> EmbeddingCollectionSharder:
    given = {"optimizer": _OPTIMIZERS[config.optimizer], "learning_rate": config.lr, "eps": config.eps}
    return EmbeddingCollectionSharder(fused_params=given)


def _plan(model: nn.Module, how: Sharding, batch: int, device: torch.device, config: TableConfig) -> ShardingPlan:
    from torch import distributed as dist

    if how == "column_wise" and config.optimizer == "rowwise_adagrad":
        raise BadInput(
            "sharding=column_wise: row-wise Adagrad keeps one state a row, which no process would have whole; add "
            "run.table_optimizer=adagrad, or shard by rows or tables"
        )
    allowed = [t.value for name, t in TYPES.items() if how in ("auto", name)]
    if how == "auto" and config.optimizer == "rowwise_adagrad":
        allowed.remove(ShardingType.COLUMN_WISE.value)
    constraint = ParameterConstraints(
        sharding_types=allowed, compute_kernels=[EmbeddingComputeKernel.FUSED.value], min_partition=LEAST_COLUMNS
    )
    tables = {t: constraint for m in model.modules() if isinstance(m, EmbeddingTables) for t in m.rows}
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    topology = Topology(
        world_size=dist.get_world_size(), local_world_size=local, compute_device=device.type,
        hbm_cap=torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        ddr_cap=psutil.virtual_memory().available // local,
    )  # fmt: skip
    planner = EmbeddingShardingPlanner(topology=topology, batch_size=batch, constraints=tables, debug=False)
    try:
        return planner.collective_plan(model, [_sharder(config)], dist.GroupMember.WORLD)
    except Exception as error:  # PlannerError and what its proposers raise
        raise BadInput(f"sharding={how}: TorchRec's planner found no plan: {error}; try sharding=auto") from error


def placements(plan: ShardingPlan) -> Iterator[Placement]:
    """Every shard of a plan."""
    for module, tables in plan.plan.items():
        for table, found in tables.items():
            for piece in found.sharding_spec.shards:
                rows, columns = piece.shard_sizes
                name = f"{module}.{table}" if module else table
                yield Placement(table=name, sharding=found.sharding_type, rank=piece.placement.rank(), rows=rows,
                                columns=columns)  # fmt: skip


def balance(shards: list[Placement], world: int) -> dict[str, Any]:
    """Bytes of tables by rank, and how far the fullest is above the mean."""
    held: dict[int, int] = defaultdict(int)
    for piece in shards:
        held[piece.rank] += piece.bytes
    by_rank = [held[r] for r in range(world)]
    mean = sum(by_rank) / world
    return {"bytes_by_rank": by_rank, "fullest_over_mean": max(by_rank) / mean if mean else 1.0,
            "shards": [asdict(piece) for piece in shards]}  # fmt: skip


@torch.no_grad()
def start_rows(model: nn.Module, seed: int) -> None:
    """Normal start of every table's rows, sharded or not; padding rows and surplus columns are zero."""
    for path, module in model.named_modules():
        if not isinstance(module, EmbeddingTables):
            continue
        for name in module.rows:
            for rows_RD, first, left in _pieces(module, name):
                for start in range(0, len(rows_RD), BLOCK):
                    part = rows_RD[start : start + BLOCK]
                    part.copy_(
                        _rows(module, f"{path}.{name}", seed, first + start, len(part))[:, left : left + part.shape[1]]
                    )


def _pieces(module: EmbeddingTables, name: str) -> Iterator[tuple[Tensor, int, int]]:
    """(weights, first row, first column) of what this process holds of a table."""
    if module.config.impl != "sharded":
        yield module.weights()[name], 0, 0
        return
    whole = module.lookup.state_dict()[f"embeddings.{name}.weight"]
    for piece in whole.local_shards():
        first, left = piece.metadata.shard_offsets
        yield piece.tensor, first, left


def _rows(module: EmbeddingTables, name: str, seed: int, first: int, count: int) -> Tensor:
    """Rows [first, first + count) of a table at its start, whole width."""
    parts = []
    for block in range(first // BLOCK, (first + count - 1) // BLOCK + 1):
        digest = hashlib.sha256(f"{name}:{seed}:{block}".encode()).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        parts.append(torch.randn(BLOCK, module.width, generator=random) * module.config.init_std)
    at = first - first // BLOCK * BLOCK
    rows = torch.cat(parts)[at : at + count]
    if first == 0:
        rows[0] = 0.0
    return torch.nn.functional.pad(rows, (0, module.stored - module.width))

"""TorchRec's unpooled collection as the tables of a model that is trained over processes (bench/distributed).

Dims: B batch, N ids of all bags, D width of a row
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor


def collection(rows: Mapping[str, int], table_of: Mapping[str, str], width: int) -> EmbeddingCollection:
    """Shapes alone; `DistributedModelParallel` puts rows behind them.

    Args:
        rows: table -> its number of rows.
        table_of: feature -> its table.
        width: of a row.
    """
    features: dict[str, list[str]] = {table: [] for table in rows}
    for feature, table in table_of.items():
        features[table].append(feature)
    configs = [
        EmbeddingConfig(name=t, embedding_dim=width, num_embeddings=n, feature_names=features[t])
        for t, n in rows.items()
    ]
    return EmbeddingCollection(tables=configs, device=torch.device("meta"))


def rows(lookup: Any, ids: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
    """Rows of every key, in the order of `ids`."""
    found = lookup(ids)
    return {k: found[k] for k in ids.keys()}


def sums(found: Mapping[str, JaggedTensor], bags: int) -> KeyedTensor:
    """[B, keys * D]: sums of every bag's rows; TorchRec shards pooled lookups by row on CUDA alone."""
    columns = [_sums(jagged, bags) for jagged in found.values()]
    widths = [column.shape[1] for column in columns]
    return KeyedTensor(keys=list(found), length_per_key=widths, values=torch.cat(columns, dim=1))


def set_lr(lookup: Any, lr: float) -> None:
    """Learning rate of the fused optimizer from the next step on."""
    for group in lookup.fused_optimizer.param_groups:
        group["lr"] = lr
    lookup.fused_optimizer.step()  # hands the rate to the operators; rows move in the backward alone


def _sums(found: JaggedTensor, bags: int) -> Tensor:
    """[B, D]."""
    values_ND, lengths_B = found.values(), found.lengths()
    if len(values_ND) == bags and bool((lengths_B == 1).all()):
        return values_ND
    bag_N = torch.repeat_interleave(torch.arange(bags, device=values_ND.device), lengths_B)
    return values_ND.new_zeros(bags, values_ND.shape[1]).index_add(0, bag_N, values_ND)

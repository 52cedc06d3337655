"""What a model's embedding tables are made of: FBGEMM's operator, plain tables with an optimizer, shapes alone on meta.

Dims: N ids of all features
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    PoolingMode,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.kernels.cpu.table_rows import MOST, Tables, available, table_rows

Optimizer = Literal["rowwise_adagrad", "adagrad", "sgd", "adam"]

_FUSED = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
}


def padded_width(width: int) -> int:
    """FBGEMM stores rows in multiples of four values; the surplus columns stay zero."""
    return -(-width // 4) * 4


def fused_tables(
    rows: Sequence[int],
    width: int,
    table_of_feature: list[int] | None,
    optimizer: Optimizer,
    lr: float,
    eps: float,
    device: str,
) -> SplitTableBatchedEmbeddingBagsCodegen:
    """One operator over all tables, sums in its bags, with the optimizer inside its backward.

    Args:
        rows: rows of each table.
        width: stored width of a row.
        table_of_feature: index into `rows`; None is one feature a table.
        device: `cpu`, or a CUDA device.
    """
    cuda = device.startswith("cuda")
    place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if cuda else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    return SplitTableBatchedEmbeddingBagsCodegen(
        [(r, width, *place) for r in rows],
        feature_table_map=table_of_feature,
        optimizer=_FUSED[optimizer],
        learning_rate=lr,
        eps=eps,
        pooling_mode=PoolingMode.SUM,
        device=torch.device(device),
    )


class RowsInC:
    """FBGEMM's tables under the operator in C: sums of rows, and Adagrad, by row or by element, in their backward.

    Args:
        lookup: holds rows and states.
        starts: first row of each feature's table among all rows.
        rows: of each feature's table.
        eps: of Adagrad.
    """

    def __init__(
        self, lookup: SplitTableBatchedEmbeddingBagsCodegen, starts: Sequence[int], rows: Sequence[int], eps: float
    ) -> None:
        self._lookup, self._eps = lookup, eps
        self._starts_F, self._rows_F = (torch.tensor(of, device="cpu") for of in (starts, rows))

    def __call__(self, ids: KeyedJaggedTensor, bags: Tensor | None) -> Tensor:
        """As `kernels.cpu.table_rows`: [B, F * D] with the offsets of bags, [N, D] without."""
        weight_RD = self._lookup.weights_host.view(-1, self._lookup.max_D)
        state = self._lookup.momentum1_host
        state = state if len(state) == len(weight_RD) else state.view_as(weight_RD)
        tables = Tables(weight_RD, state, self._starts_F, self._rows_F, self._eps)
        return table_rows(tables, ids.values(), ids.length_per_key(), bags, float(self._lookup.get_learning_rate()))


def rows_in_c(
    lookup: nn.Module, optimizer: Optimizer, starts: Sequence[int], rows: Sequence[int], eps: float
) -> RowsInC | None:
    """Arguments as of `RowsInC`; None where another operator works on the tables: on a GPU, under another optimizer,
    without a compiler.
    """
    if not isinstance(lookup, SplitTableBatchedEmbeddingBagsCodegen) or not lookup.use_cpu:
        return None
    numbered = max(s + r for s, r in zip(starts, rows, strict=True)) <= MOST
    fits = numbered and optimizer in ("rowwise_adagrad", "adagrad")
    return RowsInC(lookup, starts, rows, eps) if fits and available() else None


def table_optimizer(
    params: Iterable[nn.Parameter], optimizer: Optimizer, lr: float, eps: float, decay: float
) -> torch.optim.Optimizer:
    """Optimizer of plain tables; `decay` is Adam's alone.

    Raises:
        ValueError: torch has no such optimizer.
    """
    if optimizer == "adam":
        return torch.optim.Adam(params, lr=lr, eps=eps, weight_decay=decay, fused=True)
    if optimizer == "sgd":
        return torch.optim.SGD(params, lr=lr)
    if optimizer == "adagrad":
        return torch.optim.Adagrad(params, lr=lr, eps=eps)
    raise ValueError("embedding=per_table has no row-wise Adagrad; use table_optimizer=adagrad or sgd")


def one_id_each(features: Sequence[str], ids_FN: Tensor) -> KeyedJaggedTensor:
    """Ids of some features for a plain lookup, which reads no lengths."""
    count = ids_FN.shape[1]
    return KeyedJaggedTensor(
        keys=list(features), values=ids_FN.flatten(), lengths=ids_FN.new_empty(0), stride=count,
        length_per_key=[count] * len(features),
    )  # fmt: skip


class MetaTables(nn.Module):
    """Shape-only stand-in on meta, where FBGEMM's operator cannot trace; keeps its operator name."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width, device="meta"))

    def forward(self, values_N: Tensor) -> Tensor:
        return torch.ops.ctrbench.tbe(self.weight, values_N, values_N.numel(), self.weight.shape[1])

    def pooled(self, values_N: Tensor, features: int, batch: int) -> Tensor:
        return torch.ops.ctrbench.tbe(self.weight, values_N, batch, features * self.weight.shape[1])


# Operators of shapes alone: no device has a kernel of them, so that torch refuses any tensor that is not on meta.
torch.library.define("ctrbench::tbe", "(Tensor weight, Tensor values_N, int rows, int columns) -> Tensor")
torch.library.define("ctrbench::tbe_backward", "(Tensor grad, Tensor weight, Tensor values_N) -> Tensor")


@torch.library.register_fake("ctrbench::tbe")
def _(weight: Tensor, values_N: Tensor, rows: int, columns: int) -> Tensor:
    """Stand-in for FBGEMM's table-batched lookup: [rows, columns] of the weight's type."""
    return weight.new_empty(rows, columns)


@torch.library.register_fake("ctrbench::tbe_backward")
def _(grad: Tensor, weight: Tensor, values_N: Tensor) -> Tensor:
    """Stand-in for the table-batched backward with the optimizer inside; returns an empty gradient."""
    return weight.new_empty(0)


def _tbe_setup(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, int, int], output: Tensor
) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _tbe_grad(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[None, None, None, None]:
    weight, values_N = ctx.saved_tensors  # type: ignore[attr-defined]
    torch.ops.ctrbench.tbe_backward(grad, weight, values_N)
    return None, None, None, None


torch.library.register_autograd("ctrbench::tbe", _tbe_grad, setup_context=_tbe_setup)

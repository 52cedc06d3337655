"""L2 on embedding rows whose tables update inside their own backward.

A fused table gives out no gradient that a decay could be added to, and a second lookup would be a second update. So the
term is put on what the lookup returned: its gradient meets that of the loss at the lookup's output, and the backward
adds both up, row by row, before its one update. Rows outside the batch are out of reach.

Dims: N looked-up ids of all features, D width of a row, R rows of all tables
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class RowPenalty(nn.Module):
    """l2/2 sum over the distinct rows of a batch of |row|^2, each over its number of reads with `by_count`.

    Every occurrence of a row carries an equal part of its term: the gradients of the occurrences add up to l2 * row.

    Args:
        rows: R.
        l2: lambda.
        by_count: divide a row's term by how often it was read in training until now, this batch included.
        device: where the tables are.
    """

    def __init__(self, rows: int, l2: float, by_count: bool, device: str) -> None:
        super().__init__()
        self.l2 = l2
        self.inside_R: Tensor
        self.reads_R: Tensor | None
        self.register_buffer("inside_R", torch.zeros(rows, device=device), persistent=False)  # zero between calls
        self.register_buffer("reads_R", torch.zeros(rows, dtype=torch.int64, device=device) if by_count else None)
        self._noted: tuple[Tensor, Tensor] | None = None

    def note(self, flat_N: Tensor, rows_ND: Tensor) -> None:
        """Keeps a training lookup: ids as rows of the stacked tables, and the rows as the model got them."""
        self._noted = flat_N, rows_ND

    def forward(self) -> Tensor:
        """The term of the lookup noted last, a scalar.

        Raises:
            RuntimeError: without a lookup in training mode since the last call.
        """
        if self._noted is None:
            raise RuntimeError("RowPenalty: no lookup to penalise; run the model's forward in training mode first")
        (flat_N, rows_ND), self._noted = self._noted, None
        return self.l2 / 2 * (rows_ND.square().sum(dim=1) * self._part(flat_N)).sum()

    @torch.no_grad()
    def _part(self, flat_N: Tensor) -> Tensor:
        """Part of its row's term that each occurrence carries. Static shapes: meta can trace it."""
        self.inside_R.index_add_(0, flat_N, torch.ones_like(flat_N, dtype=self.inside_R.dtype))
        part_N = self.inside_R[flat_N].reciprocal()
        self.inside_R.index_fill_(0, flat_N, 0.0)
        if self.reads_R is not None:
            self.reads_R.index_add_(0, flat_N, torch.ones_like(flat_N))
            part_N = part_N / self.reads_R[flat_N]
        return part_N


def bags_of_one(values: Tensor, ids: KeyedJaggedTensor) -> Tensor:
    """Pooled [B, F*D] as the rows [N, D] of `ids.values()`: one id a bag.

    Raises:
        ValueError: bags of other sizes.
    """
    if ids.values().numel() != ids.stride() * len(ids.keys()):
        raise ValueError("l2 on batch_rows needs one id a bag: a sum of rows does not show the rows")
    return values.view(ids.stride(), len(ids.keys()), -1).transpose(0, 1).flatten(0, 1)

"""Inner products of all pairs of field vectors, each pair an output (DLRM, 1906.00091 section 2.1.3).

Dims: B batch, F vectors, D width, P = F(F-1)/2 pairs
"""

from __future__ import annotations

import torch
from torch import Tensor


def dot_pairs(x_BFD: Tensor) -> Tensor:
    """Plain twin: pair by pair, i < j in row order. Returns [B, P]."""
    fields = x_BFD.shape[1]
    pairs = [(x_BFD[:, i] * x_BFD[:, j]).sum(dim=1) for i in range(fields) for j in range(i + 1, fields)]
    return torch.stack(pairs, dim=1) if pairs else x_BFD.new_zeros(x_BFD.shape[0], 0)


def dot_interaction(x_BFD: Tensor) -> Tensor:
    """The same as one batched product, of which the strict upper triangle is kept. Returns [B, P]."""
    fields = x_BFD.shape[1]
    i, j = torch.triu_indices(fields, fields, offset=1, device=x_BFD.device)
    return torch.bmm(x_BFD, x_BFD.transpose(1, 2)).flatten(1).index_select(1, i * fields + j)


def pairs_of(fields: int) -> int:
    """P."""
    return fields * (fields - 1) // 2

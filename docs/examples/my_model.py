"""A small ranking model for `ctrbench audit docs/examples/my_model.py`: item and history tables, attention, a tower.

The audit needs `model` or `build()`, and `example_batch()` or a file given with --batch.

Dims: B batch, T history length, D width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Ranker(nn.Module):
    """Target item against a history of items, beside dense features."""

    def __init__(self, items: int = 50_000, dim: int = 64, dense: int = 13) -> None:
        super().__init__()
        self.items = nn.Embedding(items, dim)
        self.project = nn.Linear(dim, 3 * dim)
        self.tower = nn.Sequential(nn.Linear(2 * dim + dense, 256), nn.ReLU(), nn.Linear(256, 1))

    def forward(self, item_B: Tensor, history_BT: Tensor, dense_BI: Tensor) -> Tensor:
        """logit_B."""
        target_BD = self.items(item_B)
        q_BTD, k_BTD, v_BTD = self.project(self.items(history_BT)).chunk(3, dim=-1)
        seen_BTD = functional.scaled_dot_product_attention(q_BTD, k_BTD, v_BTD)
        joined = torch.cat([target_BD, seen_BTD.mean(dim=1), dense_BI], dim=1)
        return self.tower(joined).squeeze(1)


def build() -> nn.Module:
    """The model to audit."""
    return Ranker()


def example_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Arguments of one `forward`: a tensor, a tuple, a dict of keyword arguments, or a KeyedJaggedTensor."""
    generator = torch.Generator().manual_seed(0)
    items_B = torch.randint(0, 50_000, (1024,), generator=generator)
    history_BT = torch.randint(0, 50_000, (1024, 50), generator=generator)
    return items_B, history_BT, torch.randn(1024, 13, generator=generator)

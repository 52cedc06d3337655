"""DIN's first layer and its pooling on a block of events, forward and backward: by ATen, or by the C of din_blocks.c.

Dims: B rows of the block, E events of the block, C width of an event, O width of the layer
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ctrbench.kernels.cpu import din_blocks


class FirstLayer:
    """ATen's operators, any floating type. `row_E` numbers rows as `q_BC` does, `at` is the first event of each row."""

    def pairs(self, q_BC: Tensor, h_EC: Tensor, row_E: Tensor, into: Tensor) -> Tensor:
        """[h; q * h] of every event, [E, 2C], in a flat buffer."""
        width = h_EC.shape[1]
        pair_E2C = into[: 2 * h_EC.numel()].view(len(h_EC), 2 * width)
        pair_E2C[:, :width] = h_EC
        torch.mul(q_BC.index_select(0, row_E), h_EC, out=pair_E2C[:, width:])
        return pair_E2C

    def add_rows(self, by_row_BO: Tensor, row_E: Tensor, x_EO: Tensor) -> None:
        """x_EO += what is its row's."""
        x_EO += by_row_BO.index_select(0, row_E)

    def scores_back(self, du_BC: Tensor, h_EC: Tensor, row_E: Tensor, da_E: Tensor) -> None:
        """Gradient of the scores of u = sum of a h."""
        torch.sum(du_BC.index_select(0, row_E).mul_(h_EC), dim=1, out=da_E)

    def first_back(
        self, dpair_E2C: Tensor, dx_EO: Tensor, q_BC: Tensor, h_EC: Tensor, at_B1: Tensor, a_E: Tensor, du_BC: Tensor,
        dh_EC: Tensor, dq_BC: Tensor, drow_BO: Tensor,
    ) -> None:  # fmt: skip
        """From the gradients of the pairs and of the layer's output: those of h (pooling included), q and row part."""
        row_E = rows_of(at_B1, len(h_EC))
        by_event_EC, by_product_EC = dpair_E2C.chunk(2, dim=1)
        torch.mul(du_BC.index_select(0, row_E), a_E.unsqueeze(1), out=dh_EC)
        dh_EC.add_(by_event_EC).addcmul_(by_product_EC, q_BC.index_select(0, row_E))
        dq_BC.copy_(bag(by_product_EC * h_EC, at_B1 - at_B1[0]))
        drow_BO.copy_(bag(dx_EO, at_B1 - at_B1[0]))


class NativeFirstLayer(FirstLayer):
    """One pass over a block each; contiguous float32."""

    def pairs(self, q_BC: Tensor, h_EC: Tensor, row_E: Tensor, into: Tensor) -> Tensor:
        pair_E2C = into[: 2 * h_EC.numel()].view(len(h_EC), 2 * h_EC.shape[1])
        torch.ops.ctrbench.din_pairs(q_BC, h_EC, row_E, pair_E2C)
        return pair_E2C

    def add_rows(self, by_row_BO: Tensor, row_E: Tensor, x_EO: Tensor) -> None:
        torch.ops.ctrbench.din_add_rows(by_row_BO, row_E, x_EO)

    def scores_back(self, du_BC: Tensor, h_EC: Tensor, row_E: Tensor, da_E: Tensor) -> None:
        torch.ops.ctrbench.din_scores_back(du_BC, h_EC, row_E, da_E)

    def first_back(
        self, dpair_E2C: Tensor, dx_EO: Tensor, q_BC: Tensor, h_EC: Tensor, at_B1: Tensor, a_E: Tensor, du_BC: Tensor,
        dh_EC: Tensor, dq_BC: Tensor, drow_BO: Tensor,
    ) -> None:  # fmt: skip
        torch.ops.ctrbench.din_first_back(dpair_E2C, dx_EO, q_BC, h_EC, at_B1, a_E, du_BC, dh_EC, dq_BC, drow_BO)


def first_layer(dtype: torch.dtype) -> FirstLayer:
    """The fastest that runs here."""
    return NativeFirstLayer() if dtype == torch.float32 and din_blocks.available() else FirstLayer()


def rows_of(offsets_B1: Tensor, events: int) -> Tensor:
    """Row of every event."""
    at_B = torch.arange(len(offsets_B1) - 1, device=offsets_B1.device)
    return at_B.repeat_interleave(offsets_B1.diff(), output_size=events)


def bag(x_EO: Tensor, at_B1: Tensor, weight_E: Tensor | None = None) -> Tensor:
    """(Weighted) sum of each row's events: [E, O] -> [B, O]."""
    events_E = torch.arange(len(x_EO), device=x_EO.device)
    return embedding_bag(
        events_E, x_EO, at_B1, mode="sum", include_last_offset=True, per_sample_weights=weight_E
    )  # fmt: skip

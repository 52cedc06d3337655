"""The cross network of DCN-v2 with the user's columns folded away, exactly, for requests of many candidates.

With x = [x_u ; x_c], the user's and the candidate's columns, a full-matrix layer multiplies W x_l + b by x0, and x0_u
is fixed within a request: x_{l,u} stays an affine map of the candidate's own columns so far,
    x_{l,u} = A_l [1 ; z_l],    z_l = [x_{0,c} ; ... ; x_{l-1,c}],
    A_{l+1} = [A_l + diag(x0_u) (W_uu A_l + [b_u 0]), diag(x0_u) W_uc],
so a candidate computes only its own columns,
    x_{l+1,c} = x_{l,c} + x0_c * ([b_c 0] + W_cu A_l) [1 ; z_l] + x0_c * W_cc x_{l,c},
and what reads x_L reads z_L and x_{L,c}. The maps cost a request O(L^2 K U I) once; a candidate costs O(L^2 I^2) where
whole layers cost O(L K^2). The mixture cannot: its experts are not linear.

Dims: R requests, C candidates of each, K width of the network, U its columns of the user's side, I those of the
candidate, L layers, M width of the readout, n and m widths of [1 ; z_l] and of [z_l ; x_{l,c}]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ctrbench.kernels.linear import linear


@dataclass(frozen=True, slots=True)
class Folded:
    """Maps of R requests."""

    steps: tuple[tuple[Tensor, Tensor], ...]
    """(constant [R, I], map [R, m, I]) of every layer."""
    readout: tuple[Tensor, Tensor]
    """(constant [R, M], map [R, m, M]) of the readout of x_L."""


class FoldedCross:
    """Full cross layers and a linear readout of x_L.

    Args:
        layers: (weight [K, K], bias [K]), columns and rows ordered user's side first.
        readout_MK: ordered likewise.
        bias_M: of the readout, or None.
        user: U.
    """

    def __init__(
        self, layers: Sequence[tuple[Tensor, Tensor]], readout_MK: Tensor, bias_M: Tensor | None, user: int
    ) -> None:
        self.layers, self.readout_MK, self.bias_M, self.user = layers, readout_MK, bias_M, user

    def fold(self, user_RU: Tensor) -> Folded:
        """Maps of some requests."""
        u, steps = self.user, []
        affine_RUn = scale_RU1 = user_RU.unsqueeze(2)
        for at, (weight_KK, bias_K) in enumerate(self.layers):
            last = at == len(self.layers) - 1
            rows = slice(u, None) if last else slice(None)  # of the last layer the readout takes the user's rows
            inner_RKn = torch.matmul(weight_KK[rows, :u], affine_RUn)
            inner_RKn[..., 0] += bias_K[rows]
            own_RIn = inner_RKn if last else inner_RKn[:, u:]
            weight_RII = weight_KK[u:, u:].t().expand(len(user_RU), -1, -1)
            steps.append((own_RIn[..., 0], torch.cat([own_RIn[..., 1:].transpose(1, 2), weight_RII], dim=1)))
            if not last:
                grown_RUn = torch.addcmul(affine_RUn, scale_RU1, inner_RKn[:, :u])
                affine_RUn = torch.cat([grown_RUn, scale_RU1 * weight_KK[:u, u:]], dim=2)
        return Folded(tuple(steps), self._readout(user_RU, affine_RUn))

    def _readout(self, user_RU: Tensor, affine_RUn: Tensor) -> tuple[Tensor, Tensor]:
        """Of x_L through the user's rows of the last layer."""
        (weight_KK, bias_K), u = self.layers[-1], self.user
        through_RMU = self.readout_MK[:, :u] * user_RU.unsqueeze(1)
        through_RMK = linear(through_RMU, weight_KK[:u].t())
        before_RMn = torch.matmul(through_RMK[..., :u] + self.readout_MK[:, :u], affine_RUn)
        constant_RM = before_RMn[..., 0] + linear(through_RMU, bias_K[None, :u]).squeeze(2)
        own_RMI = self.readout_MK[:, u:].expand(len(user_RU), -1, -1)
        map_RMm = torch.cat([before_RMn[..., 1:], through_RMK[..., u:], own_RMI], dim=2)
        return constant_RM if self.bias_M is None else constant_RM + self.bias_M, map_RMm.transpose(1, 2)

    def score(self, folded: Folded, own_NI: Tensor) -> Tensor:
        """The readout of x_L, [N, M], of the candidates' columns of x0."""
        count, width = len(folded.readout[0]), own_NI.shape[1]
        state_RCm = own_NI.new_empty(count, len(own_NI) // count, (len(folded.steps) + 1) * width)
        own_RCI = state_RCm[..., :width].copy_(own_NI.view(count, -1, width))
        end = width
        for constant_RI, map_RmI in folded.steps:
            h_RCI = torch.baddbmm(constant_RI.unsqueeze(1), state_RCm[..., :end], map_RmI)
            last_RCI = state_RCm[..., end - width : end]
            torch.addcmul(last_RCI, own_RCI, h_RCI, out=state_RCm[..., end : end + width])
            end += width
        constant_RM, map_RmM = folded.readout
        return torch.baddbmm(constant_RM.unsqueeze(1), state_RCm, map_RmM).flatten(0, 1)


def fold_flops(user: int, own: int, layers: int, readout: int) -> tuple[float, float]:
    """(once a request, a candidate) FLOPs of cross network and readout."""
    width = user + own
    once = each = 0.0
    for at in range(layers):
        rows = own if at == layers - 1 else width
        once += 2.0 * rows * user * (1 + at * own)
        each += 2.0 * own * (at + 1) * own
    once += 2.0 * readout * user * (width + 1 + (layers - 1) * own + 1)
    return once, each + 2.0 * readout * (layers + 1) * own

"""What stands behind a cross network, taken apart for serving: linear readouts of its output and of its input.

The logit of DCN and DCN-v2 is the head's bias plus, for each branch, head_b(rest_b(W_b x + b_b)), where x is the
network's output x_L (`crossed`) or its input x0 (`straight`): with an MLP, W_b is its first layer; without, the
head's own columns.

Dims: N candidates, K width of the network, M width of a readout
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ctrbench.kernels.linear import linear
from ctrbench.legacy_baselines.serving_split import first_of
from ctrbench.models.blocks import mlp_flops


@dataclass(frozen=True, slots=True)
class Readout:
    """One branch."""

    weight_MK: Tensor
    bias_M: Tensor | None
    rest: nn.Sequential
    head_1M: Tensor | None
    """The head's columns of this branch; None where they are `weight_MK`."""

    def logit(self, hidden_NM: Tensor) -> Tensor:
        """The branch's part of logit_N, of W x + b."""
        out = self.rest(hidden_NM)
        return (out if self.head_1M is None else linear(out, self.head_1M)).squeeze(1)


def _readout(mlp: nn.Sequential | None, head_1M: Tensor) -> Readout:
    if mlp is None or not len(mlp):
        return Readout(head_1M, None, nn.Sequential(), None)
    weight_MK, bias_M = first_of(mlp)
    return Readout(weight_MK.detach(), bias_M.detach(), nn.Sequential(*list(mlp)[1:]), head_1M)


def readouts(
    mlps: Mapping[str, nn.Sequential], head: nn.Linear, width: int, mlp: int
) -> tuple[Readout, Readout | None]:
    """(crossed, straight or None).

    Args:
        mlps: `stacked` reads the cross output, `parallel` the input.
        head: on [what is crossed ; what is straight].
        width: K.
        mlp: output width of an MLP.
    """
    weight_1M = head.weight.detach()
    crossed = mlp if "stacked" in mlps else width
    straight = _readout(mlps["parallel"], weight_1M[:, crossed:]) if "parallel" in mlps else None
    return _readout(mlps.get("stacked"), weight_1M[:, :crossed]), straight


def readout_flops(hidden: tuple[int, ...]) -> tuple[int, float]:
    """(M, FLOPs of a candidate behind the readout) of a branch with an MLP of these widths; empty for none."""
    return (hidden[0], mlp_flops(hidden[0], hidden[1:], 1)) if hidden else (1, 0.0)

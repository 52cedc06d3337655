"""Serving of DCN: no candidate builds the width of the network.

All cross layers, the readout of their output and the MLP's first layer are linear in x0 up to one number a candidate
(x_L = a x0 + c, kernels/cross_vector.py): one product with the candidate's columns, the user's share made once.

Dims: R requests, N candidates, J item fields, D embedding width, K = F*D width, L cross layers, O outputs of the
product, M width of a readout
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.legacy_baselines.serving_readout import readout_flops, readouts
from ctrbench.legacy_baselines.serving_split import SplitLinear, side_widths
from ctrbench.models.requests import Requests
from ctrbench.models.serving import REUSE, ServingForm, Sides


class DcnForm:
    """One product, a recursion on one number a candidate, and what stands behind the readouts."""

    def __init__(self, model: Any) -> None:
        self.sides = Sides(model.embedder)
        weight_LK, bias_LK = model.cross.weight_LN.detach(), model.cross.bias_LN.detach()
        mlps = {} if model.mlp is None else {model.structure: model.mlp}
        width = weight_LK.shape[1]
        out = model.head.in_features - (width if model.structure == "parallel" else 0)
        self.crossed, self.straight = readouts(mlps, model.head, width, out)
        before_LK = bias_LK.cumsum(dim=0) - bias_LK
        self.shift_L = (weight_LK * before_LK).sum(dim=1)
        base_M = self.crossed.weight_MK @ bias_LK.sum(dim=0)  # of c, which no candidate changes
        self.base_M = base_M if self.crossed.bias_M is None else base_M + self.crossed.bias_M
        weights, biases = [weight_LK, self.crossed.weight_MK], [torch.ones_like(self.shift_L), torch.zeros_like(base_M)]
        if self.straight is not None:
            weights.append(self.straight.weight_MK)
            none_M = weight_LK.new_zeros(len(self.straight.weight_MK))
            biases.append(none_M if self.straight.bias_M is None else self.straight.bias_M)
        self.sizes = [len(w) for w in weights]
        self.product = SplitLinear(torch.cat(weights), torch.cat(biases), self.sides)
        self.bias = model.head.bias

    def context(self, users: Batch) -> Tensor:
        """The user's share of the product, [R, O]."""
        return self.product.user(self.sides.user(users).fields_RUW.flatten(1))

    def score(self, context: Tensor, requests: Requests) -> Tensor:
        """logit_N."""
        product_NO = self.product.join(context, self.sides.items(requests).flatten(1))
        step_NL, hidden_NM, *straight = product_NO.split(self.sizes, dim=1)
        scale_N1 = torch.ones_like(step_NL[:, :1])
        for step_N1, shift in zip(step_NL.split(1, dim=1), self.shift_L.unbind(), strict=True):
            scale_N1 = scale_N1 * step_N1 + shift
        logit_N = self.bias + self.crossed.logit(torch.addcmul(self.base_M, scale_N1, hidden_NM))
        return logit_N if self.straight is None else logit_N + self.straight.logit(straight[0])


def serving(model: nn.Module, schema: FeatureSchema) -> Mapping[str, ServingForm]:
    """Forms of DCN."""
    return {REUSE: DcnForm(model)}


def request_flops(
    config: Any, schema: FeatureSchema, lengths: Mapping[str, int] | None = None, count: int = 1
) -> tuple[float, float]:
    """(once a request, a candidate) FLOPs that `DcnForm` executes; neither history lengths nor `count` matter."""
    user, own = side_widths(schema, config.dim)
    crossed, behind = readout_flops(config.mlp if config.structure == "stacked" else ())
    outputs = config.cross_layers + crossed
    if config.structure == "parallel":
        straight, more = readout_flops(config.mlp) if config.mlp else (1, 0.0)
        outputs, behind = outputs + straight, behind + more
    return 2.0 * user * outputs, 2.0 * own * outputs + behind

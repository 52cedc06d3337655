"""Serving with the first layer parted: its columns that read the user's side run once a request (`split_first`).

A linear layer on [x_user ; x_candidate] is W_u x_u + W_c x_c + b. W_u x_u + b is the same for all candidates of a
request, and the wide input [N, F*D] is never built. First-order sums, and sums and squares of a factorisation machine,
part the same way. Forms copy the parted columns when they are made: make a new one after training.

Dims: R requests, C candidates of each, N = R*C candidates, U fields of the user's side, J item fields, D embedding
width, W = D plus one where there are first-order weights, K input and O output width of a layer
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.linear import linear
from ctrbench.models.blocks import MLP, mlp_flops
from ctrbench.models.requests import Requests
from ctrbench.models.serving import REUSE, Forms, ServingForm, Sides, split_columns


def side_widths(schema: FeatureSchema, dim: int, *, pooled: bool = True) -> tuple[int, int]:
    """(user, candidate) widths of the flattened fields; pooled histories are fields of the user's side."""
    items = sum(f.role == "item" for f in (*schema.categorical, *schema.dense))
    fields = len(schema.fields) if pooled else len(schema.categorical) + len(schema.dense)
    return (fields - items) * dim, items * dim


def with_user(x_NK: Tensor, weight_OK: Tensor, user_RO: Tensor) -> Tensor:
    """x W^T plus what each request adds, [N, O]; of one request it rides in the product as the bias."""
    if len(user_RO) == 1:
        return linear(x_NK, weight_OK, user_RO[0])
    out_NO = linear(x_NK, weight_OK)
    out_NO.view(len(user_RO), -1, out_NO.shape[1]).add_(user_RO.unsqueeze(1))
    return out_NO


class SplitLinear:
    """A linear layer on flattened fields, and on what follows them, parted by columns.

    Args:
        weight_OK: its weight; the first F*D columns read the fields, all others belong to the candidate.
        bias_O: its bias or None.
        sides: which fields are whose.
    """

    def __init__(self, weight_OK: Tensor, bias_O: Tensor | None, sides: Sides) -> None:
        dim = sides.embedder.dim
        weight_OK = weight_OK.detach()
        width = sides.embedder.num_fields * dim
        fields = weight_OK[:, :width]
        self.user_OK = split_columns(fields, sides.user_slots, dim)
        self.own_OK = torch.cat([split_columns(fields, sides.item_slots, dim), weight_OK[:, width:]], dim=1)
        self.bias_O = None if bias_O is None else bias_O.detach()

    def user(self, fields_RK: Tensor) -> Tensor:
        """The user's share with the bias, [R, O]."""
        return linear(fields_RK, self.user_OK, self.bias_O)

    def join(self, user_RO: Tensor, own_NK: Tensor) -> Tensor:
        """The layer's output, [N, O], of the user's share and the candidates' columns."""
        return with_user(own_NK, self.own_OK, user_RO)


@dataclass(frozen=True, slots=True)
class SplitContext:
    """What a request computes once."""

    hidden_RO: Tensor | None
    """Share of the tower's first layer; None without a tower."""
    sum_RW: Tensor
    """Sum of the user's vectors, first-order weights in the last column."""
    squares_R: Tensor
    """Sum of their squares, first-order weights left out."""


class SplitForm:
    """FM, DNN, Wide & Deep and DeepFM: a first-order sum, pairs and a tower, as far as the model has them.

    Args:
        model: its `embedder`, and its `tower` and `bias` where it has them.
        pairs: it has a factorisation machine's term.
    """

    def __init__(self, model: Any, pairs: bool) -> None:
        self.sides, self.pairs = Sides(model.embedder), pairs
        self.dim, self.first_order = model.embedder.dim, model.embedder.linear
        self.bias: Tensor | None = getattr(model, "bias", None)
        tower: MLP | None = getattr(model, "tower", None)
        self.first = None if tower is None else SplitLinear(*first_of(tower), self.sides)
        self.rest = nn.Sequential() if tower is None else nn.Sequential(*list(tower)[1:])

    def context(self, users: Batch) -> SplitContext:
        """Sums over the user's fields and their share of the first layer."""
        fields_RUW = self.sides.user(users).fields_RUW
        vectors_RUD = fields_RUW[..., : self.dim]
        hidden_RO = None if self.first is None else self.first.user(vectors_RUD.flatten(1))
        return SplitContext(hidden_RO, fields_RUW.sum(dim=1), vectors_RUD.square().sum(dim=(1, 2)))

    def score(self, context: SplitContext, requests: Requests) -> Tensor:
        """logit_N."""
        items_NJW = self.sides.items(requests)
        vectors_NJD = items_NJW[..., : self.dim]
        logit_N = items_NJW.new_zeros(()) if self.bias is None else self.bias
        if self.first is not None and context.hidden_RO is not None:
            logit_N = logit_N + self.rest(self.first.join(context.hidden_RO, vectors_NJD.flatten(1))).squeeze(1)
        if self.first_order:
            sum_RCW = items_NJW.sum(dim=1).view(requests.size, requests.count, -1) + context.sum_RW.unsqueeze(1)
            logit_N = logit_N + sum_RCW[..., self.dim].flatten()
            if self.pairs:
                own_RC = vectors_NJD.square().sum(dim=(1, 2)).view(requests.size, -1)
                twice_RC = sum_RCW[..., : self.dim].square().sum(dim=2) - own_RC - context.squares_R.unsqueeze(1)
                logit_N = torch.add(logit_N, twice_RC.flatten(), alpha=0.5)
        return logit_N


def split_forms(*, pairs: bool = False) -> Forms:
    """`serving` of a model that `SplitForm` serves."""

    def forms(model: nn.Module, schema: FeatureSchema) -> Mapping[str, ServingForm]:
        return {REUSE: SplitForm(model, pairs)}

    return forms


def first_of(tower: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Weight and bias of a tower's first layer."""
    first = tower[0]
    assert isinstance(first, nn.Linear)
    return first.weight, first.bias


def request_flops(
    config: Any, schema: FeatureSchema, lengths: Mapping[str, int] | None = None, count: int = 1
) -> tuple[float, float]:
    """(once a request, a candidate) FLOPs that `SplitForm` executes with a tower; all but the tower is element-wise.

    Args:
        config: of DNN, Wide & Deep or DeepFM.
        schema: features.
        lengths: not read: pooling is a gather.
        count: not read.
    """
    user, own = side_widths(schema, config.dim)
    widths: list[int] = [*config.mlp, 1]
    return 2.0 * user * widths[0], mlp_flops(own, widths)

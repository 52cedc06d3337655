"""Serving of FAT: composed weights are materialised, and layer 1 projects the user's fields once a request.

LN0, Q, K and V of a field depend on that field alone, and so does the input map: those of the user's fields are the
same for every candidate, and so is what they have for one another in the attention of layer 1 (shared_pair_attention
in kernels/). Behind it every token is of both sides. Fields are ordered user's side first; relabelling them together
with their weights leaves the logit as it is.

Measured, small preset, 13 fields of which 4 are the candidate's, CPU time of one thread over that of unshared rows,
median in alternation on a busy machine: C=16 0.98, C=128 0.85, C=512 0.86, at 0.84-0.85 of the FLOPs. With layer 1's
projections shared but not its attention, in another run: 0.82, 0.92, 0.94, where this form had 0.90, 0.86, 0.81; so at
few candidates the shared attention costs more calls than it saves.

Forms: `reuse`; `on_the_fly`, the same with the weights written anew for every request, which is what materialising
saves; `mixture`, the same with the chosen bases applied to the activations (`fat.weights=on_the_fly`). The last two
exist where a hypernetwork writes the weights.

Dims: R requests, C candidates of each, N = R*C candidates, F fields, U of the user's side, J of the candidate, D width,
E = 3D, S sites of a field bias
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.field_linear import field_linear
from ctrbench.kernels.shared_pair_attention import shared_pair_attention, shared_pair_attention_cost
from ctrbench.models.field_blocks import (
    FieldWeights,
    FreeWeights,
    Hypernetwork,
    Mixture,
    Weight,
    apply_weight,
    block_flops,
)
from ctrbench.models.requests import Requests
from ctrbench.models.serving import REUSE, ServingForm, Sides

Written = Literal["kept", "composed", "mixture"]


def _some(weight: Weight, fields: slice | Tensor) -> Weight:
    """The weight of some fields; one for all fields stays as it is."""
    if isinstance(weight, Mixture):
        return replace(weight, share_FK=weight.share_FK[fields], chosen_FK=weight.chosen_FK[fields])
    return weight[fields] if weight.dim() == 3 else weight


def _projections(weights: FieldWeights, fields: slice) -> FieldWeights:
    """Weights whose Q, K and V are those of some fields."""
    return replace(weights, qkv=tuple(_some(w, fields) for w in weights.qkv))


@dataclass(frozen=True, slots=True)
class FatContext:
    """What a request computes once."""

    weights: Sequence[FieldWeights]
    """Of every layer, fields ordered user's side first."""
    z_URD: Tensor
    """The user's tokens that enter layer 1."""
    qkv_URE: Tensor


class FatForm:
    """FAT with the user's projections of layer 1 shared.

    Args:
        model: in eval mode.
        written: `kept` writes the composed weights once, here; `composed` and `mixture` write them for every context.
    """

    def __init__(self, model: Any, written: Written) -> None:
        self.model, self.sides = model, Sides(model.embedder)
        device = model.bias_SFD.device
        self.order = torch.tensor([*self.sides.user_slots, *self.sides.item_slots], device=device)
        self.user = len(self.sides.user_slots)
        self.bias_SFD = model.bias_SFD.detach()[:, self.order]
        self.pairs = [p.detach()[..., self.order, :][..., self.order] for p in model.pairs]
        fields = len(self.order)
        self.first_FF = self.pairs[0] if self.pairs else torch.ones(fields, fields, device=device)
        map_FDD = model.inputs.map_FED
        self.map_FDD = None if map_FDD is None else map_FDD.detach()[self.order]
        self.weights = self._writer(written)
        if written == "kept":
            kept = self.weights()
            self.weights = lambda: kept

    @torch.no_grad()
    def _write(self, written: Written) -> list[FieldWeights]:
        model, meta_Fk, out = self.model, self.model.meta_Fk[self.order], []
        for net in model.hypernetworks:
            if isinstance(net, FreeWeights):
                own = net(meta_Fk)
                qkv = tuple(_some(w, self.order) for w in own.qkv)
                up, down = _some(own.up, self.order), _some(own.down, self.order)
                out.append(FieldWeights(qkv, up, down, None if own.out is None else _some(own.out, self.order)))
            else:
                out.append(net(meta_Fk, written != "mixture"))
        out = [out[i % len(out)] for i in range(len(model.layers))]
        return [replace(w, out=m) for w, m in zip(out, model.out_maps, strict=True)] if len(model.out_maps) else out

    def _writer(self, written: Written) -> Callable[[], list[FieldWeights]]:
        return lambda: self._write(written)

    def context(self, users: Batch) -> FatContext:
        """The user's tokens and their projections."""
        weights, own = self.weights(), slice(self.user)
        z_URD = self._tokens(self.sides.user(users).fields_RUW, own)
        return FatContext(weights, z_URD, self.model.layers[0].project(z_URD, _projections(weights[0], own)))

    def _tokens(self, fields_BFD: Tensor, which: slice) -> Tensor:
        """Tokens of some fields as they enter layer 1, field-major."""
        x_FBD = fields_BFD.transpose(0, 1).contiguous()
        if self.map_FDD is not None:
            x_FBD = field_linear(x_FBD, self.map_FDD[which])
        return x_FBD + self.bias_SFD[0, which].unsqueeze(1)

    def score(self, context: FatContext, requests: Requests) -> Tensor:
        """logit_N."""
        weights, layers, own = context.weights, self.model.layers, slice(self.user, None)
        z_JND = self._tokens(self.sides.items(requests), own)
        qkv_JNE = layers[0].project(z_JND, _projections(weights[0], own))
        z_FND = self._join(context.z_URD, z_JND)
        attended_FND = self._attend(context.qkv_URE, qkv_JNE, weights[0].out)
        z_FND = layers[0].finish(z_FND, attended_FND, weights[0])
        for i, layer in enumerate(layers[1:], start=1):
            if i < len(self.bias_SFD):
                z_FND = z_FND + self.bias_SFD[i].unsqueeze(1)
            z_FND = layer(z_FND, weights[i], self._pair(i))
        out: Tensor = self.model.head(z_FND)
        return out

    def _attend(self, qkv_URE: Tensor, qkv_JNE: Tensor, out: Weight | None) -> Tensor:
        """The attention part of layer 1, [F, N, D]."""
        (users, requests, width), own = qkv_URE.shape, qkv_JNE.shape[0]
        heads = self.model.layers[0].heads
        user_3RHUd = qkv_URE.view(users, requests, 3, heads, -1).permute(2, 1, 3, 0, 4)
        own_3RHCJd = qkv_JNE.view(own, requests, -1, 3, heads, width // 3 // heads).permute(3, 1, 4, 2, 0, 5)
        q_RHUd, k_RHUd, v_RHUd = user_3RHUd.contiguous().unbind()
        q_RHCJd, k_RHCJd, v_RHCJd = own_3RHCJd.contiguous().unbind()
        parts = shared_pair_attention((q_RHUd, k_RHUd, v_RHUd), (q_RHCJd, k_RHCJd, v_RHCJd), self.first_FF)
        attended_FND = torch.cat([p.permute(3, 0, 2, 1, 4) for p in parts]).view(users + own, -1, width // 3)
        return attended_FND if out is None else apply_weight(attended_FND, out)

    @staticmethod
    def _join(user_URE: Tensor, own_JNE: Tensor) -> Tensor:
        """[F, N, E]."""
        users, requests, width = user_URE.shape
        user_UNE = user_URE.unsqueeze(2).expand(-1, -1, own_JNE.shape[1] // requests, -1)
        return torch.cat([user_UNE.reshape(users, -1, width), own_JNE])

    def _pair(self, layer: int) -> Tensor | None:
        return self.pairs[layer % len(self.pairs)] if self.pairs else None


def serving(model: nn.Module, schema: FeatureSchema) -> Mapping[str, ServingForm]:
    """Forms of FAT."""
    forms: dict[str, ServingForm] = {REUSE: FatForm(model, "kept")}
    if any(isinstance(net, Hypernetwork) for net in model.modules()):
        forms |= {"on_the_fly": FatForm(model, "composed"), "mixture": FatForm(model, "mixture")}
    return forms


def request_flops(
    config: Any, schema: FeatureSchema, lengths: Mapping[str, int] | None = None, count: int = 1
) -> tuple[float, float]:
    """(once a request, a candidate) FLOPs that `reuse` executes; history lengths do not matter: pooling is a gather.

    `on_the_fly` adds `fat.composition_flops` to the first.
    """
    items = sum(f.role == "item" for f in (*schema.categorical, *schema.dense))
    fields, d = len(schema.fields), config.d
    token = 6.0 * d**2 + (2.0 * config.dim * d if config.dim != d else 0.0)
    block = block_flops(fields, d, config.hidden, out_proj=config.out_proj != "none")
    once, attention = (c.flops for c in shared_pair_attention_cost(fields - items, items, d, config.heads))
    first = items * token + attention + block - 6.0 * fields * d**2 - 4.0 * fields**2 * d
    return (fields - items) * token + once, first + (config.layers - 1) * block + 2.0 * d

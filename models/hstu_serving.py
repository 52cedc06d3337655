"""How HSTU is served (2402.17152 section 4.3, M-FALCON): history once a request, candidates in micro-batches.

Only real events are computed, request after request; the constant of the attention stays the model's own. Of the last
layer the history needs keys and values alone.

Dims: R requests, C candidates of each, N = R*C rows, M candidates of a micro-batch, L user and events, D token width,
H heads, J item fields, U user's fields, K their values side by side, E embedding width
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.linear import linear
from ctrbench.models.blocks import Embedded
from ctrbench.models.events import Events
from ctrbench.models.histories import history_lengths
from ctrbench.models.hstu_layers import HstuLayer, Past, Places, layer_flops, seen
from ctrbench.models.requests import Requests
from ctrbench.models.serving import REUSE, ServingForm, Sides

if TYPE_CHECKING:
    from ctrbench.models.hstu import Hstu, HstuConfig, HstuTokens

MICRO_BATCH = 512
"""512 candidates on 1,024 events, d=32, 2 layers, one CPU thread, fastest of nine in alternation: 7.9 ms in one piece,
17 in pieces of 128 or 64, 32 of 32, 57 of 16: the calls cost more than the cache saves."""


@dataclass(frozen=True, slots=True)
class History:
    """User and events of one request."""

    pasts: tuple[Past, ...]
    """Keys and values [1, H, L, .] of each layer."""
    places: Places
    """[1, L]."""

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and places."""
        places = (self.places.ordinal_BN, self.places.time_BN, self.places.next_BN)
        return sum(t.nbytes for t in (*(t for past in self.pasts for t in past), *places))


@dataclass(frozen=True, slots=True)
class HstuContext:
    """The user's side of R requests."""

    histories: tuple[History, ...]
    share_RD: Tensor
    """What the user's fields add to a candidate's token."""
    time_R: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(h.nbytes for h in self.histories) + self.share_RD.nbytes + self.time_R.nbytes


class CandidateMap:
    """A candidate's token is linear in its fields: one matrix for the user's of them, one for its own."""

    def __init__(self, tokens: HstuTokens, sides: Sides) -> None:
        target, dim = tokens.target, sides.embedder.dim
        fields, width = sides.embedder.num_fields, tokens.target_fields.weight.shape[0]
        weight_DFE = tokens.target_fields.weight.new_zeros(width, fields, dim).detach()
        weight_DFE[:, tokens.rest] = tokens.target_fields.weight.detach().view(width, -1, dim)
        self.bias_D = tokens.target_fields.bias.detach().clone()
        for history, layer in tokens.events.items():
            own_DCE, bias_D = (cast(Tensor, p).detach() for p in (layer.weight, layer.bias))
            self.bias_D += bias_D
            for column_DE, slot in zip(own_DCE.view(width, -1, dim).unbind(1), target.slots[history], strict=True):
                if slot < target.fields:
                    weight_DFE[:, slot] += column_DE
                else:  # an event field that mirrors nothing: one learned vector stands for it
                    assert target.free_QD is not None
                    self.bias_D += column_DE @ target.free_QD[slot - target.fields].detach()
        self.user_DK = weight_DFE[:, sides.user_slots].flatten(1)
        self.item_DK = weight_DFE[:, sides.item_slots].flatten(1)

    def user(self, fields_RUE: Tensor) -> Tensor:
        """[R, D]."""
        return linear(fields_RUE.flatten(1), self.user_DK, self.bias_D)

    def items(self, items_NJE: Tensor) -> Tensor:
        """[N, D]."""
        return linear(items_NJE.flatten(1), self.item_DK)


class HstuServing:
    """The form `reuse`.

    Args:
        model: in eval mode.
        schema: of the requests.
        micro_batch: candidates that go through the layers at a time.
    """

    def __init__(self, model: Hstu, schema: FeatureSchema, micro_batch: int = MICRO_BATCH) -> None:
        self.model, self.schema, self.micro_batch = model, schema, micro_batch
        self.sides = Sides(model.embedder)
        self.map = CandidateMap(model.tokens, self.sides)
        self.layers = list(cast(Iterable[HstuLayer], model.layers))

    def context(self, users: Batch) -> HstuContext:
        """User and events of every request through all layers."""
        embedded = self.model.embedder(users)
        histories = tuple(self.encode(embedded, users.time_B, r) for r in range(users.size))
        return HstuContext(histories, self.map.user(embedded.fields_BFD[:, self.sides.user_slots]), users.time_B)

    def encode(self, embedded: Embedded, time_R: Tensor, row: int) -> History:
        """User and real events of one request."""
        x_1LD, real_1L, places = self.model.tokens.before(real_row(embedded, row), time_R[row : row + 1])
        together, seen_1LL, pasts = places.bucketed(), seen(real_1L, 0), []
        for layer in self.layers[:-1]:
            x_1LD, own = layer(x_1LD, seen_1LL, together)
            pasts.append(own)
        return History(packed([*pasts, self.layers[-1].keys_values(x_1LD)]), places)

    def score(self, context: HstuContext, requests: Requests) -> Tensor:
        """Every candidate against the history of its request."""
        count, out = requests.count, []
        x_ND = self.map.items(self.sides.items(requests)) + context.share_RD.repeat_interleave(count, dim=0)
        for r, history in enumerate(context.histories):
            place_11 = torch.full((1, 1), history.places.ordinal_BN.shape[1], device=x_ND.device)
            time_11 = context.time_R[r].view(1, 1)
            at, x_CD = Places(place_11, time_11, time_11), x_ND[r * count : (r + 1) * count]
            if self.model.tokens.positions is not None:
                x_CD = x_CD + self.model.tokens.positions(place_11[0])
            for x_MD in x_CD.split(self.micro_batch):
                x_1MD = x_MD.unsqueeze(0)
                for layer, past in zip(self.layers, history.pasts, strict=True):
                    x_1MD = layer.score(x_1MD, at, past, history.places)
                out.append(self.model.head(x_1MD)[0, :, 0])
        return torch.cat(out)


def packed(pasts: Sequence[Past]) -> tuple[Past, ...]:
    """Keys and values side by side in memory."""
    return tuple((k.contiguous(), v.contiguous()) for k, v in pasts)


def real_row(embedded: Embedded, row: int) -> Embedded:
    """One row and its real events alone."""
    cut = {}
    for h, e in embedded.events.items():
        at = (slice(row, row + 1), slice(e.mask_BT.shape[1] - int(e.mask_BT[row].sum()), None))
        ids = {name: v[at] for name, v in e.ids.items()}
        cut[h] = Events(e.values_BTE[at], ids, e.times_BT[at], e.mask_BT[at])
    return Embedded(embedded.fields_BFD[row : row + 1], None, cut)


def request_flops(
    config: HstuConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None, count: int = 1
) -> tuple[float, float]:
    """FLOPs that `reuse` executes: (once a request, for each candidate).

    Args:
        config: of the model.
        schema: of the requests.
        lengths: history -> real events, the whole window if not given; longer ones are cut to it.
    """
    d, dim, padded = config.width, config.dim, history_lengths(schema)
    real = padded if lengths is None else {h: min(lengths[h], t) for h, t in padded.items()}
    plain = [*schema.categorical, *schema.dense]
    items, users = (sum((f.role == "item") == own for f in plain) for own in (True, False))
    tokens = 1 + sum(real.values())
    concat, sizes = config.concat_ua or config.flavour == "production", (d, config.heads, config.qk, config.v)
    fields = 2.0 * d * dim * (users + sum(f.role == "user" for f in plain))
    events = sum(2.0 * real[h] * len(fs) * dim * d for h, fs in schema.histories.items())
    last = 2.0 * tokens * d * config.heads * (config.qk + config.v)
    through = (config.layers - 1) * layer_flops(*sizes, tokens, float(tokens) ** 2, concat)
    candidate = config.layers * layer_flops(*sizes, 1, tokens, concat)
    return fields + events + through + last, 2.0 * items * dim * d + candidate + 2.0 * d


def forms(model: nn.Module, schema: FeatureSchema) -> dict[str, ServingForm]:
    """Its best: history once a request."""
    return {REUSE: HstuServing(cast("Hstu", model), schema)}

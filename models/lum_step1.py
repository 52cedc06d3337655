"""Step 1 of LUM as a thing to count and time: the user model's InfoNCE step on random users, packed or one a row.

No ranker: it enters no table of quality. `bench/pretrain.py` runs the same loss on real events before step 3.

Dims: R rows, L events of a row, N real events, U different items, d width
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.datasets.published_schemas import taobao_like
from ctrbench.datasets.schema import FIRST_ID, Batch, FeatureSchema
from ctrbench.kernels.attention import visible_pairs
from ctrbench.models.cards import fixed, switched
from ctrbench.models.lum_backbone import UserModel, UserModelConfig, event_fields
from ctrbench.models.lum_rows import Sequences, Targets, decoder_flops, loss_flops, pack, targets_of
from ctrbench.models.spec import FidelityCard, Flops, ModelSpec, OwnBatches, Preset, Stage

POOL = 512
"""Users to pack beyond four a row: few rows of a batch are then packed as well as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LumStep1Config(UserModelConfig):
    """Defaults are those of LUM's `small` preset."""

    packed: bool = True
    """Users share a row as far as they fit; false gives each a row of its own, padded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch(Batch):
    """Rows of users, with what the loss predicts; `ids` holds L events a row, 0 on padding."""

    segment_RL: Tensor
    place_RL: Tensor
    targets: Targets

    def tensors(self) -> list[Tensor]:
        """Every tensor of the batch."""
        return [*Batch.tensors(self), self.segment_RL, self.place_RL, *self.targets]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """The batch on another device; a batch already there is returned as it is."""
        if self.label_B.device == torch.device(device):
            return self
        moved = Batch.to(self, device, non_blocking)
        segment_RL, place_RL, *targets = (
            t.to(device, non_blocking=non_blocking) for t in (self.segment_RL, self.place_RL, *self.targets)
        )
        return PackedBatch(
            **{f.name: getattr(moved, f.name) for f in fields(Batch)}, segment_RL=segment_RL, place_RL=place_RL,
            targets=Targets(*targets),
        )  # fmt: skip

    def sequences(self) -> Sequences:
        """The rows as the user model reads them."""
        shape = self.segment_RL.shape
        return Sequences({k: self.ids[k].values().view(shape) for k in self.ids.keys()}, self.segment_RL, self.place_RL)


class LumStep1(nn.Module):
    """The user model; its output is the loss of the batch."""

    returns_loss = True

    def __init__(self, config: LumStep1Config, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        with torch.device(device) if device else nullcontext():
            roles = event_fields(schema, config.cond)
            self.user = UserModel(
                roles, schema, dim=config.dim, width=config.width, layers=config.layers, heads=config.heads,
                length=schema.histories[roles.history][0].max_length, similarity=config.similarity, tau=config.tau,
                logq=config.logq, positions=config.positions, tables=config.tables,
                device=str(torch.get_default_device()), condition=config.condition,
            )  # fmt: skip
        self.phases: Mapping[Stage, tuple[str, ...]] = {
            "embedding": ("user.tables",),
            "interaction": tuple(f"user.layers.{i}" for i in range(config.layers)),
        }

    def forward(self, batch: PackedBatch) -> Tensor:
        """Mean InfoNCE over the real events."""
        return self.user.loss(batch.sequences(), batch.targets)


def row_spans(rows: int, length: int, packed: bool, generator: torch.Generator) -> list[list[int]]:
    """Events of the users of each row; users have 1..`length` events, uniformly, whoever they are packed with.

    Packed, a pool of users that fills more rows than wanted is packed, and `rows` of them are drawn.
    """
    if not packed:
        return [[n] for n in torch.randint(1, length + 1, (rows,), generator=generator).tolist()]
    lengths: list[int] = torch.randint(1, length + 1, (4 * rows + POOL,), generator=generator).tolist()
    groups = pack(lengths, length)
    chosen = torch.randperm(len(groups), generator=generator)[:rows].tolist()
    return [[lengths[i] for i in groups[g]] for g in chosen]


def make_batch(
    config: LumStep1Config, schema: FeatureSchema, rows: int, seed: int = 0, device: str = "cpu"
) -> PackedBatch:
    """Uniform random ids in rows of `row_spans`. On meta its shapes are those of the real batch of that seed."""
    g = torch.Generator().manual_seed(seed)
    roles = event_fields(schema, config.cond)
    length = schema.histories[roles.history][0].max_length
    spans = row_spans(rows, length, config.packed, g)
    segment_RL, place_RL = torch.zeros(2, rows, length, dtype=torch.long)
    for r, row in enumerate(spans):
        numbers: list[int] = []
        places: list[int] = []
        for number, n in enumerate(row, start=1):
            numbers += [number] * n
            places += range(n)
        segment_RL[r, : len(numbers)] = torch.tensor(numbers)
        place_RL[r, : len(places)] = torch.tensor(places)
    names = (roles.item, roles.cond, *roles.side)
    ids = {
        n: torch.randint(FIRST_ID, schema[schema[n].table].cardinality, segment_RL.shape, generator=g)
        * (segment_RL > 0)
        for n in names
    }
    targets = targets_of(Sequences(ids, segment_RL, place_RL), roles.item)
    host = {"lengths": {roles.history: [sum(row) for row in spans]}, "spans": spans, "items": len(targets.item_U)}
    return _batch(ids, segment_RL, place_RL, targets, host, device)


def _batch(
    ids: Mapping[str, Tensor], segment_RL: Tensor, place_RL: Tensor, targets: Targets,
    host: Mapping[str, object], device: str,
) -> PackedBatch:  # fmt: skip
    rows, length = segment_RL.shape
    keyed = KeyedJaggedTensor(
        keys=list(ids), values=torch.cat([v.flatten() for v in ids.values()]).to(device), stride=rows,
        lengths=torch.full((len(ids) * rows,), length, dtype=torch.int32).to(device),
        length_per_key=[rows * length] * len(ids),
    )  # fmt: skip
    none_R0, zero_R = torch.zeros(rows, 0).to(device), torch.zeros(rows, dtype=torch.long).to(device)
    return PackedBatch(
        dense_BI=none_R0, missing_BI=none_R0, ids=keyed, event_times={}, time_B=zero_R, label_B=zero_R.float(),
        user_B=zero_R, host=host, segment_RL=segment_RL.to(device), place_RL=place_RL.to(device),
        targets=Targets(*(t.to(device) for t in targets)),
    )  # fmt: skip


def flops(config: LumStep1Config, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Tokens and decoder of one row that one user fills up to `lengths`; the loss needs a batch, see `batch_flops`."""
    roles = event_fields(schema, config.cond)
    top = schema.histories[roles.history][0].max_length
    real = min((lengths or {}).get(roles.history, top), top)
    sizes, per = (config.dim, config.width, config.layers, len(roles.side)), 2 if config.condition else 1
    visible = decoder_flops(*sizes, real, visible_pairs(per * real, per * real), per)
    return Flops(decoder_flops(*sizes, top, float(per * top) ** 2, per), visible)


def batch_flops(config: LumStep1Config, schema: FeatureSchema, batch: Batch) -> Flops:
    """Forward FLOPs of a whole batch; `visible` leaves out padding and pairs that the block-diagonal mask hides."""
    spans, items = batch.host["spans"], batch.host["items"]
    assert isinstance(spans, list)
    assert isinstance(items, int)
    side = len(event_fields(schema, config.cond).side)
    events = sum(map(sum, spans))
    per = 2 if config.condition else 1
    pairs = sum(visible_pairs(per * n, per * n) for row in spans for n in row)
    loss = loss_flops(config.dim, config.width, items, events)
    visible = decoder_flops(config.dim, config.width, config.layers, side, events, pairs, per)
    return Flops(flops(config, schema).full * batch.size + loss, visible + loss)


def card(config: LumStep1Config) -> FidelityCard:
    """What follows the paper under `config`."""
    return FidelityCard(
        model="lum_step1",
        paper="2502.08309",
        rows=(
            switched(config, "condition", True, "condition token before item token, loss at condition positions only",
                     "4.1", at="faithful"),
            fixed("InfoNCE over the batch's items", "faithful", "4.1"),
            switched(config, "packed", True, "packing of users into rows, block-diagonal mask", "4.1", at="faithful"),
            fixed("mask", "adapted", "n/k", "executed as a dense rectangle: what it hides counts as idle"),
            fixed("users", "adapted", "n/k", "random ids, 1 to L events each, uniformly: no data is read"),
            fixed("different items of a batch", "adapted", "n/k", "found with the batch, outside the step"),
            fixed("sizes", "unknown", "n/k", "ours",
                  f"dim={config.dim}, width={config.width}, layers={config.layers}, heads={config.heads}"),
        ),
    )  # fmt: skip


def published() -> tuple[Preset, ...]:
    """A sweep over d and L with packing on and off: no source gives depth and width."""
    note = "point of a sweep: depth and width are not published; pre-training of the user model, users of 1..L events"
    base = LumStep1Config(dim=64, layers=8)
    return tuple(
        Preset(
            label=f"d={d},L={length},{'packed' if packed else 'unpacked'}",
            config=replace(base, width=d, heads=d // 64, packed=packed), schema=taobao_like(length), note=note,
        )
        for d in (256, 512, 1024)
        for length in (256, 1024)
        for packed in (True, False)
    )  # fmt: skip


SPEC = ModelSpec(
    name="lum_step1",
    title="LUM step 1",
    family="transformer",
    paper="2502.08309",
    tracks=(),
    config=LumStep1Config,
    build=LumStep1,
    card=card,
    flops=flops,
    published=published,
    own_batches=OwnBatches(
        make=make_batch, flops=batch_flops, histories="users of 1 to T events, uniformly", rows=(5, 17, 67)
    ),
    skip_reason=dict.fromkeys(("tabular", "sequence"), "pre-training, no ranker: suite=mfu counts and times it"),
)

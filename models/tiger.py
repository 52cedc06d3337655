"""TIGER in the registry (2305.05065): a retriever, and its training step on random users to count and time.

No ranker: it has no logit of a candidate and enters no table of ranking quality. The network is
`models/tiger_net.py`, retrieval `models/tiger_retriever.py`.

Dims: B users, T history length, L codes of an item, V rows of the item table
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ctrbench.datasets.published_schemas import taobao_like
from ctrbench.datasets.schema import Batch, FeatureSchema, synthetic_batch
from ctrbench.models.cards import fixed, switched
from ctrbench.models.events import left_pad_index, take_padded
from ctrbench.models.lum_backbone import event_fields
from ctrbench.models.retriever import RetrieverSpec
from ctrbench.models.spec import FidelityCard, Flops, ModelSpec, OwnBatches, Preset, Stage
from ctrbench.models.tiger_net import Tiger, TigerConfig
from ctrbench.models.tiger_retriever import TigerRetriever

PUBLISHED = TigerConfig(width=128, layers=4, heads=6, head=64, hidden=1024, dropout=0.1, sid_method="rqvae",
                        sid_codes=256)  # fmt: skip


def places(config: TigerConfig) -> int:
    """Codes of an item, with the one that tells collisions apart."""
    return config.sid_levels + (config.sid_collision == "append")


class TigerStep(nn.Module):
    """The network on items with random codes: its output is the loss of a batch, one predicted item a user."""

    returns_loss = True

    def __init__(self, config: TigerConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        self.roles = event_fields(schema)
        self.length = schema.histories[self.roles.history][0].max_length
        shape = schema[self.roles.item_target].cardinality, places(config)
        self.codes_VL: Tensor
        with torch.device(device) if device else nullcontext():
            self.net = Tiger(config, (config.sid_codes,) * shape[1])
            self.register_buffer("codes_VL", torch.randint(config.sid_codes, shape), persistent=False)
        self.phases: Mapping[Stage, tuple[str, ...]] = {
            "embedding": ("net.tokens",),
            "interaction": tuple(f"net.{part}.{i}" for part in ("encoder", "decoder") for i in range(config.layers)),
        }

    def forward(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the target item's codes, from the newest items of the history."""
        events = batch.ids[self.roles.item]
        length = min(self.length, self.net.config.history)
        index_BT, real_BT = left_pad_index(events.lengths(), events.offsets(), length)
        item_BT, next_B = take_padded(events.values(), index_BT, real_BT), batch.ids[self.roles.item_target].values()
        return self.net.loss(batch.user_B, self.codes_VL[item_BT], real_BT, self.codes_VL[next_B])


def make_batch(config: TigerConfig, schema: FeatureSchema, rows: int, seed: int = 0, device: str = "cpu") -> Batch:
    """Uniform random ids, full histories."""
    return synthetic_batch(schema, rows, seed=seed, device=device)


def flops(config: TigerConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Training forward of one user and one item (models.md section 5), E = heads x head wide inside attention.

    Encoder and the decoder's maps of its output: 12dE + 4d hidden a token and layer, 4E a pair of tokens; decoder:
    12dE + 4d hidden a code and layer, 4E a pair with another code or with a token of the encoder; 2d a code scored.
    """
    history = event_fields(schema).history
    top = min(config.history, schema.histories[history][0].max_length)
    d, inner, codes = config.width, config.heads * config.head, places(config)
    maps = 12.0 * d * inner + 4.0 * d * config.hidden

    def count(items: int, pairs: float) -> float:
        tokens = codes * items + bool(config.users)
        attended = 4.0 * inner * (tokens**2 + pairs + codes * tokens)
        return config.layers * (maps * (tokens + codes) + attended) + 2.0 * d * codes * config.sid_codes

    return Flops(count(top, codes**2), count(min(top, (lengths or {}).get(history, top)), codes * (codes + 1) / 2))


def batch_flops(config: TigerConfig, schema: FeatureSchema, batch: Batch) -> Flops:
    """Forward FLOPs of a whole batch of full histories."""
    return flops(config, schema) * batch.size


def card(config: TigerConfig) -> FidelityCard:
    """What follows the paper under `config`."""
    sizes = {n: getattr(config, n) for n in ("width", "layers", "heads", "head", "hidden", "dropout")}
    published = all(getattr(PUBLISHED, n) == value for n, value in sizes.items())
    rows = (
        switched(config, "sid_levels", 3, "codes of an item, and one more that tells collisions apart", "3.1",
                 f"sid_collision={config.sid_collision}", at="faithful" if places(config) == 4 else "adapted"),
        switched(config, "sid_method", "rqvae", "codes by RQ-VAE: residual rule, loss, straight-through", "3.1",
                 "started by k-means; the small preset takes RQ-KMeans, which uses codes as well and needs no training",
                 at="faithful"),
        switched(config, "sid_codes", 256, "codes of a level", "3.1", at="faithful"),
        fixed("encoder over the codes of the history, decoder over those of the next item", "faithful", "3.2"),
        fixed("sizes", "faithful" if published else "adapted", "n/k", "published: width 128, 4 + 4 layers, 6 heads of "
              "64, 1024 hidden, dropout 0.1 (a public re-implementation's config)",
              ", ".join(f"{n}={value}" for n, value in sizes.items())),
        switched(config, "history", 20, "items of the history", "n/k", at="faithful"),
        fixed("cross-entropy of the next item's codes", "faithful", "3.2", "each among the codes of its place"),
        fixed("beam search", "faithful", "3.2", "", f"beams={config.beams}"),
        fixed("search along a trie", "adapted", "3.2", "the paper's beams may end at no item; these cannot"),
        fixed("item vectors", "adapted", "n/k", "the paper embeds item texts; ours are item fields and co-occurrence"),
        fixed("targets of a step", "adapted", "n/k", "events of a user, drawn anew", f"targets={config.targets}"),
        fixed("optimizer of all weights", "adapted", "n/k", "Adam, on the token table too"),
        switched(config, "users", 2000, "user token, ids hashed"),
        switched(config, "tie", True, "output layer is the token table"),
        fixed("schedule", "unknown", "n/k", "ours: a constant rate"),
        fixed("parameter count", "unknown", "n/k", "about 13 M are named for it; they need a text vocabulary, and no "
              "public code has one here"),
    )  # fmt: skip
    return FidelityCard(model="tiger", paper="2305.05065", rows=rows)


def published() -> tuple[Preset, ...]:
    """The size of the paper's public re-implementations, 20 items of four codes."""
    note = "d 128, 4 + 4 layers, 6 heads of 64 (config of a public re-implementation); one predicted item a user"
    return (Preset(label="d128", config=PUBLISHED, schema=taobao_like(20), note=note),)


SPEC = ModelSpec(
    name="tiger",
    title="TIGER",
    family="transformer",
    paper="2305.05065",
    tracks=(),
    config=TigerConfig,
    build=TigerStep,
    card=card,
    flops=flops,
    published=published,
    retriever=RetrieverSpec(build=TigerRetriever, conditioned=False),
    own_batches=OwnBatches(
        make=make_batch, flops=batch_flops, histories="full, the newest items read", rows=(67, 257, 1031)
    ),
    skip_reason=dict.fromkeys(("tabular", "sequence"), "retrieves, has no logit of a candidate"),
)

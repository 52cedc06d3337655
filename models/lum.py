"""LUM in its third step: answers of a pre-trained user model as fields of any ranker (2502.08309 section 4.3).

Step 1 (pre-training) is `models/lum_backbone.py`, step 2 (group query) `models/lum_answers.py`; `bench/pretrain.py`
runs step 1. The host is any model of the project, so `lum.host=fat` is the two-layer system of the founding article.

Dims: B batch, T history length, Q queries, D width of the host's fields, d width of the user model
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ctrbench.datasets.published_schemas import taobao_like
from ctrbench.datasets.schema import Batch, FeatureSchema, Field
from ctrbench.kernels.attention import visible_pairs
from ctrbench.kernels.linear import Linear
from ctrbench.models.blocks import Embedded, FeatureEmbedder
from ctrbench.models.cards import fixed, switched
from ctrbench.models.lum_answers import UserAnswers
from ctrbench.models.lum_backbone import UserModel, UserModelConfig, event_fields
from ctrbench.models.lum_sid import RETRIEVER, SidTarget, target_row
from ctrbench.models.spec import FidelityCard, Flops, ModelSpec, Preset, Stage

Use = Literal["both", "direct", "match"]
Hosts = Callable[[str], ModelSpec]


@dataclass(frozen=True, kw_only=True, slots=True)
class LumConfig(UserModelConfig, SidTarget):
    """Defaults are the `small` preset."""

    host: str = "din"
    """Ranker that gets the answers, with its own small preset."""
    use: Use = "both"
    """`direct`: answers and the target's item token, mapped to fields; `match`: their similarities; or both."""
    queries: int = 4
    """Q: the target's own condition, then the Q - 1 most frequent conditions of train."""
    frozen: bool = True
    """No gradient of step 3 reaches the user model; false goes on training it on the task (post-training)."""
    pretrain_epochs: int = 2
    """Passes of step 1 over the users' train events; 0 leaves the user model random (a control)."""
    pretrain_batch: int = 64
    """Packed rows of step 1, each as many events as a history holds."""
    pretrain_lr: float = 1e-3

    def __post_init__(self) -> None:
        SidTarget.__post_init__(self)
        if self.queries < 1 or self.tau <= 0 or self.host == "lum":
            raise ValueError(f"queries={self.queries} >= 1, tau={self.tau} > 0, host={self.host!r} other than lum")
        if self.use not in ("both", "direct", "match"):
            raise ValueError(f"use={self.use!r}: choose both, direct or match")


STEP_ONE = (
    "queries", "dim", "width", "layers", "heads", "cond", "similarity", "tau", "logq", "positions", "pretrain_epochs",
    "pretrain_batch", "pretrain_lr",
)  # fmt: skip
"""Options that decide step 1 and its answers; rankers that agree on them share both (paper section 4.4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LumBatch(Batch):
    """A batch with the answers that belong to it."""

    answers_BQd: Tensor
    item_Bd: Tensor
    match_BQ: Tensor


class AnswerEmbedder(nn.Module):
    """The host's embedder with the answers put into the fields that `with_answers` added."""

    def __init__(self, inner: FeatureEmbedder, config: LumConfig, at: int) -> None:
        super().__init__()
        self.inner, self.at, self.use = inner, at, config.use
        direct = config.use != "match"
        self.answer_map = Linear(config.width, inner.dim) if direct else None
        self.item_map = Linear(config.width, inner.dim) if direct else None

    def forward(self, batch: LumBatch) -> Embedded:
        """Similarities go in as dense values; answers and item token take the places of dense fields, mapped."""
        parts = [batch.dense_BI]
        if self.use != "direct":
            parts.append(batch.match_BQ)
        direct = self.answer_map is not None and self.item_map is not None
        extra = batch.answers_BQd.shape[1] + 1 if direct else 0
        dense_BI = torch.cat([*parts, batch.dense_BI.new_zeros(batch.size, extra)], dim=1)
        added = dense_BI.shape[1] - batch.missing_BI.shape[1]
        missing_BI = torch.cat([batch.missing_BI, batch.missing_BI.new_zeros(batch.size, added)], dim=1)
        embedded = self.inner(replace(batch, dense_BI=dense_BI, missing_BI=missing_BI))
        if not direct:
            return embedded
        assert self.answer_map is not None
        assert self.item_map is not None
        direct_BND = torch.cat([self.answer_map(batch.answers_BQd), self.item_map(batch.item_Bd).unsqueeze(1)], dim=1)
        before, after = embedded.fields_BFD[:, : self.at], embedded.fields_BFD[:, self.at + extra :]
        return replace(embedded, fields_BFD=torch.cat([before, direct_BND, after], dim=1))


def with_answers(schema: FeatureSchema, config: LumConfig) -> FeatureSchema:
    """The schema that the host is built on: dense fields for similarities, then for answers and item token."""
    names = [f"lum_match_{i}" for i in range(config.queries if config.use != "direct" else 0)]
    names += [f"lum_direct_{i}" for i in range(config.queries + 1 if config.use != "match" else 0)]
    return replace(schema, fields=(*schema.fields, *(Field(name=n, kind="dense", role="context") for n in names)))


class LumRanker(nn.Module):
    """Step 3: the host on its own fields and the answers."""

    def __init__(self, config: LumConfig, schema: FeatureSchema, host: ModelSpec, device: str | None = None) -> None:
        super().__init__()
        with torch.device(device) if device else nullcontext():
            self.lum = UserAnswers(config, schema, str(torch.get_default_device()))
            self.host = host.build(host_config(host, config), with_answers(schema, config))
            direct = config.queries + 1 if config.use != "match" else 0
            # Field order of the embedder: categorical, dense, then pooled sequences; answers are the last dense ones.
            dense = len(with_answers(schema, config).dense)
            at = len(schema.categorical) + dense - direct
            self.host.embedder = AnswerEmbedder(self.host.embedder, config, at)
        below = {stage: tuple(f"host.{b}" for b in blocks) for stage, blocks in self.host.phases.items()}
        self.phases: Mapping[Stage, tuple[str, ...]] = {
            **below, "interaction": ("lum", *below.get("interaction", ())),
        }  # fmt: skip

    @property
    def user_model(self) -> UserModel:
        """What step 1 trains."""
        return self.lum.user

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        answers_BQd, item_Bd, match_BQ = self.lum(batch)
        given = {f.name: getattr(batch, f.name) for f in fields(Batch)}
        return self.host(LumBatch(**given, answers_BQd=answers_BQd, item_Bd=item_Bd, match_BQ=match_BQ))


def host_config(host: ModelSpec, config: LumConfig) -> Any:
    """The host's small preset with the tables of this run."""
    return replace(host.config(), tables=config.tables)


def build(config: LumConfig, schema: FeatureSchema, device: str | None = None, *, hosts: Hosts) -> LumRanker:
    """`hosts` gives a model's spec by name; the roof hands it in.

    Raises:
        ValueError: no history with an item and a condition, or an option that does not fit.
        UnknownName: an unknown host.
    """
    return LumRanker(config, schema, hosts(config.host), device)


def card(config: LumConfig) -> FidelityCard:
    """What follows the paper under `config`."""
    return FidelityCard(
        model="lum",
        paper="2502.08309",
        rows=(
            fixed("condition token before item token, each with its own projection", "faithful", "4.1"),
            fixed("loss at condition positions only", "faithful", "4.1"),
            fixed("InfoNCE over the batch's items", "faithful", "4.1",
                  "every different item of the batch once, the positive among them"),
            fixed("packing of users into rows, block-diagonal mask", "faithful", "4.1"),
            fixed("group query: one shared history, conditions do not see each other", "faithful", "4.2"),
            switched(config, "use", "both", "answers and similarities as inputs of a ranker", "4.3", at="faithful"),
            switched(config, "frozen", True, "no gradient into the user model", "4.3", at="faithful"),
            fixed("store of answers", "faithful" if config.frozen else "adapted", "4.4", "trainings look answers up, "
                  "one store for all hosts; timed and counted steps compute them with the batch; the same values"),
            fixed("conditions", "adapted", "4.1", "public data has no scenario or query: the item's category; step 2 "
                  "asks for the target's own and the most frequent ones", f"queries={config.queries}"),
            fixed("action of an event", "adapted", "n/k", "side information added to the item token as input; the "
                  "item tokens that are predicted and handed to the ranker do not hold it"),
            fixed("backbone of step 3", "adapted", "5.1", "the paper uses SIM on public data", f"host={config.host}"),
            switched(config, "similarity", "cosine", "similarity"),
            switched(config, "tau", 0.07, "temperature"),
            switched(config, "logq", False, "correction for item frequency"),
            switched(config, "positions", "token", "positions"),
            target_row(config),
            fixed("sizes and schedule of step 1", "unknown", "n/k", "ours",
                  f"dim={config.dim}, width={config.width}, layers={config.layers}, heads={config.heads}, "
                  f"pretrain_epochs={config.pretrain_epochs}"),
        ),
    )  # fmt: skip


def user_flops(config: LumConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Steps 1 and 2 of one user: 2L + Q tokens through 24d² a layer, attention, token maps, similarities."""
    roles = event_fields(schema, config.cond)
    top = schema.histories[roles.history][0].max_length
    d, q = config.width, config.queries

    def count(events: int, full: bool) -> float:
        tokens = 2 * events + q
        maps = 2.0 * config.dim * d * ((events + q) + (events + 1) + len(roles.side) * events)
        pairs = tokens**2 if full else visible_pairs(2 * events, 2 * events) + q * (2 * events + 1)
        return maps + config.layers * (24 * d * d * tokens + 4 * d * pairs) + 2.0 * q * d

    return Flops(count(top, True), count(min(top, (lengths or {}).get(roles.history, top)), False))


def flops(config: LumConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None, *, hosts: Hosts) -> Flops:
    """Group query, maps to the host's fields, and the host."""
    host = hosts(config.host)
    inside = host_config(host, config)
    direct = 2.0 * config.width * getattr(inside, "dim", config.dim) * (config.queries + 1)
    maps = direct if config.use != "match" else 0.0
    user = user_flops(config, schema, lengths)
    return (
        (Flops(user.full, user.visible, user.full, user.visible) if config.frozen else user)
        + Flops(maps, maps)
        + host.flops(inside, with_answers(schema, config), lengths)
    )


def published() -> tuple[Preset, ...]:
    """Step 3 on the features of a large shop: no source gives depth and width, so a sweep, under a small DIN."""
    note = "point of a sweep: depth and width are not published; frozen user model under a small DIN, 256 events"
    return tuple(
        Preset(label=f"d{d}", config=LumConfig(dim=64, width=d, layers=8, heads=d // 64), schema=taobao_like(256),
               note=note)
        for d in (256, 512, 1024)
    )  # fmt: skip


SPEC = ModelSpec(
    name="lum",
    title="LUM",
    family="transformer",
    paper="2502.08309",
    tracks=("sequence",),
    config=LumConfig,
    build=build,
    card=card,
    flops=flops,
    published=published,
    takes_host=True,
    step_one=STEP_ONE,
    retriever=RETRIEVER,
    skip_reason={"tabular": "no event sequence to pre-train on"},
)

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
from ctrbench.models.histories import questioned
from ctrbench.models.lum_answers import UserAnswers
from ctrbench.models.lum_backbone import UserModel
from ctrbench.models.lum_card import card
from ctrbench.models.lum_fields import SidTarget, UserModelConfig, event_fields
from ctrbench.models.lum_retriever import RETRIEVER
from ctrbench.models.lum_serving import forms
from ctrbench.models.lum_sid import SidUserModel, sid_flops
from ctrbench.models.spec import Flops, ModelSpec, Preset, Stage

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
    objective: Literal["task", "joint"] = "task"
    """`joint` adds step 1's InfoNCE on the batch's histories to every step of step 3; needs frozen=false."""
    joint_weight: float = 0.1
    """Weight of that loss; ours."""
    pretrain_epochs: int = 2
    """Passes of step 1 over the users' train events; 0 leaves the user model random (a control)."""
    pretrain_batch: int = 64
    """Packed rows of step 1, each as many events as a history holds; also the most histories of a joint step."""
    pretrain_lr: float = 1e-3

    def __post_init__(self) -> None:
        SidTarget.__post_init__(self)
        if self.queries < 1 or self.tau <= 0 or self.host == "lum":
            raise ValueError(f"queries={self.queries} >= 1, tau={self.tau} > 0, host={self.host!r} other than lum")
        if self.use not in ("both", "direct", "match"):
            raise ValueError(f"use={self.use!r}: choose both, direct or match")
        if self.objective not in ("task", "joint") or self.joint_weight < 0:
            raise ValueError(f"objective={self.objective!r}: task or joint; joint_weight={self.joint_weight} >= 0")
        if self.objective == "joint" and self.frozen:
            raise ValueError("objective=joint trains the user model: add frozen=false")
        if not self.condition and self.queries != 1:
            raise ValueError(f"queries={self.queries}: without conditions there is one answer; add queries=1")
        if self.target == "sid" and (self.objective == "joint" or not self.condition):
            raise ValueError(f"target=sid: objective={self.objective}, condition={self.condition}: needs task and true")


STEP_ONE = (
    "queries", "dim", "width", "layers", "heads", "cond", "similarity", "tau", "logq", "positions", "condition",
    "pretrain_epochs", "pretrain_batch", "pretrain_lr",
    "target", "sid_method", "sid_levels", "sid_codes", "sid_collision", "sid_standardise",
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
            self.host_forms = host.serving
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
    def user_model(self) -> UserModel | SidUserModel:
        """What step 1 trains."""
        return self.lum.user

    @property
    def extra_loss(self) -> Callable[[], Tensor] | None:
        """Loss beside the task's, asked for after each training forward; None with the task alone."""
        return self.lum.joint_loss if self.lum.config.objective == "joint" else None

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


def user_flops(config: LumConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Steps 1 and 2 of one user: 2L + Q tokens through 24d² a layer, attention, token maps, similarities.

    Without conditions L + 1 tokens: those of the history and one after it. On semantic IDs see `sid_flops`.
    """
    if config.target == "sid":
        return sid_flops(config, schema, lengths)
    roles = event_fields(schema, config.cond)
    top = questioned(schema.histories[roles.history][0].max_length)
    d, q = config.width, config.queries

    def count(events: int, full: bool) -> float:
        tokens = 2 * events + q if config.condition else events + 1
        mapped = (events + q) + (events + 1) + len(roles.side) * events
        if not config.condition:
            mapped = tokens * (1 + len(roles.side)) + 1
        maps = 2.0 * config.dim * d * mapped
        seen = visible_pairs(2 * events, 2 * events) + q * (2 * events + 1)
        pairs = tokens**2 if full else seen if config.condition else visible_pairs(tokens, tokens)
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


SPEC = ModelSpec(  # spelt out in every model file: each is read alone
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
    serving=forms,
    skip_reason={"tabular": "no event sequence to pre-train on"},
)

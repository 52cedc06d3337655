"""DIN: the history weighted by the target through an activation unit, without softmax (1706.06978).

Dims: B batch, E width of all interests together
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ctrbench.datasets.published_schemas import taobao_ad_x1
from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.linear import Linear
from ctrbench.legacy_baselines.din_serving import request_flops, serving
from ctrbench.legacy_baselines.interest import Interests, Unit, UnitConfig, View, interest_flops, layers
from ctrbench.models.blocks import FeatureEmbedder, mlp_flops
from ctrbench.models.embedding import TableConfig
from ctrbench.models.histories import require_history
from ctrbench.models.spec import CardRow, FidelityCard, Flops, ModelSpec, Preset, Stage, Status

MBA_ON = (
    "tables update inside their backward, so the term sits on the rows as looked up and joins the loss's gradient "
    "there; a row is divided by its reads until now, where the paper counts the whole training set; lambda is ours"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DINConfig(UnitConfig):
    """Defaults are the `small` preset: wider than the design's least (8, 64-32), so that the baseline is not weak."""

    unit: Unit = "jagged"
    dim: int = 16
    """Embedding width."""
    mlp: tuple[int, ...] = (128, 64)
    """Hidden widths of the tower."""
    dropout: float = 0.0
    mba_reg: bool = False
    """Mini-batch aware L2 (section 5.1): rows of the batch, each over how often training has read it."""
    mba_l2: float = 0.01
    """Lambda of `mba_reg`."""
    missing_vector: bool = True
    """Learn one vector a dense field for missing values."""
    tables: TableConfig = field(default_factory=TableConfig)

    def __post_init__(self) -> None:
        UnitConfig.__post_init__(self)  # slots: the class that zero-argument super() remembers is not this one
        if self.mba_l2 <= 0:
            raise ValueError(f"mba_l2={self.mba_l2}: must be above 0; mba_reg=false turns it off")
        if self.mba_reg and self.tables.l2:
            raise ValueError(f"mba_reg=true and l2={self.tables.l2}: both penalise the same rows; use one")

    @property
    def trained_tables(self) -> TableConfig:
        """`tables` with the penalty of `mba_reg`."""
        return replace(self.tables, l2=self.mba_l2, l2_by_count=True) if self.mba_reg else self.tables


class DIN(nn.Module):
    """Fields and one interest a history, through a tower."""

    phases: Mapping[Stage, tuple[str, ...]] = {
        "embedding": ("embedder",), "interaction": ("attention",), "dense": ("tower",),
    }  # fmt: skip

    def __init__(self, config: DINConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        require_history(schema, "din")
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(
                schema,
                config.dim,
                config.trained_tables,
                missing_vector=config.missing_vector,
                sequences="flat" if config.unit == "jagged" else "events",
            )
            self.attention = Interests(schema, config.dim, config, [View(h, h) for h in schema.histories])
            n_in = self.embedder.num_fields * config.dim + sum(self.embedder.event_width.values())
            self.tower = nn.Sequential(
                *layers((n_in, *config.mlp), config, config.dropout), Linear((n_in, *config.mlp)[-1], 1)
            )

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        embedded = self.embedder(batch)
        interests_BE = self.attention(embedded)
        return self.tower(torch.cat([embedded.fields_BFD.flatten(1), interests_BE], dim=1)).squeeze(1)


def card(config: DINConfig) -> FidelityCard:
    """What follows the paper under `config`."""
    softmax: Status = "adapted" if config.softmax else "faithful"
    act: Status = "faithful" if config.act == "dice" else "adapted"
    return FidelityCard(
        model="din",
        paper="1706.06978",
        rows=(
            CardRow(mechanism="activation unit over history and target", status="faithful", section="4.3",
                    switch=f"unit={config.unit}", note="all forms of the first layer give the same value"),
            CardRow(mechanism="input of the unit", status="adapted", section="4.3",
                    note="[q; h; q-h; q*h] as FuxiCTR, where the paper has an outer product"),
            CardRow(mechanism="weights not normalised over the history", status=softmax, section="4.3",
                    switch=f"softmax={str(config.softmax).lower()}"),
            CardRow(mechanism="Dice", status=act, section="5.2", switch=f"act={config.act}",
                    note="alpha starts at 0, BN without affine, eps 1e-9, momentum 0.01 as FuxiCTR"),
            CardRow(mechanism="statistics of Dice over padded histories", status="adapted", section="n/k",
                    switch=f"dice_stats={config.dice_stats}",
                    note="the paper does not say whether padding enters; in FuxiCTR it does (all)"),
            CardRow(mechanism="mini-batch aware regularisation", status="adapted", section="5.1",
                    switch=f"mba_reg={str(config.mba_reg).lower()}" + (f", mba_l2={config.mba_l2}" * config.mba_reg),
                    note=MBA_ON if config.mba_reg else "not applied"),
            CardRow(mechanism="query for event fields without a target", status="adapted", section="n/k",
                    note="e.g. the action taken: one learned vector each stands in the query"),
            CardRow(mechanism="sizes", status="unknown", section="n/k",
                    switch=f"dim={config.dim}, attention={config.attention}, mlp={config.mlp}",
                    note="small preset kept above the design's least so as not to be weak"),
            CardRow(mechanism="optimizer", status="adapted", section="n/k",
                    switch=f"tables.optimizer={config.tables.optimizer}",
                    note="Adam on dense weights, the tables' own optimizer inside their backward"),
        ),
    )  # fmt: skip


def flops(config: DINConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Units on T events (`full`; `jagged` has no padding) or on the true length (`visible`), and the tower."""
    n_in = (len(schema.categorical) + len(schema.dense) + len(schema.sequences)) * config.dim
    tower = mlp_flops(n_in, config.mlp, 1)
    full = visible = tower
    for history, fields in schema.histories.items():
        width, top = len(fields) * config.dim, fields[0].max_length
        real = interest_flops(width, min(top, (lengths or {}).get(history, top)), config)
        full += real if config.real_events_only else interest_flops(width, top, config)
        visible += real
    return Flops(full, visible)


def published() -> tuple[Preset, ...]:
    """BARS' TaobaoAd_x1 run: 328,705 parameters more than the plain DNN; unit plain and split."""
    concat = DINConfig(
        dim=32, attention=(512, 256), act="relu", attention_dropout=0.4, mlp=(512, 256, 128), missing_vector=False,
        unit="concat",
    )  # fmt: skip
    note = "BARS TaobaoAd_x1 log: DNN 41,934,977 parameters, DIN +328,705; first layer of the unit "
    schema = taobao_ad_x1()
    return (
        Preset(label="taobao_ad", config=concat, schema=schema, note=note + "as published"),
        Preset(label="taobao_ad_split", config=replace(concat, unit="split"), schema=schema, note=note + "split"),
    )  # fmt: skip


SPEC = ModelSpec(  # spelt out in every model file: each is read alone
    name="din",
    title="DIN",
    family="legacy",
    paper="1706.06978",
    tracks=("sequence",),
    config=DINConfig,
    build=DIN,
    card=card,
    flops=flops,
    published=published,
    serving=serving,
    request_flops=request_flops,
    real_events_only=lambda config: bool(config.real_events_only),
    skip_reason={"tabular": "no behaviour history in the data"},
)

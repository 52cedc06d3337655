"""Our side of a pair: the model that the peer has, of our parts, with as many weights.

FuxiCTR embeds numbers as our models do. deepctr-torch feeds them raw to the MLP and to the cross network and gives
each a first-order weight: `RawDense` does that with our tables, FM, cross layers and MLP.

Dims: B batch, I dense fields
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.linear import Linear
from ctrbench.legacy_baselines.dcn_v2 import CrossNet, DCNv2, DCNv2Config
from ctrbench.legacy_baselines.din import DIN, DINConfig
from ctrbench.legacy_baselines.fm import FmTerm
from ctrbench.legacy_baselines.interest import layers
from ctrbench.models.blocks import MLP, FeatureEmbedder
from ctrbench.models.embedding import TableConfig

Peer = Literal["deepctr-torch", "fuxictr"]
DIM = 16
ATTENTION, TOWER = (64, 16), (256, 128)
"""Of DIN: deepctr-torch's defaults, as in `SIZES`."""
Width = Literal["default", "wide"]
SIZES: Mapping[tuple[str, Width], tuple[tuple[int, ...], int]] = {
    ("deepfm", "default"): ((256, 128), 0), ("deepfm", "wide"): ((400, 400, 400), 0),
    ("dcn_v2", "default"): ((128, 128), 2), ("dcn_v2", "wide"): ((400, 400, 400), 3),
}  # fmt: skip
"""MLP and number of cross layers: deepctr-torch's defaults, and BARS' MLP, where products of matrices take most."""
TABLES: Mapping[str, TableConfig] = {
    "fused": TableConfig(optimizer="adagrad"),
    "adam": TableConfig(impl="per_table", optimizer="adam", lr=1e-3),
    "adagrad": TableConfig(optimizer="adagrad", lr=0.01),
}
"""Optimizer of the tables: ours, and the peers' two at the learning rates of their defaults.

Ours is Adagrad by element: by row it learns less of tables with many rows (DeepFM, 5.2 million rows, one seed, test
AUC after 70 steps .7236 against .7129 at dense weights' 1e-3, after 20 steps .6894 against .6836 at 4e-3).
"""


class RawDense(nn.Module):
    """DeepFM or DCN-v2 with numbers beside the embeddings, as deepctr-torch has them.

    Args:
        kind: the model.
        tables: storage and optimizer.
        schema: fields without histories.
        width: of the dense layers.
    """

    def __init__(
        self, kind: Literal["deepfm", "dcn_v2"], tables: TableConfig, schema: FeatureSchema, width: Width = "default"
    ) -> None:
        super().__init__()
        hidden, cross = SIZES[kind, width]
        self.embedder = FeatureEmbedder(schema, DIM, tables, linear=kind == "deepfm", dense=False)
        numbers = len(schema.dense)
        n_in = self.embedder.num_fields * DIM + numbers
        self.fm = FmTerm("sum") if kind == "deepfm" else None
        self.first_order = Linear(numbers, 1, bias=False) if kind == "deepfm" else None
        self.cross = CrossNet(n_in, cross) if kind == "dcn_v2" else None
        self.mlp = MLP(n_in, hidden)
        self.head = Linear(hidden[-1] + (n_in if self.cross else 0), 1)

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        embedded = self.embedder(batch)
        x_BN = torch.cat([embedded.fields_BFD.flatten(1), batch.dense_BI], dim=1)
        deep = self.mlp(x_BN)
        if self.cross is not None:
            return self.head(torch.cat([self.cross(x_BN), deep], dim=1)).squeeze(1)
        assert self.fm is not None
        assert self.first_order is not None
        assert embedded.linear_B is not None
        logit_B = self.head(deep).squeeze(1) + self.first_order(batch.dense_BI).squeeze(1)
        return logit_B + embedded.linear_B + self.fm(embedded.fields_BFD)


def our_model(name: str, peer: Peer, tables: TableConfig, schema: FeatureSchema, width: Width = "default") -> nn.Module:
    """The model that `peer` has under this name.

    Raises:
        ValueError: there is none.
    """
    if name == "din":
        config = DINConfig(dim=DIM, attention=ATTENTION, mlp=TOWER, missing_vector=False, tables=tables)
        model = DIN(config, schema)
        n_in = model.embedder.num_fields * DIM + sum(model.embedder.event_width.values())
        relu = replace(config, act="relu")  # the peers' towers have no Dice
        model.tower = nn.Sequential(*layers((n_in, *TOWER), relu, 0.0), Linear(TOWER[-1], 1))
        return model
    if peer == "deepctr-torch" and name in ("deepfm", "dcn_v2"):
        return RawDense(name, tables, schema, width)  # type: ignore[arg-type]
    if peer == "fuxictr" and name == "dcn_v2":
        hidden, cross = SIZES[name, width]
        sizes = DCNv2Config(dim=DIM, mlp=hidden, cross_layers=cross, missing_vector=False, tables=tables)
        return DCNv2(sizes, schema)
    raise ValueError(f"{peer} has no {name} that is compared here")

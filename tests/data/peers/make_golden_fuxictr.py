"""Logits of FuxiCTR 2.3.9 (Apache-2.0), random weights and rows: what tests/reference/test_peers_fuxictr.py compares.

Run in an environment of its own, which `make peers` makes (2.3.9 needs polars < 1.30 and keras-preprocessing), e.g.

    .venv-peers-fuxictr/bin/python tests/data/peers/make_golden_fuxictr.py [FOLDER]

It writes one `fuxictr_*.npz` a model into the folder, beside itself if none is given, in the form of make_golden.py.

The wheel packages three of our models (`model_zoo/LongCTR`: DCNv2, DIN, DIEN). Of LR, FM, DCN and DLRM it has the
layers, which are put together here as its repository does; it has nothing of FFM's, Wide & Deep's or DeepFM's own.
Weights are random: an array holds nothing of anybody's but the peer's arithmetic.

Dims: B rows, T history length
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import (
    CrossNet,
    FactorizationMachine,
    FeatureEmbedding,
    InnerProductInteraction,
    LogisticRegression,
    MLP_Block,
)
from model_zoo.LongCTR.DCNv2.DCNv2 import DCNv2
from model_zoo.LongCTR.DIEN.DIEN import DIEN
from model_zoo.LongCTR.DIN.DIN import DIN
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
ROWS, STEPS, WIDTH = 24, 5, 4
CARDINALITY = {"user": 20, "item": 30, "genre": 9}
DENSE = ("I0", "I1")
FIRST = 3
"""Ids below are reserved in ours; 0 is padding in both."""
COMMON: dict[str, Any] = {
    "optimizer": "adam", "loss": "binary_crossentropy", "metrics": ["AUC"], "verbose": 0, "model_root": ".",
    "embedding_dim": WIDTH,
}  # fmt: skip


def rows(seed: int) -> dict[str, np.ndarray]:
    """Ids, dense values, and right-padded histories of 0 to T events (the first rows: none, one, all)."""
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {name: rng.integers(FIRST, n, ROWS) for name, n in CARDINALITY.items()}
    out |= {name: rng.normal(size=ROWS).astype(np.float32) for name in DENSE}
    lengths = rng.integers(0, STEPS + 1, ROWS)
    lengths[:3] = 0, 1, STEPS
    real = np.arange(STEPS) < lengths[:, None]
    for name in ("item", "genre"):
        out[f"hist_{name}"] = rng.integers(FIRST, CARDINALITY[name], (ROWS, STEPS)) * real
    return out | {"seq_length": lengths}


def features(dense: bool) -> FeatureMap:
    """Of the user, the item and, for models without histories, of two numbers."""
    found = FeatureMap("peer", ".")
    found.features = OrderedDict(
        (name, {"type": "categorical", "source": "user" if name == "user" else "item", "vocab_size": n,
                "padding_idx": 0})
        for name, n in CARDINALITY.items()
    )  # fmt: skip
    if dense:
        found.features |= {name: {"type": "numeric", "source": "context"} for name in DENSE}
    found.num_fields, found.labels, found.default_emb_dim = found.get_num_fields(), ["label"], WIDTH
    return found


class Layers(nn.Module):
    """What the wheel has as layers alone: the forward of LR, FM, DCN (no MLP) and DLRM."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        fields, self.kind = features(dense=True), kind
        if kind != "lr":
            wanted = list(CARDINALITY) if kind == "dlrm" else None  # its numbers enter through the bottom MLP
            self.embedding_layer = FeatureEmbedding(fields, WIDTH, required_feature_columns=wanted)
        if kind == "lr":
            self.lr_layer = LogisticRegression(fields)
        elif kind == "fm":
            self.fm = FactorizationMachine(fields)
        elif kind == "dcn":
            self.crossnet = CrossNet(5 * WIDTH, 2)
            self.fc = nn.Linear(5 * WIDTH, 1)
        else:
            self.bottom_mlp = MLP_Block(2, [8], output_dim=WIDTH)
            self.interact = InnerProductInteraction(4, output="inner_product")
            self.top_mlp = MLP_Block(6 + WIDTH, [8, 6], output_dim=1)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        if self.kind == "lr":
            return self.lr_layer(x)
        if self.kind == "dlrm":
            z = self.bottom_mlp(torch.stack([x[n] for n in DENSE], dim=1))
            vectors = self.embedding_layer({n: x[n] for n in CARDINALITY})
            met = self.interact(torch.cat([vectors, z.unsqueeze(1)], dim=1))
            return self.top_mlp(torch.cat([met, z], dim=1))
        vectors = self.embedding_layer(x)
        return self.fm(x, vectors) if self.kind == "fm" else self.fc(self.crossnet(vectors.flatten(start_dim=1)))


def models() -> dict[str, Callable[[], nn.Module]]:
    """Name -> the peer's model; those of `Layers` read no history."""
    deep = {**COMMON, "num_cross_layers": 2, "parallel_dnn_hidden_units": [8, 6], "stacked_dnn_hidden_units": [8, 6]}
    low = {"use_low_rank_mixture": True, "low_rank": 3, "num_experts": 2}
    tower = {**COMMON, "dnn_hidden_units": [8, 6], "batch_norm": False}
    din = {**tower, "dnn_activations": "dice", "attention_hidden_units": [8, 6]}
    dien = {**tower, "attention_hidden_units": [8, 6], "attention_activation": "ReLU"}
    return {
        **{kind: lambda kind=kind: Layers(kind) for kind in ("lr", "fm", "dcn", "dlrm")},
        "dcn_v2": lambda: DCNv2(features(False), model_structure="parallel", **deep),
        "dcn_v2_stacked": lambda: DCNv2(features(False), model_structure="stacked", **deep),
        "dcn_v2_stacked_parallel": lambda: DCNv2(features(False), model_structure="stacked_parallel", **deep),
        "dcn_v2_cross_only": lambda: DCNv2(features(False), model_structure="crossnet_only", **deep),
        "dcn_v2_mixture": lambda: DCNv2(features(False), model_structure="parallel", **low, **deep),
        "din": lambda: DIN(features(False), **din),
        "din_softmax": lambda: DIN(features(False), din_use_softmax=True, **din),
        "dien": lambda: DIEN(features(False), attention_type="din_attention", **dien),
        "dien_bilinear": lambda: DIEN(features(False), attention_type="bilinear_attention", **dien),
        "dien_agru": lambda: DIEN(features(False), attention_type="dot_attention", gru_type="AGRU", **dien),
    }  # fmt: skip


@torch.no_grad()
def randomise(model: nn.Module) -> dict[str, np.ndarray]:
    """Random weights and running statistics, the padding row of every table zero; all of them by name."""
    out: dict[str, np.ndarray] = {}
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if not value.is_floating_point():
            continue
        value.copy_(torch.randn_like(value) * (0.5 if "embedding" in name else 0.6))
        if name.endswith("running_var"):
            value.abs_().add_(0.3)
        out[f"w/{name}"] = value.numpy()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight[0].zero_()
    return out


def logits(model: nn.Module, data: dict[str, np.ndarray]) -> np.ndarray:
    x = {name: torch.as_tensor(data[name]) for name in (*CARDINALITY, *DENSE)}
    if isinstance(model, Layers):
        return model.eval()(x).squeeze(1).numpy()
    items = {
        name: torch.cat([torch.as_tensor(data[f"hist_{name}"]), x[name].unsqueeze(1)], dim=1).flatten()
        for name in ("item", "genre")
    }
    mask = (torch.arange(STEPS) < torch.as_tensor(data["seq_length"]).unsqueeze(1)).float()
    seen: list[Tensor] = []
    model.eval().output_activation.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    model(({"user": x["user"]}, items, mask))
    return seen[0].squeeze(1).numpy()


def main(folder: Path) -> None:
    for number, (name, build) in enumerate(models().items()):
        torch.manual_seed(number)
        model, data = build(), rows(number)
        weights = randomise(model)
        with torch.no_grad():
            logit = logits(model, data)
        used = {k: v for k, v in data.items() if k in CARDINALITY or isinstance(model, Layers) == (k in DENSE)}
        arrays = {f"in/{k}": v for k, v in used.items()} | weights
        np.savez_compressed(folder / f"fuxictr_{name}.npz", logit=logit, **arrays)
        print(f"{name}: {len(weights)} arrays, logits {logit.min():.3f} to {logit.max():.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)

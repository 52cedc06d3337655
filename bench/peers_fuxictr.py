"""DCN-v2 and DIN of FuxiCTR 2.3.9 in its own epoch loop and loaders, on arrays that `bench.peers` wrote.

Runs in the peer's own environment and imports nothing of ctrbench. Prints one JSON line: seconds of one epoch, rows,
AUC on validation and test rows, weights, versions. The wheel's DCNv2 reads histories: its forward for rows without
one is that of the repository's DCNv2 over the same layers. `fit` adds a look at validation rows and a checkpoint, so
the clock is on the `train_epoch` that it calls.
"""

# ruff: noqa: E402, B010
from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.models import BaseModel

# numpy 2 has it no more, and keras_preprocessing, which the next import needs, asks for it
setattr(np, "unicode_", np.str_)
from model_zoo.LongCTR import longctr_dataloader
from model_zoo.LongCTR.DCNv2.DCNv2 import DCNv2
from model_zoo.LongCTR.DIN.DIN import DIN
from sklearn.metrics import roc_auc_score

DIM = 16
SPLITS = ("train", "valid", "test")
SIZES = {"default": ([128, 128], 2), "wide": ([400, 400, 400], 3)}
"""MLP and cross layers of DCN-v2."""
ATTENTION, TOWER = [64, 16], [256, 128]
LR = {"adam": 1e-3, "adagrad": 1e-2}
"""Its default, and torch's."""


class FlatDCNv2(DCNv2):
    """`structure=parallel` over fields without a history."""

    get_inputs, get_labels, train_step = BaseModel.get_inputs, BaseModel.get_labels, BaseModel.train_step

    def forward(self, inputs: Any) -> dict[str, torch.Tensor]:
        x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        both = torch.cat([self.crossnet(x), self.parallel_dnn(x)], dim=-1)
        return {"y_pred": self.output_activation(self.fc(both))}


def feature_map(arrays: dict[str, np.ndarray], folder: Path) -> FeatureMap:
    found = FeatureMap("peer", str(folder))
    rows = [int(n) for n in arrays["cardinality"]]
    history = "log" in arrays
    names = ["user", "item", "category"] if history else [f"C{i + 1}" for i in range(len(rows))]
    found.features = OrderedDict(
        (n, {"type": "categorical", "source": "item" if history and n != "user" else "user", "vocab_size": r})
        for n, r in zip(names, rows, strict=True)
    )
    for i in range(arrays["train_dense"].shape[1]):
        found.features[f"I{i + 1}"] = {"type": "numeric", "source": "context"}
    if history:
        found.features |= {n: {"type": "meta"} for n in ("user_index", "item_index", "seq_len")}
    found.num_fields, found.labels, found.default_emb_dim = found.get_num_fields(), ["label"], DIM
    return found


def write_flat(arrays: dict[str, np.ndarray], split: str, file: Path) -> None:
    ids, dense = arrays[f"{split}_ids"], arrays[f"{split}_dense"]
    columns = {f"C{i + 1}": c for i, c in enumerate(ids.T)} | {f"I{i + 1}": c for i, c in enumerate(dense.T)}
    pd.DataFrame(columns | {"label": arrays[f"{split}_label"]}).to_parquet(file)


def write_histories(arrays: dict[str, np.ndarray], folder: Path) -> dict[str, str]:
    """Its LongCTR form: rows, the item sequence of every user, item and category of every item index (0 = padding)."""
    log = arrays["log"]
    pairs = np.concatenate([log, *(arrays[f"{s}_ids"][:, 1:] for s in SPLITS)])
    known, code = np.unique(pairs, axis=0, return_inverse=True)
    known, code = np.concatenate([np.zeros((1, 2), known.dtype), known]), code.reshape(-1) + 1
    items = pd.DataFrame({"item_index": np.arange(len(known)), "item": known[:, 0], "category": known[:, 1]})
    items.to_parquet(folder / "item_info.parquet")
    begins = np.unique(np.concatenate([arrays[f"{s}_begin"] for s in SPLITS]))
    ends = np.append(begins[1:], len(log))
    user_of = np.searchsorted(begins, np.arange(len(log)), side="right") - 1
    sequences = [code[a:b] for a, b in zip(begins, ends, strict=True)]
    pd.DataFrame({"full_item_seq": sequences}).to_parquet(folder / "user_info.parquet")
    at = len(log)
    for split in SPLITS:
        begin, n = arrays[f"{split}_begin"], len(arrays[f"{split}_label"])
        pd.DataFrame({
            "user": arrays[f"{split}_ids"][:, 0], "user_index": user_of[begin], "item_index": code[at : at + n],
            "seq_len": arrays[f"{split}_end"] - begin, "label": arrays[f"{split}_label"].astype(np.int64),
        }).to_parquet(folder / f"{split}.parquet")  # fmt: skip
        at += n
    return {"user_info": str(folder / "user_info.parquet"), "item_info": str(folder / "item_info.parquet")}


def build(name: str, width: str, found: FeatureMap, optimizer: str, scale: float, folder: Path) -> Any:
    common: dict[str, Any] = {
        "optimizer": {"adam": "adam", "adagrad": "Adagrad"}[optimizer], "learning_rate": scale * LR[optimizer],
        "loss": "binary_crossentropy", "metrics": ["AUC"], "verbose": 0, "model_root": str(folder),
        "embedding_dim": DIM,
    }  # fmt: skip
    if name == "din":
        sizes: dict[str, Any] = {"dnn_hidden_units": TOWER, "attention_hidden_units": ATTENTION}
        return DIN(found, **sizes, attention_hidden_activations="Dice", **common)
    hidden, cross = SIZES[width]
    return FlatDCNv2(found, num_cross_layers=cross, parallel_dnn_hidden_units=hidden, **common)


def epoch(model: Any, rows: Any) -> float:
    """One `train_epoch` with what `fit` sets before it; seconds."""
    model._max_gradient_norm, model._eval_steps, model._stop_training = 10.0, sys.maxsize, False
    model._total_steps, model._batch_index, model._epoch_index = 0, 0, 0
    start = time.perf_counter()
    model.train_epoch(rows)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arrays")
    parser.add_argument("--model", choices=["dcn_v2", "din"], required=True)
    parser.add_argument("--width", choices=list(SIZES), default="default")
    parser.add_argument("--optimizer", choices=list(LR), required=True)
    parser.add_argument("--start", type=float, help="standard deviation of the start of its tables, if not its own")
    parser.add_argument("--scale", type=float, required=True, help="of its default learning rate")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True, help="rows trained before the clock starts")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    with np.load(options.arrays) as file:
        arrays = {k: file[k] for k in file.files}
    with tempfile.TemporaryDirectory() as place:
        folder, extra = Path(place), dict[str, Any]()
        found = feature_map(arrays, folder)
        if "log" in arrays:
            extra |= write_histories(arrays, folder)
            extra |= {"data_loader": longctr_dataloader.LongCTRDataLoader, "max_len": int(arrays["max_length"])}
        else:
            for split in SPLITS:
                write_flat(arrays, split, folder / f"{split}.parquet")
        pd.read_parquet(folder / "train.parquet").head(options.warmup).to_parquet(folder / "first.parquet")

        def rows(name: str, stage: str, batch: int = options.batch) -> Any:
            kind = {f"{stage}_data": str(folder / f"{name}.parquet")}
            made = RankDataLoader(found, stage=stage, batch_size=batch, data_format="parquet", **kind, **extra)
            return made.make_iterator()

        model = build(options.model, options.width, found, options.optimizer, options.scale, folder)
        if options.start is not None:
            for table in (m for m in model.modules() if isinstance(m, torch.nn.Embedding)):
                torch.nn.init.normal_(table.weight, std=options.start)
        epoch(model, rows("first", "train")[0])
        seconds = epoch(model, rows("train", "train")[0])
        scores = {split: model.predict(rows(split, "test", 8192)) for split in SPLITS[1:]}

    def auc(split: str) -> float:
        return float(roc_auc_score(arrays[f"{split}_label"], scores[split]))

    print(json.dumps({
        "seconds": seconds, "rows": len(arrays["train_label"]),
        "valid_auc": auc("valid"), "auc": auc("test"),
        "weights": sum(p.numel() for p in model.parameters()), "torch": torch.__version__,
    }))  # fmt: skip


if __name__ == "__main__":
    main()

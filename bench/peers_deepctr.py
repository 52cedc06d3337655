"""DeepFM, DCN-v2 and DIN as deepctr-torch 0.3.0 ships them, in its own `fit`, on arrays that `bench.peers` wrote.

Runs in the peer's own environment and imports nothing of ctrbench. Prints one JSON line: seconds of one epoch, rows,
AUC on validation and test rows, weights, versions.
"""

import argparse
import contextlib
import io
import json
import time
from typing import Any

import numpy as np
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
from deepctr_torch.models import DCN, DIN, DeepFM
from sklearn.metrics import roc_auc_score

DIM = 16
SIZES: dict[str, dict[str, Any]] = {
    "default": {"deepfm": ((256, 128), 0), "dcn_v2": ((128, 128), 2)},
    "wide": {"deepfm": ((400, 400, 400), 0), "dcn_v2": ((400, 400, 400), 3)},
}
"""MLP and cross layers; `default` is what it builds when told nothing."""
ATTENTION, TOWER = (64, 16), (256, 128)
EVENT = ("item", "category")
OPTIMIZERS: dict[str, Any] = {"adam": (torch.optim.Adam, 1e-3), "adagrad": (torch.optim.Adagrad, 1e-2)}
"""What it makes of these names: torch's defaults."""


def columns(arrays: dict[str, np.ndarray]) -> list[Any]:
    """Its feature columns; the fields of `log` share the tables of the item and the category."""
    rows = [int(n) for n in arrays["cardinality"]]
    if "log" in arrays:
        found: list[Any] = [SparseFeat(n, r, embedding_dim=DIM) for n, r in zip(("user", *EVENT), rows, strict=True)]
        return found + [
            VarLenSparseFeat(
                SparseFeat(f"hist_{n}", r, embedding_dim=DIM, embedding_name=n),
                maxlen=int(arrays["max_length"]),
                length_name="length",
            )
            for n, r in zip(EVENT, rows[1:], strict=True)
        ]
    found = [SparseFeat(f"C{i + 1}", r, embedding_dim=DIM) for i, r in enumerate(rows)]
    return found + [DenseFeat(f"I{i + 1}", 1) for i in range(arrays["train_dense"].shape[1])]


def padded(arrays: dict[str, np.ndarray], split: str) -> tuple[np.ndarray, np.ndarray]:
    """The newest events of each row [N, T, fields], oldest first, zeros to the right, and how many there are [N]."""
    begin, end, top = arrays[f"{split}_begin"], arrays[f"{split}_end"], int(arrays["max_length"])
    n = np.minimum(end - begin, top)
    place = (end - n)[:, None] + np.arange(top)
    real = np.arange(top) < n[:, None]
    return arrays["log"][np.where(real, place, 0)] * real[..., None], n


def inputs(arrays: dict[str, np.ndarray], split: str, found: list[Any]) -> dict[str, np.ndarray]:
    """Name -> values, in the order of its columns."""
    names = [c.name for c in found if isinstance(c, SparseFeat)]
    out = {n: arrays[f"{split}_ids"][:, i] for i, n in enumerate(names)}
    out |= {f"I{i + 1}": column for i, column in enumerate(arrays[f"{split}_dense"].T)}
    if "log" in arrays:
        events, n = padded(arrays, split)
        out |= {f"hist_{f}": events[..., i] for i, f in enumerate(EVENT)} | {"length": n}
    return out


def build(name: str, width: str, found: list[Any], start: float, seed: int) -> Any:
    hidden, cross = SIZES[width].get(name, (TOWER, 0))
    plain: dict[str, Any] = {"l2_reg_embedding": 0, "init_std": start, "seed": seed, "device": "cpu"}
    if name == "deepfm":
        return DeepFM(found, found, dnn_hidden_units=hidden, l2_reg_linear=0, **plain)
    if name == "dcn_v2":  # without the linear model that it adds, which the paper's network has not
        return DCN([], found, cross_num=cross, cross_parameterization="matrix", dnn_hidden_units=hidden,
                   l2_reg_linear=0, l2_reg_cross=0, l2_reg_dnn=0, **plain)  # fmt: skip
    return DIN(found, list(EVENT), dnn_hidden_units=TOWER, att_hidden_size=ATTENTION, att_activation="dice", **plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arrays")
    parser.add_argument("--model", choices=["deepfm", "dcn_v2", "din"], required=True)
    parser.add_argument("--width", choices=list(SIZES), default="default")
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), required=True)
    parser.add_argument("--start", type=float, default=1e-4, help="standard deviation of the start of its tables")
    parser.add_argument("--scale", type=float, required=True, help="of its default learning rate")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True, help="rows trained before the clock starts")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with np.load(options.arrays) as file:
        arrays = {k: file[k] for k in file.files}
    found = columns(arrays)
    model = build(options.model, options.width, found, options.start, options.seed)
    kind, lr = OPTIMIZERS[options.optimizer]
    model.compile(kind(model.parameters(), lr=lr * options.scale), "binary_crossentropy", metrics=[])
    train, label = inputs(arrays, "train", found), arrays["train_label"]

    def fit(rows: slice) -> float:
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints whatever `verbose` says
            model.fit(
                {k: v[rows] for k, v in train.items()}, label[rows], batch_size=options.batch, epochs=1, verbose=0
            )
        return time.perf_counter() - start

    fit(slice(options.warmup))
    seconds = fit(slice(None))

    def auc(split: str) -> float:
        score = model.predict(inputs(arrays, split, found), batch_size=16384)
        return float(roc_auc_score(arrays[f"{split}_label"], score))

    print(json.dumps({
        "seconds": seconds, "rows": len(label), "valid_auc": auc("valid"), "auc": auc("test"),
        "weights": sum(p.numel() for p in model.parameters()), "torch": torch.__version__,
    }))  # fmt: skip


if __name__ == "__main__":
    main()

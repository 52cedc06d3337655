"""Logits of deepctr-torch 0.3.0 (Apache-2.0) for random weights and rows: what tests/reference/test_peers.py compares.

Run in an environment of its own, which `make peers` makes, e.g.

    .venv-peers/bin/python tests/data/peers/make_golden.py [FOLDER]

It writes one `.npz` a model into the folder, beside itself if none is given: the rows (`in/`), every parameter of the
peer by its own name (`w/`) and the logits before the sigmoid (`logit`). Weights are random: an array holds nothing of
anybody's but the peer's arithmetic.

Dims: B rows, T history length
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
from deepctr_torch.models import DCN, DIEN, DIN, WDL, DeepFM

HERE = Path(__file__).resolve().parent
ROWS, STEPS, WIDTH = 24, 5, 4
CARDINALITY = {"user": 20, "item": 30, "genre": 9}
FIRST = 3
"""Ids below are reserved here; 0 is padding in both."""


def rows(seed: int) -> dict[str, np.ndarray]:
    """Ids of the fields and of right-padded histories of 0 to T events (the first rows: none, one, all)."""
    rng = np.random.default_rng(seed)
    out = {name: rng.integers(FIRST, n, ROWS) for name, n in CARDINALITY.items()}
    lengths = rng.integers(1, STEPS + 1, ROWS)
    lengths[:2] = 1, STEPS
    real = np.arange(STEPS) < lengths[:, None]
    for name in ("item", "genre"):
        out[f"hist_{name}"] = rng.integers(FIRST, CARDINALITY[name], (ROWS, STEPS)) * real
    return out | {"seq_length": lengths}


def columns(history: bool) -> list[Any]:
    found: list[Any] = [SparseFeat(name, n, embedding_dim=WIDTH) for name, n in CARDINALITY.items()]
    if history:
        found += [
            VarLenSparseFeat(SparseFeat(f"hist_{name}", CARDINALITY[name], embedding_dim=WIDTH, embedding_name=name),
                             maxlen=STEPS, length_name="seq_length")
            for name in ("item", "genre")
        ]  # fmt: skip
    return found


def models() -> dict[str, tuple[Callable[[], Any], bool]]:
    """Name -> (the peer's model, whether it reads histories)."""
    flat, deep = columns(False), columns(True)
    common = {"dnn_hidden_units": (8, 6), "device": "cpu", "init_std": 0.3}
    behaviour = ["item", "genre"]
    return {
        "deepfm": (lambda: DeepFM(flat, flat, **common), False),
        "wide_deep": (lambda: WDL(flat, flat, **common), False),
        "dcn": (lambda: DCN(flat, flat, cross_num=2, cross_parameterization="vector", **common), False),
        "dcn_v2": (lambda: DCN(flat, flat, cross_num=2, cross_parameterization="matrix", **common), False),
        "din": (lambda: DIN(deep, behaviour, att_hidden_size=(8, 6), att_activation="dice", **common), True),
        "dien": (lambda: DIEN(deep, behaviour, gru_type="AUGRU", att_hidden_units=(8, 6), att_activation="relu",
                              **common), True),
    }  # fmt: skip


def main(folder: Path) -> None:
    for number, (name, (build, history)) in enumerate(models().items()):
        torch.manual_seed(number)
        model, data = build(), rows(number)
        with torch.no_grad():
            for parameter, value in model.named_parameters():
                if ".bn." in parameter:  # Dice of the paper normalises without an affine map: left at 1 and 0
                    continue
                value.copy_(torch.randn_like(value) * (0.5 if "embedding" in parameter else 0.6))
            if name in ("dcn", "dcn_v2"):  # it adds a linear model, which the paper's network has not
                for value in model.linear_model.parameters():
                    value.zero_()
        used = {k: v for k, v in data.items() if history or k in CARDINALITY}
        x = torch.zeros(ROWS, max(end for _, end in model.feature_index.values()))
        for column, (start, end) in model.feature_index.items():
            x[:, start:end] = torch.as_tensor(used[column].reshape(ROWS, -1), dtype=torch.float32)
        seen: list[torch.Tensor] = []
        model.eval().out.register_forward_hook(lambda _, given, __, seen=seen: seen.append(given[0]))
        with torch.no_grad():
            model(x)
            logit = seen[0].squeeze(1)  # the output layer has added its bias in place before its sigmoid
        weights = {f"w/{k}": v.detach().numpy() for k, v in model.named_parameters()}
        arrays = {f"in/{k}": v for k, v in used.items()} | weights
        np.savez_compressed(folder / f"{name}.npz", logit=logit.numpy(), **arrays)
        print(f"{name}: {len(weights)} parameters, logits {logit.min():.3f} to {logit.max():.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)

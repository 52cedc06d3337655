"""What comparisons with a peer share: its arrays, its rows as a batch, and its linear layers copied across.

The arrays lie in `tests/data/peers`; `CTRBENCH_PEER_ARRAYS` names another folder, which `make peers` has just filled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.datasets.schema import Batch, FeatureSchema, Field

GOLDEN = Path(os.environ.get("CTRBENCH_PEER_ARRAYS") or Path(__file__).resolve().parents[1] / "data" / "peers")
FIELDS, WIDTH, HIDDEN = ("user", "item", "genre"), 4, (8, 6)
HISTORY = ("item", "genre")
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}
"""Logits in float32."""

Arrays = Mapping[str, np.ndarray]
Build = Callable[[Arrays, FeatureSchema], nn.Module]


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def weight(arrays: Arrays, name: str) -> Tensor:
    return torch.from_numpy(arrays[f"w/{name}"])


def schema_of(arrays: Arrays, table: str) -> FeatureSchema:
    """The peer's fields; with a history of item and genre where it read one, and with numbers.

    Args:
        table: name of a field's table, with `{}` for the field.
    """
    rows = {f: len(weight(arrays, table.format(f))) for f in FIELDS}
    fields = [Field(name=f, kind="categorical", role="item", cardinality=rows[f]) for f in FIELDS]
    fields += [Field(name=k[3:], kind="dense", role="context") for k in arrays if k.startswith("in/I")]
    if "in/seq_length" in arrays:
        steps = arrays["in/hist_item"].shape[1]
        fields += [
            Field(name=f"hist_{f}", kind="sequence", role="behaviour", max_length=steps, target=f, history="hist")
            for f in HISTORY
        ]
    track = "sequence" if "in/seq_length" in arrays else "tabular"
    return FeatureSchema(name="peer", track=track, fields=tuple(fields))


def batch_of(arrays: Arrays, schema: FeatureSchema) -> Batch:
    """The peer's rows; right-padded histories become jagged, oldest event first in both."""
    size = len(arrays["logit"])
    values, lengths = [arrays[f"in/{f}"] for f in FIELDS], [np.ones(size, np.int64)] * 3
    times = {}
    if schema.histories:
        n = arrays["in/seq_length"]
        real = np.arange(arrays["in/hist_item"].shape[1]) < n[:, None]
        values += [arrays[f"in/hist_{f}"][real] for f in HISTORY]
        lengths += [n] * 2
        times = {"hist": torch.from_numpy(np.concatenate([np.arange(k) for k in n]))}
    keys = [f.name for f in schema.of_kind("categorical", "sequence")]
    ids = KeyedJaggedTensor(
        keys=keys, values=torch.from_numpy(np.concatenate(values).astype(np.int64)),
        lengths=torch.from_numpy(np.concatenate(lengths).astype(np.int64)),
    )  # fmt: skip
    dense = torch.zeros(size, len(schema.dense))
    for i, f in enumerate(schema.dense):
        dense[:, i] = torch.from_numpy(arrays[f"in/{f.name}"])
    return Batch(
        dense_BI=dense, missing_BI=torch.zeros_like(dense), ids=ids, event_times=times,
        time_B=torch.full((size,), 100), label_B=torch.zeros(size), user_B=torch.full((size,), -1),
    )  # fmt: skip


def fill(linear: nn.Module, arrays: Arrays, name: str, bias: str | None = None) -> None:
    """A linear layer of the peer's, its bias under another name or its own."""
    linear.weight.data.copy_(weight(arrays, f"{name}.weight"))
    if linear.bias is not None:
        linear.bias.data.copy_(weight(arrays, bias or f"{name}.bias"))


def linears(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def not_read(arrays: Arrays, build: Build, schema: FeatureSchema) -> set[str]:
    """Parameters of the peer that the copy forgets: they would leave a logit that happens to agree unexplained."""
    read: set[str] = set()

    class Noted(dict[str, np.ndarray]):
        def __getitem__(self, key: str) -> np.ndarray:
            read.add(key)
            return super().__getitem__(key)

    build(Noted(arrays), schema)
    return {k for k in arrays if k.startswith("w/")} - read

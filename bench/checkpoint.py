"""Weights of a model in safetensors, with a manifest of what they belong to.

`model.safetensors` holds dense weights and buffers by name and every table as `<module>.<table>`, without surplus
columns; `manifest.json` the model, its config and its fields. Optimizers are not kept: a checkpoint is for use, a run
is resumed from its records.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.schema import FeatureSchema
from ctrbench.models.embedding import EmbeddingTables
from ctrbench.reports.records import write_atomic

WEIGHTS, MANIFEST, FORMAT = "model.safetensors", "manifest.json", 1


def save_checkpoint(module: nn.Module, folder: Path, *, model: str, config: Any, schema: FeatureSchema) -> None:
    """Writes both files; the manifest last, it marks the checkpoint whole."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{WEIGHTS}.partial"
    save_file({name: value.contiguous() for name, value in _tensors(module)}, partial)
    partial.replace(folder / WEIGHTS)
    write_atomic(folder / MANIFEST, json.dumps(_manifest(model, config, schema), indent=1).encode())


def load_checkpoint(module: nn.Module, folder: Path, *, model: str, config: Any, schema: FeatureSchema) -> None:
    """Puts the weights into a model that was built alike.

    Raises:
        BadInput: no whole checkpoint, or one of another model, config or data; says what differs.
    """
    if not (folder / MANIFEST).is_file() or not (folder / WEIGHTS).is_file():
        raise BadInput(f"{folder}: no whole checkpoint: {WEIGHTS} and {MANIFEST} are written together; save it again")
    try:
        written = json.loads((folder / MANIFEST).read_text())
        found = load_file(folder / WEIGHTS)
    except (ValueError, SafetensorError) as error:
        raise BadInput(f"{folder}: damaged checkpoint ({error}); copy or save it again") from None
    wanted = json.loads(json.dumps(_manifest(model, config, schema)))
    for part in ("format", "model", "config", "fields"):
        if (why := _difference(written.get(part), wanted[part])) is not None:
            raise BadInput(f"{folder}: checkpoint of another {part}: {why}; build the model as the manifest says")
    own = dict(_tensors(module))
    if odd := sorted(set(own) ^ set(found)):
        raise BadInput(f"{folder}: {odd[0]} is in the {'model' if odd[0] in own else 'checkpoint'} alone: other code")
    for name, value in own.items():
        if value.shape != found[name].shape:
            raise BadInput(
                f"{folder}: {name} is {list(found[name].shape)}, the model's {list(value.shape)}: other code"
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(found[name])


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Dense weights and persistent buffers, then the rows of the tables: views of the live storage."""
    tables = {f"{name}." if name else "": m for name, m in module.named_modules() if isinstance(m, EmbeddingTables)}
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and not any(name.startswith(prefix) for prefix in tables):
            yield name, value
    for prefix, table in tables.items():
        for name, rows in table.weights().items():
            yield f"{prefix}{name}", rows[:, : table.width]


def _manifest(model: str, config: Any, schema: FeatureSchema) -> dict[str, Any]:
    fields = [
        {"name": f.name, "kind": f.kind, "cardinality": f.cardinality, "max_length": f.max_length, "target": f.target,
         "history": f.history}
        for f in schema.fields
    ]  # fmt: skip
    return {
        "format": FORMAT, "model": model, "config": asdict(config) if is_dataclass(config) else dict(config),  # type: ignore[arg-type]
        "fields": fields,
    }  # fmt: skip


def _difference(written: Any, wanted: Any, at: str = "") -> str | None:
    """The first place where two manifests differ; None if they agree."""
    if isinstance(written, Mapping) and isinstance(wanted, Mapping):
        for key in [*wanted, *(k for k in written if k not in wanted)]:
            if (why := _difference(written.get(key), wanted.get(key), f"{at}{key}.")) is not None:
                return why
        return None
    if isinstance(written, list) and isinstance(wanted, list):
        for i, (a, b) in enumerate(zip(written, wanted, strict=False)):
            if (why := _difference(a, b, f"{at}{i}.")) is not None:
                return why
        return None if len(written) == len(wanted) else f"{len(written)} of them, here {len(wanted)}"
    return None if written == wanted else f"{at.rstrip('.') or 'it'} is {written!r}, here {wanted!r}"

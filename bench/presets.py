"""Options that a suite gives its models: tables from `run.*`, sizes from a published preset."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ctrbench.bench import registry
from ctrbench.bench.plan import RunOptions
from ctrbench.datasets.errors import BadInput
from ctrbench.models.embedding import TableConfig


def table_options(run: RunOptions) -> dict[str, tuple[str, Any]]:
    """Field of `TableConfig` -> (option of `run`, value), where an option is off its default."""
    default, both = TableConfig(), (run.embedding, run.table_optimizer) != ("fused", "rowwise_adagrad")
    given = {"impl": "embedding", "optimizer": "table_optimizer", "lr": "table_lr", "init_std": "table_init_std",
             "l2": "l2", "l2_rows": "l2_rows"}  # fmt: skip
    return {
        field: (name, getattr(run, name))
        for field, name in given.items()
        if getattr(run, name) != getattr(default, field) or (both and field in ("impl", "optimizer"))
    }


def preset_options(model: str, label: str) -> dict[str, Any]:
    """Options, tables left out, that take a model from its defaults to a published preset; none for `small`.

    Raises:
        BadInput: the model has no preset of that label.
    """
    if label == "small":
        return {}
    spec = registry.model_spec(model)
    presets = {p.label: p.config for p in spec.published()}
    if label not in presets:
        known = ", ".join(presets) or "none"
        raise BadInput(f"preset={label}: {model} has {known}; name the models that have it, e.g. model=deepfm")
    mine, default = presets[label], spec.config()
    return {
        f.name: getattr(mine, f.name)
        for f in fields(default)
        if f.name != "tables" and getattr(mine, f.name) != getattr(default, f.name)
    }

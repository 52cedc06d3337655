"""What a RunSpec stands for: its model, its data and batches, the columns of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import torch
from torch import nn

from ctrbench.bench import controls, registry
from ctrbench.bench.hardware import this_machine
from ctrbench.bench.modes import set_mode
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.train import seed_everything
from ctrbench.datasets import random_batches
from ctrbench.datasets.errors import UnknownName
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.random_batches import RandomBatches
from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.models.spec import ModelSpec, random_batch
from ctrbench.reports.records import Measurement, RunRecord


def base_columns(spec: RunSpec, family: str, track: str) -> dict[str, Any]:
    """The columns that all rows of a run share."""
    return {
        "run": spec.key, "model": spec.model, "variant": spec.variant, "preset": spec.preset, "family": family,
        "data": spec.data,
        "split": spec.split, "track": track, "device": spec.device, "dtype": spec.dtype, "threads": spec.threads,
        "batch": spec.batch or None,
    }  # fmt: skip


def model_config(spec: RunSpec, model_spec: ModelSpec) -> Any:
    """The model's small preset with the options of the run."""
    options = dict(spec.config)
    tables = options.pop("tables", {})
    config = model_spec.config(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    return replace(config, tables=replace(config.tables, **tables)) if tables else config


def lookup(spec: RunSpec) -> ModelSpec:
    """The model's spec, user files included."""
    if spec.model_path:
        registry.register_path(spec.model_path)
    return registry.model_spec(spec.model)


def built_on_meta(spec: RunSpec, schema: FeatureSchema) -> nn.Module:
    """The model without memory: what is wrong with its options shows before any work.

    Raises:
        TypeError, ValueError: it cannot be built with these options, or not on this schema.
    """
    model_spec = lookup(spec)
    try:
        with torch.device("meta"):
            return model_spec.build(model_config(spec, model_spec), schema)
    except UnknownName:
        raise
    except (ArithmeticError, LookupError, RuntimeError) as error:
        if not spec.config or spec.model_path:  # our own fault, or that of a user's file
            raise
        raise ValueError(f"no model has such sizes ({type(error).__name__}: {error}); choose others") from error


def build(spec: RunSpec) -> tuple[ModelSpec, Any, FeatureSchema, nn.Module, Prepared]:
    """(model's spec, its config, schema, the model with weights of the seed, prepared data)."""
    seed_everything(spec.seed)
    model_spec = lookup(spec)
    prepared = controls.view(spec)
    schema = prepared.schema_for(spec.history_length)
    config = model_config(spec, model_spec)
    with torch.device(spec.device):
        model = model_spec.build(config, schema)
    set_mode(model, spec.dtype, spec.compile)
    return model_spec, config, schema, model, prepared


def stream(spec: RunSpec, prepared: Prepared) -> tuple[Loader, Iterator[Batch]]:
    """The loader of training batches, and its batches pass after pass."""
    loader = Loader(
        prepared, "train", spec.batch, rows=spec.train_rows, shuffle_seed=spec.seed,
        history_length=spec.history_length, drop_last=True,
    )  # fmt: skip
    return loader, chain.from_iterable(repeat(loader))


def fed(spec: RunSpec) -> tuple[ModelSpec, Any, FeatureSchema, nn.Module, Loader | RandomBatches, Iterator[Batch]]:
    """A model and the training batches it gets without end, of prepared data or random ones."""
    if spec.data not in random_batches.TRACKS:
        model_spec, config, schema, model, prepared = build(spec)
        return model_spec, config, schema, model, *stream(spec, prepared)
    seed_everything(spec.seed)
    model_spec = lookup(spec)
    schema = random_batches.random_schema(spec.data, spec.history_length)
    config = model_config(spec, model_spec)
    feed = RandomBatches(lambda seed: random_batch(model_spec, config, schema, spec.batch, seed=seed))
    model = model_spec.build(config, schema)
    set_mode(model, spec.dtype, spec.compile)
    return model_spec, config, schema, model, feed, chain.from_iterable(repeat(feed))


def as_record(
    spec: RunSpec, rows: list[Measurement], extra: dict[str, Any], inputs: dict[str, dict[str, str]] | None = None
) -> RunRecord:
    """The record of a run on this machine."""
    return RunRecord(
        key=spec.key,
        spec=spec.to_json(),
        rows=tuple(rows),
        environment=this_machine(),
        inputs=inputs or {},
        extra=extra,
    )

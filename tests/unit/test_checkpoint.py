"""Checkpoints: every model comes back as it was, what does not fit says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrbench.bench.checkpoint import MANIFEST, WEIGHTS, load_checkpoint, save_checkpoint
from ctrbench.bench.registry import model_names, model_spec
from ctrbench.bench.step import TrainStep
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.schema import FeatureSchema, Field, synthetic_batch
from ctrbench.legacy_baselines.din import DIN, DINConfig

RANKERS = [n for n in model_names() if model_spec(n).own_batches is None and "sequence" in model_spec(n).tracks]


@pytest.mark.parametrize("name", RANKERS)
def test_a_trained_model_comes_back_as_it_was(name: str, sequence_schema: FeatureSchema, tmp_path: Path) -> None:
    spec = model_spec(name)
    config: Any = spec.config()
    given = {"model": name, "config": config, "schema": sequence_schema}
    model, batch = spec.build(config, sequence_schema), synthetic_batch(sequence_schema, 16, full=False)
    TrainStep(model.train())(batch)
    save_checkpoint(model, tmp_path, **given)
    torch.manual_seed(9)
    other = spec.build(config, sequence_schema)
    load_checkpoint(other, tmp_path, **given)
    torch.testing.assert_close(other.eval()(batch), model.eval()(batch), rtol=0, atol=0)


def saved(schema: FeatureSchema, folder: Path) -> tuple[DIN, dict[str, Any]]:
    given = {"model": "din", "config": DINConfig(), "schema": schema}
    model = DIN(DINConfig(), schema)
    save_checkpoint(model, folder, **given)
    return model, given


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "fat"}, "another model: it is 'din', here 'fat'"),
        ({"config": DINConfig(dim=8)}, "another config: dim is 16, here 8"),
        ({"config": DINConfig(attention=(9, 32))}, r"another config: attention\.0 is 64, here 9"),
    ],
)
def test_another_model_or_config_is_refused(
    sequence_schema: FeatureSchema, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    model, given = saved(sequence_schema, tmp_path)
    with pytest.raises(BadInput, match=message):
        load_checkpoint(model, tmp_path, **(given | change))


def test_other_fields_are_refused(sequence_schema: FeatureSchema, tmp_path: Path) -> None:
    model, given = saved(sequence_schema, tmp_path)
    first, *rest = sequence_schema.fields
    grown = replace(sequence_schema, fields=(replace(first, cardinality=41), *rest))
    with pytest.raises(BadInput, match=r"another fields: 0\.cardinality is 40, here 41"):
        load_checkpoint(model, tmp_path, **(given | {"schema": grown}))
    more = replace(sequence_schema, fields=(*sequence_schema.fields, Field(name="x", kind="dense", role="user")))
    with pytest.raises(BadInput, match="another fields: 9 of them, here 10"):
        load_checkpoint(model, tmp_path, **(given | {"schema": more}))


def test_other_code_is_refused_and_changes_nothing(sequence_schema: FeatureSchema, tmp_path: Path) -> None:
    _, given = saved(sequence_schema, tmp_path)
    other = DIN(DINConfig(), sequence_schema)
    other.extra = torch.nn.Linear(2, 2)
    before = {k: v.clone() for k, v in other.state_dict().items() if isinstance(v, torch.Tensor)}
    with pytest.raises(BadInput, match=r"extra\.bias is in the model alone"):
        load_checkpoint(other, tmp_path, **given)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in before.items())


def test_half_a_checkpoint_is_none(sequence_schema: FeatureSchema, tmp_path: Path) -> None:
    model, given = saved(sequence_schema, tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for name, content, message in (
        (WEIGHTS, whole[: len(whole) // 2], "damaged checkpoint"), (MANIFEST, b"{", "damaged checkpoint"),
    ):  # fmt: skip
        saved(sequence_schema, tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=message):
            load_checkpoint(model, tmp_path, **given)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(BadInput, match="no whole checkpoint"):
        load_checkpoint(model, tmp_path, **given)

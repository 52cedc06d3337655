"""FLOPs of the rows are model FLOPs: what padding, masked pairs and idle products execute is not in them."""

from __future__ import annotations

import pytest

from ctrbench.bench import registry
from ctrbench.bench.counts import count_rows, useful_flops
from ctrbench.datasets.schema import synthetic_batch
from ctrbench.models import fat
from ctrbench.models.spec import ModelSpec

SIZE = 32


@pytest.mark.parametrize("name", ["deepfm", "din", "fat", "onetrans", "gpt_block"])
@pytest.mark.parametrize("full", [True, False])
def test_rows_carry_useful_flops(name: str, full: bool, sequence_schema) -> None:  # type: ignore[no-untyped-def]
    spec: ModelSpec = registry.model_spec(name)
    config, batch = spec.config(), synthetic_batch(sequence_schema, SIZE, full=full)
    model = spec.build(config, sequence_schema)
    rows, extra, _ = count_rows({"run": "r", "model": name}, spec, config, sequence_schema, model, [batch])
    value = {r.metric: r.value for r in rows if r.metric.startswith("flops_")}
    useful = useful_flops(spec, config, sequence_schema, batch).visible
    assert extra["withheld"] == ""
    assert value["flops_fwd_per_sample"] == pytest.approx(useful, rel=0.02)  # the closed form, within the coverage rule
    assert value["flops_train_per_sample"] * SIZE == pytest.approx(extra["flops_model_train"])
    once = fat.composition_flops(config, sequence_schema).visible / SIZE if name == "fat" else 0.0
    assert 2 <= value["flops_train_per_sample"] / (value["flops_fwd_per_sample"] + once) <= 3.001

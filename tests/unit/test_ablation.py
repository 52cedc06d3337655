"""Leaving components of a step out: exactly their work goes, everything else stays.

Dims: B batch, D width
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import repeat
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from ctrbench.bench import registry
from ctrbench.bench.counting.counter import count_step
from ctrbench.bench.split_rows import component_rows
from ctrbench.bench.step import TrainStep
from ctrbench.bench.trace import ablation
from ctrbench.bench.trace.ablation import AGREE, Ablation, CannotLeaveOut, Part, ablate, compare
from ctrbench.bench.trace.nvtx import blocks_of
from ctrbench.bench.trace.time_split import Split
from ctrbench.datasets.schema import Batch, FeatureSchema, Field, synthetic_batch
from ctrbench.models.embedding import TableConfig, dense_parameters
from ctrbench.models.spec import random_batch

RANKERS = [n for n in registry.model_names() if registry.model_spec(n).tracks]
PLAIN = FeatureSchema(
    name="tiny", track="tabular", fields=tuple(Field(name=f"i{i}", kind="dense", role="context") for i in range(4))
)


def _made(name: str, schemas: dict[str, FeatureSchema]) -> tuple[nn.Module, Batch]:
    spec = registry.model_spec(name)
    schema = schemas["sequence" if "sequence" in spec.tracks else "tabular"]
    config = spec.config()
    model = spec.build(config, schema).train()
    return model, random_batch(spec, config, schema, 8)


@pytest.mark.parametrize("name", RANKERS)
def test_a_step_without_a_stage_lacks_the_flops_of_its_blocks_and_no_others(
    name: str, schema_of: dict[str, FeatureSchema]
) -> None:
    model, batch = _made(name, schema_of)
    step = TrainStep(model)
    step(batch)
    variants = ablation._variants(model, step, ablation._record(model, step, batch))
    whole = count_step(model, batch, train=True)
    of_block = {m.module: m.flops for m in whole.by_module("block")}
    stages: dict[str, float] = {}
    for block, (stage, _) in blocks_of(model).items():
        stages[stage] = stages.get(stage, 0.0) + of_block.get(block, 0.0)
    assert set(stages) <= set(variants)
    for stage, flops in stages.items():
        with variants[stage]():
            assert whole.flops() - count_step(model, batch, train=True).flops() == pytest.approx(flops), stage


@pytest.mark.parametrize("name", RANKERS)
def test_the_optimizer_moves_every_weight_whatever_is_left_out(name: str, schema_of: dict[str, FeatureSchema]) -> None:
    model, batch = _made(name, schema_of)
    step = TrainStep(model)
    step(batch)
    variants = ablation._variants(model, step, ablation._record(model, step, batch))
    moved: dict[str, int] = {}
    for variant, without in variants.items():
        with without():
            hook = step.optimizer.register_step_post_hook(
                lambda o, *_, v=variant: moved.__setitem__(
                    v, sum(p.grad is not None for g in o.param_groups for p in g["params"])
                )
            )
            step(batch)
            hook.remove()
    assert moved.pop("", 0) > 0
    assert set(moved) == set(variants) - {"", "optimizer"}
    step(batch)
    reference: list[int] = []
    step.optimizer.register_step_post_hook(
        lambda o, *_: reference.append(sum(p.grad is not None for g in o.param_groups for p in g["params"]))
    )
    step(batch)
    assert set(moved.values()) == {reference[0]}
    assert all(torch.isfinite(p).all() for p in dense_parameters(model))
    assert "forward" not in {k for m in model.modules() for k in vars(m)}, "a stand-in stayed behind"


class _Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ahead: float, back: float) -> Tensor:
        ctx.back = back
        time.sleep(ahead)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(ctx.back)
        return grads[0], None, None


class _Block(nn.Module):
    def __init__(self, ahead: float, back: float) -> None:
        super().__init__()
        self.map, self.times = nn.Linear(4, 4), (ahead, back)

    def forward(self, x_BD: Tensor) -> dict[str, Tensor]:
        return {"out": _Slow.apply(self.map(x_BD), *self.times)}


class Planted(nn.Module):
    """20 ms in one stage, 8 of them backward, 10 ms in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _Block(0.012, 0.008), _Block(0.002, 0.008)
        self.phases = {"interaction": ("first",), "dense": ("second",)}

    def forward(self, batch: Batch) -> Tensor:
        return self.second(self.first(batch.dense_BI)["out"])["out"].sum(dim=1)


def test_planted_times_are_found() -> None:
    found = ablate(Planted(), repeat(synthetic_batch(PLAIN, 8)), 1e-3, rounds=7)
    assert found.step_s == pytest.approx(0.030, rel=0.5)
    ratio = found.parts["interaction"].share / found.parts["dense"].share
    assert found.parts["interaction"].share > 0.4
    assert 1.3 < ratio < 3.0, "12 + 8 ms against 2 + 8 ms"
    for part in found.parts.values():
        assert part.ci_low <= part.share <= part.ci_high


def test_penalised_tables_cannot_be_left_out(tabular_schema: FeatureSchema) -> None:
    spec = registry.model_spec("deepfm")
    config = spec.config(tables=TableConfig(l2=1e-4))
    model = spec.build(config, tabular_schema)
    with pytest.raises(CannotLeaveOut, match="L2 penalty"):
        ablate(model, repeat(random_batch(spec, config, tabular_schema, 8)), 1e-3, rounds=2)


def test_batches_that_run_out_are_an_error() -> None:
    with pytest.raises(ValueError, match="ran out"):
        ablate(Planted(), [synthetic_batch(PLAIN, 8)] * 3, 1e-3, rounds=2)


def test_a_stage_is_compared_with_its_forward_and_the_backward_of_its_blocks() -> None:
    rows = [("data", "", 0.1), ("interaction", "", 0.05), ("interaction", "net", 0.25), ("backward", "", 0.1),
            ("backward", "net", 0.4), ("optimizer", "", 0.09), ("other", "", 0.01)]  # fmt: skip
    split = Split(steps=1, step_ns=100, tracer_ns=0, table=pd.DataFrame(rows, columns=["stage", "block", "share"]),
                  ops=pd.DataFrame())  # fmt: skip
    near, far = Part(0.66, 0.64, 0.68), Part(0.3, 0.25 + AGREE, 0.4)
    found = Ablation(rounds=9, step_s=0.1, parts={"interaction": near, "data": far})
    assert [(d.component, pytest.approx(d.projection), d.doubt[:8]) for d in compare(split, found)] == [
        ("interaction", 0.7, ""), ("data", 0.1, "disagree")
    ]  # fmt: skip
    made = component_rows({"run": "r", "model": "m"}, split, found, "imported")
    assert [(r.scope, r.origin, r.status, r.n) for r in made] == [
        ("ranges:interaction", "imported", "ok", 1), ("left_out:interaction", "measured", "ok", 9),
        ("ranges:data", "imported", "unstable", 1), ("left_out:data", "measured", "unstable", 9),
    ]  # fmt: skip
    assert "10.0% of the step by ranges, 30.0% [35.0%, 40.0%]" in made[2].reason
    (vague,) = compare(split, replace(found, parts={"interaction": Part(0.7, 0.55, 0.8)}))
    assert vague.doubt.startswith("noise: interaction: 70.0% of the step by ranges, 70.0% [55.0%, 80.0%]")
    holey = replace(split, table=split.table.assign(share=split.table["share"] * [1, 1, 1, 1, 1, 0.5, 1]))
    (row,) = component_rows({"run": "r", "model": "m"}, holey, found)
    assert (row.value, row.reason[:12]) == (None, "coverage_low")

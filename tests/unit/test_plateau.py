"""Learning rates fall after every look without a gain, dense and tables alike, as in the benchmark's logs."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrbench.bench import train as training
from ctrbench.bench.step import TrainStep
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.schema import FeatureSchema, synthetic_batch
from ctrbench.legacy_baselines.dnn import DNN, DNNConfig
from ctrbench.models.embedding import TableConfig, dense_parameters, embedding_tables

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))


@pytest.mark.parametrize("impl", ["fused", "per_table"])
def test_scaled_rates_scale_the_first_step(impl: Any, tabular_schema: FeatureSchema) -> None:
    """SGD rows move by the rate times one gradient; Adam's first step moves a weight by its rate."""
    moved = {}
    for factor in (1.0, 0.1):
        torch.manual_seed(1)
        model = DNN(DNNConfig(tables=TableConfig(impl=impl, optimizer="sgd", lr=0.5)), tabular_schema)
        step = TrainStep(model, lr=1e-2)
        step.scale_lr(factor**0.5)
        step.scale_lr(factor**0.5)
        (tables,) = embedding_tables(model)
        rows = {t: w.clone() for t, w in tables.weights().items()}
        dense = [p.detach().clone() for p in dense_parameters(model)]
        step(synthetic_batch(tabular_schema, 32))
        moved[factor] = [tables.weights()[t] - w for t, w in rows.items()]
        moved[factor] += [p.detach() - q for p, q in zip(dense_parameters(model), dense, strict=True)]
    for full, tenth in zip(moved[1.0], moved[0.1], strict=True):
        assert full.any()
        torch.testing.assert_close(tenth, 0.1 * full, rtol=1e-3, atol=2e-7)


def test_every_look_without_a_gain_costs_a_factor_and_patience_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = _tiny["movielens_folder"](tmp_path / "raw", _tiny["random_events"](0, 900, seconds=5000))
    prepared = prepare("movielens_1m", raw, tmp_path / "out")
    scripted = iter([0.60, 0.70, 0.69, 0.71, 0.70, 0.705, 0.99])
    monkeypatch.setattr(training, "auc", lambda label, score: next(scripted))
    rates: list[float] = []

    class Watched(TrainStep):
        def __call__(self, batch: Any) -> torch.Tensor:
            rates.append(self.optimizer.param_groups[0]["lr"])
            return super().__call__(batch)

    monkeypatch.setattr(training, "TrainStep", Watched)
    budget = training.Budget(
        train_rows=64, valid_rows=20, epochs=9, evaluations=1, patience=2, batch=32, eval_batch=64, lr=1e-2,
        history_length=8, plateau=0.1,
    )  # fmt: skip
    looks = training.train(DNN(DNNConfig(), prepared.schema_for(8)), prepared, budget, seed=0)
    assert [look.valid_auc for look in looks] == [0.60, 0.70, 0.69, 0.71, 0.70, 0.705]
    assert rates == pytest.approx([1e-2] * 6 + [1e-3] * 4 + [1e-4] * 2)  # two steps an epoch

"""Ranking and retrieval trained on one user model: the loss is step 1's, tables are read once, recall is paired."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctrbench.bench.jobs import JOBS
from ctrbench.bench.joint import RANKS, joint_rows
from ctrbench.bench.registry import model_spec
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.step import TrainStep
from ctrbench.bench.summary import Run
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.schema import Batch, FeatureSchema, synthetic_batch
from ctrbench.models.lum import LumConfig, LumRanker
from ctrbench.models.lum_joint import joint_loss, newest_of_each
from ctrbench.reports import records

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))
movielens_folder, random_events = _tiny["movielens_folder"], _tiny["random_events"]
SPEC = model_spec("lum")


def ranker(schema: FeatureSchema, **options: Any) -> LumRanker:
    torch.manual_seed(0)
    given = {"frozen": False, "objective": "joint", "joint_weight": 0.5} | options
    model: LumRanker = SPEC.build(LumConfig(**given), schema)
    return model.train()


def batch_of(schema: FeatureSchema, rows: int = 12) -> Batch:
    """Three users, whose newest rows are the last ones."""
    made = synthetic_batch(schema, rows, full=False)
    return replace(made, user_B=torch.arange(rows) % 3, time_B=torch.arange(rows))


def test_of_each_user_the_newest_row_newest_users_first() -> None:
    user, time = torch.tensor([7, 7, 2, 9, 2, 7]), torch.tensor([1, 5, 3, 4, 2, 5])
    assert newest_of_each(user, time, 9).tolist() == [1, 3, 2]  # at equal times the earlier row
    assert newest_of_each(user, time, 2).tolist() == [1, 3]


@pytest.mark.parametrize("options", [{}, {"condition": False, "queries": 1}, {"logq": True, "positions": "pair"}])
def test_the_loss_is_that_of_step_one_on_each_users_newest_history(
    sequence_schema: FeatureSchema, options: dict[str, Any]
) -> None:
    model, batch = ranker(sequence_schema, **options), batch_of(sequence_schema)
    model(batch)
    assert model.extra_loss is not None
    found = model.extra_loss()
    rows = model.lum.sequences(batch).take(torch.tensor([11, 10, 9]))
    torch.testing.assert_close(found, 0.5 * model.user_model.loss(rows), rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="run the model's forward"):
        model.extra_loss()


def test_a_step_reads_the_tables_once_and_moves_both_heads(sequence_schema: FeatureSchema) -> None:
    moved = {}
    for weight in (0.0, 0.5):
        model, batch = ranker(sequence_schema, joint_weight=weight), batch_of(sequence_schema)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        calls: list[int] = []
        model.user_model.tables.register_forward_hook(lambda *_, c=calls: c.append(1))
        TrainStep(model)(batch)
        assert len(calls) == 1
        moved[weight] = {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}
    assert any(n.startswith("host.") for n in moved[0.5])
    assert moved[0.0] <= moved[0.5]
    task = ranker(sequence_schema, objective="task")
    assert task.extra_loss is None
    joint, batch = ranker(sequence_schema, joint_weight=0.0), batch_of(sequence_schema)
    losses = [[float(TrainStep(m)(batch)) for _ in range(2)] for m in (task, joint)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_steps_lower_both_losses(sequence_schema: FeatureSchema) -> None:
    model, batch = ranker(sequence_schema), batch_of(sequence_schema)
    step, rows = TrainStep(model, lr=3e-3), model.lum.sequences(batch).take(torch.tensor([11, 10, 9]))
    before = float(model.user_model.loss(rows).detach())
    losses = [float(step(batch)) for _ in range(30)]
    after = float(model.user_model.loss(rows).detach())
    assert after < 0.8 * before
    assert losses[-1] - 0.5 * after < 0.8 * (losses[0] - 0.5 * before)


def test_empty_histories_and_meta_cost_no_crash(sequence_schema: FeatureSchema) -> None:
    model = ranker(sequence_schema)
    batch = batch_of(sequence_schema)
    read = model.user_model.read(model.lum.sequences(batch), model.lum.conditions(batch))
    empty = model.lum.sequences(batch)
    empty = replace(empty, segment_RL=torch.zeros_like(empty.segment_RL))
    assert joint_loss(model.user_model, read, empty, batch.user_B, batch.time_B, 8).item() == 0.0
    meta = SPEC.build(LumConfig(frozen=False, objective="joint"), sequence_schema, "meta").train()
    assert TrainStep(meta)(synthetic_batch(sequence_schema, 12, device="meta")).is_meta


def test_scoring_keeps_nothing(sequence_schema: FeatureSchema) -> None:
    model = ranker(sequence_schema).eval()
    model(batch_of(sequence_schema))
    assert model.lum._read is None


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="add frozen=false"):
        LumConfig(objective="joint")
    with pytest.raises(ValueError, match="task or joint"):
        LumConfig(objective="both", frozen=False)  # type: ignore[arg-type]


def test_every_ranker_retrieves_after_training_and_is_paired_with_its_frozen_twin(tmp_path: Path) -> None:
    raw = movielens_folder(tmp_path / "ml", random_events(1, count=900, seconds=9000))
    prepared = prepare("movielens_1m", str(raw), str(tmp_path / "out"), split="global_time")
    given = {
        "model": "lum", "config": {"queries": 2, "pretrain_epochs": 1}, "data": "movielens_1m",
        "split": prepared.split, "fingerprint": prepared.fingerprint, "prepared": str(prepared.path),
        "history_length": 4, "train_rows": 300, "valid_rows": 40, "batch": 64, "eval_batch": 64, "epochs": 1,
        "evaluations": 1, "patience": 1, "lr": 1e-3,
    }  # fmt: skip
    first = RunSpec.from_json(given | {"kind": "pretrain"})
    given = given | {"kind": "quality", "pretrained": first.key}
    joint = {"queries": 2, "pretrain_epochs": 1, "frozen": False, "objective": "joint"}
    specs = [RunSpec.from_json(given), RunSpec.from_json(given | {"config": joint, "variant": "joint"})]
    runs = []
    for spec in (first, *specs):
        folder = tmp_path / "records" / spec.key
        folder.mkdir(parents=True)
        record = JOBS[spec.kind](spec, folder)
        records.save(record, tmp_path)
        runs.append((Run(spec, {"extra": record.extra}), record))
    after = [next(r for r in record.rows if r.metric == "recall_after") for _, record in runs[1:]]
    users = prepared.frame("test", columns=["user_id"])["user_id"].n_unique()
    assert 0 < (after[0].n or 0) <= users
    trained = {("lum", ""): [runs[1][0]], ("lum", "joint"): [runs[2][0]]}
    auc = {("lum", ""): np.array([0.6]), ("lum", "joint"): np.array([0.7])}
    draws = {who: a[None] + np.linspace(-0.01, 0.01, 20) for who, a in auc.items()}
    base = {who: {"run": "summary", "model": "lum", "variant": who[1]} for who in trained}
    found = {r.scope: r for r in joint_rows(trained, base, auc, draws, tmp_path)}
    assert {r.variant for r in found.values()} == {"joint"}
    assert found["auc"].value == pytest.approx(0.1)
    assert found["recall"].value == pytest.approx(after[1].value - after[0].value)  # type: ignore[operator]
    hits = [np.load(tmp_path / "records" / s.key / RANKS)["rank"] < 10 for s in specs]
    assert found["recall"].value == pytest.approx((hits[1].astype(float) - hits[0]).mean())

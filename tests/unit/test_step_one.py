"""Step 1 of LUM as a process of its own: shared by hosts and trials, its stored answers are the computed ones."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from ctrbench.bench import registry
from ctrbench.bench.config import build_plan
from ctrbench.bench.jobs import JOBS
from ctrbench.bench.pool import _next
from ctrbench.bench.pretrain import ANSWERS, load_step_one
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.specs import Ready, _at_budget
from ctrbench.bench.step import predict
from ctrbench.bench.suite import run_suite
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import SPLITS, Prepared
from ctrbench.models.lum import LumRanker
from ctrbench.models.lum_answers import Store
from ctrbench.reports import records

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))
movielens_folder, random_events = _tiny["movielens_folder"], _tiny["random_events"]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("step_one")
    raw = movielens_folder(folder / "ml", random_events(1, count=900, seconds=9000))
    return prepare("movielens_1m", str(raw), str(folder / "out"), split="global_time")


def pretrain_spec(prepared: Prepared, **changes: object) -> RunSpec:
    given = {
        "kind": "pretrain", "model": "lum", "config": {"queries": 2}, "data": "movielens_1m",
        "split": prepared.split, "fingerprint": prepared.fingerprint, "prepared": str(prepared.path),
        "history_length": 8, "train_rows": 300, "valid_rows": 40, "batch": 32, "eval_batch": 32,
    }  # fmt: skip
    return RunSpec.from_json(given | changes)


def test_numbers_of_rows_run_through_the_splits(prepared: Prepared) -> None:
    number = []
    for split in SPLITS:
        for batch in Loader(prepared, split, 64, shuffle_seed=3, history_length=8):
            assert batch.row_B is not None
            number += batch.row_B.tolist()
    assert sorted(number) == list(range(sum(prepared.rows(s) for s in SPLITS)))
    part = [int(r) for b in Loader(prepared, "valid", 8, rows=10) for r in b.row_B]  # type: ignore[union-attr]
    assert part == list(range(prepared.first_row("test") - 10, prepared.first_row("test")))


@pytest.mark.parametrize("target", ["item", "sid"])
def test_stored_answers_give_the_computed_logits(prepared: Prepared, tmp_path: Path, target: str) -> None:
    config = {"queries": 2, "target": target, "sid_codes": 16}
    spec = pretrain_spec(prepared, config=config)
    folder = tmp_path / spec.key
    folder.mkdir()
    record = JOBS["pretrain"](spec, folder)
    lum = registry.model_spec("lum")
    model = lum.build(lum.config(host="fat", **config), prepared.schema_for(8))
    assert isinstance(model, LumRanker)
    load_step_one(model.lum, folder)
    model.eval()
    if target == "sid":  # the codes come with the weights: those of the content, not the digits of a new model
        facts, codes = record.extra["semantic_ids"], model.user_model.codes
        assert facts["items"] == int(codes.known_V.sum())
        assert facts["unresolved"] == 0
        assert len(torch.unique(codes.codes_VL[codes.known_V], dim=0)) == facts["items"]
        assert not torch.equal(
            codes.codes_VL, lum.build(lum.config(**config), prepared.schema_for(8)).user_model.codes.codes_VL
        )
    batches = list(Loader(prepared, "train", 50, rows=300, shuffle_seed=1, history_length=8))
    batches += list(Loader(prepared, "test", 50, history_length=8))
    assert model.lum.store is not None
    looked_up = [predict(model, b) for b in batches]
    model.lum.store = None
    for batch, score in zip(batches, looked_up, strict=True):
        torch.testing.assert_close(score, predict(model, batch), rtol=1e-5, atol=1e-6)
    (folder / ANSWERS).unlink()  # a finished suite drops the answers
    load_step_one(model.lum, folder)
    assert model.lum.store is None


def test_a_row_without_an_answer_is_an_error() -> None:
    store = Store(np.zeros((10, 2, 3), np.float32), ((2, 5), (7, 10)))
    assert store.take(torch.tensor([2, 4, 9])).shape == (3, 2, 3)
    with pytest.raises(IndexError, match="row 5 is outside"):
        store.take(torch.tensor([2, 5]))


def test_nobody_starts_before_its_pretraining() -> None:
    first = RunSpec(kind="pretrain", model="lum")
    needs = RunSpec(kind="quality", model="lum", pretrained=first.key)
    free = RunSpec(kind="quality", model="din")
    assert _next([needs, first, free], []) == 1
    assert _next([needs, free], [first]) == 1
    assert _next([needs], [first]) is None
    assert _next([needs], []) == 0


@pytest.mark.slow
def test_hosts_trials_and_variants_share_one_step_one(tmp_path: Path) -> None:
    raw = movielens_folder(tmp_path / "ml", random_events(1, count=900, seconds=9000))
    plan = build_plan([
        "suite=standard", "data=movielens_1m", "data.split=global_time", f"data.path={raw}", "model=din,composite,lum",
        "floors=false", "published=false", "run.trials=2", "run.seeds=1", "run.processes=1", "run.steps=2",
        "run.warmup=1", "run.train_rows=400", "run.trial_rows=128", "run.valid_rows=60", "run.batch=32",
        "run.history_length=8", "run.threads=1", f"run.out={tmp_path / 'runs'}",
    ])  # fmt: skip
    assert run_suite(plan, QUIET) == 0
    latest = tmp_path / "runs" / "latest"
    table, bodies = records.load(latest)
    (step_one,) = [k for k, b in bodies.items() if b["spec"].get("kind") == "pretrain"]
    trained = [b["spec"] for b in bodies.values() if b["spec"].get("model") == "lum" and b["spec"]["kind"] != "time"]
    uses = {s["kind"] for s in trained if s["pretrained"] == step_one}
    assert uses == {"quality", "tune"}
    assert not (latest / "records" / step_one / ANSWERS).exists()
    assert (table[table.metric == "auc_mdd"].value > 0).all()
    # Equal FLOPs: what each training was given lies within a batch of rows of the budget, less its step 1.
    counts = [b for b in bodies.values() if b["spec"].get("kind") == "count"]
    counted = {(b["spec"]["model"], b["spec"]["variant"]): b for b in counts}
    budgeted = [b["spec"] for b in bodies.values() if b["spec"].get("flops_budget")]
    assert {s["model"] for s in budgeted} >= {"din", "composite"}
    for spec in budgeted:
        variant = spec["variant"].removeprefix("equal_flops").removeprefix(",")
        body = counted[spec["model"], variant]
        a_row = body["extra"]["flops_model_train"] / spec["batch"]
        before = bodies[step_one]["extra"]["pretraining"]["flops"] if spec["model"] == "lum" else 0.0
        spent = before + a_row * spec["train_rows"] * spec["epochs"]
        assert spec["flops_budget"] - a_row * spec["epochs"] <= spent <= spec["flops_budget"]
    pair = table[(table.metric == "auc_delta") & (table.variant == "equal_flops") & (table.model == "din")]
    assert set(pair.scope) == {"vs:composite"}
    # LUM either pays step 1 out of the same budget or says that it cannot.
    lum = table[(table.model == "lum") & table.variant.str.startswith("equal_flops")]
    assert len(lum)
    if "lum" not in {s["model"] for s in budgeted}:
        assert lum[lum.variant == "equal_flops,host=din"].reason.str.contains("its pre-training alone costs").all()


def test_step_one_is_paid_out_of_the_budget(prepared: Prepared, tmp_path: Path) -> None:
    plan = build_plan(["suite=standard", "data=movielens_1m", "model=lum", "run.seeds=1", "run.train_rows=400",
                       "run.valid_rows=60", "run.batch=32", "run.history_length=8"])  # fmt: skip
    item = Ready(plan.jobs[0], prepared, prepared.path)
    entry = plan.jobs[0].models[0]
    (made,) = _at_budget(plan, item, entry, 1000.0 * 64 + 7.0, (1000.0, 7.0))
    assert (made.train_rows, made.epochs) == (64, 1)
    (twice,) = _at_budget(plan, item, entry, 1000.0 * 700, (1000.0, 0.0))
    assert (twice.train_rows, twice.epochs) == (350, 2)
    assert "pre-training alone" in _at_budget(plan, item, entry, 10.0, (1000.0, 10.0))
    assert "less than a batch" in _at_budget(plan, item, entry, 1000.0 * 31, (1000.0, 0.0))
    assert "less than a batch" in _at_budget(plan, item, entry, 500.0, (1000.0, 0.0))

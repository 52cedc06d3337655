"""`suite=datapath`: what it owes, every part at a tiny size, and that the ways of a part do the same."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctrbench.bench.config import build_plan
from ctrbench.bench.datapath import dedup, loading, process, tables, transforms
from ctrbench.bench.datapath.specs import ONCE, datapath_specs
from ctrbench.bench.plan import Entry
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.specs import Ready, suite_specs
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared
from ctrbench.models.embedding import EmbeddingTables
from ctrbench.reports import records

criteo_file = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))["criteo_file"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("datapath")
    return prepare("criteo", criteo_file(folder), folder / "out")


def _ready(prepared: Prepared, *models: str) -> tuple[Any, list[Ready]]:
    plan = build_plan(["suite=datapath", "run.batch=32", "run.warmup=1"])
    job = replace(plan.jobs[0], models=tuple(Entry(model=m) for m in models))
    return plan, [Ready(job, prepared, prepared.path)]


def test_a_loader_a_data_set_a_stall_a_model_and_the_rest_once(prepared: Prepared) -> None:
    plan, ready = _ready(prepared, "deepfm", "dcn_v2", "din")
    specs, absent = datapath_specs(plan, ready)
    assert [(s.part, s.model) for s in specs] == [
        ("loader", "deepfm"), ("stall", "deepfm"), ("stall", "dcn_v2"), *((part, "deepfm") for part in ONCE),
    ]  # fmt: skip
    assert len({s.key for s in specs}) == len(specs)
    assert {(r.model, r.status) for r in absent} == {("din", "skipped")}
    assert set(process.PARTS) == {s.part for s in specs}
    assert plan.sized == ()  # nothing else of the models, their published sizes neither
    assert suite_specs(plan, [])[0] == []


def test_a_part_leaves_the_keys_of_other_runs_alone() -> None:
    spec = RunSpec(kind="time", model="deepfm")
    assert replace(spec, part="loader").digest != spec.digest
    assert "part" not in spec.key


def _check(rows: tuple[Any, ...], part: str, ways: set[str]) -> None:
    times = [r for r in rows if r.metric == "path_time"]
    ratios = [r for r in rows if r.metric == "path_ratio"]
    assert {r.scope.split(":")[1] for r in times} == ways
    assert {r.scope.split(":")[0] for r in times} == {part}
    assert len(ratios) == len(times) * (len(ways) - 1) // len(ways)
    assert all(r.value > 0 and r.ci_low <= r.value <= r.ci_high and r.preset == "datapath" for r in [*times, *ratios])


def test_loader_and_stall_beside_a_model(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BATCHES", (32,))
    monkeypatch.setattr(loading, "LIMIT_S", 0.0)
    plan, ready = _ready(prepared, "deepfm")
    alone, beside = datapath_specs(plan, ready)[0][:2]
    found = loading.loader_part(alone, (32,))
    batch = next(iter(loading._loader(alone, prepared, 32, 0)))
    by = {(m, kw["scope"]): v for m, v, _, kw in found.plain}
    per_row = by["load_bytes", "loader:memory:batch 32"] / by["load_rate", "loader:memory:batch 32"]
    assert per_row == pytest.approx(batch.nbytes / 32)
    assert set(found.samples["batch 32"]) == {"memory", "parquet"}
    assert by["cpu_core_s_per_million", "loader:parquet:batch 32"] > 0
    monkeypatch.setattr(process, "PARTS", {"stall": lambda s: loading.stall_part(s, rounds=3, steps=2)})
    record = process.run_datapath(beside, tmp_path)
    stalls = {r.scope: r for r in record.rows if r.metric == "loader_stall"}
    assert set(stalls) == {"prefetch:0", "prefetch:1", "prefetch:2"}
    assert all(0 < r.value < 1 and r.model == "deepfm" for r in stalls.values())
    _check(record.rows, "stall", {"held", "prefetch 0", "prefetch 1", "prefetch 2"})
    assert len(records.frame(record.rows)) == len(record.rows)


@pytest.mark.parametrize(("part", "small", "ways"), [
    ("transforms", lambda s: transforms.transforms_part(s, (8,), 16), {"fused", "looped", "plain"}),
    ("tables", lambda s: tables.tables_part(s, {3: 50}, 8), {"stacked", "per_feature", "per_table"}),
    ("dedup", lambda s: dedup.dedup_part(s, 64, 100), {"direct", "unique"}),
])  # fmt: skip
def test_made_up_parts(part: str, small: Any, ways: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (transforms, tables, dedup):
        monkeypatch.setattr(module, "LIMIT_S", 0.0)
    monkeypatch.setattr(process, "PARTS", {part: small})
    record = process.run_datapath(RunSpec(kind="datapath", model="deepfm", part=part), tmp_path)
    _check(record.rows, part, ways)
    assert {r.data for r in record.rows} == {""}


def test_merged_and_separate_tables_train_alike() -> None:
    rows, features, batch = 20, 3, 16
    ids = tables.uniform_ids(features, rows, batch, 1)
    grad_BF = torch.randn(batch, features * tables.WIDTH)
    start_RD = torch.randn(rows * features, tables.WIDTH)
    after = []
    for module in (tables.Stacked(rows, features, tables.WIDTH), tables.separate(rows, features, tables.WIDTH, "fused"),
                   tables.separate(rows, features, tables.WIDTH, "per_table")):  # fmt: skip
        if isinstance(module, EmbeddingTables):
            weights = list(module.weights().values())
        else:
            weights = list(module.lookup.split_embedding_weights()[0].split(rows))
        for weight, start in zip(weights, start_RD.split(rows), strict=True):
            with torch.no_grad():
                weight.copy_(start)
        tables.step_of(module, ids, grad_BF)()
        after.append(torch.cat([w.detach().clone() for w in weights]))
    torch.testing.assert_close(after[1], after[0])
    torch.testing.assert_close(after[2], after[0])
    assert not torch.equal(after[0], start_RD)


@pytest.mark.parametrize("alpha", dedup.ALPHAS)
def test_distinct_ids_give_the_rows_and_the_update_of_ids_as_they_come(alpha: float) -> None:
    ids_N = dedup.zipf_ids(300, 50, alpha, 3)
    grad_ND = torch.randn(300, dedup.WIDTH)
    direct, unique = dedup.table(50), dedup.table(50)
    first = [dedup.step_of(direct, ids_N, grad_ND, False)(), dedup.step_of(unique, ids_N, grad_ND, True)()]
    second = [dedup.step_of(direct, ids_N, grad_ND, False)(), dedup.step_of(unique, ids_N, grad_ND, True)()]
    torch.testing.assert_close(first[1], first[0])
    torch.testing.assert_close(second[1], second[0], rtol=1e-4, atol=1e-5)
    assert not torch.equal(first[0], second[0])


def test_skew_of_ids_and_the_bytes_that_follow() -> None:
    distinct = [len(np.unique(dedup.zipf_ids(20_000, 50_000, a, 0).numpy())) for a in dedup.ALPHAS]
    assert distinct == sorted(distinct, reverse=True)
    every = dedup.bytes_touched(100, 100, 16)
    assert every["unique"] > every["direct"] == 100 * (8 + 3 * 64) + 100 * 2 * 68
    assert dedup.bytes_touched(1_000, 1, 16)["unique"] < dedup.bytes_touched(1_000, 1, 16)["direct"] * 1.1

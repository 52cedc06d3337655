"""Modes of a run: what they compute against eager float32, what records say of them, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ctrbench.bench import registry
from ctrbench.bench.backends import backend, run_backends, step_of
from ctrbench.bench.ceilings import Ceilings, drift, gemm_ceiling, measure_ceilings
from ctrbench.bench.cli import main
from ctrbench.bench.config import build_plan
from ctrbench.bench.jobs import JOBS
from ctrbench.bench.mode_rows import mode_rows
from ctrbench.bench.mode_timing import over_steady
from ctrbench.bench.modes import MasterAdam, refused, set_mode
from ctrbench.bench.option_gains import same_seeds
from ctrbench.bench.points import NO_UNITS, mode_points, sweep_points
from ctrbench.bench.runspec import RunSpec, mode_of, mode_options
from ctrbench.bench.step import TrainStep
from ctrbench.bench.summary import Run, timing_rows
from ctrbench.bench.sweep import sweep_specs
from ctrbench.bench.targets import mfu, precision
from ctrbench.datasets.errors import UnknownName
from ctrbench.datasets.random_batches import random_schema
from ctrbench.models.embedding import dense_parameters, embedding_tables
from ctrbench.models.spec import random_batch

MODELS = {"deepfm": "random_tabular", "dcn_v2": "random_tabular", "fat": "random_tabular",
          "din": "random_sequence", "onetrans": "random_sequence", "lum_step1": "random_sequence"}  # fmt: skip
WITHIN = 0.15
"""Of the norm: bfloat16 keeps 8 bits, and products, norms and softmax of several layers lie on top of each other."""


def _step(name: str, dtype: str, compile: str = "eager") -> tuple[Tensor, Tensor]:
    """(logits or loss, all dense gradients) of one forward and backward from fixed weights on a fixed batch."""
    spec = registry.model_spec(name)
    schema, config = random_schema(MODELS[name], 12), spec.config()
    torch.manual_seed(0)
    model = spec.build(config, schema)
    batch = random_batch(spec, config, schema, 32)
    set_mode(model, dtype, compile)
    out = model.train()(batch)
    whole = getattr(model, "returns_loss", False)
    (out if whole else binary_cross_entropy_with_logits(out, batch.label_B)).backward()
    grads = [p.grad.float().flatten() for p in dense_parameters(model) if p.grad is not None]
    return out.detach(), torch.cat(grads)


@pytest.fixture(scope="module", params=MODELS)
def plain(request: pytest.FixtureRequest) -> tuple[str, Tensor, Tensor]:
    return (request.param, *_step(request.param, "float32"))


@pytest.mark.parametrize("dtype", ["autocast", "bfloat16"])
def test_narrow_modes_stay_within_the_error_of_bfloat16(plain: tuple[str, Tensor, Tensor], dtype: str) -> None:
    name, out, grads = plain
    narrow_out, narrow_grads = _step(name, dtype)
    assert narrow_out.dtype == torch.float32
    assert not torch.equal(narrow_out, out)  # it did run in another precision
    assert (narrow_out - out).norm() <= WITHIN * out.norm()
    assert (narrow_grads - grads).norm() <= WITHIN * grads.norm()


COMPILED = [pytest.param(m, marks=[] if m == "deepfm" else pytest.mark.slow) for m in MODELS]


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_model_computes_the_same(name: str) -> None:
    out, grads = _step(name, "float32")
    compiled_out, compiled_grads = _step(name, "float32", "compile")
    torch.testing.assert_close(compiled_out, out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled_grads, grads, rtol=1e-4, atol=1e-5)


def test_pure_bfloat16_narrows_dense_weights_and_leaves_tables_and_trains() -> None:
    spec = registry.model_spec("deepfm")
    schema = random_schema("random_tabular", 12)
    torch.manual_seed(0)
    model = spec.build(spec.config(), schema)
    set_mode(model, "bfloat16")
    assert {p.dtype for p in dense_parameters(model)} == {torch.bfloat16}
    assert {w.dtype for t in embedding_tables(model) for w in t.weights().values()} == {torch.float32}
    step = TrainStep(model.train(), lr=1e-2)
    batch = random_batch(spec, spec.config(), schema, 64)
    losses = [float(step(batch)) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.05
    step.scale_lr(0.5)
    assert step.optimizer.param_groups[0]["lr"] == pytest.approx(5e-3)


def test_masters_keep_steps_that_bfloat16_would_round_away() -> None:
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    reference = nn.Parameter(torch.ones(4))
    ours, adam = MasterAdam([{"params": [weight]}], lr=1e-4), torch.optim.Adam([reference], lr=1e-4)
    for _ in range(100):
        weight.grad, reference.grad = torch.full_like(weight, 0.5), torch.full_like(reference, 0.5)
        ours.step()
        adam.step()
        ours.zero_grad()
    assert weight.grad is None
    torch.testing.assert_close(weight.detach(), reference.detach().to(torch.bfloat16))
    assert float(weight[0]) < 1.0  # one step of 1e-4 is less than half a unit in the last place of 1.0


@pytest.mark.parametrize(("argument", "near"), [("run.dtype=bfloat", "bfloat16"), ("run.compile=compil", "compile")])
def test_an_unknown_mode_names_the_nearest(argument: str, near: str) -> None:
    with pytest.raises(UnknownName, match=near):
        build_plan(["suite=quick", argument])


def test_a_mode_is_in_dtype_and_variant_and_only_where_it_applies() -> None:
    assert mode_of("time", "bfloat16", "compile") == {"dtype": "bfloat16", "compile": "compile"}
    assert mode_of("count", "bfloat16", "compile") == {"dtype": "bfloat16", "compile": "eager"}
    assert mode_of("serve", "bfloat16", "compile") == {"dtype": "float32", "compile": "eager"}
    assert mode_options("float32", "eager") == []
    assert mode_options("autocast", "compile") == [("dtype", "autocast"), ("compile", "compile")]


def test_trainings_of_two_modes_never_pair() -> None:
    plain = RunSpec(kind="quality", model="din", seed=1)
    sides = [Run(s, {}) for s in (plain, replace(plain, dtype="bfloat16"), replace(plain, compile="compile"))]
    assert same_seeds(sides[:1], sides[:1]) == ([0], [0])
    assert same_seeds(sides[:1], sides[1:]) == ([], [])
    assert same_seeds(sides, sides[1:2]) == ([1], [0])


def test_cuda_graphs_are_skipped_rows_on_a_cpu() -> None:
    specs, skipped = sweep_specs(build_plan(["suite=modes", "model=deepfm"]))
    assert {s.compile for s in specs} == {"eager", "compile"}
    assert sum(s.kind == "count" for s in specs) == 1
    assert {(s.compile, s.dtype) for s in specs if s.kind == "time"} == {
        (c, d) for c in ("eager", "compile") for d in ("float32", "autocast", "bfloat16")
    }
    assert {r.variant for r in skipped} == {f"cuda_graph,{d}" for d in ("float32", "autocast", "bfloat16")}
    assert {(r.status, r.reason) for r in skipped} == {("skipped", refused(RunSpec(kind="time", model="deepfm",
                                                                                   compile="cuda_graph")))}  # fmt: skip
    with pytest.raises(RuntimeError, match="CUDA"):
        set_mode(nn.Linear(2, 2), compile="cuda_graph")


def test_suite_modes_has_every_model_once_counted_and_the_back_ends() -> None:
    plan = build_plan(["suite=modes"])
    specs, _ = sweep_specs(plan)
    assert set(plan.models) == set(MODELS)
    assert sorted(s.model for s in specs if s.kind == "count") == sorted(MODELS)
    assert [s.model for s in specs if s.kind == "backends"] == ["onetrans"]
    with pytest.raises(UnknownName, match="every mode"):
        build_plan(["suite=modes", "run.dtype=bfloat16"])


def test_points_in_bfloat16_wait_for_a_cpu_with_units(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"data": "random_tabular", "sweep": {"width": [8], "length": [4], "at": {"width": 8, "length": 4}},
           "models": [{"model": "dcn_v2", "label": "390 wide,bf16", "dtype": "bfloat16", "batch": 4096, "width": [10],
                       "length": [], "scaled": {"dim": 1}}]}  # fmt: skip
    for units, skip in (("", NO_UNITS), ("avx512_bf16", "")):
        monkeypatch.setattr("ctrbench.bench.points.bf16_units", lambda u=units: u)
        (point,) = sweep_points(job)
        assert point["skip"] == skip
        assert point["run"] == {"history_length": 4, "batch": 4096, "dtype": "bfloat16"}
        assert point["label"] == "390 wide,bf16,d=10,T=4"
    modes = mode_points({"modes": {"compile": ["eager"], "dtype": ["float32", "bfloat16"]}, "models": [{"model": "x"}]})
    assert [(p["label"], p["uncounted"]) for p in modes] == [("eager,float32", False), ("eager,bfloat16", True)]


def _tiny(kind: str, **changes: Any) -> RunSpec:
    (spec, *_) = [s for s in sweep_specs(build_plan(["suite=modes", "model=deepfm"]))[0] if s.kind == "time"]
    return replace(spec, kind=kind, batch=32, steps=4, warmup=2, threads=1, **changes)  # type: ignore[arg-type]


def test_a_timed_mode_is_read_against_its_own_ceiling_and_an_eager_twin(tmp_path: Path) -> None:
    timed = _tiny("time", dtype="bfloat16", variant="eager,bfloat16")
    counted = JOBS["count"](replace(_tiny("count"), variant="eager,float32"), tmp_path)
    record = JOBS["time"](timed, tmp_path)
    runs = [Run(timed, {"extra": record.extra}), Run(RunSpec.from_json(counted.spec), {"extra": counted.extra})]
    rows = {(r.metric, r.scope): r for r in timing_rows(runs[:1], runs[1:], "summary")}
    assert {r.dtype for r in rows.values()} == {"bfloat16"}
    against = record.extra["mode"]["against_eager"]
    assert rows["mode_time", ""].value == against["value"] > 0
    assert rows["mode_time", ""].reason == record.extra["mode"]["note"]
    assert "compile_cold_s" not in record.extra["mode"]
    bf16 = sorted(c["gemm_bf16_gflops"] for c in record.extra["ceilings"])[1]
    assert rows["ceiling_gemm", ""].value == pytest.approx(bf16)
    assert rows["mbu", ""].status == "skipped"
    assert "eager float32" in rows["mbu", ""].reason


def test_compilation_is_what_first_steps_take_beyond_steady_ones() -> None:
    assert over_steady([9.0, 1.0, 0.5], [1.0, 1.0, 2.0]) == pytest.approx(8.0)
    made = {"against_eager": {"value": 0.5, "low": 0.4, "high": 0.6, "rounds": 7}, "note": "", "compile_cold_s": 8.0,
            "compile_warm_s": 2.0, "recompiles": 1, "graph_breaks": 2}  # fmt: skip
    rows = {(r.metric, r.scope): r for r in mode_rows({"run": "r", "model": "m"}, [{"mode": made}])}
    assert {k: r.value for k, r in rows.items()} == {
        ("mode_time", ""): 0.5, ("compile_time", "cold"): 8.0, ("compile_time", "warm"): 2.0, ("recompiles", ""): 1.0,
        ("graph_breaks", ""): 2.0,
    }  # fmt: skip
    assert mode_rows({"run": "r", "model": "m"}, [{}]) == []


def test_a_narrow_ceiling_stands_beside_the_wide_one_and_its_drift_counts() -> None:
    wide, narrow = measure_ceilings(1, quick=True), measure_ceilings(1, quick=True, narrow=True)
    assert wide.gemm_bf16_gflops is None
    assert narrow.gemm_bf16_gflops is not None
    assert narrow.gemm_bf16_gflops > 0
    assert narrow.seconds < 10
    body = {"gemm_fp32_gflops": 100.0, "gemm_bf16_gflops": 300.0}
    assert [gemm_ceiling(body, d) for d in ("float32", "autocast", "bfloat16")] == [100.0, 300.0, 300.0]
    one = Ceilings(threads=1, gemm_fp32_gflops=1.0, gemm_fp32_size=1, copy_gbs=1.0, gemm_bf16_gflops=1.0,
                   gemm_bf16_size=1)  # fmt: skip
    assert drift(one, replace(one, gemm_bf16_gflops=1.5)) == pytest.approx(0.5)


def test_back_ends_agree_and_a_refusal_is_a_row() -> None:
    found = {}
    for name in ("math", "flash"):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 2, 9, 8, requires_grad=True) for _ in range(3))
        step_of(backend(name, 9, "cpu"), (q, k, v), torch.ones(2, 2, 9, 8))()
        found[name] = (q.grad, k.grad, v.grad)
    torch.testing.assert_close(found["math"], found["flash"])


@pytest.mark.slow
def test_the_back_ends_process_names_every_one(tmp_path: Path) -> None:
    (spec,) = [s for s in sweep_specs(build_plan(["suite=modes"]))[0] if s.kind == "backends"]
    rows = run_backends(replace(spec, batch=4), tmp_path).rows
    assert {r.scope for r in rows} == {"math", "flash", "efficient", "flex"}
    assert all(r.reason for r in rows if r.value is None)
    assert {r.value for r in rows if r.scope == "math"} == {1.0}


def test_utilisation_targets_are_judged_by_the_median_over_processes() -> None:
    point = mfu.POINTS[0]
    runs = [{"mfu": m, "low": m - 0.1, "high": m + 0.1, "step_s": 1.0, "gemm_gflops": 100.0} for m in (0.5, 0.6, 0.7)]
    made = mfu.judged(point, "float32", 0.55, runs)
    assert (made.verdict, made.measured) == ("met", "60 % [40, 80]")
    assert mfu.judged(point, "float32", 0.61, runs).verdict == "missed"
    spec = replace(mfu.spec_of(point, threads=1), config={"width": 16, "heads": 2}, batch=8, history_length=10)
    found = mfu.timed(spec, flops=1e7, rounds=2, limit_s=0.5)
    assert 0 < found["low"] <= found["mfu"] <= found["high"]


def test_narrow_training_is_judged_by_the_interval_of_the_seeds() -> None:
    wide = [0.700, 0.702, 0.701]
    assert precision.within(wide, [0.7009, 0.7011])[0]
    assert precision.within(wide, [0.71])[0]
    assert not precision.within(wide, [0.69, 0.691])[0]


@pytest.mark.slow
def test_a_tiny_suite_of_modes_runs_and_reports(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    code = main(["run", "suite=modes", "model=deepfm", "deepfm.dim=4", "run.batch=32", "run.steps=3", "run.threads=1",
                 f"run.out={out}"])  # fmt: skip
    assert code == 0
    page = (out / "latest" / "report.html").read_text()
    assert "Modes: compiled, captured, in bfloat16" in page
    assert "cuda_graph: needs a CUDA device" in page

"""`suite=mfu`: its points, their keys, what it refuses, counts against closed forms, and a tiny run that resumes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ctrbench.bench import registry
from ctrbench.bench.assemble import fed, lookup, model_config
from ctrbench.bench.cli import main
from ctrbench.bench.config import build_plan
from ctrbench.bench.counting.counter import count_step
from ctrbench.bench.counting.rows import backward_ratio_error, withhold_reason
from ctrbench.bench.counts import useful_flops
from ctrbench.bench.jobs import JOBS
from ctrbench.bench.owed import OWED
from ctrbench.bench.points import NO_LENGTH, NO_UNITS, sweep_points, times_d
from ctrbench.bench.step import TrainStep
from ctrbench.bench.sweep import sweep_specs
from ctrbench.datasets.errors import BadInput, UnknownName
from ctrbench.datasets.random_batches import HELD, random_schema
from ctrbench.datasets.schema import padding_share
from ctrbench.models.spec import flops_per_step, random_batch

NAMES = {"deepfm", "dcn_v2", "fat", "din", "composite", "onetrans", "lum_step1", "gpt_block"}


def test_points_are_every_width_at_one_length_and_every_length_at_one_width() -> None:
    job = {
        "data": "random_sequence", "sweep": {"width": [8, 16], "length": [4, 6], "at": {"width": 8, "length": 6}},
        "models": [{"model": "din", "scaled": {"dim": 1, "mlp": [2, 4]}},
                   {"model": "lum_step1", "label": "packed", "options": {"packed": True}, "events": 24, "width": [8]}],
    }  # fmt: skip
    points = {(p["model"], p["label"]): p for p in sweep_points(job)}
    assert set(points) == {("din", "d=8,T=6"), ("din", "d=16,T=6"), ("din", "d=8,T=4"),
                           ("lum_step1", "packed,d=8,T=6"), ("lum_step1", "packed,d=8,T=4")}  # fmt: skip
    assert points["din", "d=16,T=6"]["options"] == {"dim": 16, "mlp": (32, 64)}
    assert points["din", "d=8,T=4"]["run"] == {"history_length": 4}
    assert points["lum_step1", "packed,d=8,T=4"]["run"] == {"history_length": 4, "batch": 6}
    assert {p["skip"] for p in points.values()} == {""}
    tabular = sweep_points({**job, "data": "random_tabular"})
    assert {p["label"]: p["skip"] for p in tabular if p["model"] == "din"} == {
        "d=8,T=6": "", "d=16,T=6": "", "d=8,T=4": NO_LENGTH,
    }  # fmt: skip


def test_multiples_of_d_keep_their_nesting() -> None:
    assert times_d([[8, 4], 2], 16) == ((128, 64), 32)


def test_the_suite_counts_once_and_times_five_times_and_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrbench.bench.points.bf16_units", lambda: "")
    plan = build_plan(["suite=mfu"])
    specs, skipped = sweep_specs(plan)
    assert set(plan.models) == NAMES
    assert {s.kind for s in specs} == {"count", "time"}
    counts = [s for s in specs if s.kind == "count"]
    assert len(specs) == 6 * len(counts) == len({s.key for s in specs})
    assert {s.preset for s in specs} == {"sweep"}
    assert all(s.fingerprint and not s.prepared for s in specs)
    for model in NAMES - {"deepfm", "dcn_v2", "fat"}:
        mine = {s.variant for s in counts if s.model == model}
        assert {f"d={d},T=50" for d in (16, 32, 64, 128)} <= {v.removeprefix("packed,") for v in mine}
        assert {f"d=64,T={t}" for t in (25, 50, 100, 200)} <= {v.removeprefix("packed,") for v in mine}
    lum = {s.variant: s for s in counts if s.model == "lum_step1"}
    assert lum["packed,d=64,T=200"].batch * 200 == lum["unpacked,d=64,T=25"].batch * 25 == 3200
    assert {r.metric for r in skipped} == set(OWED["time"]) | set(OWED["count"])
    assert {(r.status, r.reason) for r in skipped} == {("skipped", NO_LENGTH), ("skipped", NO_UNITS)}
    flat, narrow = ({(r.model, r.variant) for r in skipped if r.reason == why} for why in (NO_LENGTH, NO_UNITS))
    lengths = ("d=64,T=25", "d=64,T=100", "d=64,T=200")
    assert flat == {(m, v) for m in ("deepfm", "dcn_v2", "fat") for v in lengths}
    assert narrow == {("onetrans", "bf16,d=256,T=50"), ("lum_step1", "packed,bf16,d=256,T=50"),
                      ("dcn_v2", "390 wide,bf16,d=10,T=50")}  # fmt: skip
    (wide,) = [s for s in counts if s.variant == "390 wide,d=10,T=50"]
    assert (wide.batch, wide.config) == (4096, {"dim": 10, "mlp": (400, 400)})


def test_keys_are_stable_and_say_what_decides_the_number() -> None:
    def keys(*arguments: str) -> set[str]:
        return {s.key for s in sweep_specs(build_plan(["suite=mfu", "model=din", *arguments]))[0]}

    code = (
        "from ctrbench.bench.config import build_plan; from ctrbench.bench.sweep import sweep_specs;"
        "print(*sorted(s.key for s in sweep_specs(build_plan(['suite=mfu', 'model=din']))[0]))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(other.stdout.split()) == keys() == keys("run.out=elsewhere", "run.timeout_s=5")
    assert keys().isdisjoint(keys("run.steps=11"))
    assert len(keys() & keys("run.processes=2")) == 7 * 3  # fewer repeats are a part of more


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["model=dcn"], "no sweep of it"),
        (["data=movielens_1m"], "data=movielens_1m.*leave it out"),
        (["run.history_length=10"], "run.history_length"),
        (["model=random"], "unknown model"),
        (["model=deepfm", "data.path=x"], "data.path.*leave it out"),
        (["data.options.rows=5"], "data.options.rows.*leave it out"),
        (["timed=false"], "leave timed out"),
    ],
)
def test_what_a_sweep_cannot_take_is_refused_by_name(arguments: list[str], named: str) -> None:
    with pytest.raises(UnknownName, match=named):
        build_plan(["suite=mfu", *arguments])


@pytest.mark.parametrize(
    ("option", "named"), [("gpt_block.width=8", "gpt_block.width"), ("gpt_block.dim=8", "gpt_block.dim")]
)
def test_options_that_the_sweep_sets_are_refused(option: str, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        sweep_specs(build_plan(["suite=mfu", "model=gpt_block", option]))


def test_options_that_do_not_fit_a_point_are_refused() -> None:
    with pytest.raises(BadInput, match="fat at d=16,T=50"):
        sweep_specs(build_plan(["suite=mfu", "model=fat", "fat.heads=7"]))


def test_other_options_of_the_command_line_reach_every_point() -> None:
    specs, _ = sweep_specs(build_plan(["suite=mfu", "model=deepfm", "deepfm.dropout=0.1"]))
    assert {s.config["dropout"] for s in specs} == {0.1}


@pytest.mark.parametrize("model", sorted(NAMES))
def test_counted_flops_follow_the_closed_form_over_width_and_length(model: str) -> None:
    """On meta, so that the largest points cost nothing."""
    specs, _ = sweep_specs(build_plan(["suite=mfu", f"model={model}", "run.batch=7"]))
    along: dict[str, list[tuple[int, float]]] = {"d": [], "T": []}
    for spec in (s for s in specs if s.kind == "count"):
        model_spec, schema = lookup(spec), random_schema(spec.data, spec.history_length)
        config = model_config(spec, model_spec)
        rows = min(spec.batch, 7)
        with torch.device("meta"):
            built = model_spec.build(config, schema)
        batch = random_batch(model_spec, config, schema, rows, device="meta")
        counts = count_step(built, batch, train=True)
        form = useful_flops(model_spec, config, schema, batch) * rows + flops_per_step(built.train())
        assert withhold_reason(counts, form.full) == ""
        assert backward_ratio_error(counts) == ""
        assert counts.flops("forward") == pytest.approx(form.full, rel=1e-6 if model == "lum_step1" else 0.02)
        assert 0 < form.visible <= form.full
        if not spec.variant.startswith(("unpacked", "390 wide")) and spec.dtype == "float32":
            d, t = (int(p.split("=")[1]) for p in spec.variant.split(",")[-2:])
            along["d"] += [(d, form.full)] if t == 50 else []
            along["T"] += [(t, form.full)] if d == 64 else []
    for axis, least in (("d", 1.0), ("T", 0.3)):
        points = sorted(along[axis])
        flat, wide = model in ("deepfm", "dcn_v2", "fat"), model in ("onetrans", "lum_step1")
        assert len(points) == (4 if axis == "d" and not wide else 5 if axis == "d" else 1 if flat else 4)
        for (a, small), (b, large) in pairwise(points):  # at least linear in d, at most quadratic but for what is fixed
            assert least <= math.log(large / small) / math.log(b / a) < 2.05


def test_step_1_learns_its_batch() -> None:
    spec, schema = registry.model_spec("lum_step1"), random_schema("random_sequence", 6)
    config = spec.config()
    batch = random_batch(spec, config, schema, 3)
    step = TrainStep(spec.build(config, schema).train(), lr=1e-2)
    losses = [float(step(batch)) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


# ------------------------------------------------------------------ a tiny run, as a user starts it

TINY = ["run", "suite=mfu", "model=deepfm", "run.processes=1", "run.steps=2", "run.warmup=1", "run.batch=8",
        "run.threads=1"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mfu")
    assert main([*TINY, f"run.out={out}"]) == 0
    return out


def _stamps(runs: Path) -> dict[str, int]:
    found = (runs / "latest" / "records").glob("*/record.json")
    return {p.parent.name: p.stat().st_mtime_ns for p in found if p.parent.name not in ("prepare", "summary")}


def test_a_point_has_every_measure_it_owes(runs: Path) -> None:
    table = pd.read_parquet(runs / "latest" / "measurements.parquet")
    for d in (16, 32, 64, 128):
        rows = table[(table.variant == f"d={d},T=50") & (table.preset == "sweep")]
        assert set(rows.metric) >= set(OWED["time"]) | set(OWED["count"])
        assert set(rows[rows.value.isna()].metric) == {"loader_stall"}
        assert set(rows.track) == {"tabular"}
        values = rows[rows.scope == ""].drop_duplicates("metric").set_index("metric").value
        mfu = values["flops_train_per_sample"] * values["throughput"] / values["ceiling_gemm"] / 1e9
        assert values["mfu_cpu"] == pytest.approx(mfu)
    assert not table.metric.isin(["auc", "logloss", "split_host"]).any()
    body = json.loads(next((runs / "latest" / "records").glob("*time*/record.json")).read_text())
    assert body["extra"]["random_batches"]["ids"] == "uniform"
    page = (runs / "latest" / "report.html").read_text()
    assert 'id="mfu-sweep"' in page
    assert "No model was trained" in page


def test_resume_repeats_nothing_but_what_a_kill_left_half_written(runs: Path) -> None:
    before = _stamps(runs)
    assert len(before) == 4 * 2 + 1
    lost = next(k for k in before if "d_32" in k and "-time-" in k)
    folder = runs / "latest" / "records" / lost
    (folder / "record.json").rename(folder / "record.json.partial")
    assert main([*TINY, f"run.out={runs}", "run.resume=true"]) == 0
    after = _stamps(runs)
    assert {k for k in after if after[k] != before[k]} == {lost}
    assert set(after) == set(before)
    assert len([p for p in runs.iterdir() if not p.is_symlink()]) == 1


def test_counts_of_a_point_are_means_over_the_batches_that_its_timing_repeats(tmp_path: Path) -> None:
    arguments = ["suite=mfu", "model=lum_step1", "run.batch=8", "run.threads=1"]
    specs, _ = sweep_specs(build_plan(arguments))
    spec = next(s for s in specs if s.kind == "count" and s.variant == "unpacked,d=16,T=50")
    rows = {r.metric: r for r in JOBS["count"](spec, tmp_path).rows}
    model_spec, config, schema, _, _, batches = fed(spec)
    held = [next(batches) for _ in range(HELD)]
    useful = [useful_flops(model_spec, config, schema, b).visible for b in held]
    assert max(useful) > 1.02 * min(useful)  # users of different lengths: one batch does not speak for all
    assert rows["flops_fwd_per_sample"].value == pytest.approx(np.mean(useful), rel=0.01)
    waste = [padding_share(schema, b) for b in held]
    assert rows["padding_waste"].value == pytest.approx(np.mean(waste))

"""One small suite from command line to report: every row owed is there, says how it is known, and is not redone.

The suite runs DCN-v2, FAT and a user's model that hides a matrix product in a custom operator.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest

from ctrbench.bench import registry
from ctrbench.bench.at_scale_rows import SCALE_METRICS
from ctrbench.bench.cli import main
from ctrbench.bench.hardware import catalogue
from ctrbench.bench.owed import OWED
from ctrbench.reports import records
from ctrbench.reports.measures import MEASURES

HIDDEN = textwrap.dedent(
    """
    import dataclasses
    import torch
    from ctrbench.legacy_baselines import deepfm

    @torch.library.custom_op("ctrbench_test_suite::product", mutates_args=())
    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b

    @product.register_fake
    def _(a, b):
        return a.new_empty(a.shape[0], b.shape[1])

    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return product(grad, b.t().contiguous()), product(a.t().contiguous(), grad)

    product.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))

    class Hidden(deepfm.DeepFM):
        def __init__(self, config, schema, device=None):
            super().__init__(config, schema, device)
            self.w = torch.nn.Parameter(torch.randn(len(schema.dense), 1, device=device) * 0.01)

        def forward(self, batch):
            return super().forward(batch) + product(batch.dense_BI, self.w).squeeze(1)

    SPEC = dataclasses.replace(deepfm.SPEC, name="hidden_product", title="Hidden product", build=Hidden)
    """
)
BROKEN = textwrap.dedent(
    """
    import dataclasses
    from ctrbench.legacy_baselines import deepfm

    class Broken(deepfm.DeepFM):
        def forward(self, batch):
            raise ERROR

    SPEC = dataclasses.replace(deepfm.SPEC, name="broken", title="Broken", build=Broken)
    """
)
SMALL = [
    "data=criteo_synthetic", "data.options.rows=3000", "data.options.cap=100", "run.train_rows=1500",
    "run.valid_rows=200", "run.steps=6", "run.warmup=2", "run.threads=1", "run.batch=64",
]  # fmt: skip
MEASURED = ("step_time", "throughput", "infer_latency", "rss_peak", "cpu_core_seconds", "cpu_core_s_per_million",
            "loader_stall", "auc", "logloss", "ne", "calibration", "ceiling_gemm", "ceiling_copy", "ceiling_cache",
            "split_host",
            "split_component", "bytes_checkpoint", "bytes_raw", "bytes_shards")  # fmt: skip
COUNTED = ("flops_fwd_per_sample", "flops_train_per_sample", "flops_elementwise", "ops_per_step", "ops_per_sample",
           "bytes_operands", "bytes_compulsory", "parameters", "bytes_tables", "bytes_optimizer", "padding_waste",
           "unique_row_ratio", "flop_coverage", "ai_operands", "ai_compulsory")  # fmt: skip
DERIVED = (
    "budget_flops",
    "mfu_cpu",
    "mbu",
    "auc_delta",
    "auc_mdd",
    "auc_per_gflop",
    "mfu_bound",
    "auc_pair",
    "auc_pair_mdd",
)
MODELLED = ("kernels_per_step", "kernels_per_sample", "flops_per_kernel", "gpu_time_modelled", "gpu_time_bound",
            "break_even_host_us", *SCALE_METRICS)  # fmt: skip
PER_MODEL = ("time", "quality", "count", "trace")
MODELS = ("dcn_v2", "fat", "hidden_product")
GPUS = {n for n, g in catalogue().items() if {"bf16", "fp16"} & set(g.peak_tflops)}


@pytest.fixture(autouse=True)
def _own_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OWN", {})


@pytest.fixture(scope="module")
def work(cache_folder: Path) -> Path:
    """Folder of everything made here; the cache within it is this module's."""
    return cache_folder


@pytest.fixture(scope="module")
def arguments(work: Path) -> list[str]:
    (work / "hidden_product.py").write_text(HIDDEN)
    return ["run", "suite=ci", f"model.path={work / 'hidden_product.py'}", f"model={','.join(MODELS)}",
            f"run.out={work / 'runs'}", "dcn_v2.dim=4", *SMALL]  # fmt: skip


@pytest.fixture(scope="module")
def done(work: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The suite, run once, as a user does."""
    command = [str(Path(sys.executable).with_name("ctrbench")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=work, env={**os.environ, "COLUMNS": "200"})


@pytest.fixture(scope="module")
def table(work: Path, done: subprocess.CompletedProcess[str]) -> pd.DataFrame:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return pd.read_parquet(work / "runs" / "latest" / "measurements.parquet")


def _of(table: pd.DataFrame, model: str, metrics: tuple[str, ...]) -> pd.DataFrame:
    """The headline rows of a model: not those of one seed, not the published sizes."""
    return table[(table.model == model) & table.metric.isin(metrics) & table.seed.isna() & (table.preset == "small")]


def _stamps(work: Path) -> dict[str, int]:
    """When each run was recorded; the suite's own two records are rewritten every time."""
    found = (work / "runs" / "latest" / "records").glob("*/record.json")
    return {p.parent.name: p.stat().st_mtime_ns for p in found if p.parent.name not in ("prepare", "summary")}


def test_the_command_ends_well_and_says_where_the_report_is(
    work: Path, table: pd.DataFrame, done: subprocess.CompletedProcess[str]
) -> None:
    report = work / "runs" / "latest" / "report.html"
    assert str(report) in done.stdout
    assert report.stat().st_size > 100_000
    assert "DCN-v2" in done.stdout
    assert "SKIPPED" not in done.stdout
    assert 'role="alert"' not in report.read_text()
    assert "is_fx_tracing" not in done.stderr  # no chatter of torch between the lines of the suite
    assert "USDT" not in done.stderr


def test_columns_are_those_of_the_record_format(table: pd.DataFrame) -> None:
    assert tuple(table.columns) == records.COLUMNS


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", PER_MODEL)
def test_every_measure_owed_is_one_row(table: pd.DataFrame, model: str, kind: str) -> None:
    rows = _of(table, model, OWED[kind])
    assert set(rows.metric) == set(OWED[kind])
    assert set(rows.track) == {"tabular"}
    assert set(rows.data) == {"criteo_synthetic"}
    assert not rows.duplicated(["metric", "scope"]).any()
    scoped = {"split_host", "split_component", "cpu_core_s_per_million", "mbu", "calibration"}
    assert (rows[~rows.metric.isin(scoped)].scope == "").all()


def test_floor_rows(table: pd.DataFrame) -> None:
    rows = _of(table, "logistic", OWED["floor"])
    bins = rows[rows.scope.str.startswith("bin:")]
    assert set(bins.metric) == {"calibration"}
    rows = rows.drop(bins.index)
    assert sorted(rows.metric) == sorted(OWED["floor"])
    assert (rows.family == "floor").all()
    assert set(rows[rows.status != "ok"].metric) == {"gauc"}


def test_units_directions_origins_and_statuses_are_declared(table: pd.DataFrame) -> None:
    for row in table.itertuples():
        declared = MEASURES[row.metric]
        assert (row.unit, row.better) == (declared.unit, declared.better), row.metric
    assert set(table.origin) <= set(records.ORIGINS)
    assert set(table.status) <= {"ok", "unstable", "skipped"}
    assert set(table.phase) <= {"prepare", "train", "infer"}


def test_values_reasons_and_origins_agree(table: pd.DataFrame) -> None:
    known = table.status.isin(["ok", "unstable"])
    assert table[known].value.notna().all()
    assert table[~known].value.isna().all()
    assert (table[~known].reason != "").all()
    assert ((table.origin == "abstained") == ~known).all()


@pytest.mark.parametrize(
    ("origin", "metrics"),
    [("measured", MEASURED), ("counted", COUNTED), ("derived", DERIVED), ("modelled", MODELLED)],
)
def test_origin_is_that_of_the_measure(table: pd.DataFrame, origin: str, metrics: tuple[str, ...]) -> None:
    rows = table[table.metric.isin(metrics) & table.value.notna()]
    assert set(rows.metric) >= set(metrics) - {
        "split_host",
        "split_component",
    }  # withheld where the named stages explain too little
    assert set(rows.origin) == {origin}


def test_no_measure_escapes_the_origin_lists(table: pd.DataFrame) -> None:
    named = {*MEASURED, *COUNTED, *DERIVED, *MODELLED}
    assert set(table[table.value.notna()].metric) <= named


def test_derived_rows_name_their_inputs(work: Path, table: pd.DataFrame) -> None:
    runs = work / "runs" / "latest"
    derived = table[(table.origin == "derived") & (table.status != "skipped")]
    for run, metric in set(zip(derived.run, derived.metric, strict=True)):
        body = json.loads((runs / "records" / run / "record.json").read_text())
        inputs = body["inputs"].get(metric, {})
        assert inputs, f"{metric} of {run} names no input"
        assert set(inputs.values()) <= {"measured", "counted", "modelled", "cited"}


@pytest.mark.parametrize("model", ["dcn_v2", "fat"])
def test_bound_of_every_published_preset(table: pd.DataFrame, model: str) -> None:
    every = table[(table.model == model) & (table.metric == "mfu_bound")]
    rows = every[every.value.notna()]
    assert every[every.value.isna()].reason.str.startswith("peak_missing_for_dtype").all()
    assert set(every.scope) == set(catalogue())
    labels = {f"published:{p.label}" for p in registry.model_spec(model).published()}
    assert set(rows.preset) == labels
    assert set(rows.scope) == GPUS
    assert rows.value.between(0, 1, inclusive="right").all()
    for _, group in rows.groupby(["preset", "scope", "phase"]):
        assert group.batch.nunique() == len(group) >= 4
    assert set(rows.phase) == {"train", "infer"}


def test_numbers_are_consistent(table: pd.DataFrame) -> None:
    for model in MODELS:
        rows = _of(table, model, tuple(MEASURES)).set_index(["metric", "scope"]).value
        assert rows["throughput", ""] == pytest.approx(64 / rows["step_time", ""])
        assert rows["ops_per_sample", ""] == pytest.approx(rows["ops_per_step", ""] / 64)
        stages = [v for (m, scope), v in rows.items() if m == "split_host" and scope.count(":") == 1]
        assert not stages or sum(stages) == pytest.approx(1)
    flops, gemm = (_value(table, "fat", m) for m in ("flops_train_per_sample", "ceiling_gemm"))
    assert _value(table, "fat", "mfu_cpu") == pytest.approx(flops * _value(table, "fat", "throughput") / gemm / 1e9)
    forward = [_value(table, m, "flops_fwd_per_sample") for m in ("fat", "dcn_v2")]
    delta = _value(table, "fat", "auc_delta")
    assert delta == pytest.approx(_value(table, "fat", "auc") - _value(table, "dcn_v2", "auc"))
    assert _value(table, "fat", "auc_per_gflop") == pytest.approx(delta / (forward[0] - forward[1]) * 1e9)


def _value(table: pd.DataFrame, model: str, metric: str) -> float:
    return float(_of(table, model, (metric,)).value.item())


def test_an_uncounted_operator_withholds_what_rests_on_flops(table: pd.DataFrame) -> None:
    withheld = ("mfu_cpu", "mbu", "ai_operands", "ai_compulsory", "flops_fwd_per_sample", "flops_train_per_sample",
                "auc_per_gflop")  # fmt: skip
    rows = _of(table, "hidden_product", withheld)
    assert set(rows.metric) == set(withheld)
    assert rows.value.isna().all()
    assert (rows.origin == "abstained").all()
    assert rows.reason.str.contains("uncounted_op").all()
    assert rows.reason.str.contains("ctrbench_test_suite").all()
    bounds = table[(table.model == "hidden_product") & (table.metric == "mfu_bound")]
    bounds = bounds[bounds.preset.str.startswith("published")]
    assert len(bounds) > 0
    assert bounds.value.isna().all()
    assert bounds.reason.str.contains("uncounted_op").all()
    for metric in ("step_time", "auc", "auc_delta", "ops_per_step", "rss_peak"):
        assert _of(table, "hidden_product", (metric,)).value.notna().all(), metric


# ------------------------------------------------------------------ resume; these run in this order on one directory


def test_resume_repeats_nothing(work: Path, table: pd.DataFrame, arguments: list[str]) -> None:
    before = _stamps(work)
    assert len(before) == 3 * 5 + 1
    assert main([*arguments, "run.resume=true"]) == 0
    assert _stamps(work) == before
    assert len([p for p in (work / "runs").iterdir() if not p.is_symlink()]) == 1
    again = pd.read_parquet(work / "runs" / "latest" / "measurements.parquet")
    pd.testing.assert_frame_equal(again, table)


def test_resume_redoes_what_is_missing(
    work: Path, table: pd.DataFrame, arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    before = _stamps(work)
    lost = next(key for key in before if "-fat-count-" in key)
    shutil.rmtree(work / "runs" / "latest" / "records" / lost)
    assert main([*arguments, "run.resume=true"]) == 0
    after = _stamps(work)
    assert {k for k in after if after[k] != before[k]} == {lost}
    assert set(after) == set(before)
    assert f"{len(before) - 1} of {len(before)} runs are already recorded" in capfd.readouterr().out
    again = pd.read_parquet(work / "runs" / "latest" / "measurements.parquet")
    same = [c for c in records.COLUMNS if c != "value"]
    pd.testing.assert_frame_equal(again[same], table[same])


def test_a_half_written_record_is_not_taken_for_whole(work: Path, table: pd.DataFrame, arguments: list[str]) -> None:
    before = _stamps(work)
    lost = next(key for key in before if "-logistic-floor-" in key)
    folder = work / "runs" / "latest" / "records" / lost
    (folder / "record.json").rename(folder / "record.json.partial")
    assert main([*arguments, "run.resume=true"]) == 0
    after = _stamps(work)
    assert {k for k in after if after[k] != before[k]} == {lost}


# ------------------------------------------------------------------ models that fail


@pytest.mark.parametrize(
    ("error", "status"), [('RuntimeError("planted")', "failed"), ('MemoryError("planted")', "oom")]
)
def test_a_broken_model_is_rows_with_the_reason(
    error: str, status: str, work: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, reason = f"broken_{status}", error.split("(")[0] + ": planted"
    file = tmp_path / f"{name}.py"
    file.write_text(BROKEN.replace("ERROR", error))
    with_other = status == "failed"
    models = f"deepfm,{name}" if with_other else name
    code = main(["run", "suite=ci", f"model.path={file}", f"model={models}", f"run.out={tmp_path / 'runs'}", *SMALL,
                 "floors=false"])  # fmt: skip
    assert code == 1
    latest = tmp_path / "runs" / "latest"
    table = pd.read_parquet(latest / "measurements.parquet")
    for kind in (*PER_MODEL, "published"):
        rows = table[(table.model == name) & table.metric.isin(OWED[kind])]
        assert set(rows.metric) == set(OWED[kind])
        assert set(rows.status) == {status}
        assert rows.value.isna().all()
        assert rows.reason.str.contains(reason).all()
        if with_other:
            others = table[(table.model == "deepfm") & table.metric.isin(OWED[kind])]
            assert set(others[others.value.notna()].metric) >= set(OWED[kind]) - {
                "gauc",
                "split_host",
                "split_component",
            }
    assert reason in capfd.readouterr().out
    assert reason in (latest / "report.html").read_text()


def test_model_options_that_do_not_fit_stop_before_any_run(
    work: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "suite=ci", "model=fat", "fat.heads=5", f"run.out={tmp_path / 'runs'}", *SMALL]) == 2
    message = capfd.readouterr().err
    assert "fat.heads=5" in message
    assert "heads" in message.split(":", 2)[2]
    assert list(tmp_path.iterdir()) == []
